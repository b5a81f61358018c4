/* hot_write.c - append, append_many, allocate, link, replace, free.
 *
 * The caller's object never enters the object cache: it is the caller's, and mutable.  What a write makes stale stays cached
 * and is noticed by its head word.
 */
#include "hot.h"

/* ---- one write ----------------------------------------------------------------------------------------------------- */

typedef int hot_core(mm *m, const mm_key *key, const void *payload, uint64_t length, mm_result *r);
typedef struct hot_verb {
    hot_core *core;
    uint32_t verb; /* enum mm_write: of a payload that is compressed */
} hot_verb;

static int core_append(mm *m, const mm_key *key, const void *payload, uint64_t length, mm_result *r)
{
    return mm_append(m, key->pid, payload, length, r);
}
static int core_allocate(mm *m, const mm_key *key, const void *payload, uint64_t length, mm_result *r)
{
    (void)key;
    return mm_allocate(m, payload, length, r);
}

static const hot_verb APPEND = { core_append, MM_WRITE_APPEND }, ALLOCATE = { core_allocate, MM_WRITE_ALLOCATE };
static const hot_verb LINK = { mm_link, MM_WRITE_LINK }, REPLACE = { mm_replace, MM_WRITE_REPLACE };

static inline int apply(const hot_verb *v, mm *m, const mm_key *key, const hot_payload *payload, mm_result *r)
{
    if (__builtin_expect(payload->compressed, 0)) return mm_write_compressed(m, v->verb, key, payload->tag, payload->p, payload->n, r);
    return v->core(m, key, payload->p, payload->n, r);
}

static int run(const hot_verb *v, mm *m, const mm_key *key, const hot_payload *payload, mm_result *r)
{
    int status;
    if (payload->n > HOT_LONG) {
        Py_BEGIN_ALLOW_THREADS
        status = apply(v, m, key, payload, r);
        Py_END_ALLOW_THREADS
    } else
        status = apply(v, m, key, payload, r);
    return status;
}

/* What goes wrong here is no error of the write, which has happened.  The core asks for it when the base is at most four times the
 * fragments on top: so the merge is about five times those, if they are as this one. */
__attribute__((noinline)) static void tidy(hot_verbs *self, mm *m, uint64_t pid, uint64_t bytes)
{
    mm_result ignored;
    if (hot_merge_chain(self, m, pid, bytes, &ignored) < 0) PyErr_Clear();
}

static inline int encode_counted(hot_verbs *self, PyObject *fragment, hot_payload *out)
{
    hot_timing timing = hot_begin(self, &self->encoding, MM_EVERY_serialize);
    int failed = hot_encode(self, fragment, out);
    if (failed) return failed;
    hot_end(self, MM_TIME_serialize, timing);
    failed = hot_compress(self, out);
    if (failed) hot_payload_clear(out);
    return failed;
}

/* Writes until it is done or _mend raises: 0, or -1 and an exception.  `known`: the page id is one that a page can have. */
static inline int write_page(hot_verbs *self, const hot_verb *verb, const mm_key *key, int known, PyObject *pid, PyObject *fragment,
                      mm_result *r)
{
    hot_payload payload;
    *r = (mm_result){0};
    if (!self->m && hot_mend(self, MM_CLOSED, r, pid, fragment) < 0) return -1;
    if (encode_counted(self, fragment, &payload) < 0) return -1;
    int failed = 0, due = 0;
    while (!failed) {
        mm *m = self->m;
        int status = !m ? MM_CLOSED : !known ? MM_NOPAGE : run(verb, m, key, &payload, r);
        if (status == MM_OK) {
            if (r->tidy && self->kind) tidy(self, m, r->key.pid, 5 * payload.n * r->depth);
            due |= r->due != 0;
            break;
        }
        failed = hot_mend(self, status, r, pid, fragment) < 0;
    }
    hot_payload_clear(&payload);
    if (due) hot_due(self);
    return failed ? -1 : 0;
}

PyObject *hot_append(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"append", 2, 3, {"pid", "fragment", "tx"}};
    PyObject *in[3];
    mm_key key = {0};
    mm_result r;
    if (hot_arguments(&signature, args, nargs, names, in) < 0 || hot_check_tx(self, in[2]) < 0) return NULL;
    int known = hot_pid(in[0], &key.pid);
    if (known < 0 || write_page(self, &APPEND, &key, known, in[0], in[1], &r) < 0) return NULL;
    return hot_key_new(self->state, &r.key);
}

