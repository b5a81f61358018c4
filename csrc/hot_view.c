/* hot_view.c - View: a page's bytes in the mapping, through the buffer protocol.
 *
 * Two objects.  `Held` owns the hold and gives the buffers; it is what memoryviews and arrays keep alive, so the bytes stay until the last of them
 * is gone, whatever became of the View, of the handle or of the store.  `View` is what users have and release.  An array made by
 * numpy.ndarray(..., buffer=view) keeps the View alone: who ever asked it for plain bytes may be one, and the hold then stays until it is gone.
 *
 * What is left of a closed attachment when its last view goes is looked after by the owner (mmpc/_views.py), which also knows about forks.
 */
#include <stddef.h>

#include "hot.h"

typedef struct hot_held {
    PyObject_HEAD
    mm *m;            /* NULL: nothing is held in the mapping */
    PyObject *owner;  /* keeps m */
    PyObject *source; /* keeps form.data, where m is NULL */
    uint32_t hold;
    mm_form form;
} hot_held;

typedef struct hot_view_object {
    PyObject_HEAD
    hot_held *held; /* NULL: given back */
    PyObject *key;
    int released, plain;
} hot_view_object;

/* ---- Held ---------------------------------------------------------------------------------------------------------------------- */

static hot_held *held_new(hot_state *state, mm *m, PyObject *owner, PyObject *source)
{
    hot_held *h = PyObject_New(hot_held, state->held);
    if (!h) return NULL;
    h->m = m;
    h->owner = owner;
    h->source = source;
    h->hold = MM_VIEW_NONE;
    Py_XINCREF(owner);
    Py_XINCREF(source);
    return h;
}

static void dropped(PyObject *owner, int said)
{
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyObject *answer = PyObject_CallMethod(owner, "_dropped", "i", said);
    if (!answer) PyErr_WriteUnraisable(owner);
    Py_XDECREF(answer);
    PyErr_Restore(type, error, trace);
}

