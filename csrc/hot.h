/* hot.h - what the C files of the hot face share.
 *
 * `mmpc._hot` carries the verbs that are called most, with the GIL kept in short calls; mmpc/_portable.py is the same in
 * Python over cffi.  Limited API, no mutable globals: everything hangs from the module's state or from a handle.
 *
 * Rule for all of it: a call into Python (pack, unpack, merge, size_of, a destructor, an allocation that starts the garbage
 * collector) may call back into the same handle, close it, or let another thread do so.  Across such a call nobody keeps a
 * pointer into the object cache or `self->m`.
 */
#ifndef MMPC_HOT_H
#define MMPC_HOT_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "mmpc.h"
#include "objects.h"
#include "peek.h"

#define HOT_LONG (128 * 1024)        /* bytes from which on a read or write releases the GIL */
#define HOT_LONG_MERGE (64 * 1024)   /* the same for a consolidation */
#define HOT_SCRATCH (16 * 1024)      /* of a read, on the stack */
#define HOT_SMALL 1024               /* of a payload, on the stack */
#define HOT_PIDS (UINT64_C(1) << 40) /* page ids are below */
#define HOT_KIND_FREE 3              /* MM_KIND_FREE of layout.h */

typedef struct hot_state { /* of the module */
    PyTypeObject *key, *materialized, *free, *unallocated, *counter, *meta, *verbs, *held, *view;
    PyObject *check;           /* "_check" */
    PyObject *encode, *decode; /* of mmpc.codec; NULL until first needed */
} hot_state;

/* What is timed only now and then (metrics.h): the first ones, all of them, then each that stands for those before it too. */
typedef struct hot_sampling {
    uint32_t left;  /* that come before one is timed */
    uint32_t begun; /* how many of the first were timed */
} hot_sampling;

typedef struct hot_verbs { /* a handle */
    PyObject_HEAD
    mm *m;            /* NULL: closed, or never bound */
    mm *quick;        /* `m`, or NULL: the next hit is not to be answered at once but apart (hot_read.c), since it is timed */
    uint32_t hits_left; /* until the one that is timed.  A hit takes one off, and nothing else is done for the metrics */
    uint32_t hits_told; /* what `hits_left` was when hits were last counted in the metrics: what it lost since they do not know of */
    hot_state *state; /* of `module`, which keeps it alive */
    PyObject *module, *pack, *unpack, *merge, *size_of; /* size_of may be NULL */
    PyObject *owner;  /* of `m`, for what outlives the handle */
    PyObject *compress, *decompress; /* of mmpc._compression; compress is NULL where writes do not */
    uint64_t compress_from; /* bytes; all ones where writes do not */
    mm_objects objects;
    int kind;         /* enum mm_merge_kind */
    int last;         /* size rule: the size of a value is that of its largest fragment */
    int packing;      /* `pack` is running: it serves one caller at a time */
    uint64_t stood_for; /* hits counted since the last one that was timed: the next one stands for them too */
    uint32_t first_hits; /* timed, all of them */
    hot_sampling encoding, decoding;
} hot_verbs;

/* hot_read.c: counts in the metrics the hits that they do not know of yet. */
void hot_tell_hits(hot_verbs *self);

/* hot_verbs.c: what is timed for the metrics; across calls into Python. */
typedef struct hot_timing { uint64_t begun, n; } hot_timing; /* n: for how many it stands; 0: it is not timed */
hot_timing hot_begin_timed(hot_verbs *self, hot_sampling *s, uint32_t every);
void hot_end_timed(hot_verbs *self, int histogram, hot_timing t);
static inline hot_timing hot_begin(hot_verbs *self, hot_sampling *s, uint32_t every)
{
    if (!MM_METRICS_BUILT) return (hot_timing){ 0, 0 };
    if (__builtin_expect(!s->left, 0)) return hot_begin_timed(self, s, every);
    s->left--;
    return (hot_timing){ 0, 0 };
}
static inline void hot_end(hot_verbs *self, int histogram, hot_timing t)
{
    if (__builtin_expect(t.n != 0, 0)) hot_end_timed(self, histogram, t);
}

/* hot_results.c: the key and the five results. */
enum hot_page_kind { HOT_MATERIALIZED, HOT_FREE, HOT_UNALLOCATED, HOT_COUNTER, HOT_META };
typedef struct hot_page {
    PyObject_HEAD
    PyObject *value, *key; /* NULL where the kind has none */
    int kind;
} hot_page;
typedef struct hot_key {
    PyObject_HEAD
    mm_key key;
} hot_key;

int hot_add_results(PyObject *module, hot_state *state);
PyObject *hot_key_new(hot_state *state, const mm_key *key);
/* A result of `kind`; takes over `value` (may be NULL, also when it fails). */
PyObject *hot_page_new(hot_state *state, int kind, PyObject *value, const mm_key *key);

