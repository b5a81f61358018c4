/* segment.c - segments and leases: where log space comes from.
 *
 * FREE -> PREPARING -> OPEN -> SEALED -> ... (cleaning).  State, generation and owner are one word, changed only by CAS;
 * generation + 1 at FREE -> PREPARING.  Leases are taken from the segment named by control.open_segment, by one CAS on its
 * fill word, which holds the generation too.  Nobody waits: who finds the open segment full seals it and prepares another.
 *
 * Died here: a PREPARING segment goes back to FREE when its owner is reaped; an announced or taken lease is just less live data.
 * Stopped here: others prepare another segment.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

#define LEASE_LARGEST (64u * 1024u)

static uint64_t fill_word(uint64_t generation, uint64_t blocks) { return generation << 32 | blocks; }
static uint64_t blocks_of(const mm *m) { return m->segment_size / MM_BLOCK; }

/* ---- published sizes --------------------------------------------------------------------------------------------------- */

static int log_refresh(mm *m, mm_result *r)
{
    uint64_t published = at_load_acquire(&m->g->log_size), size = mm_os_size(m->config.log);
    if (published > size) return mm_corrupt(r, MM_FILE_LOG, size);
    pv_store(&m->log_safe, published < m->log_window ? published : m->log_window);
    return MM_OK;
}

static int segments_refresh(mm *m, mm_result *r)
{
    uint64_t published = at_load_acquire(&m->g->segments), size = mm_os_size(m->config.control);
    if (published > MM_MAX_SEGMENTS || size < MM_CONTROL_SEGMENTS + published * sizeof(mm_segment)) return mm_corrupt(r, MM_FILE_CONTROL, size);
    pv_store(&m->segments_safe, published);
    return MM_OK;
}

int mm_log_whole(mm *m, mm_result *r)
{
    uint64_t published = at_load_acquire(&m->g->log_size), size = mm_os_size(m->config.log); /* in this order: the file grows first */
    return published > size ? mm_corrupt(r, MM_FILE_LOG, size) : MM_OK;
}

/* The growth step: small stores stay small, large ones grow a segment at a time. */
static uint64_t grown(const mm *m, uint64_t now, uint64_t end)
{
    uint64_t step = now < (UINT64_C(1) << 20) ? 256 * 1024 : now < (UINT64_C(1) << 23) ? UINT64_C(1) << 20 : UINT64_C(1) << 23;
    if (step > m->segment_size) step = m->segment_size;
    return (end + step - 1) / step * step;
}

int mm_log_cover(mm *m, uint64_t end, mm_result *r)
{
    for (;;) {
        if (end <= pv_load_relaxed(&m->log_safe)) return MM_OK;
        uint64_t now = at_load_acquire(&m->g->log_size);
        if (end <= now) {
            int rc = log_refresh(m, r);
            if (rc) return rc;
            if (end > pv_load_relaxed(&m->log_safe)) return MM_LIMIT;
            continue;
        }
        if (end > m->log_window) return MM_LIMIT;
        uint64_t want = grown(m, now, end);
        if (want > m->log_window) want = m->log_window;
        int rc = mm_log_whole(m, r); /* growth would put zeros where somebody cut it */
        if (rc) return rc;
        int e = mm_os_grow(m->config.log, now, want);
        uint64_t least = (end + MM_BLOCK - 1) / MM_BLOCK * MM_BLOCK;
        if ((e == ENOSPC || e == EDQUOT) && least < want) { /* the last of the disk is used, too */
            want = least;
            e = mm_os_grow(m->config.log, now, want);
        }
        if (e) return mm_os_failed(r, e);
        at_max_release(&m->g->log_size, want);
    }
}

/* True when [0, end) is published and in the file, so a load there cannot fault. */
bool mm_log_reaches(mm *m, uint64_t end)
{
    mm_result ignored;
    if (end <= pv_load_relaxed(&m->log_safe)) return true;
    return end <= at_load_acquire(&m->g->log_size) && log_refresh(m, &ignored) == MM_OK && end <= pv_load_relaxed(&m->log_safe);
}

