/* guard.c - SIGBUS: a file that somebody cut, or a page that the device cannot give, under a mapping of ours.
 *
 * Inside mm_guarded the handler jumps back to it, and the call answers MM_CORRUPT; outside, a peek (atomics.h: at_peek) is given 0 and goes on.
 * Where only the metrics were cut, memory of this process takes their place, and the access is done again.
 * Every other SIGBUS is handed to whoever had the signal before us, as if we were not there.
 *
 * The jump restores no signal mask: the handler runs with SA_NODEFER and an empty mask, so the kernel changes none.  No lock of libc can be
 * held at the jump: the fault is of an access to a mapping, which libc does on our behalf only in memcpy and the like.
 *
 * State of the process, not of an attachment, since a signal has one disposition in a process: what was there before us.  It is written
 * without a lock, which a fork might find taken.
 *
 * Faults in system calls are EFAULT, not signals.  A thread that blocks SIGBUS is killed by a fault: the kernel insists.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

#ifdef MM_PEEK_FIXED
#include <ucontext.h>
#ifdef __x86_64__
#define PROGRAM_COUNTER(u) ((u)->uc_mcontext.gregs[REG_RIP])
#else
#define PROGRAM_COUNTER(u) ((u)->uc_mcontext.pc)
#endif
#endif

#ifdef __SANITIZE_THREAD__
#define SAVE_MASK 1 /* its own handler, which calls ours, blocks every signal */
#else
#define SAVE_MASK 0
#endif
#define FAULTED (-1) /* of run(): no enum mm_status */

_Thread_local mm_guard *mm_guard_now MM_TLS_MODEL;

/* ---- what was there before us ------------------------------------------------------------------------------------------------- */

#define KEPT 8u
static struct {
    struct sigaction actions[KEPT]; /* the first found, and the latest ones found on top of us */
    pv_word taken, first, latest;   /* first, latest: index + 1; 0 = none yet */
} before;

static _Thread_local struct { bool asked, raised; } chain MM_TLS_MODEL; /* asked: the one before us runs now; raised: see raised_again */

static struct sigaction found_before(const pv_word *which)
{
    uint64_t i = pv_load(which);
    return i ? before.actions[(i - 1) % KEPT] : (struct sigaction){ .sa_handler = SIG_DFL };
}

/* The fault happens again when the handler returns, and ends the process; what was sent must be sent again. */
static void as_by_default(int number, const siginfo_t *info)
{
    struct sigaction none = { .sa_handler = SIG_DFL };
    sigaction(number, &none, NULL);
    if (info->si_code <= 0) raise(number);
}

static void ask(const struct sigaction *a, int number, siginfo_t *info, void *context)
{
    sigset_t mask = a->sa_mask, now;
    if (!(a->sa_flags & SA_NODEFER)) sigaddset(&mask, number);
    pthread_sigmask(SIG_BLOCK, &mask, &now);
    chain.asked = true;
    if (a->sa_flags & SA_SIGINFO) a->sa_sigaction(number, info, context);
    else a->sa_handler(number);
    chain.asked = false;
    pthread_sigmask(SIG_SETMASK, &now, NULL);
}

/* One that we asked may end in us again, when it was installed on top of us once (faulthandler raises the signal for the one before it):
 * then the very first is meant. */
static void hand_on(int number, siginfo_t *info, void *context)
{
    bool sent = info->si_code <= 0, again = sent && chain.asked;
    struct sigaction a = found_before(again && pv_load(&before.first) != pv_load(&before.latest) ? &before.first : &before.latest);
    bool handler = a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN && !(again && pv_load(&before.first) == pv_load(&before.latest));
    if (a.sa_handler == SIG_IGN && sent) return;
    if (handler) ask(&a, number, info, context);
    else as_by_default(number, info);
}

/* A handler on top of ours (faulthandler, enabled after the open) got the fault first, and raised the signal for us: the access will fault
 * again when both have returned, and we then see where.  Sent by this thread itself, inside a call of the core or for the first time. */
