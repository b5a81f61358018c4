/* atomics.h - the one header that touches <stdatomic.h>.
 *
 * Words in shared mappings are `at_word`; they are read and written only through these functions, whose names say
 * the ordering.  Each call site says what the other side may rely on.  Words private to a process (`pv_`) carry no
 * fault-injection point.
 */
#ifndef MMPC_ATOMICS_H
#define MMPC_ATOMICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "disk.h"
#include "points.h"

typedef struct { _Atomic uint64_t v; } at_word;

_Static_assert(sizeof(at_word) == 8 && ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free: other processes see no lock of ours");

/* The disk build: the store that was just made under mm_disk_hold goes into the trace. */
static inline void at_recorded(const at_word *w, bool stored)
{
    (void)w;
    (void)stored;
    MM_DISK(mm_disk_stored(stored ? w : 0, sizeof *w));
    MM_DISK(mm_disk_release());
}

static inline uint64_t at_load_relaxed(const at_word *w)
{
    MM_POINT();
    return atomic_load_explicit(&w->v, memory_order_relaxed);
}

/* A relaxed load that gives 0 where a fault of the mapping would be, without a call: the handler (guard.c) finds the load in the section
 * mm_peeks and goes on behind it.  Not for the thread sanitizer, which must see the load, nor for other machines. */
#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(__SANITIZE_THREAD__)
#define MM_PEEK_FIXED
#define MM_PEEK_ENTRY ".pushsection mm_peeks, \"a\"\n.balign 4\n.long 1b - .\n.long 2b - .\n.popsection"
#ifdef __x86_64__
#define MM_PEEK_LOAD(x, w) __asm__ __volatile__("xorl %k0, %k0\n1: movq %1, %0\n2:\n" MM_PEEK_ENTRY : "=&r"(x) : "m"(*(w)) : "cc")
#else
#define MM_PEEK_LOAD(x, w) __asm__ __volatile__("mov %0, xzr\n1: ldr %0, %1\n2:\n" MM_PEEK_ENTRY : "=&r"(x) : "Q"(*(w)))
#endif
static inline uint64_t at_peek(const at_word *w)
{
    MM_POINT();
    uint64_t x;
    MM_PEEK_LOAD(x, w);
    return x;
}
#else
static inline uint64_t at_peek(const at_word *w) { return at_load_relaxed(w); }
#endif

static inline uint64_t at_load_acquire(const at_word *w)
{
    MM_POINT();
    return atomic_load_explicit(&w->v, memory_order_acquire);
}

static inline void at_store_relaxed(at_word *w, uint64_t x)
{
    MM_POINT();
    MM_DISK(mm_disk_hold());
    atomic_store_explicit(&w->v, x, memory_order_relaxed);
    at_recorded(w, true);
}

static inline void at_store_release(at_word *w, uint64_t x)
{
    MM_POINT();
    MM_DISK(mm_disk_hold());
    atomic_store_explicit(&w->v, x, memory_order_release);
    at_recorded(w, true);
}

static inline void at_store_seq_cst(at_word *w, uint64_t x)
{
    MM_POINT();
    MM_DISK(mm_disk_hold());
    atomic_store_explicit(&w->v, x, memory_order_seq_cst);
    at_recorded(w, true);
}

/* On failure *expected is what was found (acquire). */
static inline bool at_cas_acq_rel(at_word *w, uint64_t *expected, uint64_t desired)
{
    MM_POINT();
    MM_DISK(mm_disk_hold());
    bool won = atomic_compare_exchange_strong_explicit(&w->v, expected, desired, memory_order_acq_rel, memory_order_acquire);
    at_recorded(w, won);
    return won;
}

static inline uint64_t at_add_seq_cst(at_word *w, uint64_t d)
{
    MM_POINT();
    MM_DISK(mm_disk_hold());
    uint64_t old = atomic_fetch_add_explicit(&w->v, d, memory_order_seq_cst);
    at_recorded(w, true);
    return old;
}

static inline uint64_t at_add_relaxed(at_word *w, uint64_t d)
{
    MM_POINT();
    MM_DISK(mm_disk_hold());
    uint64_t old = atomic_fetch_add_explicit(&w->v, d, memory_order_relaxed);
    at_recorded(w, true);
    return old;
}

static inline uint64_t at_exchange_relaxed(at_word *w, uint64_t x)
{
    MM_POINT();
    MM_DISK(mm_disk_hold());
    uint64_t old = atomic_exchange_explicit(&w->v, x, memory_order_relaxed);
    at_recorded(w, true);
    return old;
}

static inline uint64_t at_or_relaxed(at_word *w, uint64_t bits)
{
    MM_POINT();
    MM_DISK(mm_disk_hold());
    uint64_t old = atomic_fetch_or_explicit(&w->v, bits, memory_order_relaxed);
    at_recorded(w, true);
    return old;
}

static inline uint64_t at_and_relaxed(at_word *w, uint64_t bits)
{
    MM_POINT();
    MM_DISK(mm_disk_hold());
    uint64_t old = atomic_fetch_and_explicit(&w->v, bits, memory_order_relaxed);
    at_recorded(w, true);
    return old;
}

/* Raises *w to at least x; release, so that who loads the new value (acquire) sees what was done before. */
static inline void at_max_release(at_word *w, uint64_t x)
{
    MM_POINT();
    MM_DISK(mm_disk_hold());
    uint64_t seen = atomic_load_explicit(&w->v, memory_order_relaxed);
    while (seen < x && !atomic_compare_exchange_weak_explicit(&w->v, &seen, x, memory_order_release, memory_order_relaxed)) { }
    at_recorded(w, seen < x);
}

/* The store-load fence of the five places named in docs/design.md (memory order). */
static inline void at_fence_full(void) { atomic_thread_fence(memory_order_seq_cst); }

/* Orders what a signal handler of this thread sees; no instruction. */
static inline void at_fence_signal(void) { atomic_signal_fence(memory_order_seq_cst); }

/* Bytes that no other process reads yet: published later by a CAS with release. */
static inline void at_copy(void *dst, const void *src, uint64_t n)
{
    MM_POINT();
#ifdef MMPC_DISK
    mm_disk_copied(dst, src, n);
#else
    memcpy(dst, src, n);
#endif
}

/* Words that only people read, and that nothing is decided by: they are no point at which to die. */
static inline void at_note(at_word *w, uint64_t x)
{
    MM_DISK(mm_disk_hold());
    atomic_store_explicit(&w->v, x, memory_order_release);
    at_recorded(w, true);
}
static inline uint64_t at_noted(const at_word *w) { return atomic_load_explicit(&w->v, memory_order_relaxed); }

/* Counters that only people read, in a file that nothing depends on: no point at which to die, and no event of the disk build. */
static inline uint64_t at_count(at_word *w, uint64_t n) { return atomic_fetch_add_explicit(&w->v, n, memory_order_relaxed); }
static inline void at_count_set(at_word *w, uint64_t x) { atomic_store_explicit(&w->v, x, memory_order_relaxed); }
static inline void at_count_release(at_word *w, uint64_t x) { atomic_store_explicit(&w->v, x, memory_order_release); }
static inline void at_count_max(at_word *w, uint64_t x)
{
    uint64_t seen = atomic_load_explicit(&w->v, memory_order_relaxed);
    while (seen < x && !atomic_compare_exchange_weak_explicit(&w->v, &seen, x, memory_order_relaxed, memory_order_relaxed)) { }
}
/* Adds n, by the only thread that adds to the word just now, outside of any guard: where it cannot be stored to it is skipped, as at_peek is. */
static inline void at_count_alone(at_word *w, uint64_t n)
{
#if defined(MM_PEEK_FIXED) && defined(__x86_64__)
    __asm__ __volatile__("1: addq %1, %0\n2:\n" MM_PEEK_ENTRY : "+m"(*w) : "re"(n) : "cc");
#else
    uint64_t x = at_peek(w) + n;
#if defined(MM_PEEK_FIXED)
    __asm__ __volatile__("1: str %1, %0\n2:\n" MM_PEEK_ENTRY : "=Q"(*w) : "r"(x));
#else
    at_count_set(w, x);
#endif
#endif
}

/* Says that plain stores have written such bytes, where a copy would cost time. */
static inline void at_written(const void *p, uint64_t n)
{
    (void)p;
    (void)n;
    MM_DISK(mm_disk_written(p, n));
}

/* --- words of this process alone --- */

typedef struct { _Atomic uint64_t v; } pv_word;

static inline uint64_t pv_load(const pv_word *w) { return atomic_load_explicit(&w->v, memory_order_seq_cst); }
static inline uint64_t pv_load_relaxed(const pv_word *w) { return atomic_load_explicit(&w->v, memory_order_relaxed); }
static inline void pv_store(pv_word *w, uint64_t x) { atomic_store_explicit(&w->v, x, memory_order_seq_cst); }
static inline void pv_store_relaxed(pv_word *w, uint64_t x) { atomic_store_explicit(&w->v, x, memory_order_relaxed); }
static inline uint64_t pv_add(pv_word *w, uint64_t d) { return atomic_fetch_add_explicit(&w->v, d, memory_order_seq_cst); }
static inline uint64_t pv_or(pv_word *w, uint64_t bits) { return atomic_fetch_or_explicit(&w->v, bits, memory_order_seq_cst); }
static inline uint64_t pv_and(pv_word *w, uint64_t bits) { return atomic_fetch_and_explicit(&w->v, bits, memory_order_seq_cst); }
typedef struct { _Atomic uint8_t v; } pv_byte;
static inline uint8_t pv_load_byte(const pv_byte *b) { return atomic_load_explicit(&b->v, memory_order_relaxed); }
static inline uint8_t pv_or_byte(pv_byte *b, uint8_t bits) { return atomic_fetch_or_explicit(&b->v, bits, memory_order_relaxed); }
static inline uint8_t pv_and_byte(pv_byte *b, uint8_t bits) { return atomic_fetch_and_explicit(&b->v, bits, memory_order_relaxed); }
static inline bool pv_cas(pv_word *w, uint64_t *expected, uint64_t x)
{
    return atomic_compare_exchange_strong_explicit(&w->v, expected, x, memory_order_seq_cst, memory_order_seq_cst);
}

#endif