PyObject *hot_allocate(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"allocate", 1, 2, {"fragment", "tx"}};
    PyObject *in[2];
    mm_result r;
    if (hot_arguments(&signature, args, nargs, names, in) < 0 || hot_check_tx(self, in[1]) < 0) return NULL;
    if (write_page(self, &ALLOCATE, &(mm_key){0}, 1, NULL, in[0], &r) < 0) return NULL;
    PyObject *key = hot_key_new(self->state, &r.key);
    return key ? Py_BuildValue("KN", (unsigned long long)r.key.pid, key) : NULL;
}

static PyObject *write_at_key(hot_verbs *self, const hot_signature *signature, const hot_verb *verb, PyObject *const *args,
                              Py_ssize_t nargs, PyObject *names)
{
    PyObject *in[4];
    mm_key key;
    mm_result r = {0};
    if (hot_arguments(signature, args, nargs, names, in) < 0) return NULL;
    if (!self->m && hot_mend(self, MM_CLOSED, &r, in[0], in[2]) < 0) return NULL;
    if (hot_check_tx(self, in[3]) < 0) return NULL;
    int known = hot_key_of(self, in[0], in[1], &key);
    if (known < 0 || write_page(self, verb, &key, known, in[0], in[2], &r) < 0) return NULL;
    return hot_key_new(self->state, &r.key);
}

PyObject *hot_link(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"link", 3, 4, {"pid", "key", "fragment", "tx"}};
    return write_at_key(self, &signature, &LINK, args, nargs, names);
}

PyObject *hot_replace(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"replace", 3, 4, {"pid", "key", "fragment", "tx"}};
    return write_at_key(self, &signature, &REPLACE, args, nargs, names);
}

PyObject *hot_free_page(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"free", 2, 3, {"pid", "key", "tx"}};
    PyObject *in[3];
    mm_key key;
    mm_result r = {0};
    if (hot_arguments(&signature, args, nargs, names, in) < 0) return NULL;
    if (!self->m && hot_mend(self, MM_CLOSED, &r, in[0], NULL) < 0) return NULL;
    if (hot_check_tx(self, in[2]) < 0) return NULL;
    int known = hot_key_of(self, in[0], in[1], &key);
    if (known < 0) return NULL;
    for (;;) {
        mm *m = self->m;
        int status = !m ? MM_CLOSED : !known ? MM_NOPAGE : mm_free(m, &key, &r);
        if (status == MM_OK) break;
        if (hot_mend(self, status, &r, in[0], NULL) < 0) return NULL;
    }
    hot_forget(self, key.pid);
    if (r.due) hot_due(self);
    return hot_key_new(self->state, &r.key);
}

/* ---- append_many ----------------------------------------------------------------------------------------------------- */

typedef struct hot_item {
    uint64_t pid, offset, length;
    uint32_t tag; /* as in hot_payload */
    int known, compressed, untidy; /* untidy: applied, and its chain is to be merged, here */
} hot_item;

typedef struct hot_batch { /* everything is encoded before anything is applied */
    PyObject *pairs; /* a list of ours, of tuples (pid, fragment) */
    hot_item *items;
    mm_key *keys; /* of the first `done` items */
    Py_ssize_t count, done;
    uint8_t *bytes;
    uint64_t filled, room;
    int due;
} hot_batch;

static void batch_clear(hot_batch *b)
{
    Py_XDECREF(b->pairs);
    PyMem_Free(b->items);
    PyMem_Free(b->keys);
    PyMem_Free(b->bytes);
}

static int batch_store(hot_batch *b, const hot_payload *payload)
{
    if (b->room - b->filled < payload->n) {
        uint64_t room = 2 * b->room + payload->n + 4096;
        uint8_t *bytes = PyMem_Realloc(b->bytes, room);
        if (!bytes) {
            PyErr_NoMemory();
            return -1;
        }
        b->bytes = bytes;
        b->room = room;
    }
    memcpy(b->bytes + b->filled, payload->p, payload->n);
    b->filled += payload->n;
    return 0;
}

/* Pair i as a tuple that the list owns, so that its members live until the end. */
static PyObject *batch_pair(hot_batch *b, Py_ssize_t i)
{
    PyObject *pair = PyList_GetItem(b->pairs, i);
    if (!PyTuple_Check(pair)) {
        pair = PySequence_Tuple(pair);
        if (!pair || PyList_SetItem(b->pairs, i, pair) < 0) return NULL;
    }
    if (PyTuple_Size(pair) == 2) return pair;
    PyErr_Format(PyExc_TypeError, "item %zd of append_many is not a pair (pid, fragment)", i);
    return NULL;
}

