/* run.c - runs of whole segments that hold one large payload each (extent.c): taking them, and giving them back.
 *
 * A run is taken as a whole and freed as a whole, and never moved.  Its first segment says whose it is, in `control` and in a header in the log; the
 * others point to it.  It is free when the chain of its page does not name it: who replaces the record that did says so (mm_run_retire); a reaper
 * looks (mm_runs_abandon), and so does a cleaner (mm_runs_sweep).  From then on the rule is that of every segment: pins, views, a flush (reuse.c).
 *
 * What stood in the first block of a segment said which generations of it are gone; marks, leases and snapshots may name them for ever.  A payload
 * goes over that.  So all segments of a run get one generation, not smaller than any of theirs, and the header of the run, which says it, is durable
 * before a payload is written where there was something before; when the run is free each segment gets a header of its own again, and the first one
 * is not used before these are durable.  So at every moment one of the two is on the disk.
 *
 * Died: PREPARING goes back to FREE; EXTENT in the hands of the dead is kept if the chain of its page names it, and retired if not; PUNCHING is
 * gone on with.  Stopped: others take other segments.
 */
#include <string.h>

#include "internal.h"

#define TRIES 16

static uint64_t mine(const mm *m) { return MM_REST_RUN | m->slot_index; }
static uint64_t segments_of(const mm *m, uint64_t room)
{
    return (mm_extent_span(room) + sizeof(mm_segment_stamp) + m->segment_size - 1) >> m->segment_shift;
}

/* Segments of the run that begins at n, or 0.  All of them were published before it was taken, which may be news here. */
static uint64_t count_of(mm *m, uint64_t n, uint64_t generation)
{
    mm_result ignored;
    uint64_t fill = at_load_acquire(&m->segments[n].fill), count = fill & 0xFFFFFFFF;
    bool there = fill >> 32 == generation && count && count <= MM_MAX_SEGMENTS - n && mm_segment_of(m, (n + count - 1) << m->segment_shift, &ignored);
    return there ? count : 0;
}

/* ---- the header ------------------------------------------------------------------------------------------------------------------ */

/* The one that stands at segment n, if it holds. */
bool mm_run_look(const mm *m, uint64_t n, mm_run_header *h)
{
    memcpy(h, m->log + (n << m->segment_shift), sizeof *h);
    return h->magic == MM_RUN_MAGIC && h->crc == crc32c_extend(0, (const uint8_t *)h + 12, sizeof *h - 12) && h->number == n && h->segments
           && h->generation && memcmp(h->uuid, m->config.uuid, sizeof h->uuid) == 0;
}

/* `bytes`: with zeros behind it, where a payload may stand. */
static void write_header(mm *m, uint64_t n, uint64_t generation, uint64_t page, uint64_t segments, uint64_t salt, uint64_t bytes)
{
    uint8_t block[MM_BLOCK] = { 0 };
    mm_run_header h = { .magic = MM_RUN_MAGIC, .generation = (uint32_t)generation, .number = n, .salt = salt, .page = page, .segments = segments,
                        .epoch = at_load_acquire(&m->g->epoch), .stable = at_load_acquire(&m->g->stable) };
    memcpy(h.uuid, m->config.uuid, sizeof h.uuid);
    h.crc = crc32c_extend(0, (const uint8_t *)&h + 12, sizeof h - 12);
    memcpy(block, &h, sizeof h);
    at_copy(m->log + (n << m->segment_shift), block, bytes);
}

/* ---- taking ------------------------------------------------------------------------------------------------------------------------ */

static void unprepare(mm *m, uint64_t first, uint64_t count)
{
    for (uint64_t n = first; n < first + count; n++) {
        uint64_t w = at_load_acquire(&m->segments[n].word);
        if (mm_segword_rest(w) == mine(m) && mm_segword_state(w) == MM_SEG_PREPARING) mm_segment_step(m, n, &w, MM_SEG_FREE, 0);
    }
}

