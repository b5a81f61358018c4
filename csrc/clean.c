/* clean.c - the cleaner: empties the segments with the least in them, so that the log stays within a factor of what is live.
 *
 * A victim is CLAIMED by CAS.  Who writes to a lease in it sees that and takes another one; who had looked before the claim has announced an
 * epoch that is not newer than the claim's, and is waited for (C3, model: lease.pml).  Then its leases are read, and the chain of every page that
 * passes through it is moved (relocate.c).  After the last one nothing can come into the segment any more: it is retired (reuse.c).
 * Nothing is decoded; counters only steer, and what is read through sets them right.
 *
 * Where a lease ends must be known: its header says so, or the slot of its owner does.  Damage inside one must not look like its end, or what
 * lies behind would be given away: such a segment is left as it is, and reported.
 *
 * Who cleans: writers, in proportion to what they write while the log is too large; a thread in the background; `gc`.  One segment at a time in a
 * process, any number of processes.  Died anywhere here: the claim goes back when the slot is reaped; copies that were published stand.
 * Stopped: its one segment waits, others clean on.
 */
#include <string.h>

#include "internal.h"

#define SLACK_SEGMENTS 2u      /* beyond what is live: the open one, and one being cleaned */
#define PENDING_MOST 2u        /* retired ones that wait for a flush before a cleaner flushes */
#define DEBT_SHARE 8u          /* a writer helps once for an eighth of a segment that it took */
#define AGING_TURNS 32
#define VISIT 16u              /* every so many victims the segment that was not looked at for longest is read, and its counter set right */

/* ---- what there is to do ---------------------------------------------------------------------------------------------------------- */

typedef struct survey {
    uint64_t used, live;       /* bytes of segments that hold something; of reachable records in them, about */
    uint64_t pending, since;   /* RETIRED ones that wait for a flush; the epoch that frees them */
    uint64_t best, best_live, stale, stale_looked, sealed;
} survey;

static uint64_t live_of(const mm *m, const mm_segment *s, uint64_t untold)
{
    int64_t live = (int64_t)(at_load_relaxed(&s->live) + untold);
    return live < 0 ? 0 : (uint64_t)live > m->segment_size ? m->segment_size : (uint64_t)live;
}

/* What an owner of a lease knows of it alone as yet (mm_account): nearly all that it has written there is live. */
static uint64_t untold(mm *m, uint64_t n)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < mm_slots_used(m); i++) {
        const mm_slot *s = &m->slots[i];
        uint64_t lease = at_load_acquire(&s->lease), fill = at_load_acquire(&s->lease_fill);
        if (lease >> m->segment_shift == n && lease && fill <= m->segment_size && (at_load_acquire(&s->state) & 255) == MM_SLOT_LIVE) bytes += fill;
    }
    return bytes;
}

static void look_around(mm *m, survey *v)
{
    mm_result ignored;
    uint64_t n = at_load_acquire(&m->g->segments), marked = at_load_acquire(&m->g->marked);
    *v = (survey){ .best = MM_NO_SEGMENT, .stale = MM_NO_SEGMENT, .best_live = UINT64_MAX, .stale_looked = UINT64_MAX };
    if (!n || !mm_segment_of(m, (n - 1) << m->segment_shift, &ignored)) return;
    for (uint64_t i = 0; i < n; i++) {
        const mm_segment *s = &m->segments[i];
        uint64_t state = mm_segword_state(at_load_acquire(&s->word)), live = live_of(m, s, 0), looked = at_load_relaxed(&s->looked);
        if (state == MM_SEG_RETIRED && at_load_relaxed(&s->since) > marked) {
            v->pending++;
            if (at_load_relaxed(&s->since) > v->since) v->since = at_load_relaxed(&s->since);
        }
        if (state != MM_SEG_OPEN && state != MM_SEG_SEALED && state != MM_SEG_CLAIMED) continue;
        v->used += m->segment_size;
        v->live += live;
        if (state != MM_SEG_SEALED) continue;
        v->sealed++;
        if (live < v->best_live) live = live_of(m, s, untold(m, i));
        if (live < v->best_live) v->best_live = live, v->best = i;
        if (looked < v->stale_looked) v->stale_looked = looked, v->stale = i;
    }
}

