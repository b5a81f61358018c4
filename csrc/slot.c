/* slot.c - slots: who is attached, which epochs are pinned, and what the dead leave behind.
 *
 * A slot belongs to whoever holds its byte of `lock` (an open-file-description lock, so the kernel gives it back at death).
 * That byte is the slot's only lock and is only ever *tried*: a reaper holds it while it reaps, and a claimer that gets
 * the byte of a slot still marked LIVE reaps it first (model: slots.pml).
 *
 * Died at any point here: the byte is free and the state LIVE or FREE; LIVE is reaped again from the start, every step may be
 * done twice.  Stopped: the byte stays locked, the slot is somebody's, others take another one.
 */
#include <errno.h>
#include <unistd.h>

#include "internal.h"

/* ---- reaping ---------------------------------------------------------------------------------------------------- */

/* Who looks after a slot that is being left looks at segments and chains: the slot's own announcement keeps them from being used again meanwhile.  The
 * caller holds the slot's byte. */
static void hold_on(mm *m, mm_slot *s)
{
    if (at_load_relaxed(&s->announce)) return;
    at_store_relaxed(&s->announce, at_load_acquire(&m->g->epoch));
    at_fence_full(); /* then the state of a segment, or a head: a cleaner sees the announcement, or we see what it did */
}

/* Says in the header of the last lease of a slot how far it was used. */
static void close_lease(mm *m, mm_slot *s)
{
    uint64_t fill = at_load_relaxed(&s->lease_fill);
    if (!fill) { /* it died while it began the lease: nothing was published in it.  If another one had been faster, it says more itself */
        mm_lease_close(m, at_load_relaxed(&s->last_lease), at_load_relaxed(&s->last_shape) >> 32, at_load_relaxed(&s->last_fill));
        fill = sizeof(mm_lease_header);
    }
    mm_lease_close(m, at_load_relaxed(&s->lease), at_load_relaxed(&s->lease_shape) >> 32, fill);
}

/* A publish that the dead left between CAS and commit word is committed before the lease can leave the slot: later nobody would list it for an intent.  Its
 * announcement, which still stands, keeps the segment.  Where that cannot be decided only marks are made from now on. */
static void commit_late(mm *m, mm_slot *s)
{
    uint64_t lease = at_load_relaxed(&s->lease), shape = at_load_relaxed(&s->lease_shape), fill = at_load_relaxed(&s->lease_fill);
    uint64_t at = lease && fill ? mm_record_late(m, lease, shape, fill) : 0;
    if (!at) return; /* not even whole: not published */
    const mm_record *rec = (const mm_record *)(m->log + at);
    uint64_t pid = mm_record_pid(rec), span = mm_shape_span(rec->shape), word = at_load_acquire(&rec->crc_commit);
    mm_result ignored;
    at_word *head;
    mm_view v;
    bool helped;
    int rc = word >> 32 ? MM_OK : mm_head(m, pid, &head, &ignored);
    uint64_t h = !rc && !(word >> 32) ? at_load_acquire(head) : 0;
    if (h && mm_head_address(h) == at) rc = mm_look_head(m, pid, h, &v, &helped, &ignored); /* one that is no head any more was helped by who came after it */
    if (rc && rc != MM_NOPAGE) mm_want_mark(m, UINT64_MAX);
    if (!rc && at_load_acquire(&rec->crc_commit) >> 32) at_store_release(&s->lease_fill, at + span - lease);
}

/* A lease that was announced and never begun is nobody's: the one before stands in the slot again, as if there had been no room (lease.c). */
static void forget_begun(mm *m, mm_slot *s)
{
    mm_result ignored;
    uint64_t lease = at_load_relaxed(&s->lease), fill = at_load_relaxed(&s->last_fill);
    if (!lease || at_load_relaxed(&s->lease_fill)) return;
    mm_segment *taken = mm_segment_of(m, lease, &ignored);
    if (taken) at_max_release(&taken->written, at_load_acquire(&m->g->epoch)); /* its header may be there */
    at_store_relaxed(&s->lease_shape, at_load_relaxed(&s->last_shape));
    at_store_seq_cst(&s->lease, fill ? at_load_relaxed(&s->last_lease) : 0); /* 0: it was to be the first one */
    at_store_release(&s->lease_fill, fill);
}

