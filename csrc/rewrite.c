/* rewrite.c - pages of the log that the kernel may call clean though they are not on the disk are written again (C15).
 *
 * When the kernel cannot write a page it calls it clean, keeps it, and tells of the error once (errseq_t): each open file is told at its next sync,
 * also one that is opened later, as long as nobody was told before that.  After that a sync succeeds and writes nothing.  So who follows on an
 * error that it may not be told of has to write those pages again, the same bytes.
 *
 * To store to them and sync is not enough: in ext4 the page remembers that its blocks were handed out for writing, so the second write does not
 * mark them as written, as the first, which failed, would have; after a reboot they read as zeros (tests/test_failed_sync.py shows it).  So the
 * bytes are read and written past the page cache, which drops the page and with it what it remembers.  Only while nobody is attached: a store of
 * somebody else in between would be lost.  Whoever opens the store first after such a death does it (mm_settle).  While others are attached the
 * flush of a newcomer stores to the pages and asks the file system as a whole (syncfs), which remembers its own error until it has told somebody.
 *
 * Which: those that may hold bytes stored since the last sync of all of the log that succeeded, S.  Its epoch is `marked`, or above: a flush without a mark may have synced its
 * author's pages alone, and what it carried is durable elsewhere (intent.c).
 *   - Whoever publishes holds a lease, announced in its slot before it is taken and until the next one is announced.  The slots, of the living
 *     and the dead, name the leases that are written to, also by an author who loaded a colour <= S and stored the commit word after S.
 *   - A lease that is no slot's any more was ended at an epoch that its segment has noted (`written`).  Below `marked`: it ended before the step
 *     of S, and all that its owner stored lies before the sync.
 *   - A commit word is also stored by whoever helps, in anybody's lease, however old and late: it marks the segment for good before it does.
 *   - A segment header is written while its segment is PREPARING; it stays OPEN, or sealed with a lease of its own, or holds nothing.
 *   - The header of a run stays when the run is given back, and its other segments get one each: they say of which generation they are (run.c).
 *   - A retirement that is taken back leaves its segment SEALED, and raises `written`.  RETIRED ones are rewritten; the counter stands in the first block.
 * So a SEALED segment with `written` below `marked` and no slot's lease in it is on the disk, a FREE one holds nothing behind its first block; all others,
 * and the first block of the log, are rewritten.
 * A recovery reads this from the `control` of the life that failed: it is of this boot, else the page cache is not what that life left.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define CHUNK (UINT64_C(64) << 10)

static uint64_t slots_used(const mm *m)
{
    uint64_t n = at_load_acquire(&m->g->slots_used);
    return n < MM_SLOTS ? n : MM_SLOTS;
}

static bool is_free(const mm *m, uint64_t n)
{
    uint64_t state = mm_segword_state(at_load_acquire(&m->segments[n].word));
    return state == MM_SEG_FREE || state == MM_SEG_PUNCHING || state == MM_SEG_HOLE;
}

/* Behind its first block, if it is free. */
static bool on_disk(mm *m, uint64_t n, uint64_t marked)
{
    uint64_t state = mm_segword_state(at_load_acquire(&m->segments[n].word));
    if (is_free(m, n)) return true;
    if (state != MM_SEG_SEALED && state != MM_SEG_CLAIMED) return false; /* a RETIRED one has said so since */
    for (uint32_t i = 0; i < slots_used(m); i++) {
        uint64_t lease = at_load_acquire(&m->slots[i].lease), last = at_load_acquire(&m->slots[i].last_lease);
        if ((lease && lease >> m->segment_shift == n) || (last && last >> m->segment_shift == n)) return false;
    }
    return at_load_acquire(&m->segments[n].written) < marked; /* after the leases: it is raised before one leaves its slot (model: written.pml) */
}

/* The bytes of a run that is no hole, from *at on, before `stop`: false when there is none. */
static bool next_run(const mm *m, uint64_t *at, uint64_t *end, uint64_t stop)
{
    *at = mm_os_data(m->config.log, *end) / MM_BLOCK * MM_BLOCK;
    if (*at < *end) *at = *end;
    if (*at >= stop) return false;
    *end = (mm_os_hole(m->config.log, *at) + MM_BLOCK - 1) / MM_BLOCK * MM_BLOCK;
    if (*end > stop) *end = stop;
    return *end > *at;
}