/* All of them are PREPARING, or none.  *used: one behind the first had a life before. */
static bool prepare_run(mm *m, uint64_t first, mm_run *run, bool *used)
{
    uint64_t n = first;
    run->generation = 0;
    *used = false;
    for (; n < first + run->segments; n++) {
        uint64_t w = at_load_acquire(&m->segments[n].word), before = mm_segword_generation(w);
        if (!mm_segment_usable(m, n, w) || !mm_segment_step(m, n, &w, MM_SEG_PREPARING, mine(m))) break;
        if (n > first && before) *used = true;
        if (mm_segword_generation(w) > run->generation) run->generation = (uint32_t)mm_segword_generation(w);
    }
    run->number = first;
    run->held = n == first + run->segments;
    if (!run->held) unprepare(m, first, n - first);
    return run->held;
}

/* The one that will be opened next is left alone: the reserve lies there (room.c). */
static bool take_free(mm *m, mm_run *run, uint64_t spare, bool *used)
{
    uint64_t row = 0, all = pv_load_relaxed(&m->segments_safe);
    for (uint64_t n = 0; n < all; n++) {
        row = n != spare && mm_segment_usable(m, n, at_load_acquire(&m->segments[n].word)) ? row + 1 : 0;
        if (row < run->segments) continue;
        if (prepare_run(m, n + 1 - run->segments, run, used)) return true;
        row = 0;
    }
    return false;
}

/* More numbers, for what is missing behind the free ones at the end: they count as FREE from here on, for everybody. */
static int more_numbers(mm *m, const mm_run *run, uint64_t spare, mm_result *r)
{
    uint64_t used = at_load_acquire(&m->g->segments), first = used;
    if (used && !mm_segment_of(m, (used - 1) << m->segment_shift, r)) return mm_corrupt(r, MM_FILE_CONTROL, MM_CONTROL_GLOBALS + offsetof(mm_globals, segments));
    while (first && first - 1 != spare && mm_segment_usable(m, first - 1, at_load_acquire(&m->segments[first - 1].word))) first--;
    if (spare >= first) first = spare + 1;
    uint64_t want = first + run->segments, block = MM_BLOCK;
    if (want > MM_MAX_SEGMENTS || want << m->segment_shift > m->log_window) return MM_LIMIT;
    if (want <= used) return MM_OK;
    uint64_t from = (MM_CONTROL_SEGMENTS + used * sizeof(mm_segment)) / block * block, to = MM_CONTROL_SEGMENTS + want * sizeof(mm_segment);
    int e = mm_os_grow(m->config.control, from, (to + block - 1) / block * block);
    if (e) return mm_os_failed(r, e);
    at_add_relaxed(&m->g->free_segments, want - used);
    at_max_release(&m->g->segments, want);
    return mm_segment_of(m, (want - 1) << m->segment_shift, r) ? MM_OK : mm_corrupt(r, MM_FILE_CONTROL, MM_CONTROL_SEGMENTS);
}

/* Under the mutex: what waits to be used again is looked for.  Each lost turn is somebody else's progress. */
static int take(mm *m, mm_run *run, bool *used, mm_result *r)
{
    int rc = mm_publish_begin(m, r);
    if (rc) return rc;
    mm_reclaim(m);
    for (int tries = 0; !rc && tries < TRIES; tries++) {
        uint64_t open = at_load_acquire(&m->g->open_segment), spare;
        rc = mm_room_candidate(m, open ? (open & 0xFFFFFFFF) - 1 : MM_NO_SEGMENT, &spare, r);
        if (!rc && take_free(m, run, spare, used)) break;
        if (!rc) rc = more_numbers(m, run, spare, r);
    }
    mm_publish_end(m);
    return rc ? rc : run->held ? MM_OK : MM_LIMIT;
}

/* ---- room -------------------------------------------------------------------------------------------------------------------------- */

/* What is published has no hole in a segment that somebody leases from: asked before more is published, and again behind it, since one may have been
 * opened in between (segment.c: write_header has the other half). */
