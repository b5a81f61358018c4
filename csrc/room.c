/* room.c - the reserve: log that stays allocated and untaken, so that pages can be freed and segments cleaned on a full disk.
 *
 * A lease is granted for what makes the store larger (MM_GROWS) only if, behind it, log is allocated that leases can be taken from: some for FREE
 * records, and once the store has many segments another whole segment, for the copies of a cleaner.  What gives room back may use them.  FREE records
 * (MM_FREES) leave alone what the copies of a segment need that is worth it (mm_room_fits), as long as it is there: pages that are freed make no room
 * before segments are cleaned, and without it none would be.  Copies (MM_MOVES) may use all, but of one process at a time: two that each took half
 * could both not finish.
 *
 * It lies in the lease's segment or, where that has not so much left, in those that will be opened next: then their header blocks and their entries in
 * `control` are allocated too.  Allocated is allocated: growth is never
 * undone while anybody is attached.  So the check needs no lock: the CAS that takes the lease fails if anybody took blocks behind it meanwhile.
 *
 * Room that comes back is found by who asks next: its lease needs the reserve behind it, so it fills it up again.
 *
 * Died anywhere here: log that is allocated and not published; the next one allocates it again.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define RESERVE_MOST (UINT64_C(128) << 10)
#define CHUNK (UINT64_C(64) << 10)
#define LARGE_STORE 16u /* segments from which on a whole one is kept, so that one that is two thirds full can be emptied */
#define SMALL_SEGMENT (UINT64_C(256) << 10)
#define MOVER_PATIENCE UINT64_C(1000000000) /* ns for which who copies may take nothing more of it before others do */

/* What is fuller gains little, and in small segments nothing: their leases waste more. */
uint64_t mm_room_fits(const mm *m) { return m->segment_size < SMALL_SEGMENT ? m->segment_size / 3 * 2 : m->segment_size / 8 * 7; }

/* Records, headers of leases, and what is left at the end of a lease where the next record does not fit. */
uint64_t mm_room_of(uint64_t live) { return live + live / 16 + MM_BLOCK / 2 * 3; }

typedef struct reserve { uint64_t copies, frees; } reserve; /* bytes, each in one piece */

/* In how many segments it may lie. */
uint64_t mm_room_pieces(const mm *m) { return at_load_relaxed(&m->g->segments) >= LARGE_STORE ? 2 : 1; }

/* 128 KiB: some 3,200 FREE records of one process, or one each of 32 processes that all take a lease for it.  A segment if that is less; half of one as
 * long as the store is small: 32 KiB, 800 records or 8 processes, in those of 64 KiB. */
static reserve reserve_of(const mm *m, enum mm_purpose purpose)
{
    bool large = mm_room_pieces(m) > 1;
    uint64_t part = large ? m->segment_size - MM_BLOCK : m->segment_size / 2, frees = part < RESERVE_MOST ? part : RESERVE_MOST;
    if (purpose == MM_FREES) return (reserve){ large ? mm_room_of(mm_room_fits(m)) : 0, 0 };
    if (!large) return (reserve){ 0, frees };
    return purpose == MM_GROWS ? (reserve){ m->segment_size - MM_BLOCK, frees } : (reserve){ 0, 0 };
}

/* ---- who copies ------------------------------------------------------------------------------------------------------------------ */

/* A hint, so that cleaners do not take the reserve from each other.  A dead one is reaped; one that was stopped has the time that it was given. */
static bool another_moves(mm *m, uint64_t w)
{
    uint64_t slot = w & 0xFFFF, since = w >> 16 << 20;
    if (!slot || slot > MM_SLOTS || slot == m->slot_index + 1 || mm_os_monotonic() - since > MOVER_PATIENCE) return false; /* or the clock went back */
    return (at_load_acquire(&m->slots[slot - 1].state) & 255) == MM_SLOT_LIVE && !mm_reap_if_dead(m, (uint32_t)slot - 1);
}

bool mm_room_mover(mm *m)
{
    uint64_t w = at_load_acquire(&m->g->mover);
    return !another_moves(m, w) && at_cas_acq_rel(&m->g->mover, &w, mm_os_monotonic() >> 20 << 16 | (m->slot_index + 1));
}

/* It copies no more. */
void mm_room_moved(mm *m)
{
    uint64_t w = at_load_acquire(&m->g->mover);
    if (w && (w & 0xFFFF) == m->slot_index + 1) at_cas_acq_rel(&m->g->mover, &w, 0);
}

/* ---- where it lies --------------------------------------------------------------------------------------------------------------- */