mm_segment *mm_segment_of(mm *m, uint64_t address, mm_result *r)
{
    uint64_t n = address >> m->segment_shift;
    if (n < pv_load_relaxed(&m->segments_safe)) return &m->segments[n];
    if (n >= at_load_acquire(&m->g->segments) || segments_refresh(m, r)) return NULL;
    return n < pv_load_relaxed(&m->segments_safe) ? &m->segments[n] : NULL;
}

/* Seed of all checksums in this generation of the segment. */
uint32_t mm_segment_seed(const mm *m, const mm_segment *s) { return crc32c_word(m->uuid_seed, at_load_relaxed(&s->salt)); }

/* ---- live bytes: they only steer the cleaner ------------------------------------------------------------------------------- */

void mm_account_flush(mm *m)
{
    if (m->lease.live) at_add_relaxed(&m->segments[m->lease.segment].live, (uint64_t)m->lease.live);
    m->lease.live = 0;
}

void mm_account(mm *m, uint64_t address, int64_t bytes)
{
    uint64_t n = address >> m->segment_shift;
    if (m->lease.start && n == m->lease.segment) m->lease.live += bytes; /* not a shared line at every publish */
    else if (n < pv_load_relaxed(&m->segments_safe)) at_add_relaxed(&m->segments[n].live, (uint64_t)bytes);
}

/* ---- opening a segment ------------------------------------------------------------------------------------------------------ */

/* FREE -> PREPARING.  The entry of a number never used reads as FREE, generation 0. */
static bool prepare(mm *m, uint64_t n, uint64_t *generation)
{
    uint64_t w = at_load_acquire(&m->segments[n].word);
    if (mm_segword_state(w) != MM_SEG_FREE) return false;
    *generation = (mm_segword_generation(w) + 1) & 0xFFFFFF;
    if (*generation == 0) *generation = 1; /* 0 is no generation: peek.h */
    return at_cas_acq_rel(&m->segments[n].word, &w, mm_segword(MM_SEG_PREPARING, *generation, m->slot_index));
}

static int take_free(mm *m, uint64_t *n, uint64_t *generation, mm_result *r)
{
    if (at_load_relaxed(&m->g->free_segments)) {
        for (uint64_t i = 0; i < pv_load_relaxed(&m->segments_safe); i++)
            if (prepare(m, i, generation)) {
                at_add_relaxed(&m->g->free_segments, UINT64_MAX);
                *n = i;
                return MM_OK;
            }
        at_store_relaxed(&m->g->free_segments, 0);
    }
    for (;;) {
        uint64_t next = at_load_acquire(&m->g->segments);
        if (next >= MM_MAX_SEGMENTS) return MM_LIMIT;
        uint64_t at = (MM_CONTROL_SEGMENTS + next * sizeof(mm_segment)) & ~(uint64_t)(MM_BLOCK - 1);
        int e = mm_os_grow(m->config.control, at, at + MM_BLOCK);
        if (e) return mm_os_failed(r, e);
        bool won = prepare(m, next, generation);
        at_max_release(&m->g->segments, next + 1);
        if (!won) continue;
        *n = next;
        return segments_refresh(m, r);
    }
}

/* The header is complete before the segment is OPEN, hence before any record in it can be published. */
static int write_header(mm *m, uint64_t n, uint64_t generation, mm_result *r)
{
    uint64_t at = n << m->segment_shift, salt;
    int rc = mm_log_cover(m, at + MM_BLOCK, r);
    if (rc) return rc;
    uint64_t published = at_load_acquire(&m->g->log_size), end = at + m->segment_size < published ? at + m->segment_size : published;
    int e = mm_os_grow(m->config.log, at, end); /* one that was used before may have holes: a store to one without room would be a SIGBUS */
    if (!e) e = mm_os_random(&salt, sizeof salt);
    if (e) return mm_os_failed(r, e);
    mm_segment_header h = { .magic = MM_SEGMENT_MAGIC, .generation = (uint32_t)generation, .number = n, .salt = salt,
                            .epoch = at_load_acquire(&m->g->epoch), .stable = at_load_acquire(&m->g->stable) };
    memcpy(h.uuid, m->config.uuid, sizeof h.uuid);
    h.crc = crc32c_extend(0, (const uint8_t *)&h + 12, sizeof h - 12);
    at_copy(m->log + at, &h, sizeof h);
    mm_segment *s = &m->segments[n];
    at_store_relaxed(&s->salt, salt);
    at_store_relaxed(&s->opened, h.epoch);
    at_store_relaxed(&s->live, 0);
    at_store_relaxed(&s->written, 0);
    at_store_relaxed(&s->fill, fill_word(generation, 1));
    return MM_OK;
}

