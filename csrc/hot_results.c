/* hot_results.c - PagePtr, and what get() answers: Materialized, Free, Unallocated, Counter, Meta.
 *
 * All are immutable and belong to the package by name (mmpc.PagePtr), so that either face unpickles what the other pickled.
 */
#include <stddef.h>

#include "hot.h"

/* ---- PagePtr ------------------------------------------------------------------------------------------------------ */

PyObject *hot_key_new(hot_state *state, const mm_key *key)
{
    hot_key *k = PyObject_New(hot_key, state->key);
    if (k) k->key = *key;
    return (PyObject *)k;
}

static PyObject *key_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"pid", "head", "wts", "last_lsn", NULL};
    PyObject *in[4];
    uint64_t out[4];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO:PagePtr", names, &in[0], &in[1], &in[2], &in[3])) return NULL;
    for (int i = 0; i < 4; i++) {
        out[i] = PyLong_AsUnsignedLongLong(in[i]);
        if (out[i] == UINT64_MAX && PyErr_Occurred()) return NULL;
    }
    hot_key *k = PyObject_New(hot_key, type);
    if (k) k->key = (mm_key){.pid = out[0], .head = out[1], .wts = out[2], .lsn = out[3]};
    return (PyObject *)k;
}

static void key_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *key_compare(PyObject *a, PyObject *b, int op)
{
    if (Py_TYPE(a) != Py_TYPE(b) || (op != Py_EQ && op != Py_NE)) Py_RETURN_NOTIMPLEMENTED;
    const mm_key *x = &((hot_key *)a)->key, *y = &((hot_key *)b)->key;
    return PyBool_FromLong((x->pid == y->pid && x->wts == y->wts) == (op == Py_EQ));
}

static Py_hash_t key_hash(PyObject *self)
{
    const mm_key *k = &((hot_key *)self)->key;
    uint64_t h = (k->pid ^ k->wts << 32 ^ k->wts >> 32) * UINT64_C(0x9E3779B97F4A7C15);
    h ^= h >> 29;
    return h == UINT64_MAX ? 0 : (Py_hash_t)h; /* -1 is the mark of an error */
}

static PyObject *key_repr(PyObject *self)
{
    const mm_key *k = &((hot_key *)self)->key;
    return PyUnicode_FromFormat("PagePtr(pid=%llu, head=%llu, wts=%llu, last_lsn=%llu)", (unsigned long long)k->pid,
                                (unsigned long long)k->head, (unsigned long long)k->wts, (unsigned long long)k->lsn);
}

static PyObject *key_reduce(PyObject *self, PyObject *unused)
{
    (void)unused;
    const mm_key *k = &((hot_key *)self)->key;
    return Py_BuildValue("O(KKKK)", (PyObject *)Py_TYPE(self), k->pid, k->head, k->wts, k->lsn);
}