/* Bytes beyond 1.4 x what is live, and a few segments. */
static uint64_t excess(const mm *m, const survey *v)
{
    uint64_t good = v->live + v->live / 5 * 2 + SLACK_SEGMENTS * m->segment_size;
    return v->used > good ? v->used - good : 0;
}

/* The seed's rule: the live share, in percent, up to which segment n is worth cleaning; more at the beginning of the log than at its end. */
static uint64_t threshold_of(const mm *m, uint64_t n)
{
    uint64_t all = at_load_relaxed(&m->g->segments), t = m->config.clean_threshold + m->config.clean_skew * (100 - n * 100 / (all ? all : 1)) / 100;
    return t < 1 ? 1 : t > 99 ? 99 : t;
}

static bool worth_cleaning(const mm *m, const survey *v, enum mm_effort effort)
{
    if (v->best == MM_NO_SEGMENT) return false;
    if (excess(m, v)) return v->best_live < m->segment_size - m->segment_size / 16;
    if (effort == MM_EFFORT_WRITER) return false;
    if (effort == MM_EFFORT_ALL) return v->best_live < m->segment_size - m->segment_size / 8;
    return v->sealed > SLACK_SEGMENTS && v->best_live * 100 <= m->segment_size * threshold_of(m, v->best);
}

/* ---- one victim ---------------------------------------------------------------------------------------------------------------------- */

/* The epoch of the claim is left behind by a step of our own: who announces after it has seen the claim. */
static void take(mm *m, uint64_t n, uint64_t word, bool visit)
{
    at_fence_full();
    m->victim = (mm_victim){ .held = true, .visit = visit, .number = n, .generation = mm_segword_generation(word),
                             .at = (n << m->segment_shift) + MM_BLOCK, .since = at_add_seq_cst(&m->g->epoch, 1) };
    mm_epoch_time(m, m->victim.since + 1);
}

static bool claim(mm *m, uint64_t n)
{
    uint64_t w = at_load_acquire(&m->segments[n].word);
    if (mm_segword_state(w) != MM_SEG_SEALED || !mm_segment_step(m, n, &w, MM_SEG_CLAIMED, m->slot_index)) return false;
    take(m, n, w, false);
    return true;
}

/* Only to be read: no lease begins in it any more, and those that have ended are written to no more. */
static void visit(mm *m, uint64_t n)
{
    uint64_t w = at_load_acquire(&m->segments[n].word);
    if (mm_segword_state(w) == MM_SEG_SEALED) take(m, n, w, true);
}

/* Still ours; a visited one: still there. */
static bool holds(const mm *m)
{
    const mm_victim *v = &m->victim;
    uint64_t w = at_load_acquire(&m->segments[v->number].word), state = mm_segword_state(w);
    if (!v->held || mm_segword_generation(w) != v->generation) return false;
    return v->visit ? state == MM_SEG_SEALED : state == MM_SEG_CLAIMED && mm_segword_rest(w) == m->slot_index;
}

/* What cannot be emptied counts as full, so that it is not tried again and again; a later visit sets it right. */
static void give_up(mm *m, bool full)
{
    const mm_victim *v = &m->victim;
    uint64_t w = mm_segword(MM_SEG_CLAIMED, v->generation, m->slot_index);
    if (full && holds(m)) at_store_relaxed(&m->segments[v->number].live, m->segment_size);
    if (v->held && !v->visit) mm_segment_unclaim(m, v->number, &w, m->slot_index);
    m->victim.held = false;
}

/* The publishes that may not have seen the claim have ended. */
static bool aged(mm *m)
{
    for (int turn = 0; turn < AGING_TURNS && !m->victim.aged; turn++) { /* most end in a moment; for those that do not somebody comes back */
        if (turn) mm_os_yield();
        mm_lock(m, MM_HOLD_PUBLISH); /* the dead are reaped */
        m->victim.aged = mm_oldest_publish(m) > m->victim.since;
        mm_unlock(m, MM_HOLD_PUBLISH);
    }
    return m->victim.aged;
}

static uint64_t ended(const mm *m, uint64_t at, uint32_t seed)
{
    uint64_t epoch;
    return mm_lease_ended_at(seed, (const mm_lease_header *)(m->log + at), &epoch);
}

