/* hot_read.c - get, get_many, get_page_frags, and consolidation.
 *
 * A hit is two relaxed loads and two comparisons (peek.h).  A miss is one mm_read of what is newer than the cached object,
 * at most one decode, and at most one merge on top of the cached value.
 */
#include "hot.h"

/* ---- one call of the core ------------------------------------------------------------------------------------------ */

static int read_large(mm *m, uint64_t pid, uint64_t known, int how, hot_buffer *b)
{
    uint64_t room = b->r.length;
    Py_XDECREF(b->holder);
    b->holder = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);
    if (!b->holder) return -1;
    uint8_t *p = (uint8_t *)PyBytes_AsString(b->holder);
    int status;
    if (room > HOT_LONG) {
        Py_BEGIN_ALLOW_THREADS
        status = mm_read(m, pid, known, how, p, room, &b->r);
        Py_END_ALLOW_THREADS
    } else
        status = mm_read(m, pid, known, how, p, room, &b->r);
    b->p = p;
    b->source = (status == MM_OK || status == MM_COMPRESSED) && b->r.length == room ? b->holder : NULL;
    return status;
}

/* The fragments as they are stored become what mm_read gives otherwise, by self->decompress(pid, stored, merged). */
__attribute__((noinline)) static int decompress(hot_verbs *self, uint64_t pid, hot_buffer *b)
{
    char *p;
    Py_ssize_t n;
    PyObject *call = self->decompress, *body = NULL;
    if (!call) return hot_closed(self);
    Py_INCREF(call);
    PyObject *stored = b->source ? b->source : PyBytes_FromStringAndSize((const char *)b->p, (Py_ssize_t)b->r.length);
    if (b->source) b->holder = NULL; /* it is `stored` */
    Py_CLEAR(b->holder);
    b->source = NULL;
    if (stored) body = PyObject_CallFunction(call, "KOi", (unsigned long long)pid, stored, (int)b->r.merged);
    Py_XDECREF(stored);
    Py_DECREF(call);
    if (!body || PyBytes_AsStringAndSize(body, &p, &n) < 0) {
        Py_XDECREF(body);
        return -1;
    }
    b->source = b->holder = body;
    b->p = (const uint8_t *)p;
    b->r.length = (uint64_t)n;
    b->r.cost = mm_merge_cost(b->p, b->r.length);
    return MM_OK;
}

int hot_read_page(hot_verbs *self, mm *m, uint64_t pid, uint64_t known, int how, hot_buffer *b)
{
    b->r = (mm_result){0};
    b->source = b->holder = NULL;
    b->p = b->scratch;
    int status = mm_read(m, pid, known, how, b->scratch, HOT_SCRATCH, &b->r);
    while (status == MM_SPACE) status = read_large(m, pid, known, how, b);
    return status == MM_COMPRESSED ? decompress(self, pid, b) : status;
}

static int merge_native(mm *m, uint64_t pid, uint64_t bytes, mm_result *r)
{
    int status;
    if (bytes > HOT_LONG_MERGE) {
        Py_BEGIN_ALLOW_THREADS
        status = mm_consolidate_native(m, pid, r);
        Py_END_ALLOW_THREADS
    } else
        status = mm_consolidate_native(m, pid, r);
    return status;
}

static int consolidate(mm *m, uint64_t pid, uint64_t wts, const hot_payload *payload, mm_result *r)
{
    mm_key key = { .pid = pid, .wts = wts };
    if (payload->compressed) return mm_write_compressed(m, MM_WRITE_CONSOLIDATE, &key, payload->tag, payload->p, payload->n, r);
    return mm_consolidate(m, pid, wts, payload->p, payload->n, r);
}

static int merge_packed(mm *m, uint64_t pid, uint64_t wts, const hot_payload *payload, mm_result *r)
{
    int status;
    if (payload->n > HOT_LONG_MERGE) {
        Py_BEGIN_ALLOW_THREADS
        status = consolidate(m, pid, wts, payload, r);
        Py_END_ALLOW_THREADS
    } else
        status = consolidate(m, pid, wts, payload, r);
    return status;
}

/* What was read, merged already, as the base of the page. */
static int publish_merged(hot_verbs *self, uint64_t pid, hot_buffer *b, mm_result *r)
{
    hot_payload payload;
    payload.p = b->p;
    payload.n = b->r.length;
    payload.owner = b->holder;
    payload.heap = NULL;
    payload.compressed = 0;
    b->holder = NULL; /* the payload's now */
    int status = hot_compress(self, &payload);
    mm *m = self->m;
    if (!status) status = m ? merge_packed(m, pid, b->r.key.wts, &payload, r) : MM_CLOSED;
    hot_payload_clear(&payload);
    return status;
}