static int batch_encode(hot_verbs *self, hot_batch *b, Py_ssize_t i)
{
    hot_payload payload;
    hot_item *item = &b->items[i];
    PyObject *pair = batch_pair(b, i);
    if (!pair || (item->known = hot_pid(PyTuple_GetItem(pair, 0), &item->pid)) < 0) return -1;
    if (encode_counted(self, PyTuple_GetItem(pair, 1), &payload) < 0) return -1;
    item->offset = b->filled;
    item->length = payload.n;
    item->compressed = payload.compressed;
    item->tag = payload.tag;
    int failed = batch_store(b, &payload);
    hot_payload_clear(&payload);
    return failed;
}

static int batch_fill(hot_verbs *self, hot_batch *b, PyObject *items)
{
    b->pairs = PySequence_List(items);
    if (!b->pairs) return -1;
    b->count = PyList_Size(b->pairs);
    b->items = PyMem_Calloc((size_t)b->count, sizeof *b->items);
    b->keys = PyMem_Calloc((size_t)b->count, sizeof *b->keys);
    if (!b->items || !b->keys) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < b->count; i++)
        if (batch_encode(self, b, i) < 0) return -1;
    return 0;
}

/* Applies items until one fails; needs no Python. */
static int batch_apply(mm *m, int native, hot_batch *b, mm_result *r)
{
    for (; b->done < b->count; b->done++) {
        hot_item *item = &b->items[b->done];
        if (!item->known) return MM_NOPAGE;
        hot_payload payload;
        payload.p = b->bytes + item->offset;
        payload.n = item->length;
        payload.tag = item->tag;
        payload.compressed = item->compressed;
        int status = apply(&APPEND, m, &(mm_key){ .pid = item->pid }, &payload, r);
        if (status != MM_OK) return status;
        b->keys[b->done] = r->key;
        b->due |= r->due != 0;
        if (r->tidy && native) item->untidy = mm_consolidate_native(m, item->pid, &(mm_result){0}) == MM_COMPRESSED;
    }
    return MM_OK;
}

static int batch_run(hot_verbs *self, hot_batch *b)
{
    while (b->done < b->count) {
        mm *m = self->m;
        int status = MM_CLOSED, native = self->kind != 0;
        mm_result r = {0};
        if (m && b->filled > HOT_LONG) {
            Py_BEGIN_ALLOW_THREADS
            status = batch_apply(m, native, b, &r);
            Py_END_ALLOW_THREADS
        } else if (m)
            status = batch_apply(m, native, b, &r);
        if (status == MM_OK) break;
        PyObject *pair = PyList_GetItem(b->pairs, b->done);
        if (hot_mend(self, status, &r, PyTuple_GetItem(pair, 0), PyTuple_GetItem(pair, 1)) < 0) return -1;
    }
    return 0;
}

/* What was left for here, of what was applied. */
static void batch_tidy(hot_verbs *self, const hot_batch *b)
{
    for (Py_ssize_t i = 0; i < b->done; i++)
        if (b->items[i].untidy && self->m) tidy(self, self->m, b->items[i].pid, b->items[i].length);
}

static PyObject *batch_keys(hot_verbs *self, const hot_batch *b)
{
    PyObject *list = PyList_New(b->done);
    for (Py_ssize_t i = 0; list && i < b->done; i++) {
        PyObject *key = hot_key_new(self->state, &b->keys[i]);
        if (key) (void)PyList_SetItem(list, i, key);
        else Py_CLEAR(list);
    }
    return list;
}

/* The exception in flight learns what was applied before it. */
static void note_applied(hot_verbs *self, const hot_batch *b)
{
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    PyObject *keys = batch_keys(self, b);
    if (!keys || PyObject_SetAttrString(error, "applied", keys) < 0) PyErr_Clear();
    Py_XDECREF(keys);
    PyErr_Restore(type, error, trace);
}

PyObject *hot_append_many(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"append_many", 1, 2, {"items", "tx"}};
    PyObject *in[2], *keys = NULL;
    hot_batch b = {0};
    if (hot_arguments(&signature, args, nargs, names, in) < 0) return NULL;
    if (!self->m && hot_mend(self, MM_CLOSED, &(mm_result){0}, NULL, NULL) < 0) return NULL;
    if (hot_check_tx(self, in[1]) < 0) return NULL;
    if (batch_fill(self, &b, in[0]) == 0) {
        if (batch_run(self, &b) == 0) {
            batch_tidy(self, &b);
            keys = batch_keys(self, &b);
        } else
            note_applied(self, &b);
        if (b.due && keys) hot_due(self);
    }
    batch_clear(&b);
    return keys;
}