/* The caller holds the slot's byte.  Order: segments and the lease, views, pins, state last (model: UNPIN_FIRST). */
static void reap(mm *m, uint32_t i)
{
    mm_slot *s = &m->slots[i];
    bool publishing = at_load_relaxed(&s->announce) != 0;
    hold_on(m, s);
    mm_segment_abandon(m, i, true);
    if (publishing) commit_late(m, s);
    close_lease(m, s);
    for (uint32_t k = 0; k < MM_VIEWS; k++) at_store_relaxed(&s->views[k], 0);
    for (uint32_t k = 0; k < MM_PINS; k++) at_store_relaxed(&s->pins[k], 0);
    /* What it published last may have been seen and be in no flush; a sync of its own may have failed and told only it (C15). */
    if (publishing || at_load_relaxed(&s->helping)) at_max_release(&m->g->dirty, at_load_acquire(&m->g->epoch));
    /* A step of the epoch: never the same value twice, so that who clears one clears what it saw. */
    if (at_load_relaxed(&s->syncing)) at_max_release(&m->g->suspect, at_add_seq_cst(&m->g->epoch, 1) + 1);
    at_store_release(&s->syncing, 0); /* after `suspect`, as `announce` and `helping` after `dirty` */
    at_store_release(&s->helping, 0);
    forget_begun(m, s);
    at_store_release(&s->announce, 0); /* its last lease stays announced: the next owner's first lease names it */
    at_store_relaxed(&m->g->sweep, 0); /* its private page-id candidates are hints that were lost */
    at_add_relaxed(&m->g->reaped, 1);
    uint64_t state = at_load_relaxed(&s->state);
    at_store_release(&s->state, (state & ~UINT64_C(255)) | MM_SLOT_FREE); /* who loads FREE sees the rest */
}

/* True when the slot was dead, and now is free. */
bool mm_reap_if_dead(mm *m, uint32_t i)
{
    if (i == m->slot_index || mm_lock_range(m->config.lock, i, 1) != MM_OK) return false;
    bool dead = (at_load_acquire(&m->slots[i].state) & 255) == MM_SLOT_LIVE;
    if (dead) {
        reap(m, i);
        mm_count(m, MM_COUNT_reaps, 1);
    }
    mm_unlock_range(m->config.lock, i, 1);
    return dead;
}

static uint64_t slots_used(const mm *m)
{
    uint64_t n = at_load_acquire(&m->g->slots_used);
    return n < MM_SLOTS ? n : MM_SLOTS;
}

uint64_t mm_slots_used(const mm *m) { return slots_used(m); }

uint64_t mm_reap_dead(mm *m)
{
    uint64_t reaped = 0;
    for (uint32_t i = 0; i < slots_used(m); i++)
        if ((at_load_acquire(&m->slots[i].state) & 255) == MM_SLOT_LIVE) reaped += mm_reap_if_dead(m, i);
    return reaped;
}

bool mm_somebody_announces(const mm *m)
{
    for (uint32_t i = 0; i < slots_used(m); i++)
        if (at_load_acquire(&m->slots[i].announce) || at_load_acquire(&m->slots[i].helping)) return true;
    return false;
}

void mm_reap_announcing(mm *m)
{
    for (uint32_t i = 0; i < slots_used(m); i++)
        if (at_load_acquire(&m->slots[i].announce) || at_load_acquire(&m->slots[i].helping)) mm_reap_if_dead(m, i);
}

static int reap_all(mm *m, void *reaped, mm_result *r)
{
    (void)r;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    mm_lock(m, MM_HOLD_PUBLISH);
    *(uint64_t *)reaped = mm_reap_dead(m);
    mm_unlock(m, MM_HOLD_PUBLISH);
    mm_leave(m, pin);
    return MM_OK;
}

int mm_reap_all(mm *m, uint64_t *reaped) { return mm_guarded(m, NULL, reap_all, reaped); }

/* ---- claiming ---------------------------------------------------------------------------------------------------- */

/* The last lease of the slot's former owner: the first lease header of this one names it.  A former owner that died between announcing
 * a lease and beginning it leaves the one before. */