int hot_merge_chain(hot_verbs *self, mm *m, uint64_t pid, uint64_t bytes, mm_result *r)
{
    hot_buffer b;
    int status = merge_native(m, pid, bytes, r);
    if (status != MM_COMPRESSED) return status;
    if (!(m = self->m)) return MM_CLOSED;
    status = hot_read_page(self, m, pid, 0, MM_READ_TO_MERGE, &b);
    *r = b.r;
    if (status == MM_OK) status = b.r.kind == HOT_KIND_FREE ? MM_FREED : b.r.depth < 2 ? MM_CONFLICT : publish_merged(self, pid, &b, r);
    Py_XDECREF(b.holder);
    return status;
}

/* ---- from bytes to a value ------------------------------------------------------------------------------------------ */

/* Union of decoded maps: what Union.merge does, without a call into Python for each key.  They came from the store, which
 * took only keys that fit.  NULL without an exception: one is no plain dict, Python must say what is wrong. */
static PyObject *union_of_dicts(PyObject *fragments)
{
    Py_ssize_t n = PyList_Size(fragments);
    for (Py_ssize_t i = 0; i < n; i++)
        if (!PyDict_CheckExact(PyList_GetItem(fragments, i))) return NULL;
    PyObject *merged = PyDict_Copy(PyList_GetItem(fragments, 0));
    for (Py_ssize_t i = 0; merged && i < n; i++) {
        PyObject *fragment = PyList_GetItem(fragments, i), *key, *value;
        for (Py_ssize_t at = 0; PyDict_Next(fragment, &at, &key, &value);) {
            int status = 0;
            if (value != Py_None) {
                if (i) status = PyDict_SetItem(merged, key, value);
            } else if ((status = PyDict_Contains(merged, key)) == 1)
                status = PyDict_DelItem(merged, key);
            if (status < 0) {
                Py_CLEAR(merged);
                break;
            }
        }
    }
    return merged;
}

static PyObject *call_merge(hot_verbs *self, PyObject *fragments)
{
    if (self->kind == MM_MERGE_UNION) {
        PyObject *merged = union_of_dicts(fragments);
        if (merged || PyErr_Occurred()) return merged;
    }
    PyObject *merge = self->merge;
    if (!merge) {
        (void)hot_closed(self);
        return NULL;
    }
    Py_INCREF(merge);
    PyObject *value = PyObject_CallFunctionObjArgs(merge, fragments, NULL);
    Py_DECREF(merge);
    return value;
}

/* The only element of an array: its header is stepped over. */
static PyObject *decode_single(hot_verbs *self, const hot_buffer *b)
{
    mm_token t;
    const uint8_t *end = b->p + b->r.length, *p = mm_msgpack_token(b->p, end, &t);
    if (p && t.type == MM_ARRAY && t.n == 1) return hot_decode(self, p, (uint64_t)(end - p), NULL);
    PyErr_SetString(PyExc_SystemError, "the core gave no array of fragments");
    return NULL;
}

/* The merged value of a page: a new reference.  A single fragment is the value as it is, without a merge. */
static PyObject *assemble(hot_verbs *self, const hot_buffer *b, const hot_known *known)
{
    const mm_result *r = &b->r;
    PyObject *base = !r->whole && known->page ? ((hot_page *)known->page)->value : NULL;
    if (r->merged) return hot_decode(self, b->p, r->length, b->source);
    if (r->count == 1 && !base) return decode_single(self, b);
    PyObject *fragments = hot_decode_array(self, b->p, r->length, r->count, b->source), *value = NULL;
    if (!fragments) return NULL;
    if (!base || PyList_Insert(fragments, 0, base) == 0) value = call_merge(self, fragments);
    Py_DECREF(fragments);
    return value;
}

/* Bytes that the cache accounts for `value`: 0, or -1 and an exception of the user's size_in_bytes. */
static int measure(hot_verbs *self, PyObject *value, const mm_result *r, uint64_t before, uint64_t *size)
{
    PyObject *size_of = self->size_of;
    if (!size_of) {
        *size = r->whole ? r->cost : !self->last ? before + r->cost : before > r->cost ? before : r->cost;
        return 0;
    }
    Py_INCREF(size_of);
    PyObject *n = PyObject_CallFunctionObjArgs(size_of, value, NULL);
    Py_DECREF(size_of);
    Py_ssize_t bytes = n ? PyLong_AsSsize_t(n) : -1;
    Py_XDECREF(n);
    if (PyErr_Occurred()) return -1;
    *size = bytes > 0 ? (uint64_t)bytes : 0;
    return 0;
}

