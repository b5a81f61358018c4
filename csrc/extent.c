/* extent.c - large payloads: what the small record that stands for one says, how it is written, and how it is read.
 *
 * A payload that does not go into a lease lies in a run of whole segments (run.c), contiguous, behind a block of header; behind it lies a table of
 * checksums, one for each piece, so that it is verified in pieces, and damage has a place.  The record in the page's chain holds the mm_extent: where
 * it is, how long, of which generation, and the checksum of the table.  So all that is decided by records (CAS, help, recovery, cut(D), moves)
 * knows nothing of extents.
 *
 * All of it is written before the publish begins, with no lock held, hence before the colour of the record is loaded: a flush that covers the
 * record began its sync after that.  Died before the CAS: the reaper finds that nobody names the run.  Died after it: it is the page's.
 */
#include <string.h>

#include "mapped.h"

static uint64_t piece_length(uint64_t length, uint64_t k)
{
    uint64_t at = k * MM_EXTENT_PIECE;
    return length - at < MM_EXTENT_PIECE ? length - at : MM_EXTENT_PIECE;
}

/* ---- reading --------------------------------------------------------------------------------------------------------------------- */

/* Where the payload of a record lies that mm_verify has looked at; of any other it is only safe to read.  The caller's pin keeps the run. */
int mm_extent_open(mm *m, mm_view *v, mm_result *r)
{
    mm_extent x;
    if (!mm_is_large(v->shape)) return MM_OK;
    memcpy(&x, v->payload, sizeof x);
    mm_segment *s = mm_segment_of(m, x.address, r);
    if (!s || x.address & (m->segment_size - 1) || x.length > MM_EXTENT_MOST) return mm_corrupt(r, MM_FILE_LOG, v->address);
    uint64_t w = at_load_acquire(&s->word), state = mm_segword_state(w), fill = at_load_relaxed(&s->fill), room = (fill & 0xFFFFFFFF) << m->segment_shift;
    bool there = (state == MM_SEG_EXTENT || state == MM_SEG_RETIRED) && mm_segword_rest(w) & MM_REST_RUN && mm_segword_generation(w) == x.generation;
    if (!there || fill >> 32 != x.generation || mm_extent_span(x.length) > room || !mm_log_reaches(m, x.address + mm_extent_span(x.length)))
        return mm_corrupt(r, MM_FILE_LOG, x.address);
    v->body = m->log + x.address + MM_BLOCK;
    v->length = x.length;
    return MM_OK;
}

/* The table of a payload, if its checksum holds. */
static int table_of(mm *m, const mm_extent *x, const uint32_t **table, uint32_t *seed, mm_result *r)
{
    uint64_t at = x->address + mm_extent_table(x->length), n = 4 * mm_extent_pieces(x->length);
    *table = (const uint32_t *)(const void *)(m->log + at);
    *seed = crc32c_word(m->uuid_seed, x->salt);
    mm_mapped_use(m, at, n);
    MM_POINT();
    return mm_checksum_payload(*seed, at, *table, n) == x->crc ? MM_OK : mm_corrupt(r, MM_FILE_LOG, at);
}

#define AHEAD 8u /* pieces that the kernel is asked for */

/* Piece by piece: what was used before may be dropped meanwhile (mapped_capacity).  `to`: copies them there, and looks at the copy. */
static int go_through(mm *m, const mm_view *v, uint8_t *to, mm_result *r)
{
    mm_extent x;
    const uint32_t *table;
    uint32_t seed;
    memcpy(&x, v->payload, sizeof x);
    int rc = table_of(m, &x, &table, &seed, r);
    for (uint64_t k = 0; !rc && k < mm_extent_pieces(x.length); k++) {
        uint64_t n = piece_length(x.length, k), inside = k * MM_EXTENT_PIECE, at = x.address + MM_BLOCK + inside;
        if (k % AHEAD == 0) mm_fetch(m, at, AHEAD * MM_EXTENT_PIECE);
        mm_mapped_use(m, at, n);
        MM_POINT();
        if (to) memcpy(to + inside, v->body + inside, n);
        if (mm_checksum_payload(seed, at, to ? to + inside : v->body + inside, n) != table[k]) rc = mm_corrupt(r, MM_FILE_LOG, at);
    }
    return rc;
}

int mm_extent_verify(mm *m, const mm_view *v, mm_result *r) { return mm_is_large(v->shape) ? go_through(m, v, NULL, r) : MM_OK; }

int mm_extent_copy(mm *m, const mm_view *v, uint8_t *to, mm_result *r)
{
    if (mm_is_large(v->shape)) return go_through(m, v, to, r);
    memcpy(to, v->payload, v->length);
    return MM_OK;
}

/* ---- writing ---------------------------------------------------------------------------------------------------------------------- */

