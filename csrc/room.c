/* room.c - the reserve: log that stays allocated and untaken, so that pages can be freed and segments cleaned on a full disk.
 *
 * A lease is granted for what makes the store larger (MM_GROWS) only if, behind it, `reserve` more bytes of the log are allocated that a lease
 * can be taken from.  What gives room back (MM_FREES) may use them.  They lie in the lease's segment or, where that has not so many left, in the
 * one that will be opened next: then its header block and its entry in `control` are allocated too.  Allocated is allocated: growth is never
 * undone while anybody is attached.  So the check needs no lock: the CAS that takes the lease fails if anybody took blocks behind it meanwhile.
 *
 * Room that comes back is found by who asks next: its lease needs the reserve behind it, so it fills it up again.
 *
 * Died anywhere here: log that is allocated and not published; the next one allocates it again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define RESERVE_MOST (UINT64_C(128) << 10)
#define CHUNK (UINT64_C(64) << 10)

/* 128 KiB, some 3,200 FREE records of one process, or one each of 32 processes; in segments below 1 MiB an eighth of one, two blocks at least. */
static uint64_t reserve_of(const mm *m, enum mm_purpose purpose)
{
    uint64_t n = m->segment_size / 8;
    if (n > RESERVE_MOST) n = RESERVE_MOST;
    if (n < 2 * MM_BLOCK) n = 2 * MM_BLOCK;
    return purpose == MM_GROWS ? n : 0;
}

/* The segment that will be opened next, as far as one can know: a FREE one other than `but`, or the first number that was never used. */
static int next_segment(mm *m, uint64_t but, uint64_t *n, mm_result *r)
{
    uint64_t used = at_load_acquire(&m->g->segments);
    if (used && !mm_segment_of(m, (used - 1) << m->segment_shift, r)) return mm_corrupt(r, MM_FILE_CONTROL, MM_CONTROL_GLOBALS + offsetof(mm_globals, segments));
    for (uint64_t i = 0; i < used && at_load_relaxed(&m->g->free_segments); i++)
        if (i != but && mm_segword_state(at_load_acquire(&m->segments[i].word)) == MM_SEG_FREE) {
            *n = i;
            return MM_OK;
        }
    *n = but != MM_NO_SEGMENT && but >= used ? but + 1 : used;
    return *n < MM_MAX_SEGMENTS ? MM_OK : MM_LIMIT;
}

/* Allocates the log up to `end`, which lies in segment n.  One that was used before may have holes. */
static int cover(mm *m, uint64_t n, uint64_t end, mm_result *r)
{
    int rc = mm_log_cover(m, end, r);
    if (rc || n >= at_load_acquire(&m->g->segments)) return rc;
    int e = mm_os_grow(m->config.log, n << m->segment_shift, end);
    return e ? mm_os_failed(r, e) : MM_OK;
}

/* Segment n can be opened and leases of `bytes` be taken from it. */
static int stand_ready(mm *m, uint64_t n, uint64_t bytes, mm_result *r)
{
    uint64_t entry = (MM_CONTROL_SEGMENTS + n * sizeof(mm_segment)) & ~(uint64_t)(MM_BLOCK - 1);
    int e = mm_os_grow(m->config.control, entry, entry + MM_BLOCK);
    return e ? mm_os_failed(r, e) : cover(m, n, (n << m->segment_shift) + MM_BLOCK + bytes, r);
}

/* A lease of segment n that ends at `end` can be taken. */
int mm_room_behind(mm *m, uint64_t n, uint64_t end, enum mm_purpose purpose, mm_result *r)
{
    uint64_t stop = (n + 1) << m->segment_shift, reserve = reserve_of(m, purpose), next;
    if (end + reserve <= stop) return mm_log_cover(m, end + reserve, r);
    int rc = mm_log_cover(m, reserve ? stop : end, r); /* all of it: nobody leases from a hole before the next segment */
    if (rc || !reserve) return rc;
    rc = next_segment(m, n, &next, r);
    return rc ? rc : stand_ready(m, next, reserve, r);
}

/* A lease of `blocks` could be taken from the segment that will be opened next.  Asked before the open one is sealed: a full disk seals nothing. */
int mm_room_next(mm *m, uint64_t but, uint64_t blocks, enum mm_purpose purpose, mm_result *r)
{
    uint64_t n;
    if (but != MM_NO_SEGMENT) { /* what is published has no hole in a segment that somebody may still lease from */
        int full = mm_log_cover(m, (but + 1) << m->segment_shift, r);
        if (full) return full;
    }
    int rc = next_segment(m, but, &n, r);
    if (!rc) rc = stand_ready(m, n, blocks * MM_BLOCK, r);
    return rc ? rc : mm_room_behind(m, n, (n << m->segment_shift) + MM_BLOCK + blocks * MM_BLOCK, purpose, r);
}

/* ---- giving back ------------------------------------------------------------------------------------------------------------- */

/* Where the last bytes of the log end that are no hole; they lie in the last segment that has any. */
static uint64_t data_end(const mm *m, uint64_t size)
{
    for (uint64_t n = (size + m->segment_size - 1) >> m->segment_shift; n-- > 0;) {
        uint64_t end = 0;
        for (uint64_t at = mm_os_data(m->config.log, n << m->segment_shift); at < size; at = mm_os_data(m->config.log, end)) end = mm_os_hole(m->config.log, at);
        if (end) return end < size ? (end + MM_BLOCK - 1) / MM_BLOCK * MM_BLOCK : size;
    }
    return 0;
}

static bool all_zero(const mm *m, uint64_t from, uint64_t to, uint8_t *chunk)
{
    for (uint64_t n; from < to; from += n) {
        n = to - from < CHUNK ? to - from : CHUNK;
        if (mm_os_read_at(m->config.log, chunk, n, from)) return false;
        for (uint64_t i = 0; i < n; i++)
            if (chunk[i]) return false;
    }
    return true;
}

/* What is allocated and was never written goes back to the device, and `log` ends with a segment: nothing is appended to one of an earlier life,
 * so the rest of it stays a hole.  Without this each life would waste the rest of a segment; and the room is wanted if the disk is full.
 * Bytes that are not zero are never cut off.  Exclusive callers only; `size` becomes the size of the file. */
int mm_log_trim(mm *m, uint64_t *size, mm_result *r)
{
    uint64_t end = data_end(m, *size), whole = (end + m->segment_size - 1) >> m->segment_shift << m->segment_shift;
    uint8_t *chunk = malloc(CHUNK);
    if (!chunk) return mm_os_failed(r, ENOMEM);
    bool zero = end >= *size || all_zero(m, end, *size, chunk);
    free(chunk);
    if (!zero) return MM_OK;
    int e = end < *size ? mm_os_truncate(m->config.log, end) : 0;
    if (!e && whole != end) e = mm_os_truncate(m->config.log, whole);
    if (e) return mm_os_failed(r, e);
    *size = whole;
    return MM_OK;
}