static bool raised_again(const siginfo_t *info)
{
    if (info->si_code != SI_TKILL || info->si_pid != getpid() || chain.asked) return false;
    if (mm_guard_now) return true;
    bool first = !chain.raised;
    chain.raised = true;
    return first;
}

/* ---- is it ours? -------------------------------------------------------------------------------------------------------------- */

/* The file that is mapped at `p`. */
static bool locate(const mm *m, const void *p, uint32_t *file, uint64_t *offset)
{
    const struct { const uint8_t *at; uint64_t window; uint32_t file; } maps[] = {
        { m->log, m->log_window, MM_FILE_LOG },           { m->table_map, m->words_window, MM_FILE_TABLE },
        { m->control, m->control_window, MM_FILE_CONTROL }, { m->ids_map, m->words_window, MM_FILE_IDS },
        { m->rts_map, m->words_window, MM_FILE_RTS } };
    for (unsigned i = 0; i < sizeof maps / sizeof *maps; i++) {
        uint64_t distance = (uint64_t)((uintptr_t)p - (uintptr_t)maps[i].at);
        if (!maps[i].at || distance >= maps[i].window) continue;
        *file = maps[i].file;
        *offset = distance;
        return true;
    }
    return false;
}

#ifdef MM_PEEK_FIXED
/* One entry for each peek (atomics.h): the load that may fault, and where to go on, both relative to the entry's own fields. */
typedef struct peek_entry { int32_t load, next; } peek_entry;
extern const peek_entry __start_mm_peeks[] __attribute__((weak, visibility("hidden")));
extern const peek_entry __stop_mm_peeks[] __attribute__((weak, visibility("hidden")));

static bool peek_goes_on(void *context)
{
    ucontext_t *u = context;
    for (const peek_entry *e = __start_mm_peeks; e != __stop_mm_peeks; e++) {
        if ((intptr_t)&e->load + e->load != (intptr_t)PROGRAM_COUNTER(u)) continue;
        PROGRAM_COUNTER(u) = (intptr_t)&e->next + e->next;
        return true;
    }
    return false;
}
#else
static bool peek_goes_on(void *context)
{
    (void)context;
    return false;
}
#endif

static void on_bus(int number, siginfo_t *info, void *context)
{
    if (info->si_code > 0 && info->si_code != BUS_MCEERR_AO) { /* a fault of this thread, just now */
        chain.raised = chain.asked = false;
        if (peek_goes_on(context)) return;
        mm_guard *g = mm_guard_now;
        if (g && mm_metrics_fault(g->m, info->si_addr)) return;
        MM_DISK(mm_disk_faulted());
        if (g && locate(g->m, info->si_addr, &g->file, &g->offset)) siglongjmp(g->back, 1);
    } else if (raised_again(info))
        return;
    hand_on(number, info, context);
}

void mm_guard_install(void)
{
    struct sigaction ours = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK }, found;
    if (sigaction(SIGBUS, &ours, &found)) return;
    if (found.sa_flags & SA_SIGINFO && found.sa_sigaction == on_bus) return;
    uint64_t i = pv_add(&before.taken, 1), none = 0;
    before.actions[i % KEPT] = found;
    pv_cas(&before.first, &none, i + 1);
    pv_store(&before.latest, i + 1);
}

/* ---- the calls ---------------------------------------------------------------------------------------------------------------- */

static int announce_nothing(mm *m, void *args, mm_result *r)
{
    (void)args, (void)r;
    at_max_release(&m->g->dirty, at_load_acquire(&m->g->epoch)); /* if its CAS was done, somebody may have seen it: the next flush must cover it */
    mm_want_mark(m, UINT64_MAX); /* it is committed who knows when, and no intent would list it */
    at_store_release(&m->slot->announce, 0);
    return MM_OK;
}

