/* segment.c - segments: their states, and where the next one to write to comes from.
 *
 * State, generation and owner are one word, changed only by CAS along the table below; generation + 1 at FREE -> PREPARING.  Leases are taken
 * from the segment named by control.open_segment (lease.c).  Nobody waits: who finds the open segment full seals it and prepares another.
 *
 * Died here: what it was PREPARING, had CLAIMED or was PUNCHING goes back when its owner is reaped.  Stopped here: others take another one.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

/* Bit s of row f: a segment may go from state f to state s. */
#define TO(state) (1u << (state))
static const uint16_t transitions[MM_SEG_STATES] = {
    [MM_SEG_FREE] = TO(MM_SEG_PREPARING) | TO(MM_SEG_PUNCHING),
    [MM_SEG_HOLE] = TO(MM_SEG_PREPARING) | TO(MM_SEG_FREE),   /* FREE: it has bytes again, the reserve lies there (room.c) */
    [MM_SEG_PREPARING] = TO(MM_SEG_OPEN) | TO(MM_SEG_FREE) | TO(MM_SEG_EXTENT), /* FREE: no room, or its owner died; EXTENT: run.c */
    [MM_SEG_OPEN] = TO(MM_SEG_SEALED) | TO(MM_SEG_FREE),      /* FREE: never named as the open one, so nobody leased from it */
    [MM_SEG_SEALED] = TO(MM_SEG_CLAIMED),
    [MM_SEG_CLAIMED] = TO(MM_SEG_RETIRED) | TO(MM_SEG_SEALED), /* SEALED: given up, or its cleaner died */
    [MM_SEG_RETIRED] = TO(MM_SEG_FREE) | TO(MM_SEG_PUNCHING), /* PUNCHING: the first of a run */
    [MM_SEG_PUNCHING] = TO(MM_SEG_HOLE),
    [MM_SEG_EXTENT] = TO(MM_SEG_EXTENT) | TO(MM_SEG_RETIRED) | TO(MM_SEG_HOLE), /* EXTENT: its author leaves it; HOLE: not the first of its run */
};

/* Of a number that was never used, as far as anybody remembers, a random one: when the log was truncated its headers are gone, and what names a
 * lease of an earlier generation must not find one of the same.  0 is no generation (peek.h). */
static uint64_t next_generation(uint64_t generation)
{
    uint64_t random = 0;
    if (generation == 0) return mm_os_random(&random, sizeof random) ? 1 : 1 + random % (1u << 20);
    return mm_generation_after(generation);
}

/* The one place where a segment changes state: from *w, as it was loaded. */
static bool change(mm *m, uint64_t n, uint64_t *w, enum mm_segment_state to, uint64_t generation, uint64_t owner)
{
    uint64_t from = mm_segword_state(*w);
    if (from >= MM_SEG_STATES || !(transitions[from] & TO(to))) return false;
    if (!at_cas_acq_rel(&m->segments[n].word, w, mm_segword(to, generation, owner))) return false;
    *w = mm_segword(to, generation, owner);
    if (to == MM_SEG_FREE || to == MM_SEG_HOLE) at_add_relaxed(&m->g->free_segments, 1);
    if (from == MM_SEG_FREE || from == MM_SEG_HOLE) at_add_relaxed(&m->g->free_segments, UINT64_MAX);
    return true;
}

/* Keeps the generation, unless the segment is being prepared.  False: somebody else was faster (*w is what stands there now), or the table has no such
 * step. */
bool mm_segment_step(mm *m, uint64_t n, uint64_t *w, enum mm_segment_state to, uint64_t owner)
{
    uint64_t generation = mm_segword_generation(*w);
    return change(m, n, w, to, to == MM_SEG_PREPARING ? next_generation(generation) : generation, owner);
}

/* PREPARING -> EXTENT: all segments of a run get the same generation, the largest of theirs. */
bool mm_segment_join(mm *m, uint64_t n, uint64_t generation, uint64_t rest)
{
    uint64_t w = at_load_acquire(&m->segments[n].word);
    return mm_segword_state(w) == MM_SEG_PREPARING && change(m, n, &w, MM_SEG_EXTENT, generation, rest);
}

/* Can be prepared, as far as `w` says.  The first segment of a run that was given back waits until that is durable (run.c), by a mark: what an intent
 * makes durable is what stands in leases.  One that was used 2^24 times is worn out: a hole for good, until the log is truncated before it. */
