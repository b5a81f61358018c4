/* objects.h - the object cache of one handle: decoded pages by page id, bounded in bytes, evicted by SIEVE.
 *
 * SIEVE: a queue in order of arrival and a hand that walks from the oldest to the newest.  A hit only sets a bit; the hand
 * clears set bits and evicts the first object whose bit was clear.  So a hit writes nothing that other objects share, and a
 * scan over many pages leaves the hot ones in place.
 *
 * Nothing here knows Python or takes a lock: the caller owns the references and serialises the calls (the GIL does).  No call
 * runs code of others, so a victim is handed out one at a time and released by the caller, when the cache is whole again.
 * Pointers to entries are void after any call but mm_objects_find.
 */
#ifndef MMPC_OBJECTS_H
#define MMPC_OBJECTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What an entry costs beside the value: its slot at the mean load, the result object and the key. */
#define MM_OBJECT_OVERHEAD UINT64_C(256)
#define MM_OBJECT_NONE UINT32_MAX

typedef struct mm_object { /* one cache line */
    uint64_t pid;
    uint64_t head;       /* valid while this is the page's head word, */
    uint64_t generation; /* and this the generation of the segment it points into */
    uint64_t wts;        /* content version of the object */
    uint64_t size;       /* bytes, overhead not included */
    void *object;        /* NULL: the slot is empty */
    uint32_t newer, older, visited, spare;
} mm_object;
_Static_assert(sizeof(mm_object) == 64, "one cache line an entry");

typedef struct mm_objects {
    mm_object *slots;   /* open addressing, linear probing; NULL while empty */
    uint64_t capacity;  /* bytes */
    uint64_t bytes;     /* in use, overhead included; never above capacity after mm_objects_put */
    uint64_t misses, evictions;
    uint32_t shift;     /* 64 - log2(number of slots) */
    uint32_t count;
    uint32_t newest, oldest, hand; /* slot numbers, or MM_OBJECT_NONE */
} mm_objects;

void mm_objects_init(mm_objects *o, uint64_t capacity);

static inline uint32_t mm_objects_home(const mm_objects *o, uint64_t pid)
{
    return (uint32_t)(pid * UINT64_C(0x9E3779B97F4A7C15) >> o->shift);
}
static inline uint32_t mm_objects_mask(const mm_objects *o) { return (uint32_t)((UINT64_C(1) << (64 - o->shift)) - 1); }

/* The entry of a page, or NULL.  Who uses it sets `visited`. */
static inline mm_object *mm_objects_find(const mm_objects *o, uint64_t pid)
{
    if (!o->count) return NULL;
    uint32_t i = mm_objects_home(o, pid), mask;
    if (__builtin_expect(o->slots[i].object && o->slots[i].pid == pid, 1)) return &o->slots[i];
    for (mask = mm_objects_mask(o);; i = (i + 1) & mask) {
        mm_object *e = &o->slots[i];
        if (!e->object) return NULL; /* the table always has an empty slot */
        if (e->pid == pid) return e;
    }
}

/* An object of that size fits at no time. */
static inline bool mm_objects_too_large(const mm_objects *o, uint64_t size)
{
    return o->capacity < MM_OBJECT_OVERHEAD || size > o->capacity - MM_OBJECT_OVERHEAD;
}

/* Evicts one object if an entry of `size` bytes for `pid` does not fit yet; NULL: it fits, or never will. */
void *mm_objects_make_room(mm_objects *o, uint64_t pid, uint64_t size);

/* Stores `entry` (its links are ignored), if it fits and no newer version of the page is there.  True: the cache took the
 * reference; *previous is the object that was replaced, or NULL. */
bool mm_objects_put(mm_objects *o, const mm_object *entry, void **previous);

/* Takes the entry of a page out; returns its object, or NULL. */
void *mm_objects_remove(mm_objects *o, uint64_t pid);

/* Moves all entries to *out, which mm_objects_pop empties; `o` stays usable and keeps its capacity and counters. */
void mm_objects_detach(mm_objects *o, mm_objects *out);
/* Takes any object out; NULL: empty, and its memory is given back. */
void *mm_objects_pop(mm_objects *o);

#endif
