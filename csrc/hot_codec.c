/* hot_codec.c - fragments to msgpack and back: plain values here, everything else through the codec of the handle.
 *
 * What is encoded here is byte for byte what msgpack.Packer writes.
 */
#include "hot.h"

/* mmpc.codec.encode or decode: slower than `pack` and `unpack`, for any number of callers, with the errors that users should see. */
static PyObject *codec(PyObject **kept, const char *name, PyObject *argument)
{
    if (!*kept) {
        PyObject *module = PyImport_ImportModule("mmpc.codec");
        if (module) *kept = PyObject_GetAttrString(module, name);
        Py_XDECREF(module);
    }
    return *kept ? PyObject_CallFunctionObjArgs(*kept, argument, NULL) : NULL;
}

/* Whether the exception in flight is one that the codec words better: it is dropped then. */
static int for_codec(void)
{
    if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_ValueError)
        && !PyErr_ExceptionMatches(PyExc_OverflowError) && !PyErr_ExceptionMatches(PyExc_RecursionError))
        return 0;
    PyErr_Clear();
    return 1;
}

/* ---- encoding ----------------------------------------------------------------------------------------------------- */

static int encode_body(hot_payload *out, int type, const void *body, Py_ssize_t n)
{
    if ((uint64_t)n > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "a fragment of %zd bytes is too large: msgpack ends at 4 GiB", n);
        return -1;
    }
    uint8_t *p = out->small;
    if (n > HOT_SMALL - MM_MSGPACK_HEAD) {
        p = out->heap = PyMem_Malloc((size_t)n + MM_MSGPACK_HEAD);
        if (!p) {
            PyErr_NoMemory();
            return -1;
        }
    }
    uint8_t *at = mm_put_head(p, type, (uint64_t)n);
    memcpy(at, body, (size_t)n);
    out->p = p;
    out->n = (uint64_t)(at - p) + (uint64_t)n;
    return 0;
}

static int encode_end(hot_payload *out, const uint8_t *end)
{
    out->p = out->small;
    out->n = (uint64_t)(end - out->small);
    return 0;
}

static PyObject *pack(hot_verbs *self, PyObject *fragment)
{
    PyObject *packed, *call = self->pack;
    if (!call) {
        (void)hot_closed(self);
        return NULL;
    }
    if (!self->packing) {
        self->packing = 1; /* its hook for arrays runs Python code: a second call may come in between */
        Py_INCREF(call);
        packed = PyObject_CallFunctionObjArgs(call, fragment, NULL);
        Py_DECREF(call);
        self->packing = 0;
        if (packed || !for_codec()) return packed;
    }
    return codec(&self->state->encode, "encode", fragment);
}

static int encode_packed(hot_verbs *self, PyObject *fragment, hot_payload *out)
{
    char *p;
    Py_ssize_t n;
    out->owner = pack(self, fragment);
    if (!out->owner || PyBytes_AsStringAndSize(out->owner, &p, &n) < 0) {
        Py_CLEAR(out->owner);
        return -1;
    }
    out->p = (const uint8_t *)p;
    out->n = (uint64_t)n;
    return 0;
}

static int encode_int(hot_verbs *self, PyObject *fragment, hot_payload *out)
{
    int overflow;
    long long v = PyLong_AsLongLongAndOverflow(fragment, &overflow);
    if (overflow) return encode_packed(self, fragment, out);
    return encode_end(out, mm_put_int(out->small, v));
}

static int encode_str(hot_verbs *self, PyObject *fragment, hot_payload *out)
{
    Py_ssize_t n;
    const char *p = PyUnicode_AsUTF8AndSize(fragment, &n);
    if (p) return encode_body(out, MM_STR, p, n);
    PyErr_Clear(); /* lone surrogates: the codec decides */
    return encode_packed(self, fragment, out);
}

/* Containers of plain values, of exact built-in types, into a fixed room.  NULL without an exception: not plain, or too large. */
enum { PLAIN_DEPTH = 16 };
static uint8_t *put_value(uint8_t *at, const uint8_t *end, PyObject *o, int depth);

static uint8_t *put_body(uint8_t *at, const uint8_t *end, int type, const char *body, Py_ssize_t n)
{
    if (!body || n > end - at - MM_MSGPACK_HEAD) return NULL;
    at = mm_put_head(at, type, (uint64_t)n);
    memcpy(at, body, (size_t)n);
    return at + n;
}

static uint8_t *put_str(uint8_t *at, const uint8_t *end, PyObject *o)
{
    Py_ssize_t n;
    const char *body = PyUnicode_AsUTF8AndSize(o, &n);
    if (!body) PyErr_Clear();
    return put_body(at, end, MM_STR, body, n);
}

static uint8_t *put_bytes(uint8_t *at, const uint8_t *end, PyObject *o)
{
    char *body;
    Py_ssize_t n;
    (void)PyBytes_AsStringAndSize(o, &body, &n);
    return put_body(at, end, MM_BIN, body, n);
}

static uint8_t *put_long(uint8_t *at, PyObject *o)
{
    int overflow;
    long long v = PyLong_AsLongLongAndOverflow(o, &overflow);
    return overflow ? NULL : mm_put_int(at, v);
}