bool mm_segment_usable(mm *m, uint64_t n, uint64_t w)
{
    uint64_t state = mm_segword_state(w);
    if (mm_segword_generation(w) == MM_GENERATION_LAST) return false;
    return state == MM_SEG_FREE || (state == MM_SEG_HOLE && at_load_relaxed(&m->segments[n].since) <= at_load_acquire(&m->g->marked));
}

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
        int e = mm_fail_at(m->config.failpoints, MM_FAIL_LOG_GROWTH);
        if (e) return mm_os_failed(r, e);
        e = mm_os_grow(m->config.log, now, want);
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

/* In an announced publish: a segment that is of the lease's generation now stays so.  Of a run `live` is the page's id (run.c), and a lease may be of an
 * earlier life of that place. */
void mm_account_flush(mm *m)
{
    if (!m->lease.live) return;
    uint64_t w = at_load_acquire(&m->segments[m->lease.segment].word), state = mm_segword_state(w);
    bool ours = mm_segword_generation(w) == m->lease.generation && (state == MM_SEG_OPEN || state == MM_SEG_SEALED || state == MM_SEG_CLAIMED);
    if (ours) at_add_relaxed(&m->segments[m->lease.segment].live, (uint64_t)m->lease.live);
    m->lease.live = 0;
}

void mm_account(mm *m, uint64_t address, int64_t bytes)
{
    uint64_t n = address >> m->segment_shift;
    if (m->lease.start && n == m->lease.segment) m->lease.live += bytes; /* not a shared line at every publish */
    else if (n < pv_load_relaxed(&m->segments_safe)) at_add_relaxed(&m->segments[n].live, (uint64_t)bytes);
}

/* ---- opening a segment ------------------------------------------------------------------------------------------------------ */

/* A segment in state `state` to prepare, if there is one.  The entry of a number never used reads as FREE, generation 0. */
static bool prepare(mm *m, uint64_t n, uint64_t state, uint64_t *generation)
{
    uint64_t w = at_load_acquire(&m->segments[n].word);
    if (mm_segword_state(w) != state || !mm_segment_usable(m, n, w) || !mm_segment_step(m, n, &w, MM_SEG_PREPARING, m->slot_index)) return false;
    *generation = mm_segword_generation(w);
    return true;
}

/* Those that have their bytes before those that were punched. */
static bool take_used(mm *m, uint64_t *n, uint64_t *generation)
{
    static const uint8_t order[] = { MM_SEG_FREE, MM_SEG_HOLE };
    for (unsigned k = 0; k < sizeof order; k++)
        for (uint64_t i = 0; i < pv_load_relaxed(&m->segments_safe); i++)
            if (prepare(m, i, order[k], generation)) {
                *n = i;
                return true;
            }
    at_store_relaxed(&m->g->free_segments, 0); /* a hint that had drifted */
    return false;
}

static int take_free(mm *m, uint64_t *n, uint64_t *generation, mm_result *r)
{
    mm_reclaim(m);
    if (at_load_relaxed(&m->g->free_segments) && take_used(m, n, generation)) return MM_OK;
    for (;;) {
        uint64_t next = at_load_acquire(&m->g->segments);
        if (next >= MM_MAX_SEGMENTS) return MM_LIMIT;
        uint64_t at = (MM_CONTROL_SEGMENTS + next * sizeof(mm_segment)) & ~(uint64_t)(MM_BLOCK - 1);
        int e = mm_os_grow(m->config.control, at, at + MM_BLOCK);
        if (e) return mm_os_failed(r, e);
        at_add_relaxed(&m->g->free_segments, 1); /* a number that was never used counts as FREE from here on */
        bool won = prepare(m, next, MM_SEG_FREE, generation);
        if (!won) at_add_relaxed(&m->g->free_segments, UINT64_MAX);
        at_max_release(&m->g->segments, next + 1);
        if (!won) continue;
        *n = next;
        return segments_refresh(m, r);
    }
}

static uint32_t stamp_crc(const mm *m, const mm_segment_stamp *t) { return crc32c_extend(m->uuid_seed, (const uint8_t *)t + 12, sizeof *t - 12); }

/* It was punched before: its end knows of the epoch at which this generation was retired. */
bool mm_segment_is_stamped(const mm *m, uint64_t n, uint64_t generation)
{
    mm_segment_stamp t;
    uint64_t since = at_load_relaxed(&m->segments[n].since);
    memcpy(&t, m->log + ((n + 1) << m->segment_shift) - sizeof t, sizeof t);
    return t.magic == MM_STAMP_MAGIC && t.generation == generation && t.number == n && t.crc == stamp_crc(m, &t) && since && t.stable >= since;
}