static void inherit_lease(mm *m, const mm_slot *s)
{
    const uint64_t left[] = { at_load_relaxed(&s->lease), at_load_relaxed(&s->last_lease) };
    mm_result ignored;
    for (unsigned i = 0; i < 2; i++) {
        mm_segment *g = left[i] ? mm_segment_of(m, left[i], &ignored) : NULL;
        if (g) at_max_release(&g->written, at_load_acquire(&m->g->epoch)); /* they are no slot's any more when ours begin (rewrite.c) */
    }
    uint64_t fill = at_load_relaxed(&s->lease_fill), last = at_load_relaxed(&s->last_fill);
    m->lease.previous = fill ? at_load_relaxed(&s->lease) : last ? at_load_relaxed(&s->last_lease) : 0;
    m->lease.previous_generation = (uint32_t)(at_load_relaxed(fill ? &s->lease_shape : &s->last_shape) >> 32);
    m->lease.filled = fill ? fill : last;
}

/* What is stored to in the name of the slot is there before it is anybody's: a hole without room would be a SIGBUS, and whoever is attached can
 * flush.  Slots below one that is used are looked at by all: their blocks too (of those below `slots_used` they are there). */
static int allocate_slot(mm *m, uint32_t i)
{
    uint64_t used = slots_used(m), first = used < i ? used : i, block = MM_BLOCK;
    uint64_t from = (MM_CONTROL_SLOTS + first * sizeof(mm_slot)) / block * block, to = MM_CONTROL_SLOTS + (i + 1ull) * sizeof(mm_slot);
    int e = mm_fail_at(m->config.failpoints, MM_FAIL_SLOT_CLAIM);
    if (!e) e = mm_os_grow(m->config.control, from, (to + block - 1) / block * block);
    return e ? e : mm_os_grow(m->config.marks, i * 2 * block, (i + 1ull) * 2 * block);
}

static int try_claim(mm *m, uint32_t i, mm_result *r)
{
    int rc = mm_lock_range(m->config.lock, i, 1);
    if (rc) return rc;
    int e = allocate_slot(m, i);
    if (e) {
        mm_unlock_range(m->config.lock, i, 1);
        return mm_os_failed(r, e);
    }
    mm_slot *s = &m->slots[i];
    at_max_release(&m->g->slots_used, i + 1); /* before LIVE: whoever scans sees the slot */
    m->slot_index = i;
    uint64_t state = at_load_acquire(&s->state);
    m->claimed_dead = (state & 255) == MM_SLOT_LIVE; /* counted when there is a row to count in (metrics.c) */
    if (m->claimed_dead) reap(m, i);
    at_store_relaxed(&s->pid, (uint64_t)getpid());
    at_store_relaxed(&s->opened, mm_os_now());
    at_store_relaxed(&s->operations, 0);
    at_store_relaxed(&s->conflicts, 0);
    inherit_lease(m, s);
    m->born = at_load_acquire(&m->g->epoch); /* `log` was opened before */
    at_store_release(&s->state, ((state >> 8) + 1) << 8 | MM_SLOT_LIVE);
    m->slot = s;
    return MM_OK;
}

/* Free slots first, then those whose owner has died. */
int mm_slot_claim(mm *m, mm_result *r)
{
    m->slot_index = MM_SLOTS;
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < MM_SLOTS; i++) {
            bool fresh = i >= slots_used(m);
            bool live = !fresh && (at_load_relaxed(&m->slots[i].state) & 255) == MM_SLOT_LIVE;
            if (live != (pass == 1)) continue;
            int rc = try_claim(m, i, r);
            if (rc != MM_BUSY) return rc;
        }
    return MM_BUSY;
}

void mm_slot_release(mm *m)
{
    mm_slot *s = m->slot;
    if (!s) return;
    hold_on(m, s);
    mm_segment_abandon(m, m->slot_index, true);
    close_lease(m, s);
    for (uint32_t k = 0; k < MM_PINS; k++) at_store_release(&s->pins[k], 0);
    at_store_release(&s->announce, 0);
    if (at_load_relaxed(&s->helping)) at_max_release(&m->g->dirty, at_load_acquire(&m->g->epoch)); /* a fault ended a helper (guard.c) */
    at_store_release(&s->helping, 0);
    uint64_t state = at_load_relaxed(&s->state);
    at_store_release(&s->state, (state & ~UINT64_C(255)) | MM_SLOT_FREE);
    mm_unlock_range(m->config.lock, m->slot_index, 1);
    m->slot = NULL;
}

/* ---- pins ---------------------------------------------------------------------------------------------------------- */