static void held_dealloc(PyObject *self)
{
    hot_held *h = (hot_held *)self;
    PyTypeObject *type = Py_TYPE(self);
    int said = h->m ? mm_view_drop(h->m, h->hold) : 0;
    if (said) dropped(h->owner, said);
    Py_XDECREF(h->owner);
    Py_XDECREF(h->source);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* With a format the buffer has the array's shape; without one it is plain bytes. */
static int held_buffer(PyObject *self, Py_buffer *b, int flags)
{
    mm_form *f = &((hot_held *)self)->form;
    int typed = (flags & PyBUF_FORMAT) && (flags & PyBUF_ND), fortran = (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS;
    const char *wrong = flags & PyBUF_WRITABLE                 ? "a view is read-only"
                        : typed && !f->format[0]               ? "times have no buffer format: use numpy.asarray(view) or view.raw"
                        : typed && fortran && f->ndim > 1      ? "the array is in C order"
                                                               : NULL;
    if (wrong) {
        b->obj = NULL;
        PyErr_SetString(PyExc_BufferError, wrong);
        return -1;
    }
    if (PyBuffer_FillInfo(b, self, (void *)(uintptr_t)f->data, (Py_ssize_t)f->bytes, 1, flags) < 0) return -1;
    if (!typed) return 0;
    b->itemsize = (Py_ssize_t)f->item;
    b->ndim = (int)f->ndim;
    b->format = f->format;
    b->shape = f->ndim ? (Py_ssize_t *)f->shape : NULL;
    b->strides = f->ndim && (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? (Py_ssize_t *)f->strides : NULL;
    return 0;
}

static PyType_Slot held_slots[] = {{Py_tp_dealloc, held_dealloc}, {Py_bf_getbuffer, held_buffer}, {0, NULL}};
static PyType_Spec held_spec = {"mmpc._hot.Held", sizeof(hot_held), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, held_slots};

/* ---- errors -------------------------------------------------------------------------------------------------------------------- */

static void raise(const char *name, PyObject *message)
{
    PyObject *errors = message ? PyImport_ImportModule("mmpc.errors") : NULL;
    PyObject *type = errors ? PyObject_GetAttrString(errors, name) : NULL;
    if (type) PyErr_SetObject(type, message);
    Py_XDECREF(type);
    Py_XDECREF(errors);
    Py_XDECREF(message);
}

/* A borrowed reference; NULL and Closed: released, or another process's. */
static hot_held *live(hot_view_object *v)
{
    hot_held *h = v->released ? NULL : v->held;
    if (!h) raise("Closed", PyUnicode_FromString("this view was released; open another one"));
    else if (!h->m || mm_view_usable(h->m, h->hold)) return h;
    else raise("Closed", PyUnicode_FromString("this view was opened before a fork, and could not be taken over; open one here"));
    return NULL;
}

/* ---- View ---------------------------------------------------------------------------------------------------------------------- */

static int view_buffer(hot_view_object *v, Py_buffer *b, int flags)
{
    hot_held *h = live(v);
    b->obj = NULL;
    if (!h) return -1;
    if (!(flags & PyBUF_FORMAT)) v->plain = 1;
    return PyObject_GetBuffer((PyObject *)h, b, flags); /* the buffer's owner is Held */
}

static void give_back(hot_view_object *v)
{
    hot_held *h = v->held;
    v->held = NULL;
    Py_XDECREF((PyObject *)h);
}

static PyObject *view_release(hot_view_object *v, PyObject *unused)
{
    (void)unused;
    v->released = 1;
    if (!v->plain) give_back(v);
    Py_RETURN_NONE;
}

static void view_dealloc(PyObject *self)
{
    hot_view_object *v = (hot_view_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    give_back(v);
    Py_XDECREF(v->key);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *view_enter(hot_view_object *v, PyObject *unused)
{
    (void)unused;
    if (!live(v)) return NULL;
    Py_INCREF((PyObject *)v);
    return (PyObject *)v;
}

static PyObject *view_exit(hot_view_object *v, PyObject *unused) { return view_release(v, unused); }

/* As one flat run of bytes, also where the array has no buffer format. */
static PyObject *view_raw(hot_view_object *v, void *unused)
{
    (void)unused;
    hot_held *h = live(v), *flat = h ? PyObject_New(hot_held, Py_TYPE((PyObject *)h)) : NULL;
    if (!flat) return NULL;
    flat->m = NULL;
    flat->owner = NULL;
    flat->source = (PyObject *)h;
    Py_INCREF(flat->source);
    flat->hold = MM_VIEW_NONE;
    flat->form = (mm_form){.data = h->form.data, .bytes = h->form.bytes, .item = 1, .ndim = 1, .kind = MM_FORM_BYTES, .format = "B"};
    flat->form.shape[0] = h->form.bytes;
    flat->form.strides[0] = 1;
    PyObject *raw = PyMemoryView_FromObject((PyObject *)flat);
    Py_DECREF((PyObject *)flat);
    return raw;
}

static PyObject *view_nbytes(hot_view_object *v, void *unused)
{
    (void)unused;
    hot_held *h = live(v);
    return h ? PyLong_FromUnsignedLongLong(h->form.bytes) : NULL;
}

static PyObject *view_dtype(hot_view_object *v, void *unused)
{
    (void)unused;
    hot_held *h = live(v);
    if (h && h->form.kind == MM_FORM_BYTES) Py_RETURN_NONE;
    return h ? PyUnicode_FromString(h->form.dtype) : NULL;
}

static PyObject *view_shape(hot_view_object *v, void *unused)
{
    (void)unused;
    hot_held *h = live(v);
    PyObject *shape = h ? PyTuple_New((Py_ssize_t)h->form.ndim) : NULL;
    for (uint32_t i = 0; shape && i < h->form.ndim; i++) {
        PyObject *n = PyLong_FromUnsignedLongLong(h->form.shape[i]);
        if (!n || PyTuple_SetItem(shape, (Py_ssize_t)i, n) < 0) Py_CLEAR(shape);
    }
    return shape;
}

static PyObject *view_zero_copy(hot_view_object *v, void *unused)
{
    (void)unused;
    hot_held *h = live(v);
    return h ? PyBool_FromLong(h->m != NULL) : NULL;
}

static PyObject *view_released(hot_view_object *v, void *unused)
{
    (void)unused;
    return PyBool_FromLong(v->released);
}

static PyObject *view_key(hot_view_object *v, void *unused)
{
    (void)unused;
    Py_INCREF(v->key);
    return v->key;
}

static PyObject *view_repr(hot_view_object *v)
{
    unsigned long long pid = ((hot_key *)v->key)->key.pid;
    if (v->released || !v->held) return PyUnicode_FromFormat("<View of page %llu, released>", pid);
    const mm_form *f = &v->held->form;
    return PyUnicode_FromFormat("<View of page %llu, %llu bytes%s%s>", pid, (unsigned long long)f->bytes,
                                f->kind == MM_FORM_ARRAY ? ", dtype " : "", f->kind == MM_FORM_ARRAY ? f->dtype : "");
}

static PyObject *view_reduce(hot_view_object *v, PyObject *unused)
{
    (void)unused;
    (void)v;
    PyErr_SetString(PyExc_TypeError, "a View cannot be pickled: it is memory of this process; send the page id, or bytes(view)");
    return NULL;
}

/* mmpc._arrays.NAME(view, *args, **kwargs) */
static PyObject *by_numpy(hot_view_object *v, const char *name, PyObject *args, PyObject *kwargs)
{
    PyObject *module = PyImport_ImportModule("mmpc._arrays"), *one = Py_BuildValue("(O)", (PyObject *)v), *answer = NULL;
    PyObject *fn = module ? PyObject_GetAttrString(module, name) : NULL, *all = one ? PySequence_Concat(one, args) : NULL;
    if (fn && all) answer = PyObject_Call(fn, all, kwargs);
    Py_XDECREF(all);
    Py_XDECREF(fn);
    Py_XDECREF(one);
    Py_XDECREF(module);
    return answer;
}

static PyObject *view_array(hot_view_object *v, PyObject *args, PyObject *kwargs) { return by_numpy(v, "array_of", args, kwargs); }
static PyObject *view_dlpack(hot_view_object *v, PyObject *args, PyObject *kwargs) { return by_numpy(v, "dlpack", args, kwargs); }
static PyObject *view_device(hot_view_object *v, PyObject *args) { return by_numpy(v, "dlpack_device", args, NULL); }

#define METHOD(f) ((PyCFunction)(void (*)(void))(f))

static PyMethodDef view_methods[] = {
    {"release", METHOD(view_release), METH_NOARGS,
     "release()\n\nEnds the view: it gives no more buffers. What was made of it before stays valid, and holds the bytes until it is gone.\n"
     "Idempotent, from any thread."},
    {"__enter__", METHOD(view_enter), METH_NOARGS, NULL},
    {"__exit__", METHOD(view_exit), METH_VARARGS, NULL},
    {"__array__", METHOD(view_array), METH_VARARGS | METH_KEYWORDS, "__array__(dtype=None, copy=None)\n\nFor numpy.asarray."},
    {"__dlpack__", METHOD(view_dlpack), METH_VARARGS | METH_KEYWORDS, "__dlpack__(**options)\n\nFor from_dlpack, as numpy's own."},
    {"__dlpack_device__", METHOD(view_device), METH_VARARGS, NULL},
    {"__reduce__", METHOD(view_reduce), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef view_getset[] = {
    {"key", (getter)view_key, NULL, "PagePtr of the version that is viewed", NULL},
    {"nbytes", (getter)view_nbytes, NULL, "length in bytes", NULL},
    {"dtype", (getter)view_dtype, NULL, "numpy's dtype.str of an array; None: the page holds bytes", NULL},
    {"shape", (getter)view_shape, NULL, "of the array; (nbytes,) of bytes", NULL},
    {"raw", (getter)view_raw, NULL, "a flat, read-only memoryview of the bytes", NULL},
    {"zero_copy", (getter)view_zero_copy, NULL, "False: the fragments could not be consolidated, and the view is of a private copy", NULL},
    {"released", (getter)view_released, NULL, "whether release() was called", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot view_slots[] = {
    {Py_tp_doc, "The bytes of a page, read-only, where they lie in the log; made by PageCache.view, a context manager.\n\n"
                "memoryview(view), numpy.asarray(view) and from_dlpack(view) take them without a copy. They stay as they are while the view, or what\n"
                "was made of it, lives: through replace, free, close of the handle and fork, and delay only the reuse of their own segment of the log.\n"
                "release(), or the end of a with block, ends the view itself: it then raises Closed; what was made of it before stays valid."},
    {Py_tp_dealloc, view_dealloc},
    {Py_bf_getbuffer, view_buffer},
    {Py_tp_repr, view_repr},
    {Py_tp_methods, view_methods},
    {Py_tp_getset, view_getset},
    {0, NULL},
};
static PyType_Spec view_spec = {"mmpc.View", sizeof(hot_view_object), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, view_slots};

/* Takes over both references, also when it fails. */
static PyObject *view_new(hot_state *state, hot_held *held, PyObject *key)
{
    hot_view_object *v = held && key ? PyObject_New(hot_view_object, state->view) : NULL;
    if (v) {
        v->held = held;
        v->key = key;
        v->released = v->plain = 0;
    } else {
        Py_XDECREF((PyObject *)held);
        Py_XDECREF(key);
    }
    return (PyObject *)v;
}

/* ---- view ---------------------------------------------------------------------------------------------------------------------- */

static void refuse(uint64_t pid, const mm_form *f)
{
    raise("Unsupported", PyUnicode_FromFormat("page %llu holds a value of type %s: bytes and numpy arrays have a view; use get()",
                                              (unsigned long long)pid, f->dtype));
}

/* Of an encoded value that `source` keeps.  Takes over the key. */
static PyObject *copy_view(hot_verbs *self, PyObject *source, const uint8_t *p, const uint8_t *end, PyObject *key)
{
    hot_held *h = key ? held_new(self->state, NULL, NULL, source) : NULL;
    if (h) memcpy(h->form.dtype, "unknown", 8);
    if (h && (mm_form_read(p, (uint64_t)(end - p), &h->form) || h->form.kind == MM_FORM_OTHER)) {
        refuse(((hot_key *)key)->key.pid, &h->form);
        Py_DECREF((PyObject *)h);
        h = NULL;
    }
    if (h) return view_new(self->state, h, key);
    Py_XDECREF(key);
    return NULL;
}

/* `answer`: (the value, encoded, its key). */
static PyObject *view_of_copy(hot_verbs *self, PyObject *answer)
{
    PyObject *payload, *key;
    char *p;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(answer, "SO!", &payload, (PyObject *)self->state->key, &key)) return NULL;
    if (PyBytes_AsStringAndSize(payload, &p, &n) < 0) return NULL;
    Py_INCREF(key);
    return copy_view(self, payload, (const uint8_t *)p, (const uint8_t *)p + n, key);
}

/* Several fragments: self._contiguous(pid, tries) consolidates them and answers None, or answers a copy.  NULL without an exception: look again. */
static PyObject *make_contiguous(hot_verbs *self, PyObject *pid_object, int tries)
{
    PyObject *answer = PyObject_CallMethod((PyObject *)self, "_contiguous", "Oi", pid_object, tries);
    PyObject *view = answer && answer != Py_None ? view_of_copy(self, answer) : NULL;
    Py_XDECREF(answer);
    return view;
}

/* The private copy that decompressing makes.  NULL with *status > 0: the core said so; MM_CHAIN: it is several fragments by now; <= 0: an exception. */
static PyObject *view_decompressed(hot_verbs *self, mm *m, uint64_t pid, mm_result *r, int *status)
{
    hot_buffer b;
    mm_token t;
    PyObject *view = NULL;
    *status = hot_read_page(self, m, pid, 0, MM_READ_TO_MERGE, &b);
    *r = b.r;
    if (*status == MM_OK && b.r.kind == HOT_KIND_FREE) *status = MM_FREED;
    /* Several fragments, which Python merges; or it has been replaced meanwhile, by what is not compressed. */
    if (*status == MM_OK && ((!b.r.merged && b.r.count != 1) || !b.holder)) *status = MM_CHAIN;
    if (*status == MM_OK) {
        const uint8_t *end = b.p + b.r.length, *p = b.r.merged ? b.p : mm_msgpack_token(b.p, end, &t);
        view = copy_view(self, b.holder, p ? p : end, end, hot_key_new(self->state, &b.r.key));
        *status = -1;
    }
    Py_XDECREF(b.holder);
    return view;
}

/* Long ones are verified with the GIL given up; `held` keeps the attachment. */
static int show(hot_held *held, uint64_t pid, mm_result *r)
{
    mm *m = held->m;
    int status = mm_view_page(m, pid, HOT_LONG, &held->form, &held->hold, r);
    if (status != MM_SPACE) return status;
    Py_BEGIN_ALLOW_THREADS
    status = mm_view_page(m, pid, UINT64_MAX, &held->form, &held->hold, r);
    Py_END_ALLOW_THREADS
    return status;
}

/* NULL with *status > 0: the core said so, NULL with *status <= 0: an exception. */
static PyObject *view_once(hot_verbs *self, mm *m, uint64_t pid, mm_result *r, int *status)
{
    hot_state *state = self->state;
    hot_held *held = held_new(state, m, self->owner, NULL);
    *status = -1;
    if (!held) return NULL;
    *status = show(held, pid, r);
    if (*status == MM_OK && held->form.kind != MM_FORM_OTHER) return view_new(state, held, hot_key_new(state, &r->key));
    if (*status == MM_OK) refuse(pid, &held->form);
    Py_DECREF((PyObject *)held);
    return NULL;
}

PyObject *hot_view(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"view", 1, 2, {"pid", "tx"}};
    PyObject *in[2];
    uint64_t pid;
    mm_result r = {0};
    if (hot_arguments(&signature, args, nargs, names, in) < 0 || hot_check_tx(self, in[1]) < 0) return NULL;
    int known = hot_pid(in[0], &pid);
    if (known < 0) return NULL;
    for (int tries = 0;;) {
        mm *m = self->m;
        int status = !m ? MM_CLOSED : !known ? MM_NOPAGE : MM_OK;
        PyObject *view = status == MM_OK ? view_once(self, m, pid, &r, &status) : NULL;
        if (status == MM_COMPRESSED) view = view_decompressed(self, m, pid, &r, &status);
        if (view || status <= 0) return view;
        if (status == MM_CHAIN) {
            view = make_contiguous(self, in[0], tries++);
            if (view || PyErr_Occurred()) return view;
        } else if (hot_mend(self, status, &r, in[0], NULL) < 0)
            return NULL;
    }
}

int hot_add_views(PyObject *module, hot_state *state)
{
    state->held = (PyTypeObject *)PyType_FromModuleAndSpec(module, &held_spec, NULL);
    state->view = state->held ? (PyTypeObject *)PyType_FromModuleAndSpec(module, &view_spec, NULL) : NULL;
    return state->view ? PyModule_AddType(module, state->view) : -1;
}