/* Before anything that the generation before held is gone: see mm_segment_stamp.  False: the segment never was whole. */
bool mm_segment_stamp_end(mm *m, uint64_t n, uint64_t generation, uint64_t stable)
{
    uint64_t end = (n + 1) << m->segment_shift;
    if (!mm_log_reaches(m, end)) return false;
    mm_segment_stamp t = { .magic = MM_STAMP_MAGIC, .generation = (uint32_t)generation, .number = n, .stable = stable };
    t.crc = stamp_crc(m, &t);
    at_copy(m->log + end - sizeof t, &t, sizeof t);
    at_fence_full();
    return true;
}

/* Neither a header nor a retirement begins in its first block: part of a large payload may be there, of a run that no recovery knew of. */
static bool holds_payload(const mm *m, uint64_t n)
{
    uint64_t magic[3], at = n << m->segment_shift;
    memcpy(&magic[0], m->log + at, sizeof magic[0]);
    memcpy(&magic[1], m->log + at + mm_retired_offset(0), sizeof magic[1]);
    memcpy(&magic[2], m->log + at + mm_retired_offset(1), sizeof magic[2]);
    return n && magic[0] != MM_SEGMENT_MAGIC && magic[0] != MM_RUN_MAGIC && magic[1] != MM_RETIRED_MAGIC && magic[2] != MM_RETIRED_MAGIC;
}

static void clear(uint8_t *p, uint64_t n)
{
    static const uint8_t zeros[MM_BLOCK];
    if (memcmp(p, zeros, n)) at_copy(p, zeros, n);
}

/* Behind a header the block is zero, but for what is said of retirements.  A power loss may have left there what stood in its place, the payload of a run,
 * also where a retirement would be said. */
void mm_segment_clear_unused(mm *m, uint64_t n)
{
    uint64_t first = mm_retired_offset(0), second = mm_retired_offset(1), said = sizeof(mm_segment_retired), own = n ? first : MM_RETIREMENTS_OFFSET;
    const uint64_t parts[][2] = { { sizeof(mm_segment_header), own }, { n ? first : own + 8, first }, { first + said, second }, { second + said, MM_BLOCK } };
    uint8_t *block = m->log + (n << m->segment_shift);
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++) clear(block + parts[i][0], parts[i][1] - parts[i][0]);
    for (uint64_t parity = 0, magic; parity < 2; parity++) {
        memcpy(&magic, block + mm_retired_offset(parity), sizeof magic);
        if (magic != MM_RETIRED_MAGIC) clear(block + mm_retired_offset(parity), said);
    }
}

/* The header is complete before the segment is OPEN, hence before any record in it can be published.  What an earlier generation said of
 * its retirement names that generation. */
static int write_header(mm *m, uint64_t n, uint64_t generation, mm_result *r)
{
    uint64_t at = n << m->segment_shift, salt;
    int rc = mm_log_cover(m, at + MM_BLOCK, r);
    if (rc) return rc;
    at_fence_full(); /* PREPARING, then the size: who publishes more behind us sees the one, or we see the other (run.c) */
    uint64_t published = at_load_acquire(&m->g->log_size), end = at + m->segment_size < published ? at + m->segment_size : published;
    int e = mm_os_grow(m->config.log, at, end); /* one that was used before may have holes: a store to one without room would be a SIGBUS */
    if (!e) e = mm_os_random(&salt, sizeof salt);
    if (e) return mm_os_failed(r, e);
    mm_segment_header h = { .magic = MM_SEGMENT_MAGIC, .generation = (uint32_t)generation, .number = n, .salt = salt,
                            .epoch = at_load_acquire(&m->g->epoch), .stable = at_load_acquire(&m->g->stable) };
    memcpy(h.uuid, m->config.uuid, sizeof h.uuid);
    h.crc = crc32c_extend(0, (const uint8_t *)&h + 12, sizeof h - 12);
    mm_segment_stamp_end(m, n, generation, h.stable);
    uint8_t whole[MM_BLOCK] = { 0 };
    memcpy(whole, &h, sizeof h);
    at_copy(m->log + at, whole, holds_payload(m, n) ? sizeof whole : sizeof(mm_run_header)); /* which is longer, and may have stood here */
    mm_segment_clear_unused(m, n);
    mm_segment *s = &m->segments[n];
    at_store_relaxed(&s->salt, salt);
    at_store_relaxed(&s->opened, h.epoch);
    at_store_relaxed(&s->live, 0);
    at_store_relaxed(&s->written, 0);
    at_store_relaxed(&s->since, 0);
    at_store_relaxed(&s->looked, h.epoch);
    at_store_relaxed(&s->fill, mm_fill_word(generation, 1));
    return MM_OK;
}

