/* guard.h - a fault in a mapping is an error of the call that met it, not the death of the process (guard.c). */
#ifndef MMPC_GUARD_H
#define MMPC_GUARD_H

#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>

#include "atomics.h"
#include "mmpc.h"

enum mm_hold { MM_HOLD_PUBLISH = 1, MM_HOLD_SHARING = 2, MM_HOLD_FLUSHING = 4, MM_HOLD_LEASE = 8, MM_HOLD_CLEANING = 16 };
#define MM_PIN_NONE UINT32_MAX

/* One call of the core: what it must give back when a fault ends it. */
typedef struct mm_guard {
    sigjmp_buf back;
    mm *m;
    struct mm_guard *outer; /* of this thread: calls of the core use each other */
    uint32_t held;          /* enum mm_hold: mutexes; MM_HOLD_LEASE: bytes of the lease may have been written */
    uint32_t pin;           /* index of the pin word, or MM_PIN_NONE */
    uint32_t file;          /* where the fault was */
    uint64_t offset;
} mm_guard;

/* The innermost call of this thread.  initial-exec: the signal handler must not be the first to touch it, since the dynamic linker
 * allocates the other kind at the first touch (glibc; musl allocates when the library is loaded, and has no room for this model). */
#ifdef __GLIBC__
#define MM_TLS_MODEL __attribute__((tls_model("initial-exec")))
#else
#define MM_TLS_MODEL
#endif
extern _Thread_local mm_guard *mm_guard_now MM_TLS_MODEL __attribute__((visibility("hidden")));

/* Calls body(m, args, r).  A fault in a mapping of `m` ends it: what the call held is given back, MM_CORRUPT with file and offset.  Every
 * entry of the core that touches a mapping runs inside one.  r may be NULL; mm_last_fault then tells where. */
typedef int mm_body(mm *m, void *args, mm_result *r);
int mm_guarded(mm *m, mm_result *r, mm_body *body, void *args);

/* Where they stand among the accesses that may fault, the compiler leaves them. */
static inline void mm_note(uint32_t hold, uint32_t release)
{
    at_fence_signal();
    if (mm_guard_now) mm_guard_now->held = (mm_guard_now->held | hold) & ~release;
    at_fence_signal();
}
static inline void mm_note_pin(uint32_t pin)
{
    at_fence_signal();
    if (mm_guard_now) mm_guard_now->pin = pin;
    at_fence_signal();
}

#endif
