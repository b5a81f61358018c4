/* hot_verbs.c - the type Verbs: what PageCache inherits the hot verbs and the object cache from. */
#include "hot.h"

hot_timing hot_begin_timed(hot_verbs *self, hot_sampling *s, uint32_t every)
{
    bool first = s->begun < every;
    s->begun += first;
    s->left = s->begun < every ? 0 : every - 1;
    return (hot_timing){ self->m ? mm_ticks(self->m) : 0, first ? 1 : every };
}

void hot_end_timed(hot_verbs *self, int histogram, hot_timing t)
{
    if (self->m) mm_metrics_time(self->m, (uint32_t)histogram, t.begun, t.n);
}

static PyObject *verbs_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs; /* for the __init__ of a subclass */
    hot_verbs *self = (hot_verbs *)PyType_GenericAlloc(type, 0);
    if (self) {
        mm_objects_init(&self->objects, 0);
        self->compress_from = UINT64_MAX;
    }
    return (PyObject *)self;
}

static int verbs_traverse(hot_verbs *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->module);
    Py_VISIT(self->pack);
    Py_VISIT(self->unpack);
    Py_VISIT(self->merge);
    Py_VISIT(self->size_of);
    Py_VISIT(self->owner);
    Py_VISIT(self->compress);
    Py_VISIT(self->decompress);
    for (uint32_t i = self->objects.oldest; i != MM_OBJECT_NONE && self->objects.count; i = self->objects.slots[i].newer)
        Py_VISIT((PyObject *)self->objects.slots[i].object);
    return 0;
}

static int verbs_clear(hot_verbs *self)
{
    hot_tell_hits(self);
    self->m = self->quick = NULL; /* the attachment is its owner's to close */
    hot_forget_all(self);
    Py_CLEAR(self->pack);
    Py_CLEAR(self->unpack);
    Py_CLEAR(self->merge);
    Py_CLEAR(self->size_of);
    Py_CLEAR(self->owner);
    self->compress_from = UINT64_MAX;
    Py_CLEAR(self->compress);
    Py_CLEAR(self->decompress);
    return 0;
}

static void verbs_dealloc(hot_verbs *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    (void)verbs_clear(self);
    Py_CLEAR(self->module);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static void assign(PyObject **field, PyObject *value)
{
    PyObject *old = *field;
    Py_XINCREF(value);
    *field = value;
    Py_XDECREF(old);
}

static PyObject *verbs_bind(hot_verbs *self, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"_bind", 12, 12, {0}};
    PyObject *in[12];
    if (names || nargs != signature.total) {
        PyErr_SetString(PyExc_TypeError, "_bind() takes 12 positional arguments");
        return NULL;
    }
    if (hot_arguments(&signature, args, nargs, NULL, in) < 0) return NULL;
    unsigned long long address = PyLong_AsUnsignedLongLong(in[0]), capacity = PyLong_AsUnsignedLongLong(in[7]);
    unsigned long long from = PyLong_AsUnsignedLongLong(in[11]);
    long kind = PyLong_AsLong(in[4]);
    int last = PyObject_IsTrue(in[5]);
    if (PyErr_Occurred()) return NULL;
    assign(&self->module, PyType_GetModule(type));
    self->state = PyType_GetModuleState(type);
    hot_resize(self, capacity);
    assign(&self->pack, in[1]);
    assign(&self->unpack, in[2]);
    assign(&self->merge, in[3]);
    assign(&self->size_of, in[6] == Py_None ? NULL : in[6]);
    assign(&self->owner, in[8]);
    assign(&self->decompress, in[9]);
    assign(&self->compress, in[10] == Py_None ? NULL : in[10]);
    self->compress_from = self->compress ? from : UINT64_MAX;
    self->kind = (int)kind;
    self->last = last;
    self->m = (mm *)(uintptr_t)address;
    self->quick = NULL; /* the first hit finds out whether any are counted */
    self->hits_left = self->hits_told = 0;
    self->stood_for = 0;
    self->first_hits = 0;
    Py_RETURN_NONE;
}