static void give_back(mm *m, uint64_t n, uint64_t state, uint64_t generation)
{
    uint64_t w = mm_segword(state, generation, m->slot_index);
    if (at_cas_acq_rel(&m->segments[n].word, &w, mm_segword(MM_SEG_FREE, generation, 0))) at_add_relaxed(&m->g->free_segments, 1);
}

/* Replaces the open segment `old` (the word of control.open_segment) by a fresh one. */
static int open_segment(mm *m, uint64_t old, mm_result *r)
{
    uint64_t n = 0, generation = 0;
    int rc = take_free(m, &n, &generation, r);
    if (rc) return rc;
    rc = write_header(m, n, generation, r);
    if (rc) {
        give_back(m, n, MM_SEG_PREPARING, generation);
        return rc;
    }
    uint64_t w = mm_segword(MM_SEG_PREPARING, generation, m->slot_index);
    at_cas_acq_rel(&m->segments[n].word, &w, mm_segword(MM_SEG_OPEN, generation, m->slot_index));
    /* Lost: somebody else has opened one; nobody can have leased from ours, which no hint ever named. */
    if (!at_cas_acq_rel(&m->g->open_segment, &old, generation << 32 | (n + 1))) give_back(m, n, MM_SEG_OPEN, generation);
    return MM_OK;
}

/* Takes what is left of the segment, so that no lease follows, then OPEN -> SEALED. */
static void seal(mm *m, mm_segment *s, uint64_t generation)
{
    uint64_t f = at_load_acquire(&s->fill), full = fill_word(generation, blocks_of(m));
    while (f >> 32 == generation && f < full && !at_cas_acq_rel(&s->fill, &f, full)) { }
    uint64_t w = at_load_acquire(&s->word);
    while (mm_segword_state(w) == MM_SEG_OPEN && mm_segword_generation(w) == generation
           && !at_cas_acq_rel(&s->word, &w, mm_segword(MM_SEG_SEALED, generation, mm_segword_rest(w)))) { }
}

void mm_segment_abandon(mm *m, uint32_t slot)
{
    mm_result ignored;
    if (segments_refresh(m, &ignored)) return;
    for (uint64_t n = 0; n < pv_load_relaxed(&m->segments_safe); n++) {
        uint64_t w = at_load_acquire(&m->segments[n].word), g = mm_segword_generation(w);
        if (mm_segword_rest(w) != slot) continue;
        bool unused = mm_segword_state(w) == MM_SEG_OPEN && at_load_acquire(&m->g->open_segment) != (g << 32 | (n + 1))
                      && at_load_acquire(&m->segments[n].fill) == fill_word(g, 1);
        if (mm_segword_state(w) != MM_SEG_PREPARING && !unused) continue;
        if (at_cas_acq_rel(&m->segments[n].word, &w, mm_segword(MM_SEG_FREE, g, 0))) at_add_relaxed(&m->g->free_segments, 1);
    }
}

/* ---- leases ----------------------------------------------------------------------------------------------------------------- */

/* Announced before it is taken: a snapshot that sees the segment full sees the lease (model: scan.pml). */
static void announce_lease(mm *m, uint64_t address, uint64_t generation, uint64_t blocks)
{
    const mm_lease *l = &m->lease;
    at_store_relaxed(&m->slot->last_fill, 0); /* while it is 0 nobody believes last_lease */
    at_store_release(&m->slot->last_lease, l->start ? l->start : l->previous);
    at_store_release(&m->slot->last_fill, l->start ? l->bump - l->start : l->filled);
    at_store_relaxed(&m->slot->lease_fill, 0); /* before the address: nobody pairs the old fill with the new lease */
    at_store_relaxed(&m->slot->lease_shape, generation << 32 | blocks);
    at_store_seq_cst(&m->slot->lease, address);
}