/* hot_codec.c: fragments to bytes and back. */
typedef struct hot_payload {
    const uint8_t *p;
    uint64_t n;
    PyObject *owner; /* holds p, or NULL */
    uint8_t *heap;   /* is p, or NULL */
    uint32_t tag;    /* of one that is compressed: the class of what it was */
    int compressed;
    uint8_t small[HOT_SMALL];
} hot_payload;
int hot_encode(hot_verbs *self, PyObject *fragment, hot_payload *out); /* 0, or -1 and an exception */
void hot_payload_clear(hot_payload *p);
/* Makes a frame of it, if this handle does that and it gains anything: 0, or -1 and an exception.  The payload is to be cleared in any case. */
int hot_compress_now(hot_verbs *self, hot_payload *payload);
static inline int hot_compress(hot_verbs *self, hot_payload *payload)
{
    return __builtin_expect(payload->n >= self->compress_from, 0) ? hot_compress_now(self, payload) : 0;
}
/* One value; `source`, if not NULL, is a bytes object with exactly these bytes. */
PyObject *hot_decode(hot_verbs *self, const uint8_t *p, uint64_t n, PyObject *source);
/* An array of `count` fragments as a list. */
PyObject *hot_decode_array(hot_verbs *self, const uint8_t *p, uint64_t n, uint32_t count, PyObject *source);

/* hot_call.c: arguments, and what happens when the core does not say MM_OK. */
typedef struct hot_signature {
    const char *verb;
    int required, total;
    const char *names[5];
} hot_signature;
int hot_arguments_apart(const hot_signature *s, PyObject *const *args, Py_ssize_t nargs, PyObject *names, PyObject **out);
static inline int hot_arguments(const hot_signature *s, PyObject *const *args, Py_ssize_t nargs, PyObject *names, PyObject **out)
{
    if (names || nargs < s->required || nargs > s->total) return hot_arguments_apart(s, args, nargs, names, out);
    for (Py_ssize_t i = 0; i < s->total; i++) out[i] = i < nargs ? args[i] : NULL;
    return 0;
}
/* 1: a page id; 0: an int that no page has; -1: TypeError. */
int hot_pid(PyObject *o, uint64_t *pid);
int hot_key_of(hot_verbs *self, PyObject *pid, PyObject *key, mm_key *out);
int hot_check_tx(hot_verbs *self, PyObject *tx);
/* self._mend(...): 0: try the verb again, with self->m read anew; -1: an exception. */
int hot_mend(hot_verbs *self, int status, const mm_result *r, PyObject *pid, PyObject *fragment);
/* self._due(): the log has grown enough for a snapshot.  What goes wrong there is no error of the write that noticed it. */
void hot_due(hot_verbs *self);
/* The handle was unbound in the middle of a verb, by one of its callbacks or by another thread: raises, answers -1. */
int hot_closed(hot_verbs *self);

/* hot_read.c */
PyObject *hot_get(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *hot_get_many(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *hot_get_page_frags(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *hot_consolidate(hot_verbs *self, PyObject *pid);
typedef struct hot_buffer {
    mm_result r;
    const uint8_t *p;  /* r.length bytes */
    PyObject *source;  /* exactly these bytes as an object, or NULL */
    PyObject *holder;  /* keeps p, or NULL: p is `scratch` */
    uint8_t scratch[HOT_SCRATCH];
} hot_buffer;
/* mm_read, with what is compressed decompressed: a status of the core, or -1 and an exception.  The caller gives b->holder back. */
int hot_read_page(hot_verbs *self, mm *m, uint64_t pid, uint64_t known, int how, hot_buffer *b);
/* Merges a chain of about `bytes`, native materializers only: in C, or, where it is compressed or to be compressed, here.  The same answers. */
int hot_merge_chain(hot_verbs *self, mm *m, uint64_t pid, uint64_t bytes, mm_result *r);

/* hot_cache.c: the object cache with references; each of these may run destructors. */
typedef struct hot_known { /* what a read goes on from; all 0: nothing */
    PyObject *page; /* a new reference to a Materialized, or NULL */
    uint64_t wts, size;
} hot_known;
hot_known hot_recall(hot_verbs *self, uint64_t pid);
void hot_remember(hot_verbs *self, const mm_result *r, PyObject *page, uint64_t size);
void hot_moved(hot_verbs *self, const mm_result *r); /* the content is as cached, the head is another */
void hot_forget(hot_verbs *self, uint64_t pid);
void hot_forget_all(hot_verbs *self);
void hot_resize(hot_verbs *self, uint64_t capacity);

/* hot_write.c */
PyObject *hot_append(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *hot_append_many(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *hot_allocate(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *hot_link(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *hot_replace(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *hot_free_page(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names);

/* hot_ids.c */
PyObject *hot_generate_id(hot_verbs *self, PyObject *unused);

/* hot_view.c */
int hot_add_views(PyObject *module, hot_state *state);
PyObject *hot_view(hot_verbs *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names);

/* hot_verbs.c */
int hot_add_verbs(PyObject *module, hot_state *state);

#endif