static int fill_open_ones(mm *m, mm_result *r)
{
    for (uint64_t n = 0; n < pv_load_relaxed(&m->segments_safe); n++) {
        uint64_t w = at_load_acquire(&m->segments[n].word), state = mm_segword_state(w), begin = n << m->segment_shift;
        if (state != MM_SEG_OPEN && (state != MM_SEG_PREPARING || mm_segword_rest(w) & MM_REST_RUN)) continue;
        int rc = mm_log_cover(m, begin + m->segment_size, r), e = rc ? 0 : mm_os_grow(m->config.log, begin, begin + m->segment_size);
        if (rc || e) return rc ? rc : mm_os_failed(r, e);
    }
    return MM_OK;
}

/* The bytes of the run, and the block of its stamp; what lies between stays a hole.  Then the reserve must be whole still. */
static int allocate(mm *m, const mm_run *run, mm_result *r)
{
    uint64_t base = run->number << m->segment_shift, end = base + (run->segments << m->segment_shift), last = end - MM_BLOCK;
    uint64_t stop = base + (mm_extent_span(run->room) + MM_BLOCK - 1) / MM_BLOCK * MM_BLOCK;
    int rc = fill_open_ones(m, r);
    if (!rc) rc = mm_log_whole(m, r); /* growth would put zeros where somebody cut it */
    if (rc) return rc;
    int e = mm_os_grow(m->config.log, base, stop < last ? stop : end);
    if (!e && stop < last) e = mm_os_grow(m->config.log, last, end);
    if (e) return mm_os_failed(r, e);
    at_max_release(&m->g->log_size, end);
    at_fence_full(); /* the size, then the states */
    rc = fill_open_ones(m, r);
    if (!rc && !mm_log_reaches(m, end)) rc = mm_corrupt(r, MM_FILE_LOG, end);
    return rc ? rc : mm_segment_refill(m, 0, r);
}

/* A payload that looked like what stands at the borders of segments would be taken for it by who scans the log when the run is free. */
static bool looks_like_ours(const mm *m, uint64_t n)
{
    uint64_t word[2][3], at = n << m->segment_shift;
    memcpy(word[0], m->log + at, sizeof word[0]); /* magic, crc and generation, number: all of them begin so */
    bool alike = (word[0][0] == MM_SEGMENT_MAGIC || word[0][0] == MM_RUN_MAGIC) && word[0][2] == n;
    for (uint64_t parity = 0; parity < 2; parity++) {
        memcpy(word[0], m->log + at + mm_retired_offset(parity), sizeof word[0]);
        alike = alike || (word[0][0] == MM_RETIRED_MAGIC && word[0][2] == n);
    }
    memcpy(word[1], m->log + at - sizeof(mm_segment_stamp), sizeof word[1]);
    return alike || (word[1][0] == MM_STAMP_MAGIC && word[1][2] == n - 1);
}

bool mm_run_deceives(const mm *m, const mm_run *run)
{
    uint64_t end = run->extent.address + mm_extent_span(run->extent.length);
    for (uint64_t n = run->number + 1; n < run->number + run->segments && n << m->segment_shift < end; n++)
        if (looks_like_ours(m, n)) return true;
    return false;
}

/* From PREPARING on nobody else looks at these words; EXTENT, first the first one, makes the run what a reaper of ours finds. */
static void join(mm *m, const mm_run *run)
{
    mm_segment *s = &m->segments[run->number];
    at_store_relaxed(&s->salt, run->extent.salt);
    at_store_relaxed(&s->opened, at_load_relaxed(&m->g->epoch));
    at_store_relaxed(&s->live, run->page);
    at_store_relaxed(&s->written, 0);
    at_store_relaxed(&s->since, 0);
    at_store_relaxed(&s->looked, (mm_extent_span(run->room) + MM_BLOCK - 1) / MM_BLOCK * MM_BLOCK);
    at_store_relaxed(&s->fill, mm_fill_word(run->generation, run->segments));
    mm_segment_join(m, run->number, run->generation, mine(m));
    for (uint64_t n = run->number + 1; n < run->number + run->segments; n++) {
        at_store_relaxed(&m->segments[n].since, 0);
        mm_segment_join(m, n, run->generation, MM_REST_MEMBER | run->number);
    }
}