static int give_up_lease(mm *m, void *args, mm_result *r)
{
    (void)args, (void)r;
    mm_lease_give_up(m);
    return MM_OK;
}

static int give_up_segments(mm *m, void *args, mm_result *r)
{
    (void)args, (void)r;
    mm_segment_abandon(m, m->slot_index, false);
    return MM_OK;
}

/* As after a death of the publisher, but that it lives: what was written is scratch, or published and somebody's to find.  Each step in a
 * guard of its own: the next one may lie in a page that is there. */
static void withdraw(mm *m, uint32_t held)
{
    mm_guarded(m, NULL, announce_nothing, NULL);
    if (held & MM_HOLD_LEASE) {
        mm_guarded(m, NULL, give_up_lease, NULL);
        mm_guarded(m, NULL, give_up_segments, NULL);
    }
    pthread_mutex_unlock(&m->publish);
}

/* Whatever faults in here is inside a guard of its own, which holds nothing: it ends.  `syncing` stays in the slot: an error may have been
 * told to us alone.  `leader` stays until others take the word over (flush.c). */
static int after_fault(const mm_guard *g, mm_result *r)
{
    mm *m = g->m;
    pv_store(&m->fault_offset, g->offset);
    pv_store(&m->fault_file, g->file);
    if (g->held & MM_HOLD_PUBLISH) withdraw(m, g->held);
    if (g->held & MM_HOLD_FLUSHING) pthread_mutex_unlock(&m->flushing);
    if (g->held & MM_HOLD_CLEANING) pthread_mutex_unlock(&m->cleaning);
    mm_pin_give_up(m, g->pin, g->held & MM_HOLD_SHARING);
    return r ? mm_corrupt(r, g->file, g->offset) : MM_CORRUPT;
}

/* Apart from its caller, so that the guard is no variable of the function that setjmp returns to twice. */
__attribute__((noinline)) static int run(mm_guard *g, mm_body *body, void *args, mm_result *r)
{
    if (sigsetjmp(g->back, SAVE_MASK)) return FAULTED;
    return body(g->m, args, r);
}

int mm_guarded(mm *m, mm_result *r, mm_body *body, void *args)
{
    mm_guard g;
    g.m = m;
    g.outer = mm_guard_now;
    g.held = 0;
    g.pin = MM_PIN_NONE;
    mm_guard_now = &g;
    int rc = run(&g, body, args, r);
    mm_guard_now = g.outer;
    return rc == FAULTED ? after_fault(&g, r) : rc;
}

void mm_last_fault(const mm *m, mm_result *r)
{
    r->file = (uint32_t)pv_load(&m->fault_file);
    r->offset = pv_load(&m->fault_offset);
}

/* ---- what no fault tells -------------------------------------------------------------------------------------------------------- */

/* The last page of a cut file is still there: what lay behind the end in it reads as zeros.  So before a call says that a page was never
 * allocated, or blames the log, the files that it looked things up in are measured. */
int mm_measure(mm *m, mm_result *r)
{
    uint64_t segments = at_load_acquire(&m->g->segments), pages = at_load_acquire(&m->g->table_pages);
    uint64_t control = mm_os_size(m->config.control), table = mm_os_size(m->config.table); /* after what is published: files grow first */
    if (control < MM_CONTROL_FRESH || (segments <= MM_MAX_SEGMENTS && control < MM_CONTROL_SEGMENTS + segments * sizeof(mm_segment)))
        return mm_corrupt(r, MM_FILE_CONTROL, control);
    if (pages <= m->table_capacity && table < MM_WORDS_OFFSET + pages * 8) return mm_corrupt(r, MM_FILE_TABLE, table);
    return MM_OK;
}

int mm_blame(mm *m, int rc, mm_result *r)
{
    return (rc == MM_NOPAGE || rc == MM_CORRUPT) && mm_measure(m, r) ? MM_CORRUPT : rc;
}