/* Bytes of the lease at `at` that must be whole: as its header says, or the slot of its owner, who writes to it no more.  0: not known. */
static uint64_t filled(mm *m, uint64_t at, uint32_t seed)
{
    uint64_t n = ended(m, at, seed);
    for (uint32_t i = 0; !n && i < MM_SLOTS && i < at_load_acquire(&m->g->slots_used); i++) {
        const mm_slot *s = &m->slots[i];
        uint64_t lease = at_load_acquire(&s->lease), shape = at_load_acquire(&s->lease_shape), fill = at_load_acquire(&s->lease_fill);
        if (lease == at && shape >> 32 == m->victim.generation && fill && at_load_acquire(&s->lease) == at) n = fill;
        else if (!fill && at_load_acquire(&s->last_lease) == at && at_load_acquire(&s->last_shape) >> 32 == m->victim.generation)
            n = at_load_acquire(&s->last_fill);
    }
    /* It may have ended just before its slot was looked at. */
    return n ? n : ended(m, at, seed);
}

/* One record: moved with its page, if the page still has it; or counted. */
static int leave(mm *m, uint64_t at, uint64_t span, mm_clean_report *c, mm_result *r)
{
    const mm_record *rec = (const mm_record *)(m->log + at);
    uint64_t pid = mm_record_pid(rec), version = rec->version;
    if (mm_shape_kind(rec->shape) == MM_KIND_INTENT) return MM_OK; /* a mark covers it before the segment is used again */
    int passes = mm_chain_passes(m, pid, at, version, r);
    pv_store_relaxed(&m->left, live_of(m, &m->segments[m->victim.number], 0));
    if (passes > 0 && m->victim.visit) m->victim.live += span;
    for (int tries = 0; passes > 0 && !m->victim.visit; tries++) {
        int rc = MM_CONFLICT;
        if (m->merge_kind && pid >= 2 && !tries) rc = mm_consolidate_native(m, pid, r); /* moves less */
        if (rc) rc = mm_relocate(m, pid, m->victim.number, &c->moved, r);
        if (rc && rc != MM_NOPAGE) return rc;
        passes = mm_chain_passes(m, pid, at, version, r); /* it cannot come back */
    }
    return passes < 0 ? -passes : MM_OK;
}

static int empty_lease(mm *m, uint64_t at, uint64_t blocks, uint32_t seed, mm_clean_report *c, mm_result *r)
{
    uint64_t need = m->victim.visit ? ended(m, at, seed) : filled(m, at, seed), pos = at + sizeof(mm_lease_header), span, word;
    uint64_t end = m->victim.visit ? at + need : at + blocks * MM_BLOCK;
    while ((span = mm_record_whole(m, pos, end, seed, &word)) != 0) {
        int rc = leave(m, pos, span, c, r);
        if (rc) return rc;
        pos += span;
    }
    return m->victim.visit || (need && pos - at >= need) ? MM_OK : mm_corrupt(r, MM_FILE_LOG, pos);
}

/* The next lease of the victim, or a block without one.  It counts as done when it is: a fault ends this call anywhere, and another thread may go on. */
static int empty_some(mm *m, mm_clean_report *c, mm_result *r)
{
    mm_victim *v = &m->victim;
    mm_segment *s = &m->segments[v->number];
    uint32_t seed = mm_segment_seed(m, s);
    uint64_t end = (v->number + 1) << m->segment_shift, at = v->at;
    if (!mm_log_reaches(m, end)) { /* the last one, of a log that never grew to its end */
        uint64_t published = at_load_acquire(&m->g->log_size);
        if (published < end) end = published;
        if (!mm_log_reaches(m, end)) return mm_corrupt(r, MM_FILE_LOG, end);
    }
    uint64_t blocks = at + MM_BLOCK <= end ? mm_lease_blocks(m, at, seed, v->generation) : 0;
    uint64_t next = at + (blocks ? blocks : 1) * MM_BLOCK;
    int rc = blocks ? empty_lease(m, at, next <= end ? blocks : (end - at) / MM_BLOCK, seed, c, r) : MM_OK;
    if (rc) return rc;
    c->scanned += next - at;
    v->at = next;
    v->done = next + MM_BLOCK > end;
    return MM_OK;
}

static int finish_victim(mm *m, mm_clean_report *c, mm_result *r)
{
    mm_victim *v = &m->victim;
    mm_segment *s = &m->segments[v->number];
    at_store_relaxed(&s->looked, at_load_relaxed(&m->g->epoch));
    if (v->visit) at_store_relaxed(&s->live, v->live);
    int rc = v->visit ? MM_CONFLICT : mm_segment_retire(m, v->number, r);
    if (rc && rc != MM_CONFLICT) return rc; /* the caller gives it up */
    v->held = false;
    if (rc) return MM_OK; /* visited only, or not ours any more */
    c->retired++;
    at_add_relaxed(&m->g->cleaned, 1);
    mm_count(m, MM_COUNT_cleaned_segments, 1);
    return MM_OK;
}