static PyObject *verbs_unbind(hot_verbs *self, PyObject *unused)
{
    (void)unused;
    (void)verbs_clear(self);
    Py_RETURN_NONE;
}

static PyObject *verbs_tell(hot_verbs *self, PyObject *unused)
{
    (void)unused;
    hot_tell_hits(self);
    Py_RETURN_NONE;
}

static PyObject *verbs_cache_info(hot_verbs *self, PyObject *unused)
{
    (void)unused;
    const mm_objects *o = &self->objects;
    return Py_BuildValue("(KKKKK)", (unsigned long long)o->count, (unsigned long long)o->bytes, (unsigned long long)o->capacity,
                         (unsigned long long)o->misses, (unsigned long long)o->evictions);
}

static PyObject *verbs_drop(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"_drop", 0, 1, {"pid"}};
    PyObject *in[1];
    uint64_t pid;
    if (hot_arguments(&signature, args, nargs, names, in) < 0) return NULL;
    if (!in[0] || in[0] == Py_None)
        hot_forget_all(self);
    else {
        int known = hot_pid(in[0], &pid);
        if (known < 0) return NULL;
        if (known) hot_forget(self, pid);
    }
    Py_RETURN_NONE;
}

static PyMethodDef verbs_methods[];

/* The interpreter calls a method faster when its descriptor is of the object's own type than when it must first find a base of
 * it: a subclass gets descriptors of its own for the verbs that neither it nor another base defines. */
static int adopt(PyObject *type, PyObject *cls, PyMethodDef *verb)
{
    PyObject *ours = PyObject_GetAttrString(type, verb->ml_name), *seen = PyObject_GetAttrString(cls, verb->ml_name);
    int failed = !ours || !seen;
    if (!failed && ours == seen) {
        PyObject *method = PyDescr_NewMethod((PyTypeObject *)cls, verb);
        failed = !method || PyObject_SetAttrString(cls, verb->ml_name, method) < 0;
        Py_XDECREF(method);
    }
    Py_XDECREF(ours);
    Py_XDECREF(seen);
    return failed ? -1 : 0;
}

static PyObject *call_next(PyObject *type, PyObject *cls, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    if (nargs || names) {
        (void)args;
        PyErr_SetString(PyExc_TypeError, "a subclass of Verbs takes no arguments");
        return NULL;
    }
    PyObject *next = PyObject_CallFunctionObjArgs((PyObject *)&PySuper_Type, type, cls, NULL);
    PyObject *answer = next ? PyObject_CallMethod(next, "__init_subclass__", NULL) : NULL;
    Py_XDECREF(next);
    return answer;
}

static PyObject *verbs_init_subclass(PyObject *cls, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    for (PyMethodDef *verb = verbs_methods; verb->ml_name[0] != '_'; verb++)
        if (adopt((PyObject *)type, cls, verb) < 0) return NULL;
    return call_next((PyObject *)type, cls, args, nargs, names);
}

#define METHOD(f) ((PyCFunction)(void (*)(void))(f))
#define VERB (METH_FASTCALL | METH_KEYWORDS)

