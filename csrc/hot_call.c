/* hot_call.c - arguments of the verbs, and the way out when the core does not say MM_OK. */
#include "hot.h"

static int position_of(const hot_signature *s, PyObject *name)
{
    for (int i = 0; i < s->total; i++)
        if (PyUnicode_CompareWithASCIIString(name, s->names[i]) == 0) return i;
    return -1;
}

static int keywords(const hot_signature *s, PyObject *const *values, PyObject *names, PyObject **out)
{
    for (Py_ssize_t k = 0; k < PyTuple_Size(names); k++) {
        PyObject *name = PyTuple_GetItem(names, k);
        int i = position_of(s, name);
        if (i < 0) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", s->verb, name);
            return -1;
        }
        if (out[i]) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%U'", s->verb, name);
            return -1;
        }
        out[i] = values[k];
    }
    return 0;
}

int hot_arguments_apart(const hot_signature *s, PyObject *const *args, Py_ssize_t nargs, PyObject *names, PyObject **out)
{
    if (nargs > s->total) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %d arguments (%zd given)", s->verb, s->total, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < s->total; i++) out[i] = i < nargs ? args[i] : NULL;
    if (names && keywords(s, args + nargs, names, out) < 0) return -1;
    for (int i = 0; i < s->required; i++)
        if (!out[i]) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument: '%s'", s->verb, s->names[i]);
            return -1;
        }
    return 0;
}

int hot_pid(PyObject *o, uint64_t *pid)
{
    if (!PyLong_CheckExact(o) && (!PyLong_Check(o) || PyBool_Check(o))) {
        PyErr_Format(PyExc_TypeError, "pid must be an int, not %R", (PyObject *)Py_TYPE(o));
        return -1;
    }
    int overflow;
    long long v = PyLong_AsLongLongAndOverflow(o, &overflow);
    *pid = (uint64_t)v;
    return !overflow && (uint64_t)v < HOT_PIDS;
}

/* The key must be of this page, in range or not. */
int hot_key_of(hot_verbs *self, PyObject *pid, PyObject *key, mm_key *out)
{
    if (Py_TYPE(key) != self->state->key) {
        PyErr_Format(PyExc_TypeError, "key must be a PagePtr, not %R", (PyObject *)Py_TYPE(key));
        return -1;
    }
    *out = ((hot_key *)key)->key;
    uint64_t page;
    int known = hot_pid(pid, &page);
    if (known < 0) return -1;
    if (out->pid == page) return known;
    PyErr_Format(PyExc_ValueError, "the key is of page %llu, not of page %S", (unsigned long long)out->pid, pid);
    return -1;
}

int hot_check_tx(hot_verbs *self, PyObject *tx)
{
    if (!tx || tx == Py_None) return 0;
    if (!self->state) return hot_closed(self); /* never bound */
    PyObject *answer = PyObject_CallMethodObjArgs(tx, self->state->check, self, NULL);
    Py_XDECREF(answer);
    if (answer) return 0;
    if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyObject *type, *error, *trace;
        PyErr_Fetch(&type, &error, &trace);
        bool is_tx = PyObject_HasAttr(tx, self->state->check);
        PyErr_Restore(type, error, trace);
        if (!is_tx) PyErr_Format(PyExc_TypeError, "tx must be a Tx, not %R", (PyObject *)Py_TYPE(tx));
    }
    return -1;
}

int hot_mend(hot_verbs *self, int status, const mm_result *r, PyObject *pid, PyObject *fragment)
{
    PyObject *answer = PyObject_CallMethod(
        (PyObject *)self, "_mend", "i(KKKKKKIi)OO", status, (unsigned long long)r->key.pid, (unsigned long long)r->key.head,
        (unsigned long long)r->key.wts, (unsigned long long)r->key.lsn, (unsigned long long)r->length,
        (unsigned long long)r->offset, (unsigned int)r->file, (int)r->os_error, pid ? pid : Py_None,
        fragment ? fragment : Py_None);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

void hot_due(hot_verbs *self)
{
    PyObject *answer = PyObject_CallMethod((PyObject *)self, "_due", NULL);
    if (!answer) PyErr_Clear();
    Py_XDECREF(answer);
}

int hot_closed(hot_verbs *self)
{
    mm_result r = {0};
    if (hot_mend(self, MM_CLOSED, &r, NULL, NULL) == 0)
        PyErr_SetString(PyExc_RuntimeError, "the store was closed, and opened again, in the middle of a verb");
    return -1;
}