static uint8_t *put_tuple(uint8_t *at, const uint8_t *end, PyObject *o, int depth)
{
    Py_ssize_t n = PyTuple_Size(o);
    at = mm_put_head(at, MM_ARRAY, (uint64_t)n);
    for (Py_ssize_t i = 0; at && i < n; i++) at = put_value(at, end, PyTuple_GetItem(o, i), depth);
    return at;
}

static uint8_t *put_list(uint8_t *at, const uint8_t *end, PyObject *o, int depth)
{
    Py_ssize_t n = PyList_Size(o);
    at = mm_put_head(at, MM_ARRAY, (uint64_t)n);
    for (Py_ssize_t i = 0; at && i < n; i++) at = put_value(at, end, PyList_GetItem(o, i), depth);
    return at;
}

static uint8_t *put_dict(uint8_t *at, const uint8_t *end, PyObject *o, int depth)
{
    PyObject *k, *v;
    Py_ssize_t i = 0;
    at = mm_put_head(at, MM_MAP, (uint64_t)PyDict_Size(o));
    while (at && PyDict_Next(o, &i, &k, &v)) {
        at = put_value(at, end, k, depth);
        if (at) at = put_value(at, end, v, depth);
    }
    return at;
}

static uint8_t *put_value(uint8_t *at, const uint8_t *end, PyObject *o, int depth)
{
    if (end - at < MM_MSGPACK_HEAD || depth == PLAIN_DEPTH) return NULL;
    if (PyLong_CheckExact(o)) return put_long(at, o);
    if (PyUnicode_CheckExact(o)) return put_str(at, end, o);
    if (PyFloat_CheckExact(o)) return mm_put_float(at, PyFloat_AsDouble(o));
    if (PyTuple_CheckExact(o)) return put_tuple(at, end, o, depth + 1);
    if (PyList_CheckExact(o)) return put_list(at, end, o, depth + 1);
    if (PyDict_CheckExact(o)) return put_dict(at, end, o, depth + 1);
    if (PyBytes_CheckExact(o)) return put_bytes(at, end, o);
    if (o == Py_None) return mm_put(at, 0xc0, 0, 0);
    return o == Py_True ? mm_put(at, 0xc3, 0, 0) : o == Py_False ? mm_put(at, 0xc2, 0, 0) : NULL;
}

int hot_encode(hot_verbs *self, PyObject *fragment, hot_payload *out)
{
    out->owner = NULL;
    out->heap = NULL;
    out->compressed = 0;
    if (PyBytes_CheckExact(fragment)) {
        char *p;
        Py_ssize_t n;
        (void)PyBytes_AsStringAndSize(fragment, &p, &n);
        return encode_body(out, MM_BIN, p, n);
    }
    if (PyLong_CheckExact(fragment)) return encode_int(self, fragment, out);
    if (PyFloat_CheckExact(fragment)) return encode_end(out, mm_put_float(out->small, PyFloat_AsDouble(fragment)));
    if (PyUnicode_CheckExact(fragment)) return encode_str(self, fragment, out);
    const uint8_t *plain_end = put_value(out->small, out->small + HOT_SMALL, fragment, 0);
    if (plain_end) return encode_end(out, plain_end);
    return encode_packed(self, fragment, out);
}

void hot_payload_clear(hot_payload *p)
{
    Py_XDECREF(p->owner);
    PyMem_Free(p->heap);
}

/* What `compress` is given is an object of its own: it outlives the payload where a traceback keeps it. */
static PyObject *plain_bytes(const hot_payload *p)
{
    char *whole;
    Py_ssize_t n;
    if (p->owner && PyBytes_AsStringAndSize(p->owner, &whole, &n) == 0 && (const uint8_t *)whole == p->p && (uint64_t)n == p->n) {
        Py_INCREF(p->owner);
        return p->owner;
    }
    PyErr_Clear();
    return PyBytes_FromStringAndSize((const char *)p->p, (Py_ssize_t)p->n);
}

int hot_compress_now(hot_verbs *self, hot_payload *payload)
{
    uint32_t tag = self->kind ? mm_merge_class(self->kind, payload->p, payload->n) : 0;
    PyObject *call = self->compress, *plain, *frame = NULL;
    if (!call || (self->kind && !tag)) return 0; /* the core says what is wrong with it */
    Py_INCREF(call);
    if ((plain = plain_bytes(payload))) frame = PyObject_CallFunctionObjArgs(call, plain, NULL);
    Py_DECREF(call);
    Py_XDECREF(plain);
    if (!frame) return -1;
    char *p;
    Py_ssize_t n;
    if (frame == Py_None || PyBytes_AsStringAndSize(frame, &p, &n) < 0) { /* it would not be smaller */
        Py_DECREF(frame);
        return PyErr_Occurred() ? -1 : 0;
    }
    hot_payload_clear(payload);
    payload->owner = frame;
    payload->heap = NULL;
    payload->p = (const uint8_t *)p;
    payload->n = (uint64_t)n;
    payload->tag = tag;
    payload->compressed = 1;
    return 0;
}