/* ---- while others are attached ------------------------------------------------------------------------------------------------ */

/* A store that changes nothing, and that no compiler makes a load of; others may store to the word meanwhile. */
static void touch(at_word *w)
{
    uint64_t seen = at_load_relaxed(w);
    while (!at_cas_acq_rel(w, &seen, seen)) { }
}

/* Bytes from the beginning of segment n that may not be on the disk.  Of a free one the header of a run, no more: what another says was durable before it
 * was free, and a store beside a hole may need room.  The log begins with a counter that each retirement raises. */
static uint64_t doubtful(mm *m, uint64_t n, uint64_t marked)
{
    mm_run_header h;
    if (!on_disk(m, n, marked)) return m->segment_size;
    bool header = is_free(m, n) && mm_log_reaches(m, (n << m->segment_shift) + MM_BLOCK) && mm_run_look(m, n, &h);
    return header || n == 0 ? MM_BLOCK : 0;
}

void mm_dirty_again(mm *m)
{
    uint64_t marked = at_load_acquire(&m->g->marked), size = at_load_acquire(&m->g->log_size);
    for (uint64_t n = 0; n << m->segment_shift < size; n++) {
        uint64_t begin = n << m->segment_shift, stop, at, end = begin;
        mm_result ignored;
        if (!mm_segment_of(m, begin, &ignored)) continue;
        stop = begin + doubtful(m, n, marked);
        if (stop > size) stop = size;
        if (stop <= begin || !mm_log_reaches(m, stop)) continue;
        while (next_run(m, &at, &end, stop))
            for (; at < end; at += MM_BLOCK) touch((at_word *)(m->log + at));
    }
}

/* ---- while nobody is ------------------------------------------------------------------------------------------------------------ */

/* By reads and writes, not through a mapping: a device that fails answers with an error, not with a signal. */
static int rewrite(const mm *m, uint64_t begin, uint64_t stop, uint8_t *chunk)
{
    uint64_t at, end = begin;
    while (next_run(m, &at, &end, stop))
        for (uint64_t n; at < end; at += n) {
            n = end - at < CHUNK ? end - at : CHUNK;
            int e = mm_os_read_at(m->config.log, chunk, n, at);
            if (!e) e = mm_os_write_direct(m->config.log, chunk, n, at);
            if (e) return e < 0 ? EIO : e;
        }
    return 0;
}

/* What the page cache holds of [begin, stop), as the disk is to hold it at the next sync, whatever became of earlier ones.  Nobody is attached. */
int mm_log_rewrite(const mm *m, uint64_t begin, uint64_t stop)
{
    void *chunk;
    uint64_t size = mm_os_size(m->config.log) / MM_BLOCK * MM_BLOCK;
    int e = posix_memalign(&chunk, MM_BLOCK, CHUNK);
    if (e) return e;
    e = rewrite(m, begin, stop < size ? stop : size, chunk);
    free(chunk);
    return e;
}

static bool suspected(mm *m)
{
    bool yes = at_load_relaxed(&m->g->failed) || at_load_relaxed(&m->g->suspect);
    for (uint32_t i = 0; i < slots_used(m); i++) yes = yes || at_load_relaxed(&m->slots[i].syncing);
    return yes;
}