/* No new lease came of it: the last one stands in the slot again. */
static void announce_again(mm *m)
{
    const mm_lease *l = &m->lease;
    at_store_seq_cst(&m->slot->lease, l->start ? l->start : l->previous);
    at_store_release(&m->slot->lease_fill, l->start ? l->bump - l->start : l->filled);
}

/* The lease is no slot's any more: until a flush begins after this, its segment holds bytes that no sync covers (flush.c, C15). */
void mm_lease_ended(mm *m)
{
    mm_lease *l = &m->lease;
    l->previous = l->start;
    l->filled = l->bump - l->start;
    at_max_release(&m->segments[l->segment].written, at_load_acquire(&m->g->epoch));
}

/* Where it was written to is not known any more: the bytes behind the bump pointer may be a published record. */
void mm_lease_give_up(mm *m)
{
    mm_lease *l = &m->lease;
    if (l->start) {
        l->previous = l->start;
        l->filled = l->bump - l->start;
    }
    l->start = 0;
    l->live = 0;
    announce_again(m);
    at_max_release(&m->segments[l->segment].written, at_load_acquire(&m->g->epoch));
}

/* m->lease changes as a whole, at the end: a fault on the way leaves the old one. */
static void begin_lease(mm *m, uint64_t n, uint64_t generation, uint64_t first, uint64_t blocks, bool reserve)
{
    mm_account_flush(m);
    if (m->lease.start) mm_lease_ended(m);
    at_add_relaxed(&m->g->log_taken, blocks * MM_BLOCK);
    if (mm_snapshot_wanted(m) && at_load_relaxed(&m->g->snapshot_due) < mm_os_monotonic()) m->due = true;
    mm_lease l = m->lease;
    l.start = (n << m->segment_shift) + first * MM_BLOCK;
    l.end = l.start + blocks * MM_BLOCK;
    l.segment = (uint32_t)n;
    l.generation = (uint32_t)generation;
    l.seed = mm_segment_seed(m, &m->segments[n]);
    l.reserve = reserve;
    if (!reserve) l.next_size = l.next_size * 2 < LEASE_LARGEST ? l.next_size * 2 : LEASE_LARGEST;
    mm_lease_header h = { .magic = MM_LEASE_MAGIC, .address = l.start, .blocks = (uint32_t)blocks, .generation = l.generation,
                          .previous = l.previous, .filled = l.filled, .stable = at_load_acquire(&m->g->stable) };
    h.crc = crc32c_extend(l.seed, (const uint8_t *)&h + 4, sizeof h - 4);
    mm_os_touch(m->log + l.start, l.end - l.start);
    at_copy(m->log + l.start, &h, sizeof h);
    l.bump = l.start + sizeof h;
    m->lease = l;
    at_store_release(&m->slot->lease_fill, sizeof h);
}

static bool is_full(int rc) { return rc == MM_FULL || rc == MM_LIMIT; }

/* Allocates what a lease from `at` on needs: `want` blocks, or no more than `need` where there is little room; the reserve behind it, or itself
 * from the reserve if that is what it is for.  Before anything is taken: a full disk takes nothing. */
static int cover_lease(mm *m, uint64_t n, uint64_t at, uint64_t need, uint64_t *want, enum mm_purpose purpose, bool *reserve, mm_result *r)
{
    *reserve = false;
    int rc = mm_room_behind(m, n, at + *want * MM_BLOCK, MM_GROWS, r);
    if (is_full(rc) && *want > need) {
        *want = need;
        rc = mm_room_behind(m, n, at + need * MM_BLOCK, MM_GROWS, r);
    }
    if (!is_full(rc) || purpose == MM_GROWS) return rc;
    *reserve = true;
    return mm_room_behind(m, n, at + need * MM_BLOCK, MM_FREES, r);
}

/* A lease that was taken from the reserve may be used for anything once the reserve is whole again behind all that is taken. */
int mm_segment_refill(mm *m, mm_result *r)
{
    uint64_t open = at_load_acquire(&m->g->open_segment), n = (open & 0xFFFFFFFF) - 1;
    mm_segment *s = open ? mm_segment_of(m, n << m->segment_shift, r) : NULL;
    if (!s) return mm_room_next(m, MM_NO_SEGMENT, 0, MM_GROWS, r);
    uint64_t taken = at_load_acquire(&s->fill) & 0xFFFFFFFF;
    if (taken > blocks_of(m)) return mm_corrupt(r, MM_FILE_CONTROL, (uint64_t)((uint8_t *)&s->fill - m->control));
    return mm_room_behind(m, n, (n << m->segment_shift) + taken * MM_BLOCK, MM_GROWS, r);
}

