/* flush.c - durability: one epoch step, one sync of the log, one mark, and, where an intent does not say as much, one sync of the marks; shared by all who
 * wait for it.  Where the intent carries what others wrote, it is a sync of our own pages alone.
 *
 * cut(D) = every committed record with colour <= D, D the newest mark.  If B's author saw A, A's commit word was stored before B's
 * colour was loaded, hence before the epoch left D, hence before the sync (model: publish.pml).  A stopped or dead process is
 * just a record that nobody saw; nothing has to be found or waited for.
 *
 * Who flushes is a hint.  The leader flushes for all; the others wait for it, a bounded time, then the first of them leads instead: a leader
 * that is stopped or dead delays them once.  Two leaders at a time do no harm: each has its own marks, `stable` only rises.
 *
 * A failed sync is final for everybody: the kernel may call the lost pages clean from now on (C15: see `distrust`).
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

#define PATIENCE_LEAST UINT64_C(5000000)    /* ns that a leader is waited for, at least */
#define PATIENCE_MOST UINT64_C(200000000)
#define GATHER_MOST UINT64_C(150000)        /* ns that a leader waits for company, at most */

/* A failed sync is final: `failed` is set once, and every operation of every process asks it. */
static int sync_failed(mm *m, int error, mm_result *r)
{
    uint64_t none = 0;
    at_cas_acq_rel(&m->g->failed, &none, (uint64_t)error);
    r->os_error = error;
    return MM_FAILED;
}

static int has_failed(mm *m, mm_result *r)
{
    uint64_t failed = at_load_acquire(&m->g->failed);
    r->os_error = (int32_t)failed;
    return failed ? MM_FAILED : MM_OK;
}

/* ---- pages that the kernel may call clean though they are not on the disk (C15) -------------------------------------------- */

/* The kernel tells each open file once that pages of it could not be written, but not those opened after somebody was told.  So a sync of
 * ours proves something only if no other process can have been told before we opened `log`: one whose sync began in an earlier epoch than we
 * were born in, and has not ended, or whose slot was reaped before it ended (`suspect`, whichever: one death may hide another's). */
static bool distrust(mm *m, uint64_t *suspect)
{
    bool doubt = false;
    for (uint32_t i = 0; i < MM_SLOTS && i < at_load_acquire(&m->g->slots_used); i++) {
        uint64_t begun = at_load_acquire(&m->slots[i].syncing);
        doubt = doubt || (i != m->slot_index && begun && begun < m->born);
    }
    *suspect = at_load_acquire(&m->g->suspect); /* after the slots: a reaper sets it before it clears theirs (model: suspect.pml) */
    return doubt || *suspect;
}

/* ---- one flush ------------------------------------------------------------------------------------------------------------------ */

/* A segment that was retired, or is used again, holds nothing that must be there. */
static bool in_use(mm *m, const mm_lease_fill *l)
{
    mm_result ignored;
    const mm_segment *s = mm_segment_of(m, l->address, &ignored);
    uint64_t w = s ? at_load_acquire(&s->word) : 0, state = mm_segword_state(w);
    return mm_segword_generation(w) == l->generation && (state == MM_SEG_OPEN || state == MM_SEG_SEALED || state == MM_SEG_CLAIMED);
}

/* The lease of a slot, or the one before where a new one begins just now; false: none, or its owner was faster.  With what is published and not counted
 * yet: others may have seen it and be in the cut, and it must be missed in a copy of the log that was made before it was written. */
static bool lease_of(mm *m, const mm_slot *s, mm_lease_fill *l)
{
    bool announces = at_load_acquire(&s->announce) != 0; /* first, as in intent.c */
    uint64_t lease = at_load_acquire(&s->lease), shape = at_load_acquire(&s->lease_shape), fill = at_load_acquire(&s->lease_fill);
    if (!fill || at_load_acquire(&s->lease) != lease) {
        fill = at_load_acquire(&s->last_fill);
        lease = at_load_acquire(&s->last_lease);
        shape = at_load_acquire(&s->last_shape);
        if (at_load_acquire(&s->last_fill) != fill) return false;
    } else if (announces && lease)
        fill = mm_fill_with_late(m, lease, shape, fill);
    *l = (mm_lease_fill){ lease, (uint32_t)fill, (uint32_t)(shape >> 32) };
    return lease && fill && in_use(m, l);
}