/* ---- decoding ----------------------------------------------------------------------------------------------------- */

static double float_of(uint64_t bits)
{
    double v;
    memcpy(&v, &bits, 8);
    return v;
}

static PyObject *text(const mm_token *t)
{
    PyObject *s = PyUnicode_DecodeUTF8((const char *)t->body, (Py_ssize_t)t->n, NULL);
    if (!s && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) PyErr_Clear();
    return s;
}

static PyObject *value_at(const uint8_t **p, const uint8_t *end, int depth);

static PyObject *list_at(const uint8_t **p, const uint8_t *end, uint64_t n, int depth)
{
    PyObject *list = n <= (uint64_t)(end - *p) ? PyList_New((Py_ssize_t)n) : NULL;
    for (uint64_t i = 0; list && i < n; i++) {
        PyObject *value = value_at(p, end, depth);
        if (value) (void)PyList_SetItem(list, (Py_ssize_t)i, value);
        else Py_CLEAR(list);
    }
    return list;
}

static PyObject *key_at(const uint8_t **p, const uint8_t *end, int depth)
{
    PyObject *key = value_at(p, end, depth);
    if (key && PyUnicode_CheckExact(key)) PyUnicode_InternInPlace(&key);
    return key;
}

static PyObject *dict_at(const uint8_t **p, const uint8_t *end, uint64_t n, int depth)
{
    PyObject *dict = n <= (uint64_t)(end - *p) ? PyDict_New() : NULL;
    for (uint64_t i = 0; dict && i < n; i++) {
        PyObject *key = key_at(p, end, depth), *value = key ? value_at(p, end, depth) : NULL;
        if (!value || PyDict_SetItem(dict, key, value) < 0) Py_CLEAR(dict);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return dict;
}

/* A new reference; NULL without an exception (or with one that for_codec drops): not plain, ask the codec. */
static PyObject *value_at(const uint8_t **p, const uint8_t *end, int depth)
{
    mm_token t;
    *p = mm_msgpack_token(*p, end, &t);
    if (!*p || depth == MM_MSGPACK_DEPTH) return NULL;
    switch (t.type) {
    case MM_NIL: Py_RETURN_NONE;
    case MM_BOOL: return PyBool_FromLong((long)t.n);
    case MM_UINT: return PyLong_FromUnsignedLongLong(t.n);
    case MM_INT: return PyLong_FromLongLong((int64_t)t.n);
    case MM_FLOAT: return PyFloat_FromDouble(float_of(t.n));
    case MM_BIN: return PyBytes_FromStringAndSize((const char *)t.body, (Py_ssize_t)t.n);
    case MM_STR: return text(&t);
    case MM_ARRAY: return list_at(p, end, t.n, depth + 1);
    case MM_MAP: return dict_at(p, end, t.n, depth + 1);
    default: return NULL;
    }
}

static PyObject *call_unpack(hot_verbs *self, PyObject *bytes, int array)
{
    PyObject *call = self->unpack;
    if (!call) {
        (void)hot_closed(self);
        return NULL;
    }
    if (!array) { /* an array that is the whole value shares the memory of `bytes` */
        Py_INCREF(call);
        PyObject *value = PyObject_CallFunctionObjArgs(call, bytes, NULL);
        Py_DECREF(call);
        if (value || !for_codec()) return value;
    }
    return codec(&self->state->decode, "decode", bytes);
}

static PyObject *unpack(hot_verbs *self, const uint8_t *p, uint64_t n, PyObject *source, int array)
{
    PyObject *value = NULL, *bytes = source;
    if (source) Py_INCREF(source);
    else bytes = PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)n);
    if (bytes) value = call_unpack(self, bytes, array);
    Py_XDECREF(bytes);
    return value;
}

/* All of p[0..n) as one plain value; NULL without an exception: it is not one. */
static PyObject *plain(const uint8_t *p, uint64_t n)
{
    const uint8_t *end = p + n;
    PyObject *value = value_at(&p, end, 0);
    if (value && p == end) return value;
    Py_XDECREF(value);
    if (PyErr_Occurred()) (void)for_codec();
    return NULL;
}

PyObject *hot_decode(hot_verbs *self, const uint8_t *p, uint64_t n, PyObject *source)
{
    PyObject *value = plain(p, n);
    if (value || PyErr_Occurred()) return value;
    mm_token t = {0};
    (void)mm_msgpack_token(p, p + n, &t);
    return unpack(self, p, n, source, t.type == MM_EXT);
}

PyObject *hot_decode_array(hot_verbs *self, const uint8_t *p, uint64_t n, uint32_t count, PyObject *source)
{
    PyObject *list = plain(p, n);
    if (!list && !PyErr_Occurred()) list = unpack(self, p, n, source, 0);
    if (list && !(PyList_Check(list) && PyList_Size(list) == (Py_ssize_t)count)) {
        PyErr_Format(PyExc_TypeError, "unpack must give a list of %u fragments, not %R", count, (PyObject *)Py_TYPE(list));
        Py_CLEAR(list);
    }
    return list;
}