/* m->control is NULL where the file was cut short: all of the log is written again, as it is with a layout that is not ours. */
static int rewrite_segments(mm *m)
{
    const mm_identity *id = (const mm_identity *)m->control;
    bool known = id && id->layout_version == MM_LAYOUT_VERSION && id->fingerprint == mm_layout_fingerprint();
    uint64_t size = mm_os_size(m->config.log) / MM_BLOCK * MM_BLOCK, marked = known ? at_load_relaxed(&m->g->marked) : 0;
    uint64_t entries = known ? (mm_os_size(m->config.control) - MM_CONTROL_SEGMENTS) / sizeof(mm_segment) : 0;
    void *chunk;
    if (known && !suspected(m)) return 0;
    int e = posix_memalign(&chunk, MM_BLOCK, CHUNK);
    if (e) return e;
    for (uint64_t n = 0; !e && n << m->segment_shift < size; n++) {
        uint64_t begin = n << m->segment_shift, stop = begin + m->segment_size < size ? begin + m->segment_size : size;
        if (known && n < entries && on_disk(m, n, marked)) stop = n == 0 || is_free(m, n) ? begin + MM_BLOCK : begin;
        e = rewrite(m, begin, stop < size ? stop : size, chunk);
    }
    free(chunk);
    return e;
}

/* The store goes on with this `control`: the next one has nothing to suspect, or a store that has failed. */
static int settle(mm *m, void *args, mm_result *r)
{
    (void)args;
    if (!m->control) return MM_OK; /* nobody can attach with it: a recovery follows */
    int e = rewrite_segments(m);
    if (!e) e = mm_os_sync(m->config.log);
    if (e) {
        at_store_relaxed(&m->g->failed, (uint64_t)e);
        r->os_error = e;
        return MM_FAILED;
    }
    for (uint32_t i = 0; i < slots_used(m); i++) at_store_relaxed(&m->slots[i].syncing, 0);
    at_store_relaxed(&m->g->suspect, 0);
    return MM_OK;
}

static int with_control(const mm_config *c, mm_body *work, void *args, mm_result *r)
{
    memset(r, 0, sizeof *r);
    uint64_t window = mm_os_size(c->control) / MM_BLOCK * MM_BLOCK;
    if (window < MM_CONTROL_SEGMENTS + MM_BLOCK) window = 0;
    mm *m = calloc(1, sizeof *m);
    if (!m) return mm_os_failed(r, ENOMEM);
    m->config = *c;
    m->control_window = window;
    mm_set_limits(m);
    mm_guard_install();
    int e = 0;
    if (window) e = mm_os_map(c->control, window, MM_MAP_SHARED, &m->control);
    int rc = e ? mm_os_failed(r, e) : MM_OK;
    if (!rc && !window) rc = mm_guarded(m, r, work, args);
    else if (!rc) {
        m->g = (mm_globals *)(m->control + MM_CONTROL_GLOBALS);
        m->slots = (mm_slot *)(m->control + MM_CONTROL_SLOTS);
        m->segments = (mm_segment *)(m->control + MM_CONTROL_SEGMENTS);
        rc = mm_guarded(m, r, work, args);
        mm_os_unmap(m->control, window);
    }
    free(m);
    return rc;
}

static int rewrite_and_report(mm *m, void *args, mm_result *r)
{
    (void)args;
    int e = rewrite_segments(m);
    return e ? mm_os_failed(r, e) : MM_OK;
}

/* c names the `control` of a life that ended, of this boot, and the log.  The caller rebuilds, and syncs. */
int mm_rewrite(const mm_config *c, mm_result *r) { return with_control(c, rewrite_and_report, NULL, r); }

/* The same for a store that goes on as it is.  MM_FAILED: the device fails still. */
int mm_settle(const mm_config *c, mm_result *r) { return with_control(c, settle, NULL, r); }

/* 1: a process may have died, or may be, in a sync that fails.  Read, not mapped: for every attach. */
int mm_suspected(const mm_config *c)
{
    uint64_t suspect = 0, used = 0, syncing = 0;
    int e = mm_os_read_at(c->control, &suspect, 8, MM_CONTROL_GLOBALS + offsetof(mm_globals, suspect));
    if (!e) e = mm_os_read_at(c->control, &used, 8, MM_CONTROL_GLOBALS + offsetof(mm_globals, slots_used));
    for (uint64_t i = 0; !e && !suspect && !syncing && i < used && i < MM_SLOTS; i++)
        e = mm_os_read_at(c->control, &syncing, 8, MM_CONTROL_SLOTS + i * sizeof(mm_slot) + offsetof(mm_slot, syncing));
    return !e && (suspect || syncing);
}

/* ---- the end of the log ------------------------------------------------------------------------------------------------------ */