/* Copies `payload` into the run, unless it is there already (NULL), and writes the checksums.  The caller has a pin. */
static void fill(mm *m, mm_run *run, const uint8_t *payload, uint64_t length)
{
    mm_extent *x = &run->extent;
    uint32_t seed = crc32c_word(m->uuid_seed, x->salt);
    x->length = length;
    uint64_t at = x->address + mm_extent_table(length), pieces = mm_extent_pieces(length);
    uint32_t *table = (uint32_t *)(void *)(m->log + at);
    for (uint64_t k = 0; k < pieces; k++) {
        uint64_t n = piece_length(length, k), inside = k * MM_EXTENT_PIECE, place = x->address + MM_BLOCK + inside;
        mm_mapped_use(m, place, n);
        if (payload) at_copy(run->body + inside, payload + inside, n);
        table[k] = mm_checksum_payload(seed, place, run->body + inside, n);
    }
    at_written(table, 4 * pieces);
    MM_POINT();
    x->crc = mm_checksum_payload(seed, at, table, 4 * pieces);
    at_fence_full(); /* a flush that covers the epoch loaded now began its sync after all of it */
    mm_want_mark(m, at_load_acquire(&m->g->epoch)); /* an intent lists leases, and no run (intent.c) */
}

/* The payload stands in the run: its checksums.  MM_BUSY: it looks like a segment's header where one could stand; another run must be taken. */
int mm_run_seal(mm *m, mm_run *run, uint64_t length, mm_result *r)
{
    (void)r;
    at_written(run->body, length);
    fill(m, run, NULL, length);
    return mm_run_deceives(m, run) ? MM_BUSY : MM_OK;
}

typedef struct take_call {
    uint64_t page, room, since, pending;
    mm_run *run;
    const uint8_t *payload;
    bool used;
} take_call;

static int find(mm *m, void *args, mm_result *r)
{
    take_call *c = args;
    int rc = mm_run_find(m, c->page, c->room, c->run, &c->used, r);
    return mm_blame(m, rc, r);
}

/* What was retired and waits for a flush; the runs that nobody names are retired before. */
static int look_for_pending(mm *m, void *args, mm_result *r)
{
    (void)r;
    take_call *c = args;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    if (c->used) mm_runs_sweep(m);
    c->pending = mm_runs_pending(m, &c->since);
    mm_leave(m, pin);
    return MM_OK;
}

/* The epoch that makes the header of the run durable. */
static int epoch_now(mm *m, void *args, mm_result *r)
{
    (void)r;
    take_call *c = args;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    c->since = at_load_acquire(&m->g->epoch);
    mm_leave(m, pin);
    return MM_OK;
}

/* A writer that replaces large payloads flushes when as much as it needs waits for a flush: so the log does not grow for want of one. */
int mm_run_take(mm *m, uint64_t page, uint64_t room, mm_run *run, mm_result *r)
{
    take_call c = { .page = page, .room = room, .run = run };
    run->held = false;
    int rc = mm_guarded(m, r, look_for_pending, &c);
    if (!rc && c.since && c.pending >= room) rc = mm_flush_marked(m, c.since, r);
    if (!rc) rc = mm_guarded(m, r, find, &c);
    if (mm_is_full(rc)) { /* what nobody names, or waits for a flush, may be the room that is missing */
        mm_result full = *r;
        int was = rc;
        mm_run_done(m, run, rc);
        c.used = true;
        rc = mm_guarded(m, r, look_for_pending, &c);
        if (!rc && c.since) rc = mm_flush_marked(m, c.since, r);
        if (!rc && c.pending) rc = mm_guarded(m, r, find, &c);
        else if (!rc) *r = full, rc = was;
    }
    if (!rc && c.used) { /* run.c: what stood in its segments says something still, until the header of the run is durable */
        rc = mm_guarded(m, r, epoch_now, &c);
        if (!rc) rc = mm_flush_marked(m, c.since, r); /* an intent's sync need not be one of all of the log */
    }
    if (rc) mm_run_done(m, run, rc);
    return rc;
}

static int write_payload(mm *m, void *args, mm_result *r)
{
    const take_call *c = args;
    uint32_t pin;
    (void)r;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    fill(m, c->run, c->payload, c->room);
    rc = mm_run_deceives(m, c->run) ? MM_BUSY : MM_OK;
    mm_leave(m, pin);
    return rc;
}

#define PLACES 8 /* a payload that looks like a header does so at one number */

int mm_run_write(mm *m, uint64_t page, const void *payload, uint64_t length, mm_run *run, mm_result *r)
{
    take_call c = { .page = page, .room = length, .run = run, .payload = payload };
    int rc = MM_BUSY;
    for (int tries = 0; rc == MM_BUSY && tries < PLACES; tries++) {
        rc = mm_run_take(m, page, length, run, r);
        if (rc) return rc;
        rc = mm_guarded(m, r, write_payload, &c);
        if (rc) mm_run_done(m, run, rc);
    }
    return rc == MM_BUSY ? MM_LIMIT : rc;
}