static PyMemberDef key_members[] = {
    {"pid", T_ULONGLONG, offsetof(hot_key, key.pid), READONLY, "page id"},
    {"head", T_ULONGLONG, offsetof(hot_key, key.head), READONLY, "head word when the key was taken"},
    {"wts", T_ULONGLONG, offsetof(hot_key, key.wts), READONLY, "version of the page's content"},
    {"last_lsn", T_ULONGLONG, offsetof(hot_key, key.lsn), READONLY, "the state is durable once stable_lsn has reached this"},
    {NULL, 0, 0, 0, NULL},
};
static PyMethodDef key_methods[] = {{"__reduce__", key_reduce, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
static PyType_Slot key_slots[] = {
    {Py_tp_doc, "PagePtr(pid, head, wts, last_lsn): names one version of a page.\n\n"
                "Keys are equal when page and version are; a move of the page changes neither."},
    {Py_tp_new, key_new},
    {Py_tp_dealloc, key_dealloc},
    {Py_tp_richcompare, key_compare},
    {Py_tp_hash, key_hash},
    {Py_tp_repr, key_repr},
    {Py_tp_members, key_members},
    {Py_tp_methods, key_methods},
    {0, NULL},
};
static PyType_Spec key_spec = {"mmpc.PagePtr", sizeof(hot_key), 0, Py_TPFLAGS_DEFAULT, key_slots};

/* ---- results ------------------------------------------------------------------------------------------------------ */

static const char *const page_names[] = {"Materialized", "Free", "Unallocated", "Counter", "Meta"};

/* What can take part in no cycle needs no visit by the garbage collector: most pages are plain bytes. */
static int is_plain(PyObject *value)
{
    return !value || PyBytes_CheckExact(value) || PyLong_CheckExact(value) || PyUnicode_CheckExact(value)
           || PyFloat_CheckExact(value);
}

/* Takes over both references, also when it fails. */
static PyObject *page_make(PyTypeObject *type, int kind, PyObject *value, PyObject *key)
{
    hot_page *p = PyObject_GC_New(hot_page, type);
    if (!p) {
        Py_XDECREF(value);
        Py_XDECREF(key);
        return NULL;
    }
    p->kind = kind;
    p->value = value;
    p->key = key;
    if (!is_plain(value)) PyObject_GC_Track(p);
    return (PyObject *)p;
}

static PyTypeObject *page_type(const hot_state *s, int kind)
{
    switch (kind) {
    case HOT_MATERIALIZED: return s->materialized;
    case HOT_FREE: return s->free;
    case HOT_UNALLOCATED: return s->unallocated;
    case HOT_COUNTER: return s->counter;
    default: return s->meta;
    }
}

PyObject *hot_page_new(hot_state *state, int kind, PyObject *value, const mm_key *key)
{
    PyObject *k = key ? hot_key_new(state, key) : NULL;
    if (key && !k) {
        Py_XDECREF(value);
        return NULL;
    }
    return page_make(page_type(state, kind), kind, value, k);
}

static PyObject *page_new(PyTypeObject *type, PyObject *args, PyObject *kwargs, int kind)
{
    static char *both[] = {"value", "key", NULL}, *one[] = {"key", NULL}, *none[] = {NULL};
    PyObject *value = NULL, *key = NULL;
    int ok = kind == HOT_UNALLOCATED ? PyArg_ParseTupleAndKeywords(args, kwargs, ":Unallocated", none)
             : kind == HOT_FREE      ? PyArg_ParseTupleAndKeywords(args, kwargs, "O:Free", one, &key)
                                     : PyArg_ParseTupleAndKeywords(args, kwargs, "OO", both, &value, &key);
    if (!ok) return NULL;
    Py_XINCREF(value);
    Py_XINCREF(key);
    PyObject *p = page_make(type, kind, value, key);
    if (p && !PyObject_GC_IsTracked(p)) PyObject_GC_Track(p); /* the key is whatever the caller gave */
    return p;
}
static PyObject *materialized_new(PyTypeObject *t, PyObject *a, PyObject *k) { return page_new(t, a, k, HOT_MATERIALIZED); }
static PyObject *free_new(PyTypeObject *t, PyObject *a, PyObject *k) { return page_new(t, a, k, HOT_FREE); }
static PyObject *unallocated_new(PyTypeObject *t, PyObject *a, PyObject *k) { return page_new(t, a, k, HOT_UNALLOCATED); }
static PyObject *counter_new(PyTypeObject *t, PyObject *a, PyObject *k) { return page_new(t, a, k, HOT_COUNTER); }
static PyObject *meta_new(PyTypeObject *t, PyObject *a, PyObject *k) { return page_new(t, a, k, HOT_META); }

static int page_traverse(PyObject *self, visitproc visit, void *arg)
{
    hot_page *p = (hot_page *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(p->value);
    Py_VISIT(p->key);
    return 0;
}

static int page_clear(PyObject *self)
{
    hot_page *p = (hot_page *)self;
    Py_CLEAR(p->value);
    Py_CLEAR(p->key);
    return 0;
}

static void page_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)page_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static int same(PyObject *a, PyObject *b)
{
    if (!a || !b) return a == b;
    return PyObject_RichCompareBool(a, b, Py_EQ);
}

static PyObject *page_compare(PyObject *a, PyObject *b, int op)
{
    if (Py_TYPE(a) != Py_TYPE(b) || (op != Py_EQ && op != Py_NE)) Py_RETURN_NOTIMPLEMENTED;
    hot_page *x = (hot_page *)a, *y = (hot_page *)b;
    int equal = same(x->key, y->key);
    if (equal > 0) equal = same(x->value, y->value);
    if (equal < 0) return NULL;
    return PyBool_FromLong(equal == (op == Py_EQ));
}

static PyObject *page_repr(PyObject *self)
{
    hot_page *p = (hot_page *)self;
    const char *name = page_names[p->kind];
    if (p->value) return PyUnicode_FromFormat("%s(value=%R, key=%R)", name, p->value, p->key);
    if (p->key) return PyUnicode_FromFormat("%s(key=%R)", name, p->key);
    return PyUnicode_FromFormat("%s()", name);
}

static PyObject *page_reduce(PyObject *self, PyObject *unused)
{
    (void)unused;
    hot_page *p = (hot_page *)self;
    PyObject *type = (PyObject *)Py_TYPE(self);
    if (p->value) return Py_BuildValue("O(OO)", type, p->value, p->key);
    return p->key ? Py_BuildValue("O(O)", type, p->key) : Py_BuildValue("O()", type);
}

static PyObject *new_value(hot_page *p)
{
    Py_INCREF(p->value);
    return p->value;
}

static PyObject *page_unwrap(PyObject *self, PyObject *unused)
{
    (void)unused;
    hot_page *p = (hot_page *)self;
    if (p->kind == HOT_MATERIALIZED) return new_value(p);
    return PyErr_Format(PyExc_ValueError, "unwrap called on non-Materialized: %R", self);
}

static PyObject *page_expect(PyObject *self, PyObject *message)
{
    hot_page *p = (hot_page *)self;
    if (p->kind == HOT_MATERIALIZED) return new_value(p);
    return PyErr_Format(PyExc_ValueError, "%S", message);
}

static PyObject *page_is_materialized(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(((hot_page *)self)->kind == HOT_MATERIALIZED);
}
static PyObject *page_is_free(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(((hot_page *)self)->kind == HOT_FREE);
}
static PyObject *page_is_unallocated(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(((hot_page *)self)->kind == HOT_UNALLOCATED);
}

static PyMethodDef page_methods[] = {
    {"unwrap", page_unwrap, METH_NOARGS, "The value of a Materialized; ValueError for anything else."},
    {"expect", page_expect, METH_O, "The value of a Materialized; ValueError with this message for anything else."},
    {"is_materialized", page_is_materialized, METH_NOARGS, "Whether the page has a value."},
    {"is_free", page_is_free, METH_NOARGS, "Whether the page was freed and not used again."},
    {"is_unallocated", page_is_unallocated, METH_NOARGS, "Whether the page was never allocated."},
    {"__reduce__", page_reduce, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef value_and_key[] = {
    {"value", T_OBJECT_EX, offsetof(hot_page, value), READONLY, "the merged value; shared, so treat it as immutable"},
    {"key", T_OBJECT_EX, offsetof(hot_page, key), READONLY, "PagePtr for the next link, replace or free"},
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef only_key[] = {
    {"key", T_OBJECT_EX, offsetof(hot_page, key), READONLY, "PagePtr of the free page"},
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef no_members[] = {{NULL, 0, 0, 0, NULL}};

#define PAGE_TYPE(name, Name, members, text)                                                                           \
    static PyType_Slot name##_slots[] = {                                                                              \
        {Py_tp_doc, text},                                                                                             \
        {Py_tp_new, name##_new},                                                                                       \
        {Py_tp_dealloc, page_dealloc},                                                                                 \
        {Py_tp_traverse, page_traverse},                                                                               \
        {Py_tp_clear, page_clear},                                                                                     \
        {Py_tp_richcompare, page_compare},                                                                             \
        {Py_tp_repr, page_repr},                                                                                       \
        {Py_tp_members, members},                                                                                      \
        {Py_tp_methods, page_methods},                                                                                 \
        {0, NULL},                                                                                                     \
    };                                                                                                                 \
    static PyType_Spec name##_spec = {"mmpc." Name, sizeof(hot_page), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,      \
                                      name##_slots}

PAGE_TYPE(materialized, "Materialized", value_and_key, "Materialized(value, key): the page has this value.");
PAGE_TYPE(free, "Free", only_key, "Free(key): the page was freed, and its id not used again.");
PAGE_TYPE(unallocated, "Unallocated", no_members, "Unallocated(): no such page.");
PAGE_TYPE(counter, "Counter", value_and_key, "Counter(value, key): page 1, the ceiling of the ids handed out.");
PAGE_TYPE(meta, "Meta", value_and_key, "Meta(value, key): page 0, the roots of named collections.");

/* ---- into the module ---------------------------------------------------------------------------------------------- */

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec, PyObject *match)
{
    PyObject *type = match ? PyType_FromModuleAndSpec(module, spec, NULL) : NULL;
    if (type && (PyObject_SetAttrString(type, "__match_args__", match) < 0 || PyModule_AddType(module, (PyTypeObject *)type) < 0))
        Py_CLEAR(type);
    Py_XDECREF(match);
    return (PyTypeObject *)type;
}

int hot_add_results(PyObject *module, hot_state *s)
{
    if (!(s->key = add_type(module, &key_spec, Py_BuildValue("(ssss)", "pid", "head", "wts", "last_lsn")))) return -1;
    if (!(s->materialized = add_type(module, &materialized_spec, Py_BuildValue("(ss)", "value", "key")))) return -1;
    if (!(s->free = add_type(module, &free_spec, Py_BuildValue("(s)", "key")))) return -1;
    if (!(s->unallocated = add_type(module, &unallocated_spec, PyTuple_New(0)))) return -1;
    if (!(s->counter = add_type(module, &counter_spec, Py_BuildValue("(ss)", "value", "key")))) return -1;
    if (!(s->meta = add_type(module, &meta_spec, Py_BuildValue("(ss)", "value", "key")))) return -1;
    return 0;
}