int mm_run_find(mm *m, uint64_t page, uint64_t room, mm_run *run, bool *used, mm_result *r)
{
    *run = (mm_run){ .page = page, .room = room, .segments = segments_of(m, room) };
    int e = mm_os_random(&run->extent.salt, sizeof run->extent.salt);
    int rc = e ? mm_os_failed(r, e) : take(m, run, used, r);
    uint32_t pin;
    if (!rc) rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    rc = allocate(m, run, r);
    if (!rc) {
        /* Before it is in use: a mark says how many segments are, and who recovers cuts off zeros at the end of the log. */
        mm_segment_stamp_end(m, run->number + run->segments - 1, run->generation, at_load_acquire(&m->g->stable));
        join(m, run);
        write_header(m, run->number, run->generation, page, run->segments, run->extent.salt, sizeof(mm_run_header));
        at_fence_full(); /* then whatever epoch the caller flushes */
        run->extent.address = run->number << m->segment_shift;
        run->extent.generation = run->generation;
        run->body = m->log + run->extent.address + MM_BLOCK;
        at_add_relaxed(&m->g->log_taken, at_load_relaxed(&m->segments[run->number].looked));
    }
    mm_leave(m, pin);
    return rc;
}

/* Whose it will be: the page id may be known only when the record is about to be published.  In an announced publish, and before its colour is
 * loaded, so that a flush that covers the record covers this. */
void mm_run_name(mm *m, mm_run *run, uint64_t page)
{
    if (run->page != page) {
        at_store_relaxed(&m->segments[run->number].live, page);
        write_header(m, run->number, run->generation, page, run->segments, run->extent.salt, sizeof(mm_run_header));
        at_fence_full(); /* as in fill (extent.c) */
        mm_want_mark(m, at_load_acquire(&m->g->epoch));
    }
    run->page = page;
}

/* ---- giving back --------------------------------------------------------------------------------------------------------------------- */

int mm_chain_names(mm *m, uint64_t pid, uint64_t address, uint64_t generation, mm_result *r)
{
    at_word *head;
    mm_view v;
    mm_extent x;
    bool helped;
    if (pid == MM_MAX_PID) return 0;
    int rc = mm_head(m, pid, &head, r);
    if (rc) return rc == MM_NOPAGE ? 0 : -rc;
    uint64_t h = at_load_acquire(head);
    if (!h) return 0;
    rc = mm_look_head(m, pid, h, &v, &helped, r);
    for (uint32_t k = 0; !rc && k < MM_CHAIN_MAX; k++) {
        if (mm_is_large(v.shape)) {
            rc = mm_verify(m, &v, r); /* a damaged one may name it */
            if (rc) break;
            memcpy(&x, v.payload, sizeof x);
            if (x.address == address && x.generation == generation) return 1;
        }
        if (mm_shape_kind(v.shape) != MM_KIND_DELTA) return 0;
        rc = mm_look(m, pid, v.prev, &v, r);
    }
    return rc ? -rc : -MM_CORRUPT;
}

/* The caller has seen that no chain names it, has helped every head that it looked at, and holds a pin or an announcement: so nobody who is late writes
 * `since` of another life. */
void mm_run_retire(mm *m, uint64_t n, uint64_t generation, uint64_t page)
{
    mm_result ignored;
    mm_run_header h;
    mm_segment *s = mm_segment_of(m, n << m->segment_shift, &ignored);
    if (!s) return;
    uint64_t w = at_load_acquire(&s->word), count = count_of(m, n, generation);
    bool ours = mm_segword_state(w) == MM_SEG_EXTENT && mm_segword_rest(w) & MM_REST_RUN && mm_segword_generation(w) == generation;
    if (!ours || !count || at_load_relaxed(&s->live) != page || !mm_log_reaches(m, (n + count) << m->segment_shift)) return;
    if (!mm_run_look(m, n, &h) || h.generation != generation) write_header(m, n, generation, page, count, at_load_relaxed(&s->salt), sizeof h); /* its author died before it could */
    at_add_seq_cst(mm_retirements(m), 1);
    at_fence_full(); /* the last look at a head, and the commit words stored for others, before the epoch (C9) */
    uint64_t since = at_load_acquire(&m->g->epoch);
    at_store_relaxed(&s->since, since);
    mm_want_mark(m, since); /* an intent does not know the number of retirements */
    mm_segment_step(m, n, &w, MM_SEG_RETIRED, MM_REST_RUN);
}