/* The segment that will be opened next, as far as one can know: a FREE one other than `but` and `nor`, or the first number that was never used. */
static int candidate(mm *m, uint64_t but, uint64_t nor, uint64_t *n, mm_result *r)
{
    uint64_t used = at_load_acquire(&m->g->segments);
    if (used && !mm_segment_of(m, (used - 1) << m->segment_shift, r)) return mm_corrupt(r, MM_FILE_CONTROL, MM_CONTROL_GLOBALS + offsetof(mm_globals, segments));
    *n = MM_NO_SEGMENT;
    for (uint64_t i = 0; i < used && at_load_relaxed(&m->g->free_segments); i++) {
        uint64_t w = at_load_acquire(&m->segments[i].word), state = mm_segword_state(w);
        if (i == but || i == nor || !mm_segment_usable(m, i, w)) continue;
        if (state == MM_SEG_FREE || *n == MM_NO_SEGMENT) *n = i;
        if (state == MM_SEG_FREE) break;
    }
    if (*n != MM_NO_SEGMENT) return MM_OK;
    *n = used;
    while (*n == but || *n == nor) ++*n;
    return *n < MM_MAX_SEGMENTS ? MM_OK : MM_LIMIT;
}

int mm_room_candidate(mm *m, uint64_t but, uint64_t *n, mm_result *r) { return candidate(m, but, MM_NO_SEGMENT, n, r); }

/* Allocates the log up to `end`, which lies in segment n.  One that was used before may have holes, and so has what lies before a run: there all of
 * the segment is allocated, as who opens it will (write_header). */
static int cover(mm *m, uint64_t n, uint64_t end, mm_result *r)
{
    int rc = mm_log_cover(m, end, r);
    if (rc || n >= at_load_acquire(&m->g->segments)) return rc;
    uint64_t stop = (n + 1) << m->segment_shift, published = at_load_acquire(&m->g->log_size);
    if (end < stop && end < published) end = stop < published ? stop : published;
    int e = mm_os_grow(m->config.log, n << m->segment_shift, end);
    return e ? mm_os_failed(r, e) : MM_OK;
}

/* A hole that has bytes again is FREE: the first FREE one is the candidate of all, and keeps its bytes; those beyond a few go back to the file system
 * (reuse.c).  A hole that nobody opens next would keep them, and a full disk be out of what it has. */
static void has_bytes(mm *m, uint64_t n)
{
    if (n >= pv_load_relaxed(&m->segments_safe)) return;
    uint64_t w = at_load_acquire(&m->segments[n].word);
    if (mm_segword_state(w) == MM_SEG_HOLE && mm_segment_usable(m, n, w)) mm_segment_step(m, n, &w, MM_SEG_FREE, 0);
}

/* Segment n can be opened and leases of `bytes` be taken from it. */
static int stand_ready(mm *m, uint64_t n, uint64_t bytes, mm_result *r)
{
    uint64_t entry = (MM_CONTROL_SEGMENTS + n * sizeof(mm_segment)) & ~(uint64_t)(MM_BLOCK - 1);
    int e = mm_os_grow(m->config.control, entry, entry + MM_BLOCK), rc = e ? mm_os_failed(r, e) : MM_OK;
    if (!rc) rc = cover(m, n, (n << m->segment_shift) + MM_BLOCK + bytes, r);
    if (!rc || rc == MM_FULL) has_bytes(m, n); /* also some: then the caller punches it */
    return rc;
}

static bool is_free(mm *m, uint64_t n)
{
    return n < pv_load_relaxed(&m->segments_safe) && mm_segword_state(at_load_acquire(&m->segments[n].word)) == MM_SEG_FREE;
}

/* `bytes` behind `end`, which lies in segment n: there, or in another one but `nor`: *where. */
static int piece(mm *m, uint64_t n, uint64_t end, uint64_t bytes, uint64_t nor, uint64_t *where, mm_result *r)
{
    uint64_t stop = (n + 1) << m->segment_shift, next;
    int rc = mm_log_cover(m, end + bytes <= stop ? end + bytes : end, r);
    *where = n;
    if (end + bytes <= stop && mm_is_full(rc)) rc = mm_log_cover(m, end, r); /* the end of the log, and no room to grow it: there may be some below */
    else if (rc || end + bytes <= stop) return rc;
    for (bool again = !rc; again;) {
        rc = candidate(m, n, nor, &next, r);
        if (!rc && next > n) rc = mm_log_cover(m, stop, r); /* all of it: nobody leases from a hole before the next segment */
        if (rc) return rc;
        *where = next;
        again = is_free(m, next);
        rc = stand_ready(m, next, bytes, r);
        again = mm_is_full(rc) && mm_punch_segment(m, next) && again; /* it had some bytes, not all: another one may have all */
    }
    return rc;
}

/* FREE records come first, wherever the next lease begins: so what copies need lies behind that. */
static int behind(mm *m, uint64_t n, uint64_t end, const reserve *keep, mm_result *r)
{
    uint64_t first, second;
    int rc = piece(m, n, end, keep->frees, MM_NO_SEGMENT, &first, r);
    if (rc || !keep->copies) return rc;
    return piece(m, n, first == n ? end + keep->frees : end, keep->copies, first, &second, r);
}

/* Copies of so many bytes can be made behind `at`. */
int mm_room_copies(mm *m, uint64_t n, uint64_t at, uint64_t bytes, mm_result *r) { return behind(m, n, at, &(reserve){ bytes, 0 }, r); }