/* Store, then a full fence, then the caller's first load of a head: either the reclaimer sees the pin, or this process sees the
 * head that the reclaimer left (Dekker; model: pin.pml, on x86 too). */
static void set_pin(mm *m, uint32_t i, uint64_t epoch)
{
    at_store_relaxed(&m->slot->pins[i], epoch);
    at_fence_full();
}

/* All words are in use: calls share the last one, which keeps the first one's (older) epoch. */
static int enter_shared(mm *m, uint32_t *pin, uint64_t *epoch)
{
    int rc = MM_OK;
    mm_lock(m, MM_HOLD_SHARING);
    if (m->sharers == 0) {
        uint64_t old = pv_or(&m->busy, UINT64_C(1) << MM_PIN_SHARED);
        if (old & MM_CLOSING) {
            pv_and(&m->busy, ~(UINT64_C(1) << MM_PIN_SHARED));
            rc = MM_CLOSED;
        } else
            set_pin(m, MM_PIN_SHARED, at_load_acquire(&m->g->epoch));
    }
    if (!rc) {
        m->sharers++;
        mm_note_pin(*pin = MM_PIN_SHARED);
        if (epoch) *epoch = at_load_relaxed(&m->slot->pins[MM_PIN_SHARED]);
    }
    mm_unlock(m, MM_HOLD_SHARING);
    return rc;
}

/* The pin first: without one the mapping may be gone. */
int mm_enter(mm *m, uint32_t *pin, uint64_t *epoch)
{
    int rc = mm_enter_failed(m, pin, epoch);
    if (rc || !at_load_relaxed(&m->g->failed)) return rc;
    mm_leave(m, *pin);
    return MM_FAILED;
}

int mm_enter_failed(mm *m, uint32_t *pin, uint64_t *epoch)
{
    if (*m->alive != MM_ALIVE) return MM_FORKED;
    uint64_t busy = pv_load_relaxed(&m->busy);
    for (;;) {
        if (busy & MM_CLOSING) return MM_CLOSED;
        uint64_t unused = ~busy & ((UINT64_C(1) << MM_PIN_SHARED) - 1);
        if (!unused) return enter_shared(m, pin, epoch);
        uint32_t i = (uint32_t)__builtin_ctzll(unused);
        if (!pv_cas(&m->busy, &busy, busy | UINT64_C(1) << i)) continue;
        mm_note_pin(*pin = i);
        uint64_t e = at_load_acquire(&m->g->epoch);
        set_pin(m, i, e);
        if (epoch) *epoch = e;
        return MM_OK;
    }
}

/* The last one out of a closing attachment unmaps. */
static void not_busy(mm *m, uint32_t i)
{
    uint64_t old = pv_and(&m->busy, ~(UINT64_C(1) << i));
    if (old == (MM_CLOSING | UINT64_C(1) << i)) mm_finish(m);
}

/* Release: what the call read was read before the pin is seen to be gone. */
static void drop_pin(mm *m, uint32_t i)
{
    at_store_release(&m->slot->pins[i], 0);
    not_busy(m, i);
}

void mm_leave(mm *m, uint32_t pin)
{
    if (pin != MM_PIN_SHARED) {
        mm_note_pin(pin);
        drop_pin(m, pin);
        mm_note_pin(MM_PIN_NONE);
        return;
    }
    mm_lock(m, MM_HOLD_SHARING);
    mm_note_pin(MM_PIN_NONE);
    if (--m->sharers == 0) drop_pin(m, MM_PIN_SHARED); /* under the mutex: a new sharer must not lose its pin */
    mm_unlock(m, MM_HOLD_SHARING);
}

static int clear_pin(mm *m, void *index, mm_result *r)
{
    (void)r;
    at_store_release(&m->slot->pins[*(uint32_t *)index], 0);
    return MM_OK;
}

/* The word in `control` if it can be written; the bit of this process in any case, so that the attachment can be closed. */
static void drop_pin_somehow(mm *m, uint32_t i)
{
    mm_guarded(m, NULL, clear_pin, &i);
    not_busy(m, i);
}

void mm_pin_give_up(mm *m, uint32_t pin, bool sharing)
{
    if (pin != MM_PIN_SHARED && !sharing) {
        if (pin != MM_PIN_NONE) drop_pin_somehow(m, pin);
        return;
    }
    if (!sharing) pthread_mutex_lock(&m->sharing);
    if (pin == MM_PIN_SHARED) m->sharers--;
    if (m->sharers == 0) drop_pin_somehow(m, MM_PIN_SHARED);
    pthread_mutex_unlock(&m->sharing);
}