/* A header of its own for a segment of a run that is free.  Without room for it nothing of the run stood in its place: what did before still does. */
void mm_run_tombstone(mm *m, uint64_t n, uint64_t generation, uint64_t salt)
{
    uint64_t begin = n << m->segment_shift;
    if (mm_os_grow(m->config.log, begin, begin + MM_BLOCK)) return;
    write_header(m, n, generation, MM_MAX_PID, 1, salt, MM_BLOCK);
    at_fence_full();
}

/* The log ends before the run did: numbers behind are forgotten, and a segment that gets one of them begins with a generation of its own. */
void mm_run_shorten(mm *m, uint64_t n, const mm_run_header *h, uint64_t segments)
{
    mm_run_header shorter = *h;
    shorter.segments = segments;
    shorter.crc = crc32c_extend(0, (const uint8_t *)&shorter + 12, sizeof shorter - 12);
    at_copy(m->log + (n << m->segment_shift), &shorter, sizeof shorter);
}

static void empty_segment(mm *m, uint64_t n, uint64_t generation, uint64_t salt, bool first, bool last)
{
    uint64_t begin = n << m->segment_shift, end = begin + m->segment_size - (last ? MM_BLOCK : 0);
    if (!first) mm_run_tombstone(m, n, generation, salt);
    if (begin + MM_BLOCK < end && mm_os_punch(m->config.log, begin + MM_BLOCK, end) == 0) at_written(m->log + begin + MM_BLOCK, end - begin - MM_BLOCK);
}

/* The first segment is PUNCHING, in our hands.  Whatever was done before is not done again: a segment that has left may be somebody's. */
static void release(mm *m, uint64_t n, uint64_t generation)
{
    uint64_t count = count_of(m, n, generation), salt = at_load_relaxed(&m->segments[n].salt), w;
    if (count && mm_log_reaches(m, (n + count) << m->segment_shift)) {
        w = at_load_acquire(&m->segments[n + count - 1].word);
        bool whole = count == 1 || (mm_segword_state(w) == MM_SEG_EXTENT && mm_segword_rest(w) == (MM_REST_MEMBER | n));
        if (whole) mm_segment_stamp_end(m, n + count - 1, generation, at_load_acquire(&m->g->stable)); /* before the bytes are gone */
        for (uint64_t i = n + count; i-- > n + 1;) {
            w = at_load_acquire(&m->segments[i].word);
            if (w != mm_segword(MM_SEG_EXTENT, generation, MM_REST_MEMBER | n)) continue;
            empty_segment(m, i, generation, salt, false, i == n + count - 1);
            mm_segment_step(m, i, &w, MM_SEG_HOLE, 0);
        }
        empty_segment(m, n, generation, salt, true, count == 1);
    }
    at_fence_full(); /* the headers, then the epoch: its header says of which generation they are until theirs are durable */
    uint64_t since = at_load_acquire(&m->g->epoch);
    at_store_relaxed(&m->segments[n].since, since);
    mm_want_mark(m, since); /* or it would wait for one */
    w = at_load_acquire(&m->segments[n].word);
    if (mm_segword_state(w) == MM_SEG_PUNCHING) mm_segment_step(m, n, &w, MM_SEG_HOLE, 0);
}

void mm_run_release(mm *m, uint64_t n, uint64_t word)
{
    if (mm_segment_step(m, n, &word, MM_SEG_PUNCHING, mine(m))) release(m, n, mm_segword_generation(word));
}