/* Up to the last segment that holds something, or that the newest mark counts as in use: a retired one is in use until it is FREE. */
static uint64_t end_of_use(mm *m, uint64_t n, uint64_t stable)
{
    mm_mark mark;
    mm_result ignored;
    if (mm_mark_newest(&m->config, &mark, &ignored) || mark.epoch != stable || at_load_relaxed(&m->g->marked) != stable) return n;
    for (; n > mark.segments; n--) {
        uint64_t state = mm_segword_state(at_load_relaxed(&m->segments[n - 1].word));
        if (state != MM_SEG_FREE && state != MM_SEG_HOLE) break;
    }
    return n;
}

/* Segments that stay, or UINT64_MAX: nothing is to be cut off. */
static uint64_t segments_kept(mm *m)
{
    uint64_t stable = at_load_relaxed(&m->g->stable), n = at_load_relaxed(&m->g->segments), size = mm_os_size(m->config.log);
    bool still = at_load_relaxed(&m->g->dirty) <= stable && !suspected(m) && at_load_relaxed(&m->g->dirty) < at_load_relaxed(&m->g->snapshot_epoch)
                 && at_load_relaxed(&m->g->log_taken) == at_load_relaxed(&m->g->log_snapshot);
    if (!still || n > (m->control_window - MM_CONTROL_SEGMENTS) / sizeof(mm_segment)) return UINT64_MAX;
    uint64_t used = end_of_use(m, n, stable);
    return used < n && used << m->segment_shift < size ? used : UINT64_MAX;
}

static int free_end(mm *m, void *args, mm_result *r)
{
    uint64_t **out = args, kept = m->control ? segments_kept(m) : UINT64_MAX;
    (void)r;
    if (kept == UINT64_MAX) return MM_OK;
    *out[0] = kept;
    *out[1] = at_load_relaxed(&m->g->stable);
    return MM_OK;
}

int mm_log_free_end(const mm_config *c, uint64_t *segments, uint64_t *epoch, mm_result *r)
{
    *segments = *epoch = 0;
    return with_control(c, free_end, (uint64_t *[]){ segments, epoch }, r);
}

/* The next lease of a slot names the one before: those of the next life name none that is cut off. */
static void forget_leases(mm *m, uint64_t end)
{
    for (uint64_t i = 0; i < at_load_relaxed(&m->g->slots_used) && i < MM_SLOTS; i++) {
        mm_slot *s = &m->slots[i];
        if (at_load_relaxed(&s->lease) >= end) at_store_relaxed(&s->lease_fill, 0);
        if (at_load_relaxed(&s->lease) >= end) at_store_relaxed(&s->lease, 0);
        if (at_load_relaxed(&s->last_lease) >= end) at_store_relaxed(&s->last_fill, 0);
    }
}

/* What is published shrinks first: died in between, the file is longer than it need be. */
static int truncate_log(mm *m, void *cut, mm_result *r)
{
    uint64_t used = m->control ? segments_kept(m) : UINT64_MAX, n, end = used << m->segment_shift, size = mm_os_size(m->config.log);
    if (used == UINT64_MAX) return MM_OK;
    n = at_load_relaxed(&m->g->segments);
    for (uint64_t i = used; i < n; i++) at_store_relaxed(&m->segments[i].word, mm_segword(MM_SEG_FREE, mm_segword_generation(at_load_relaxed(&m->segments[i].word)), 0));
    forget_leases(m, end);
    at_store_relaxed(&m->g->segments, used);
    at_store_relaxed(&m->g->free_segments, used); /* a hint: there may be some below */
    at_store_release(&m->g->log_size, end);
    int e = mm_fail_at(m->config.failpoints, MM_FAIL_LOG_TRUNCATE);
    if (!e) e = mm_os_truncate(m->config.log, end);
    if (e) return mm_os_failed(r, e);
    *(uint64_t *)cut = size - end;
    return MM_OK;
}

int mm_log_truncate(const mm_config *c, uint64_t *cut, mm_result *r)
{
    *cut = 0;
    return with_control(c, truncate_log, cut, r);
}