/* ---- consolidation --------------------------------------------------------------------------------------------------- */

/* Publishes `value`, the merge of everything up to `wts`, as the base of the page: a status, or -1 and an exception. */
static int publish_value(hot_verbs *self, uint64_t pid, uint64_t wts, PyObject *value, mm_result *r)
{
    hot_payload payload;
    if (hot_encode(self, value, &payload) < 0) return -1;
    int status = hot_compress(self, &payload);
    mm *m = self->m;
    if (!status) status = m ? merge_packed(m, pid, wts, &payload, r) : MM_CLOSED;
    hot_payload_clear(&payload);
    return status;
}

/* After a read that met a long chain.  The value was read already, so nothing that fails here is an error of the read;
 * what is not an Exception (KeyboardInterrupt) still goes up. */
static int tidy(hot_verbs *self, mm_result *r, PyObject *value)
{
    mm_result after = {0};
    mm *m = self->m;
    if (!m) return 0;
    int status = self->kind ? hot_merge_chain(self, m, r->key.pid, r->length, &after)
                            : publish_value(self, r->key.pid, r->key.wts, value, &after);
    if (status == MM_OK && after.key.pid == r->key.pid && after.key.wts == r->key.wts && after.generation) {
        r->key.head = after.key.head;
        r->generation = after.generation;
    }
    if (status >= 0) return 0;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
    PyErr_Clear();
    return 0;
}

/* ---- get ------------------------------------------------------------------------------------------------------------- */

static PyObject *get_reserved(hot_verbs *self, const hot_buffer *b, uint64_t pid)
{
    PyObject *value = b->r.merged ? hot_decode(self, b->p, b->r.length, b->source) : decode_single(self, b);
    return value ? hot_page_new(self->state, pid ? HOT_COUNTER : HOT_META, value, &b->r.key) : NULL;
}

static PyObject *get_materialized(hot_verbs *self, hot_buffer *b, const hot_known *known, int may_tidy)
{
    mm_result *r = &b->r;
    uint64_t size = 0;
    if (!r->whole && r->count == 0 && known->page) {
        if (r->tidy && may_tidy && tidy(self, r, ((hot_page *)known->page)->value) < 0) return NULL;
        hot_moved(self, r);
        Py_INCREF(known->page);
        return known->page;
    }
    hot_timing timing = hot_begin(self, &self->decoding, MM_EVERY_deserialize);
    PyObject *value = assemble(self, b, known);
    if (!value) return NULL;
    hot_end(self, MM_TIME_deserialize, timing);
    if (measure(self, value, r, known->size, &size) < 0 || (r->tidy && may_tidy && tidy(self, r, value) < 0)) {
        Py_DECREF(value);
        return NULL;
    }
    PyObject *page = hot_page_new(self->state, HOT_MATERIALIZED, value, &r->key);
    if (page) hot_remember(self, r, page, size);
    return page;
}

static PyObject *answer(hot_verbs *self, hot_buffer *b, uint64_t pid, const hot_known *known, int may_tidy)
{
    if (b->r.kind == HOT_KIND_FREE) {
        hot_forget(self, pid);
        return hot_page_new(self->state, HOT_FREE, NULL, &b->r.key);
    }
    return pid < 2 ? get_reserved(self, b, pid) : get_materialized(self, b, known, may_tidy);
}

static PyObject *get_unallocated(hot_verbs *self, uint64_t pid)
{
    hot_forget(self, pid);
    return hot_page_new(self->state, HOT_UNALLOCATED, NULL, NULL);
}

/* One read; NULL with *status > 0: the core said so, NULL with *status <= 0: an exception. */
static PyObject *get_once(hot_verbs *self, mm *m, uint64_t pid, int may_tidy, mm_result *r, int *status)
{
    hot_buffer b;
    PyObject *page = NULL;
    hot_known known = hot_recall(self, pid);
    *status = hot_read_page(self, m, pid, known.wts, self->kind && pid > 1 ? MM_READ_MERGED : MM_READ_ARRAY, &b);
    *r = b.r;
    if (*status == MM_FREED) b.r.kind = HOT_KIND_FREE;
    if (*status == MM_OK || *status == MM_FREED) {
        page = answer(self, &b, pid, &known, may_tidy);
        *status = MM_OK;
    } else if (*status == MM_NOPAGE) {
        page = get_unallocated(self, pid);
        *status = MM_OK;
    }
    Py_XDECREF(b.holder);
    Py_XDECREF(known.page);
    return page;
}