/* An EXTENT that `slot` has in its hands, and that it may have published: kept if its page names it. */
static void settle(mm *m, uint64_t n, uint64_t w, uint32_t slot)
{
    mm_result ignored;
    uint64_t generation = mm_segword_generation(w), count = count_of(m, n, generation), page = at_load_relaxed(&m->segments[n].live);
    for (uint64_t i = n + 1; i < n + count; i++) { /* died between the first one and the others */
        uint64_t o = at_load_acquire(&m->segments[i].word);
        if (mm_segword_state(o) == MM_SEG_PREPARING && mm_segword_rest(o) == (MM_REST_RUN | slot)) mm_segment_join(m, i, generation, MM_REST_MEMBER | n);
    }
    if (mm_chain_names(m, page, n << m->segment_shift, generation, &ignored) == 0) mm_run_retire(m, n, generation, page);
    else mm_segment_step(m, n, &w, MM_SEG_EXTENT, MM_REST_RUN | MM_SLOTS);
}

void mm_runs_abandon(mm *m, uint32_t slot)
{
    for (uint64_t n = 0; n < pv_load_relaxed(&m->segments_safe); n++) {
        uint64_t w = at_load_acquire(&m->segments[n].word);
        if (mm_segword_rest(w) != (MM_REST_RUN | slot)) continue;
        if (mm_segword_state(w) == MM_SEG_PREPARING) mm_segment_step(m, n, &w, MM_SEG_FREE, 0);
        if (mm_segword_state(w) == MM_SEG_EXTENT) settle(m, n, w, slot);
        if (mm_segword_state(w) == MM_SEG_PUNCHING) release(m, n, mm_segword_generation(w));
    }
}

/* Those whose author is done with them, and that nobody names: who replaced the record died before it had said so. */
void mm_runs_sweep(mm *m)
{
    mm_result ignored;
    for (uint64_t n = 0; n < pv_load_relaxed(&m->segments_safe); n++) {
        const mm_segment *s = &m->segments[n];
        uint64_t w = at_load_acquire(&s->word), page = at_load_relaxed(&s->live), generation = mm_segword_generation(w);
        if (mm_segword_state(w) != MM_SEG_EXTENT || mm_segword_rest(w) != (MM_REST_RUN | MM_SLOTS)) continue;
        if (mm_chain_names(m, page, n << m->segment_shift, generation, &ignored) == 0) mm_run_retire(m, n, generation, page);
    }
}

uint64_t mm_runs_pending(mm *m, uint64_t *since)
{
    uint64_t sum = 0, marked = at_load_acquire(&m->g->marked);
    *since = 0;
    for (uint64_t n = 0; n < pv_load_relaxed(&m->segments_safe); n++) {
        const mm_segment *s = &m->segments[n];
        uint64_t w = at_load_acquire(&s->word), when = at_load_relaxed(&s->since);
        if (mm_segword_state(w) != MM_SEG_RETIRED || !(mm_segword_rest(w) & MM_REST_RUN) || when <= marked) continue;
        sum += at_load_relaxed(&s->looked);
        if (when > *since) *since = when;
    }
    return sum;
}

/* ---- the author is done ------------------------------------------------------------------------------------------------------------------ */

typedef struct done_call { mm_run *run; int status; } done_call;

static int done(mm *m, void *args, mm_result *r)
{
    const done_call *c = args;
    const mm_run *run = c->run;
    uint32_t pin;
    (void)r;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc; /* leaving: who releases the slot, or reaps it, looks */
    uint64_t n = run->number, w = at_load_acquire(&m->segments[n].word);
    if (mm_segword_rest(w) == mine(m) && mm_segword_state(w) == MM_SEG_EXTENT && mm_segword_generation(w) == run->generation) {
        if (c->status == MM_OK) mm_segment_step(m, n, &w, MM_SEG_EXTENT, MM_REST_RUN | MM_SLOTS);
        else settle(m, n, w, m->slot_index);
    } else if (mm_segword_state(w) == MM_SEG_PREPARING) { /* what was allocated goes back */
        unprepare(m, n, run->segments);
        for (uint64_t i = n; i < n + run->segments; i++) mm_punch_segment(m, i);
    }
    mm_leave(m, pin);
    return MM_OK;
}

void mm_run_done(mm *m, mm_run *run, int status)
{
    if (run->held) mm_guarded(m, NULL, done, &(done_call){ run, status });
    run->held = false;
}