/* One try in segment n.  MM_OK: the lease is ours; MM_BUSY: look again (somebody was faster); MM_SPACE: the segment has too little left. */
static int try_lease(mm *m, uint64_t n, uint64_t generation, uint64_t need, enum mm_purpose purpose, mm_result *r)
{
    mm_segment *s = &m->segments[n];
    uint64_t w = at_load_acquire(&s->word), f = at_load_acquire(&s->fill), first = f & 0xFFFFFFFF, room = blocks_of(m) - first;
    if (mm_segword_state(w) != MM_SEG_OPEN || mm_segword_generation(w) != generation || f >> 32 != generation) return MM_SPACE;
    uint64_t want = m->lease.next_size / MM_BLOCK;
    bool reserve;
    if (want < need) want = need;
    if (first == 0 || first > blocks_of(m)) return mm_corrupt(r, MM_FILE_CONTROL, (uint64_t)((uint8_t *)&s->fill - m->control));
    if (room < need) return MM_SPACE;
    if (want > room) want = room;
    int rc = cover_lease(m, n, (n << m->segment_shift) + first * MM_BLOCK, need, &want, purpose, &reserve, r);
    if (rc) return rc;
    announce_lease(m, (n << m->segment_shift) + first * MM_BLOCK, generation, want);
    if (!at_cas_acq_rel(&s->fill, &f, fill_word(generation, first + want))) return MM_BUSY;
    begin_lease(m, n, generation, first, want, reserve);
    return MM_OK;
}

/* The open segment (the word `open`; s is NULL: there is none) has too little left: seals it and opens another, once there is room in that.
 * MM_BUSY: look again. */
static int move_on(mm *m, mm_segment *s, uint64_t open, uint64_t need, enum mm_purpose purpose, mm_result *r)
{
    uint64_t n = s ? (uint64_t)(s - m->segments) : MM_NO_SEGMENT;
    int rc = mm_room_next(m, n, need, MM_GROWS, r);
    if (is_full(rc) && purpose == MM_FREES) rc = mm_room_next(m, n, need, MM_FREES, r);
    if (!rc && s) seal(m, s, open >> 32);
    if (!rc && at_load_acquire(&m->g->open_segment) == open) rc = open_segment(m, open, r);
    if (is_full(rc) && at_load_acquire(&m->g->open_segment) != open) rc = MM_OK; /* somebody else had room */
    return rc ? rc : MM_BUSY;
}

/* A lease with room for `bytes` behind its header.  The caller has announced a publish.  Each turn of the loop means that somebody made
 * progress; the bound is against a hostile `control`. */
int mm_segment_lease(mm *m, uint64_t bytes, enum mm_purpose purpose, mm_result *r)
{
    uint64_t need = (bytes + sizeof(mm_lease_header) + MM_BLOCK - 1) / MM_BLOCK;
    bool reaped = false;
    for (uint32_t tries = 0; tries < 1u << 20; tries++) {
        uint64_t open = at_load_acquire(&m->g->open_segment), n = (open & 0xFFFFFFFF) - 1;
        mm_segment *s = open ? mm_segment_of(m, n << m->segment_shift, r) : NULL;
        if (open && !s) break;
        int rc = open ? try_lease(m, n, open >> 32, need, purpose, r) : MM_SPACE;
        if (rc == MM_SPACE) rc = move_on(m, s, open, need, purpose, r);
        if (rc == MM_BUSY) continue;
        if (is_full(rc) && !reaped) { /* the dead may have been preparing a segment */
            reaped = true;
            if (mm_reap_dead(m)) continue;
        }
        if (rc) announce_again(m);
        return rc;
    }
    return mm_corrupt(r, MM_FILE_CONTROL, MM_CONTROL_GLOBALS + offsetof(mm_globals, open_segment));
}