/* Between the epoch step and the sync: what lies below these fills is durable when the mark is, so damage there is damage (C14); but for segments
 * that are used again, which the generation tells.  A log that is shorter than what is in use now was cut. */
static void list_leases(mm *m, mm_mark *k)
{
    k->count = 0;
    for (uint32_t i = 0; i < MM_SLOTS && i < at_load_acquire(&m->g->slots_used) && k->count < MM_MARK_LEASES; i++)
        k->count += lease_of(m, &m->slots[i], &k->leases[k->count]);
    k->discarded = m->config.discarded;
    k->segments = mm_segments_used(m);
    if (mm_log_reaches(m, MM_BLOCK)) k->retirements = (uint32_t)at_load_acquire(mm_retirements(m));
}

/* The pages of our lease that hold what is not in its place yet, the intent with it. */
static int sync_own(mm *m, const mm_lease_fill *l)
{
    uint64_t from = (l->address + mm_intent_placed(m, l)) & ~(uint64_t)(MM_BLOCK - 1), to = l->address + l->fill;
    return mm_os_sync_range(m->config.log, m->log, from, (to + MM_BLOCK - 1) & ~(uint64_t)(MM_BLOCK - 1));
}

/* The order is the protocol: epoch, log, mark.  A mark says that the log is on the disk in its places, so none is made, and none noted, after a sync of our own
 * pages alone.  `syncing` stands in the slot as long as an error may have been told to nobody but us. */
static int sync_and_mark(mm *m, mm_mark *k, const mm_intent *said, mm_result *r)
{
    uint64_t suspect;
    int failing = mm_fail_at(m->config.failpoints, MM_FAIL_BUFFER_WRITE);
    if (failing) return sync_failed(m, failing, r);
    bool distrusted = distrust(m, &suspect);
    bool whole = !said->carries || distrusted;
    if (distrusted) mm_dirty_again(m);
    int e = whole ? mm_os_sync(m->config.log) : sync_own(m, &said->lease);
    if (!e && distrusted) e = mm_os_sync_filesystem(m->config.log); /* dirty again is not enough everywhere (rewrite.c) */
    if (!e) e = mm_fail_at(m->config.failpoints, MM_FAIL_BUFFER_WRITE_POST);
    if (!e && suspect) at_cas_acq_rel(&m->g->suspect, &suspect, 0);
    if (!e && has_failed(m, r)) return MM_FAILED; /* another one was told: what it lost we may have called durable */
    if (!e) e = mm_fail_at(m->config.failpoints, MM_FAIL_TRAILER_WRITE);
    if (!e) e = !said->put ? mm_mark_write(m, k) : whole ? mm_mark_note(m, k) : mm_mark_witness(m, k->epoch);
    if (!e) e = mm_fail_at(m->config.failpoints, MM_FAIL_TRAILER_WRITE_POST);
    return e ? sync_failed(m, e, r) : has_failed(m, r);
}

/* The caller holds `flushing`. */
static int flush_now(mm *m, mm_result *r)
{
    int rc = mm_log_whole(m, r); /* the sync of a file that was cut makes nothing durable */
    if (rc) return rc;
    int e = mm_mark_prepare(m);
    if (e) return sync_failed(m, e, r);
    uint64_t begun = mm_os_monotonic();
    at_store_relaxed(&m->g->flush_begun, begun);
    mm_mark k = { .epoch = at_add_seq_cst(&m->g->epoch, 1) };
    mm_epoch_time(m, k.epoch + 1);
    at_fence_full(); /* who loaded that epoch as its colour has its commit words in memory */
    at_store_seq_cst(&m->slot->syncing, k.epoch);
    mm_fills now;
    mm_lock(m, MM_HOLD_PUBLISH); /* no lease of ours begins between the two */
    mm_fills_now(m, k.epoch, &now);
    list_leases(m, &k);
    mm_unlock(m, MM_HOLD_PUBLISH);
    uint64_t synced = mm_time_begin(m);
    mm_intent said;
    mm_intent_put(m, &now, &said);
    rc = sync_and_mark(m, &k, &said, r);
    if (rc) return rc;
    mm_count(m, MM_COUNT_syncs, 1);
    mm_time_end(m, MM_TIME_sync, synced, 1);
    mm_fills_durable(m, &now, &said);
    if (!said.put) {
        m->base = now;
        at_max_release(&m->g->marked, k.epoch);
    }
    at_add_relaxed(&m->g->flushes, 1); /* before `stable`: who sees that finds this flush counted */
    at_max_release(&m->g->stable, k.epoch);
    at_store_release(&m->slot->syncing, 0);
    uint64_t usual = at_load_relaxed(&m->g->flush_time), took = mm_os_monotonic() - begun;
    at_store_relaxed(&m->g->flush_time, usual ? usual - usual / 8 + took / 8 : took);
    return MM_OK;
}