/* Replaces the open segment `old` (the word of control.open_segment) by a fresh one. */
int mm_segment_open(mm *m, uint64_t old, mm_result *r)
{
    uint64_t n = 0, generation = 0;
    bool first = at_load_acquire(&m->g->segments) == 0;
    int e = first ? mm_fail_at(m->config.failpoints, MM_FAIL_INITIAL_ALLOCATION) : 0;
    if (e) return mm_os_failed(r, e);
    int rc = take_free(m, &n, &generation, r);
    if (rc) return rc;
    e = mm_fail_at(m->config.failpoints, MM_FAIL_SEGMENT_OPEN);
    rc = e ? mm_os_failed(r, e) : write_header(m, n, generation, r);
    uint64_t w = mm_segword(MM_SEG_PREPARING, generation, m->slot_index);
    if (rc) {
        mm_segment_step(m, n, &w, MM_SEG_FREE, 0);
        return rc;
    }
    if (!mm_segment_step(m, n, &w, MM_SEG_OPEN, m->slot_index)) return MM_OK;
    /* Lost: somebody else has opened one; nobody can have leased from ours, which no hint ever named. */
    if (!at_cas_acq_rel(&m->g->open_segment, &old, generation << 32 | (n + 1))) mm_segment_step(m, n, &w, MM_SEG_FREE, 0);
    e = first ? mm_fail_at(m->config.failpoints, MM_FAIL_INITIAL_ALLOCATION_POST) : 0;
    return e ? mm_os_failed(r, e) : MM_OK;
}

/* Takes what is left of the segment, so that no lease follows, then OPEN -> SEALED. */
void mm_segment_seal(mm *m, mm_segment *s, uint64_t generation)
{
    uint64_t f = at_load_acquire(&s->fill), full = mm_fill_word(generation, mm_blocks_of(m));
    while (f >> 32 == generation && f < full && !at_cas_acq_rel(&s->fill, &f, full)) { }
    uint64_t w = at_load_acquire(&s->word);
    while (mm_segword_state(w) == MM_SEG_OPEN && mm_segword_generation(w) == generation
           && !mm_segment_step(m, (uint64_t)(s - m->segments), &w, MM_SEG_SEALED, mm_segword_rest(w))) { }
}

uint64_t mm_segments_used(mm *m)
{
    mm_result ignored;
    uint64_t n = at_load_acquire(&m->g->segments);
    if (n && !mm_segment_of(m, (n - 1) << m->segment_shift, &ignored)) return 0;
    for (; n > 0; n--) {
        uint64_t state = mm_segword_state(at_load_acquire(&m->segments[n - 1].word));
        if (state != MM_SEG_FREE && state != MM_SEG_HOLE && state != MM_SEG_PUNCHING && state != MM_SEG_PREPARING) break;
    }
    return n;
}

/* OPEN, and never named as the open one: nobody leased from it. */
static bool unused(mm *m, uint64_t n, uint64_t w)
{
    uint64_t g = mm_segword_generation(w);
    return at_load_acquire(&m->g->open_segment) != (g << 32 | (n + 1)) && at_load_acquire(&m->segments[n].fill) == mm_fill_word(g, 1);
}

/* What an owner had in its hands when it died, or when a fault ended its publish: nothing of it is lost, and all may be done again. */
void mm_segment_abandon(mm *m, uint32_t slot, bool dead)
{
    mm_result ignored;
    if (segments_refresh(m, &ignored)) return;
    for (uint64_t n = 0; n < pv_load_relaxed(&m->segments_safe); n++) {
        uint64_t w = at_load_acquire(&m->segments[n].word);
        if (mm_segword_rest(w) != slot) continue;
        switch (mm_segword_state(w)) {
        case MM_SEG_PREPARING: mm_segment_step(m, n, &w, MM_SEG_FREE, 0); break;
        case MM_SEG_OPEN: if (unused(m, n, w)) mm_segment_step(m, n, &w, MM_SEG_FREE, 0); break;
        case MM_SEG_CLAIMED: if (dead) mm_segment_unclaim(m, n, &w, slot); break;
        case MM_SEG_PUNCHING: if (dead) mm_segment_step(m, n, &w, MM_SEG_HOLE, 0); break;
        default: break;
        }
    }
    if (dead) mm_runs_abandon(m, slot);
}