typedef struct pin_of_tx { uint32_t *index; uint64_t *epoch; } pin_of_tx;

static int enter_tx(mm *m, void *args, mm_result *r)
{
    (void)r;
    const pin_of_tx *p = args;
    return mm_enter(m, p->index, p->epoch);
}

static int leave_tx(mm *m, void *index, mm_result *r)
{
    (void)r;
    mm_leave(m, *(uint32_t *)index);
    return MM_OK;
}

int mm_pin(mm *m, uint32_t *index, uint64_t *epoch) { return mm_guarded(m, NULL, enter_tx, &(pin_of_tx){ index, epoch }); }

void mm_unpin(mm *m, uint32_t index)
{
    if (*m->alive == MM_ALIVE) mm_guarded(m, NULL, leave_tx, &index);
}

/* ---- publishing ------------------------------------------------------------------------------------------------------ */

int mm_publish_begin(mm *m, mm_result *r)
{
    if (*m->alive != MM_ALIVE) return MM_FORKED; /* before the mutex: in a child it may be held by nobody */
    mm_lock(m, MM_HOLD_PUBLISH);
    uint64_t failed = 0;
    int rc = MM_OK;
    if (pv_load_relaxed(&m->busy) & MM_CLOSING) rc = MM_CLOSED; /* mm_close sets it under this mutex */
    else if ((failed = at_load_relaxed(&m->g->failed)) != 0) {
        r->os_error = (int32_t)failed;
        rc = MM_FAILED;
    }
    if (rc) mm_unlock(m, MM_HOLD_PUBLISH);
    return rc;
}

/* The announcement counts as a pin and bounds the colours of this publish for a snapshot; its fence also stands between the commit
 * word of this thread's previous record and the next colour (model: fence.pml). */
void mm_announce(mm *m)
{
    at_store_relaxed(&m->slot->announce, at_load_acquire(&m->g->epoch));
    at_fence_full();
}

void mm_publish_end(mm *m)
{
    at_store_release(&m->slot->announce, 0);
    mm_unlock(m, MM_HOLD_PUBLISH);
}

enum look { LOOK_PINS = 1, LOOK_OWN_ANNOUNCEMENT = 2 };

static uint64_t oldest_of_slot(const mm *m, mm_slot *s, unsigned look)
{
    uint64_t mine = UINT64_MAX, p = at_load_acquire(&s->announce);
    if (p && (s != m->slot || look & LOOK_OWN_ANNOUNCEMENT)) mine = p;
    for (uint32_t k = 0; look & LOOK_PINS && k < MM_PINS; k++)
        if ((p = at_load_acquire(&s->pins[k])) != 0 && p < mine) mine = p;
    return mine;
}

/* A slot that is in the way is asked whether it lives.  Loads are acquire: what was read under a pin that is gone was read before. */
static uint64_t oldest(mm *m, unsigned look)
{
    uint64_t least = at_load_acquire(&m->g->epoch);
    at_fence_full(); /* the other half of Dekker: an epoch step, an unlink, or a claim, before the pins */
    uint64_t n = slots_used(m);
    for (uint32_t i = 0; i < n; i++) {
        mm_slot *s = &m->slots[i];
        if ((at_load_acquire(&s->state) & 255) != MM_SLOT_LIVE) continue;
        uint64_t mine = oldest_of_slot(m, s, look);
        if (mine < least && !mm_reap_if_dead(m, i)) least = mine;
    }
    return least;
}

/* The oldest epoch that anybody pins, or the epoch now: own pins count, the announcement of the caller, who holds the mutex, does not
 * (it holds no page). */
uint64_t mm_oldest_pin(mm *m) { return oldest(m, LOOK_PINS); }

/* With it: for who may have looked into a segment that is to be used again. */
uint64_t mm_oldest_holder(mm *m) { return oldest(m, LOOK_PINS | LOOK_OWN_ANNOUNCEMENT); }

/* The oldest publish under way: whoever announced later has seen the state that a segment had before. */
uint64_t mm_oldest_publish(mm *m) { return oldest(m, LOOK_OWN_ANNOUNCEMENT); }