/* The cached result of a page if it is valid: a borrowed reference. */
static inline PyObject *peek(const hot_verbs *self, const mm *m, uint64_t pid)
{
    if (!mm_peek_safe(m)) return NULL;
    mm_object *e = mm_objects_find(&self->objects, pid);
    if (!e || e->head != mm_peek_head(m, pid) || e->generation != mm_peek_generation(m, e->head)) return NULL;
    if (!e->visited) e->visited = 1; /* no store on a line that is as it should be */
    return e->object;
}

/* Not by who inherited the handle: the hits are of another process, and that counts them. */
void hot_tell_hits(hot_verbs *self)
{
    uint32_t n = self->hits_told - self->hits_left;
    if (!n || !mm_peek_safe(self->m)) return;
    self->hits_told = self->hits_left;
    self->stood_for += n;
    mm_count_hits(self->m, n);
}

/* The first hits are timed, all of them, then each 256th; it stands for all since the one before (metrics.h).  What is no hit is not timed, and the next
 * one is.  Where nothing is counted, `hits_left` has run out, and that is all.
 * So the metrics know of hits late, by fewer than 256 of a handle, and those of a process that is killed never. */
__attribute__((noinline, cold)) static PyObject *peek_apart(hot_verbs *self, uint64_t pid)
{
    mm *m = self->m;
    if (!m || !mm_is_counting(m)) {
        self->quick = m;
        return peek(self, m, pid);
    }
    uint64_t begun = mm_ticks(m);
    PyObject *page = peek(self, m, pid);
    if (!page) return NULL;
    hot_tell_hits(self);
    mm_count_hits(m, 1);
    mm_metrics_time(m, MM_TIME_get_hit, begun, self->stood_for + 1); /* no Python: the page stays */
    self->stood_for = 0;
    if (self->first_hits < MM_EVERY_get_hit) self->first_hits++;
    if (self->first_hits == MM_EVERY_get_hit) {
        self->hits_left = self->hits_told = MM_EVERY_get_hit - 1;
        self->quick = m;
    }
    return page;
}

/* One pointer says that the store is open and that no time is due, so all that the metrics add to a hit is a subtraction. */
static inline PyObject *peek_counted(hot_verbs *self, uint64_t pid)
{
    PyObject *page = peek(self, self->quick, pid);
    if (MM_METRICS_BUILT && page && __builtin_expect(!--self->hits_left, 0)) self->quick = NULL;
    return page;
}

/* What could not be answered at once. */
__attribute__((noinline)) static PyObject *get_miss(hot_verbs *self, PyObject *pid_object, uint64_t pid, int may_tidy)
{
    mm_result r = {0};
    PyObject *cached = self->quick ? NULL : peek_apart(self, pid);
    if (cached) {
        Py_INCREF(cached);
        return cached;
    }
    self->objects.misses++;
    hot_tell_hits(self);
    for (;;) {
        mm *m = self->m;
        int status = MM_CLOSED;
        PyObject *page = m ? get_once(self, m, pid, may_tidy, &r, &status) : NULL;
        if (page || status <= 0) return page;
        if (hot_mend(self, status, &r, pid_object, NULL) < 0) return NULL;
    }
}

static PyObject *get_page(hot_verbs *self, PyObject *pid_object, int may_tidy)
{
    uint64_t pid;
    int known = hot_pid(pid_object, &pid);
    if (known < 0) return NULL;
    PyObject *page = known ? peek_counted(self, pid) : NULL;
    if (page) {
        Py_INCREF(page);
        return page;
    }
    if (known) return get_miss(self, pid_object, pid, may_tidy);
    if (!self->m && hot_mend(self, MM_CLOSED, &(mm_result){0}, pid_object, NULL) < 0) return NULL;
    return hot_page_new(self->state, HOT_UNALLOCATED, NULL, NULL);
}

/* Every other call: kept apart, so that the hit needs no frame of its own. */
__attribute__((noinline)) static PyObject *get_slow(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"get", 1, 2, {"pid", "tx"}};
    PyObject *in[2];
    PyErr_Clear(); /* of an id beyond ssize_t */
    if (hot_arguments(&signature, args, nargs, names, in) < 0 || hot_check_tx(self, in[1]) < 0) return NULL;
    return get_page(self, in[0], 1);
}