/* ---- who flushes ------------------------------------------------------------------------------------------------------------------ */

/* Those whom the last flush served, and those who came during it, are likely to be back soon: a leader that waits for them a little serves them
 * all with one sync.  False: they were not, and are not waited for the next time. */
static bool gather(mm *m)
{
    uint64_t crowd = at_load_relaxed(&m->g->crowd), most = at_load_relaxed(&m->g->flush_time) / 2, begun = mm_os_monotonic();
    if (most > GATHER_MOST) most = GATHER_MOST;
    while (at_load_relaxed(&m->g->waiting) + 1 < crowd) {
        if (mm_os_monotonic() - begun >= most) return false;
        mm_os_yield();
    }
    return true;
}

/* *flushed: it was not another one's flush that answered. */
static int lead(mm *m, const at_word *reached, uint64_t turn, uint64_t target, bool *flushed, mm_result *r)
{
    mm_lock(m, MM_HOLD_FLUSHING);
    bool all = gather(m);
    uint64_t crowd = at_exchange_relaxed(&m->g->waiting, 0) + 1;
    int rc = has_failed(m, r);
    if (!rc && at_load_acquire(reached) < target) { /* else a thread before us has done it */
        mm_note_value(m, MM_TIME_flush_batch, crowd, 1);
        rc = flush_now(m, r);
        *flushed = true;
    }
    at_store_relaxed(&m->g->crowd, all ? crowd + at_load_relaxed(&m->g->waiting) : crowd);
    at_cas_acq_rel(&m->g->leader, &turn, 0); /* lost: somebody leads instead of us */
    at_add_seq_cst(&m->g->flushed, 1);
    mm_unlock(m, MM_HOLD_FLUSHING);
    if (crowd > 1 || at_load_relaxed(&m->g->waiting)) mm_os_wake(&m->g->flushed);
    return rc;
}

static uint64_t patience(mm *m)
{
    uint64_t ns = 4 * at_load_relaxed(&m->g->flush_time);
    return ns < PATIENCE_LEAST ? PATIENCE_LEAST : ns > PATIENCE_MOST ? PATIENCE_MOST : ns;
}

/* Until `stable`, or `marked`, has reached the target: lead, or wait for who leads.  Each turn of the loop means that a flush has ended, or that a leader
 * was waited for in vain and its turn taken. */
static int flush_to(mm *m, const at_word *reached, uint64_t target, mm_result *r)
{
    bool asked = false, flushed = false;
    for (;; asked = true) {
        if (at_load_acquire(reached) >= target) {
            if (asked && !flushed) at_add_relaxed(&m->g->shared, 1); /* a statistic */
            return MM_OK;
        }
        int rc = has_failed(m, r);
        if (rc) return rc;
        uint64_t mine = (pv_add(&m->flush_turn, 1) + 1) << 16 | (m->slot_index + 1), leader = 0;
        uint64_t seen = at_load_acquire(&m->g->flushed); /* before the leader: a flush that ends from here on wakes us */
        if (!at_cas_acq_rel(&m->g->leader, &leader, mine)) {
            uint64_t since = mm_os_monotonic(), most = patience(m), past = 0;
            at_add_relaxed(&m->g->waiting, 1);
            while ((uint32_t)at_load_acquire(&m->g->flushed) == (uint32_t)seen && past < most) {
                mm_os_wait(&m->g->flushed, seen, most - past);
                past = mm_os_monotonic() - since;
            }
            if (past < most || !at_cas_acq_rel(&m->g->leader, &leader, mine)) continue;
        }
        rc = lead(m, reached, mine, target, &flushed, r);
        if (rc) return rc;
    }
}

/* Nothing that returned, or that anybody can have seen, is newer than `stable`.  A publish under way may have been seen before it says so;
 * one that died is told of by its reaper, and one that was helped by the helper. */
static bool clean(mm *m)
{
    return !mm_somebody_announces(m) && at_load_acquire(&m->g->dirty) <= at_load_acquire(&m->g->stable);
}