static PyMethodDef verbs_methods[] = {
    {"get", METHOD(hot_get), VERB,
     "get(pid, tx=None)\n\nThe merged value and its key as Materialized, or Free, Unallocated, Counter (page 1), Meta (page 0).\n"
     "While nobody changes the page the same object is returned; treat its value as immutable."},
    {"get_many", METHOD(hot_get_many), VERB, "get_many(pids, tx=None)\n\nThe results of get for each page id, in order."},
    {"get_page_frags", METHOD(hot_get_page_frags), VERB,
     "get_page_frags(pid, tx=None)\n\nThe page's key and its fragments, oldest first, not merged.\n"
     "Raises PageNotFound, PageFreed, or Unsupported for pages 0 and 1."},
    {"append", METHOD(hot_append), VERB,
     "append(pid, fragment, tx=None)\n\nAdds a fragment whatever the page's version is; returns the new key.\n"
     "Visible to every process on return; durable once stable_lsn reaches key.last_lsn."},
    {"append_many", METHOD(hot_append_many), VERB,
     "append_many(items, tx=None)\n\nAppends the fragments of pairs (pid, fragment) in order; returns their keys.\n"
     "All are encoded before the first is applied; an exception later carries `applied`, the keys of those that were."},
    {"allocate", METHOD(hot_allocate), VERB, "allocate(fragment, tx=None)\n\nA new page with this base; returns (pid, key)."},
    {"link", METHOD(hot_link), VERB,
     "link(pid, key, fragment, tx=None)\n\nAdds a fragment if nobody wrote since `key`; returns the new key.\n"
     "Raises Conflict (.current, .rejected) otherwise."},
    {"replace", METHOD(hot_replace), VERB,
     "replace(pid, key, fragment, tx=None)\n\nMakes `fragment` the whole page if nobody wrote since `key`; returns the new key.\n"
     "Raises Conflict (.current, .rejected) otherwise."},
    {"free", METHOD(hot_free_page), VERB,
     "free(pid, key, tx=None)\n\nFrees the page if nobody wrote since `key`; returns the key of the free page.\n"
     "Raises Conflict (.current) otherwise."},
    {"view", METHOD(hot_view), VERB,
     "view(pid, tx=None)\n\nThe bytes of a bytes or numpy page as a View: read-only, in the mapping, without a copy.\n"
     "They stay as they are while the view, or a memoryview or array made of it, lives: through replace, free, close and fork.\n"
     "A page of several fragments is consolidated first; where that cannot be, the view is of a copy (zero_copy is False), as is that of a page that is compressed.\n"
     "The checksum is verified when this process first views the bytes. Raises PageNotFound, PageFreed, CorruptionError,\n"
     "or Unsupported for pages 0 and 1 and for values of another type."},
    {"generate_id", METHOD(hot_generate_id), METH_NOARGS,
     "generate_id()\n\nA number that no process was given before, nor will be: rising over all processes, restarts and crashes, with gaps.\n"
     "Once in idgen_persist_interval numbers it writes how far they may go, and flushes if that of the time before is not durable yet."},
    {"_bind", METHOD(verbs_bind), METH_METHOD | VERB,
     "_bind(address, pack, unpack, merge, kind, size_rule_last, size_of, capacity, owner, decompress, compress, compress_from)\n\nAttaches the verbs to the core."},
    {"_tell", METHOD(verbs_tell), METH_NOARGS, "Counts in the metrics what was not counted there yet."},
    {"_unbind", METHOD(verbs_unbind), METH_NOARGS, "Detaches the verbs and drops the object cache."},
    {"_consolidate", METHOD(hot_consolidate), METH_O,
     "_consolidate(pid)\n\nMerges the page's chain to a new base; False: nothing to do, or somebody else did."},
    {"_cache_info", METHOD(verbs_cache_info), METH_NOARGS, "(entries, bytes, capacity, misses, evictions) of the object cache."},
    {"_drop", METHOD(verbs_drop), VERB, "_drop(pid=None)\n\nForgets the cached object of a page, or all."},
    {"__init_subclass__", METHOD(verbs_init_subclass), METH_CLASS | METH_METHOD | VERB, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot verbs_slots[] = {
    {Py_tp_doc, "The verbs of a page cache, and its cache of decoded objects."},
    {Py_tp_new, verbs_new},
    {Py_tp_dealloc, verbs_dealloc},
    {Py_tp_traverse, verbs_traverse},
    {Py_tp_clear, verbs_clear},
    {Py_tp_methods, verbs_methods},
    {0, NULL},
};
static PyType_Spec verbs_spec = {
    "mmpc._hot.Verbs", sizeof(hot_verbs), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, verbs_slots,
};

int hot_add_verbs(PyObject *module, hot_state *state)
{
    state->verbs = (PyTypeObject *)PyType_FromModuleAndSpec(module, &verbs_spec, NULL);
    return state->verbs ? PyModule_AddType(module, state->verbs) : -1;
}