PyObject *hot_get(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    if (nargs == 1 && !names && PyLong_CheckExact(args[0])) { /* the call that everybody makes */
        Py_ssize_t pid = PyLong_AsSsize_t(args[0]);
        PyObject *page = (uint64_t)pid < HOT_PIDS ? peek_counted(self, (uint64_t)pid) : NULL;
        if (page) {
            Py_INCREF(page);
            return page;
        }
        if ((uint64_t)pid < HOT_PIDS) return get_miss(self, args[0], (uint64_t)pid, 1);
        return get_slow(self, args, 1, NULL); /* what is known of them need not be kept */
    }
    return get_slow(self, args, nargs, names);
}

PyObject *hot_get_many(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"get_many", 1, 2, {"pids", "tx"}};
    PyObject *in[2];
    if (hot_arguments(&signature, args, nargs, names, in) < 0 || hot_check_tx(self, in[1]) < 0) return NULL;
    if (!self->m && hot_mend(self, MM_CLOSED, &(mm_result){0}, NULL, NULL) < 0) return NULL;
    PyObject *list = PySequence_List(in[0]); /* private: pids on the way in, results on the way out */
    for (Py_ssize_t i = 0; list && i < PyList_Size(list); i++) {
        PyObject *page = get_page(self, PyList_GetItem(list, i), 1);
        if (page) (void)PyList_SetItem(list, i, page);
        else Py_CLEAR(list);
    }
    return list;
}

/* ---- get_page_frags -------------------------------------------------------------------------------------------------- */

static PyObject *frags_once(hot_verbs *self, mm *m, uint64_t pid, mm_result *r, int *status)
{
    hot_buffer b;
    PyObject *key = NULL, *list = NULL, *pair = NULL;
    *status = hot_read_page(self, m, pid, 0, MM_READ_FRAGMENTS, &b);
    *r = b.r;
    if (*status == MM_OK && b.r.kind == HOT_KIND_FREE) *status = MM_FREED;
    if (*status == MM_OK && (list = hot_decode_array(self, b.p, b.r.length, b.r.count, b.source))
        && (key = hot_key_new(self->state, &b.r.key)))
        pair = PyTuple_Pack(2, key, list);
    Py_XDECREF(key);
    Py_XDECREF(list);
    Py_XDECREF(b.holder);
    return pair;
}

PyObject *hot_get_page_frags(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const hot_signature signature = {"get_page_frags", 1, 2, {"pid", "tx"}};
    PyObject *in[2];
    uint64_t pid;
    mm_result r = {0};
    if (hot_arguments(&signature, args, nargs, names, in) < 0 || hot_check_tx(self, in[1]) < 0) return NULL;
    int known = hot_pid(in[0], &pid);
    if (known < 0) return NULL;
    for (;;) {
        mm *m = self->m;
        int status = !m ? MM_CLOSED : !known ? MM_NOPAGE : pid < 2 ? MM_RESERVED : MM_OK;
        PyObject *pair = status == MM_OK ? frags_once(self, m, pid, &r, &status) : NULL;
        if (pair || status <= 0) return pair;
        if (hot_mend(self, status, &r, in[0], NULL) < 0) return NULL;
    }
}

/* ---- _consolidate ---------------------------------------------------------------------------------------------------- */

/* With a materializer in Python: read (cached, if valid), encode, publish.  A status, or -1 and an exception. */
static int consolidate_python(hot_verbs *self, PyObject *pid_object, uint64_t pid, mm_result *r)
{
    PyObject *page = get_page(self, pid_object, 0);
    if (!page) return -1;
    hot_page *p = (hot_page *)page;
    int status = MM_FREED;
    if (p->kind == HOT_MATERIALIZED) status = publish_value(self, pid, ((hot_key *)p->key)->key.wts, p->value, r);
    Py_DECREF(page);
    return status;
}

PyObject *hot_consolidate(hot_verbs *self, PyObject *pid_object)
{
    uint64_t pid;
    int known = hot_pid(pid_object, &pid);
    if (known < 0) return NULL;
    for (;;) {
        mm_result r = {0};
        mm *m = self->m;
        int status = !m ? MM_CLOSED : !known ? MM_NOPAGE : pid < 2 ? MM_RESERVED : MM_OK;
        if (status == MM_OK)
            status = self->kind ? hot_merge_chain(self, m, pid, UINT64_MAX, &r) : consolidate_python(self, pid_object, pid, &r);
        if (status < 0) return NULL;
        if (status == MM_OK) Py_RETURN_TRUE;
        if (status == MM_CONFLICT || status == MM_CHAIN || status == MM_FREED) Py_RETURN_FALSE;
        if (hot_mend(self, status, &r, pid_object, NULL) < 0) return NULL;
    }
}