/* The announcement of a dead slot would make every flush do work. */
static void reap_announcing(mm *m)
{
    mm_lock(m, MM_HOLD_PUBLISH);
    mm_reap_announcing(m);
    mm_unlock(m, MM_HOLD_PUBLISH);
}

typedef struct flush_call { uint64_t lsn, *advanced; } flush_call;

static int flush_all(mm *m, void *args, mm_result *r)
{
    const flush_call *c = args;
    uint64_t lsn = c->lsn;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    uint64_t target = lsn ? lsn : at_load_acquire(&m->g->epoch), before = at_load_acquire(&m->g->stable);
    uint64_t begun = mm_time_begin(m);
    if (target > at_load_acquire(&m->g->epoch)) rc = MM_LIMIT; /* never given: waiting for it would be for ever */
    else if (lsn ? before < target : !clean(m)) {
        rc = flush_to(m, &m->g->stable, target, r);
        mm_count(m, MM_COUNT_flushes, 1);
        mm_time_end(m, MM_TIME_flush, begun, 1);
    }
    if (!rc && !lsn && mm_somebody_announces(m)) reap_announcing(m);
    if (!rc) *c->advanced = at_load_acquire(&m->g->stable) - before;
    mm_leave(m, pin);
    return rc;
}

static int flush_marked(mm *m, void *epoch, mm_result *r)
{
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    mm_want_mark(m, *(uint64_t *)epoch);
    rc = flush_to(m, &m->g->marked, *(uint64_t *)epoch, r);
    mm_leave(m, pin);
    return rc;
}

/* For who makes bytes usable again, and for who leaves.  `epoch` was there already. */
int mm_flush_marked(mm *m, uint64_t epoch, mm_result *r)
{
    memset(r, 0, sizeof *r);
    return mm_guarded(m, r, flush_marked, &epoch);
}

static int epoch_stable(mm *m, void *stable, mm_result *r)
{
    (void)r;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    *(uint64_t *)stable = at_load_acquire(&m->g->stable);
    mm_leave(m, pin);
    return MM_OK;
}

/* What is durable, and only an intent says so, a mark says too on return. */
int mm_flush_to_marks(mm *m, mm_result *r)
{
    uint64_t stable;
    memset(r, 0, sizeof *r);
    int rc = mm_guarded(m, r, epoch_stable, &stable);
    return rc ? rc : mm_flush_marked(m, stable, r);
}

/* For who has left, and has only the file: something was written since the newest flush. */
int mm_control_dirty(int control)
{
    uint64_t stable, dirty; /* in this order: what is written in between counts */
    int e = mm_os_read_at(control, &stable, 8, MM_CONTROL_GLOBALS + offsetof(mm_globals, stable));
    if (!e) e = mm_os_read_at(control, &dirty, 8, MM_CONTROL_GLOBALS + offsetof(mm_globals, dirty));
    return !e && dirty > stable;
}

int mm_flush(mm *m, uint64_t lsn, uint64_t *advanced, mm_result *r)
{
    memset(r, 0, sizeof *r);
    *advanced = 0;
    return mm_guarded(m, r, flush_all, &(flush_call){ lsn, advanced });
}

/* The periodic flush of all attached processes: whoever finds that the last flush began `period` ns ago, and something is dirty, and wins
 * the CAS, flushes.  *wait: ns until it is worth asking again. */
typedef struct due_call {
    uint64_t period, *wait;
    bool mine;
} due_call;

static int flush_due(mm *m, void *args, mm_result *r)
{
    (void)r;
    due_call *c = args;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    uint64_t now = mm_os_monotonic(), last = at_load_acquire(&m->g->flush_begun);
    if (last > now) last = 0; /* a clock of another time namespace */
    if (now - last < c->period) *c->wait = c->period - (now - last);
    else if (!clean(m)) c->mine = at_cas_acq_rel(&m->g->flush_begun, &last, now);
    mm_leave(m, pin);
    return MM_OK;
}

int mm_flush_due(mm *m, uint64_t period, uint64_t *wait, mm_result *r)
{
    due_call c = { period, wait, false };
    uint64_t advanced;
    memset(r, 0, sizeof *r);
    *wait = period;
    int rc = mm_guarded(m, r, flush_due, &c);
    return rc || !c.mine ? rc : mm_flush(m, 0, &advanced, r);
}