/* A lease of segment n, from `at` to `end`, can be taken. */
int mm_room_behind(mm *m, uint64_t n, uint64_t at, uint64_t end, enum mm_purpose purpose, mm_result *r)
{
    reserve keep = reserve_of(m, purpose);
    if (purpose == MM_MOVES && !mm_room_mover(m)) return MM_FULL;
    if (purpose == MM_FREES && another_moves(m, at_load_acquire(&m->g->mover))) return MM_FULL; /* that makes the room */
    int rc = behind(m, n, end, &keep, r);
    if (purpose != MM_FREES || !mm_is_full(rc) || !keep.copies) return rc;
    rc = behind(m, n, at, &keep, r);
    if (!rc) return MM_FULL; /* without the lease the copies have the room that they need: they come first */
    return mm_is_full(rc) ? behind(m, n, end, &(reserve){ 0, 0 }, r) : rc; /* they have not: what is freed may make a segment emptier */
}

/* A lease of `blocks` could be taken from the segment that will be opened next.  Asked before the open one is sealed: a full disk seals nothing. */
int mm_room_next(mm *m, uint64_t but, uint64_t blocks, enum mm_purpose purpose, mm_result *r)
{
    uint64_t n;
    int rc = mm_room_candidate(m, but, &n, r);
    if (!rc && but != MM_NO_SEGMENT && n > but) rc = mm_log_cover(m, (but + 1) << m->segment_shift, r); /* as above */
    if (!rc) rc = stand_ready(m, n, blocks * MM_BLOCK, r);
    uint64_t at = (n << m->segment_shift) + MM_BLOCK;
    return rc ? rc : mm_room_behind(m, n, at, at + blocks * MM_BLOCK, purpose, r);
}

/* ---- giving back ------------------------------------------------------------------------------------------------------------- */

/* Where the last bytes of [from, to) end that are not zero; `from`: all are.  Holes are zero, and so is what the kernel wrote out beside a byte
 * that was stored; -1: cannot be read. */
static int64_t end_of_bytes(int fd, uint64_t from, uint64_t to, uint8_t *chunk)
{
    while (to > from) {
        uint64_t n = to - from < CHUNK ? to - from : CHUNK;
        if (mm_os_read_at(fd, chunk, n, to - n)) return -1;
        for (uint64_t i = n; i-- > 0;)
            if (chunk[i]) return (int64_t)(to - n + i + 1);
        to -= n;
    }
    return (int64_t)from;
}

/* The same of the whole log, from its last segment that is not a hole on. */
static int64_t data_end(const mm_config *c, uint64_t size, uint8_t *chunk)
{
    uint64_t segment = UINT64_C(1) << c->segment_shift;
    for (uint64_t n = (size + segment - 1) >> c->segment_shift; n-- > 0;) {
        uint64_t begin = n << c->segment_shift, stop = begin + segment < size ? begin + segment : size;
        if (mm_os_data(c->log, begin) >= stop) continue;
        int64_t end = end_of_bytes(c->log, begin, stop, chunk);
        if (end != (int64_t)begin) return end;
    }
    return 0;
}

/* The end of the lease in which the bytes end: a record may end with zeros, so all of the lease stays.  Without one, the end of the block. */
static uint64_t end_of_lease(const mm_config *c, uint64_t last, uint64_t size)
{
    uint64_t segment = UINT64_C(1) << c->segment_shift, end = (last + MM_BLOCK - 1) / MM_BLOCK * MM_BLOCK, begin = (last ? last - 1 : 0) / segment * segment;
    for (uint64_t at = end; at > begin + MM_BLOCK;) {
        mm_lease_header h;
        at -= MM_BLOCK;
        if (mm_os_read_at(c->log, &h, sizeof h, at) || h.magic != MM_LEASE_MAGIC || h.address != at) continue;
        uint64_t stop = at + (uint64_t)h.blocks * MM_BLOCK;
        return stop > begin + segment || stop > size ? size : stop > end ? stop : end;
    }
    return end;
}

/* What was allocated and is still zero at the end of the log goes back to the device: the recovery that follows may need the room.  Exclusive
 * callers only.  What cannot be read is left as it is: whoever needs it is told. */
int mm_log_trim(const mm_config *c, mm_result *r)
{
    uint64_t size = mm_os_size(c->log);
    uint8_t *chunk = malloc(CHUNK);
    if (!chunk) return mm_os_failed(r, ENOMEM);
    int64_t last = data_end(c, size, chunk);
    free(chunk);
    uint64_t end = last < 0 ? size : end_of_lease(c, (uint64_t)last, size);
    int e = end < size ? mm_os_truncate(c->log, end) : 0;
    return e ? mm_os_failed(r, e) : MM_OK;
}

/* Nothing is appended to a segment of an earlier life: the log ends with a whole one, what is missing of it is a hole.  Growth would allocate it. */
int mm_log_round(mm *m, uint64_t *size, mm_result *r)
{
    if (m->config.observes) return MM_OK;
    uint64_t whole = (*size + m->segment_size - 1) >> m->segment_shift << m->segment_shift;
    int e = whole != *size ? mm_os_truncate(m->config.log, whole) : 0;
    if (e) return mm_os_failed(r, e);
    *size = whole;
    return MM_OK;
}