/* ---- the work ------------------------------------------------------------------------------------------------------------------------- */

/* The copies have room: beside the reserve; or in it, if all of them have, and nobody else copies there (room.c).  What was begun and cannot be
 * finished, or gains nothing, would take the room of what can and does. */
static bool have_room(mm *m, uint64_t live, mm_clean_report *c)
{
    mm_result ignored;
    int rc = mm_segment_refill(m, 0, &ignored);
    if (!mm_is_full(rc)) return true;
    c->busy = !mm_room_mover(m);
    return !c->busy && live <= mm_room_fits(m) && !mm_is_full(mm_segment_refill(m, mm_room_of(live), &ignored));
}

/* False: nothing to do, or no room to. */
static bool choose(mm *m, enum mm_effort effort, mm_clean_report *c)
{
    survey v;
    look_around(m, &v);
    if (!worth_cleaning(m, &v, effort) || !have_room(m, v.best_live, c)) return false;
    if (++m->victims % VISIT == 0 && v.stale != MM_NO_SEGMENT && v.stale != v.best) visit(m, v.stale);
    else claim(m, v.best);
    return true;
}

/* More, the more the log is too large: a writer that could not clean for a while, or that others leave it to, catches up. */
static uint64_t share_of(mm *m, enum mm_effort effort, uint64_t gain)
{
    survey v;
    if (effort != MM_EFFORT_WRITER) return gain;
    look_around(m, &v);
    return gain + excess(m, &v) / 4;
}

/* Until the gain is reached, or there is nothing to do, or something has to be waited for. */
static int work(mm *m, enum mm_effort effort, uint64_t gain, uint64_t most, mm_clean_report *c, mm_result *r)
{
    gain = share_of(m, effort, gain);
    while (c->scanned < c->moved + gain && c->scanned / 8 < gain && c->scanned < most) {
        if (!m->victim.held && !choose(m, effort, c)) return MM_OK;
        if (!m->victim.held) continue; /* somebody was faster */
        if (!holds(m)) {
            m->victim.held = false;
            continue;
        }
        if (!aged(m)) return MM_OK;
        int rc = empty_some(m, c, r);
        if (!rc && m->victim.done) rc = finish_victim(m, c, r);
        if (rc) {
            give_up(m, rc == MM_CORRUPT);
            return rc;
        }
    }
    return MM_OK;
}

typedef struct clean_call {
    enum mm_effort effort;
    uint64_t gain, most; /* bytes to be read through, at most */
    mm_clean_report *report;
    bool inside;         /* a fault ended the work */
    bool all;            /* flush whatever waits for it */
    uint64_t since;      /* an epoch to flush, so that what was retired can be used again; 0: not now */
} clean_call;

/* Where another thread of this process cleans there is nothing to do here. */
static int clean_pinned(mm *m, void *args, mm_result *r)
{
    clean_call *c = args;
    uint64_t moved = c->report->moved, scanned = c->report->scanned;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    uint64_t begun = mm_time_begin(m);
    if (mm_trylock(m, MM_HOLD_CLEANING)) {
        c->inside = true;
        rc = mm_blame(m, work(m, c->effort, c->gain, c->most, c->report, r), r);
        c->inside = false;
        c->report->more = m->victim.held && !m->victim.visit;
        mm_unlock(m, MM_HOLD_CLEANING);
    }
    at_add_relaxed(&m->g->moved, c->report->moved - moved);
    if (c->report->scanned != scanned) {
        mm_count(m, MM_COUNT_cleanings, 1);
        mm_count(m, MM_COUNT_cleaned_bytes, c->report->scanned - scanned);
        mm_count(m, MM_COUNT_moved_bytes, c->report->moved - moved);
        mm_time_end(m, MM_TIME_clean, begun, 1);
    }
    mm_leave(m, pin);
    return rc;
}

/* After a fault: the claim goes back, unless another thread has gone on with it, met the same and given it back, or taken a new one. */
static int give_up_after_fault(mm *m, void *args, mm_result *r)
{
    (void)args, (void)r;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    if (mm_trylock(m, MM_HOLD_CLEANING)) {
        give_up(m, true);
        mm_unlock(m, MM_HOLD_CLEANING);
    }
    mm_leave(m, pin);
    return MM_OK;
}

/* The pin comes after the search: our own would keep what it looks for. */
static int give_back(mm *m, void *most, mm_result *r)
{
    uint32_t pin;
    int rc = mm_publish_begin(m, r);
    if (rc) return rc;
    mm_reclaim(m);
    mm_publish_end(m);
    rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    mm_punch(m, *(uint64_t *)most);
    mm_leave(m, pin);
    return MM_OK;
}

static int look_for_pending(mm *m, void *args, mm_result *r)
{
    (void)r;
    clean_call *c = args;
    survey v;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    if (c->effort != MM_EFFORT_WRITER) mm_runs_sweep(m);
    look_around(m, &v);
    c->since = v.pending >= PENDING_MOST || c->all ? v.since : 0;
    mm_leave(m, pin);
    return MM_OK;
}

/* One round, and what it emptied given back. */
static int clean_once(mm *m, clean_call *c, mm_result *r)
{
    uint64_t punched = c->effort == MM_EFFORT_WRITER ? 1 : UINT64_MAX;
    int rc = mm_guarded(m, r, clean_pinned, c), back;
    mm_result other;
    if (c->inside) mm_guarded(m, NULL, give_up_after_fault, NULL);
    if (rc && rc != MM_FULL) return rc;
    c->all = c->effort != MM_EFFORT_WRITER || rc == MM_FULL; /* what waits for a flush may be the room that is missing */
    if (c->report->scanned && !c->all) mm_os_write_out(m->config.log); /* the flush that makes the victims usable again is a shorter pause */
    if (!c->report->retired && !c->all) return MM_OK;
    back = mm_guarded(m, &other, look_for_pending, c);
    if (!back && c->since) back = mm_flush_marked(m, c->since, &other);
    if (!back) back = mm_guarded(m, &other, give_back, &punched);
    if (back) *r = other;
    return back ? back : rc;
}

/* Twice what is in use: large records may not pack as tightly as the effort asks for, and would be moved for ever. */
static int bound(mm *m, void *args, mm_result *r)
{
    (void)r;
    clean_call *c = args;
    survey v;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    look_around(m, &v);
    c->most = 2 * v.used + m->segment_size;
    mm_leave(m, pin);
    return MM_OK;
}

int mm_clean(mm *m, uint32_t effort, uint64_t gain, mm_clean_report *report, mm_result *r)
{
    clean_call c = { .effort = (enum mm_effort)effort, .gain = gain, .report = report };
    uint64_t retired;
    int rc;
    memset(r, 0, sizeof *r);
    memset(report, 0, sizeof *report);
    rc = mm_guarded(m, r, bound, &c);
    if (rc) return rc;
    do {
        retired = report->retired;
        rc = clean_once(m, &c, r);
    } while (rc == MM_FULL && report->retired > retired); /* what was emptied may be the room that was missing */
    if (rc == MM_FULL) report->busy = !mm_room_mover(m);
    mm_room_moved(m); /* behind the flush: who copies next finds what this one emptied */
    return rc;
}

bool mm_clean_owed(const mm *m) { return pv_load_relaxed(&m->debt) >= m->segment_size / DEBT_SHARE && !pv_load_relaxed(&m->helping); }

/* What the writers of this process owe, for what they have taken of the log since they were last asked.  It may take as long as that took: not with
 * a lock of the caller's held. */
void mm_clean_help(mm *m)
{
    mm_clean_report report;
    mm_result ignored;
    uint64_t debt = pv_load_relaxed(&m->debt);
    if (!mm_clean_owed(m) || !pv_cas(&m->debt, &debt, 0)) return;
    /* Pages are freed from the reserve: what they leave is emptied while there is room to, and a segment to its end, since who leaves with a part of
     * the reserve in its lease takes that with it. */
    bool scarce = pv_load_relaxed(&m->scarce);
    pv_store(&m->helping, 1);
    mm_clean(m, scarce ? MM_EFFORT_ALL : MM_EFFORT_WRITER, scarce ? m->segment_size : debt + debt / 4, &report, &ignored); /* damage is told to who reads the page, and by gc */
    pv_store(&m->helping, 0);
}
