/* rewrite.c - pages of the log that the kernel may call clean though they are not on the disk are made dirty again (C15).
 *
 * When the kernel cannot write a page it calls it clean, keeps it, and tells of the error once (errseq_t): each open file is told at its next sync,
 * also one that is opened later, as long as nobody was told before that.  After that a sync succeeds and writes nothing.  So who follows on an
 * error that it may not be told of stores to those pages again, the same bytes, before its own sync.
 *
 * Which: those that may hold bytes stored since the last sync that succeeded, S (its epoch is `stable`, or a mark above that).
 *   - Whoever publishes holds a lease, announced in its slot before it is taken and until the next one is announced.  The slots, of the living
 *     and the dead, name the leases that are written to, also by an author who loaded a colour <= S and stored the commit word after S.
 *   - A lease that is no slot's any more was ended at an epoch that its segment has noted (`written`).  Below `stable`: it ended before the step
 *     of S, and all that its owner stored lies before the sync.
 *   - A commit word is also stored by whoever helps, in anybody's lease, however old: it notes the epoch in `written` likewise.
 *   - A segment header is written while its segment is PREPARING; it stays OPEN, or sealed with a lease of its own, or holds nothing.
 * So a SEALED segment with `written` below `stable` and no slot's lease in it is on the disk, a FREE one holds nothing; all others are rewritten.
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

static bool on_disk(mm *m, uint64_t n, uint64_t stable)
{
    uint64_t state = mm_segword_state(at_load_acquire(&m->segments[n].word));
    if (state == MM_SEG_FREE) return true;
    if (state != MM_SEG_SEALED || at_load_acquire(&m->segments[n].written) >= stable) return false;
    for (uint32_t i = 0; i < slots_used(m); i++) {
        uint64_t lease = at_load_acquire(&m->slots[i].lease), last = at_load_acquire(&m->slots[i].last_lease);
        if ((lease && lease >> m->segment_shift == n) || (last && last >> m->segment_shift == n)) return false;
    }
    return true;
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

void mm_dirty_again(mm *m)
{
    uint64_t stable = at_load_acquire(&m->g->stable), size = at_load_acquire(&m->g->log_size);
    for (uint64_t n = 0; n << m->segment_shift < size; n++) {
        uint64_t begin = n << m->segment_shift, stop = begin + m->segment_size < size ? begin + m->segment_size : size, at, end = begin;
        mm_result ignored;
        if (!mm_segment_of(m, begin, &ignored) || !mm_log_reaches(m, stop) || on_disk(m, n, stable)) continue;
        while (next_run(m, &at, &end, stop))
            for (; at < end; at += MM_BLOCK) touch((at_word *)(m->log + at));
    }
}

/* ---- before a recovery -------------------------------------------------------------------------------------------------------- */

/* By reads and writes, not through a mapping: a device that fails answers with an error, not with a signal. */
static int rewrite(const mm *m, uint64_t begin, uint64_t stop, uint8_t *chunk)
{
    uint64_t at, end = begin;
    while (next_run(m, &at, &end, stop))
        for (uint64_t n; at < end; at += n) {
            n = end - at < CHUNK ? end - at : CHUNK;
            int e = mm_os_read_at(m->config.log, chunk, n, at);
            if (!e) e = mm_os_write_at(m->config.log, chunk, n, at);
            if (e) return e < 0 ? EIO : e;
        }
    return 0;
}

static bool suspected(mm *m)
{
    bool yes = at_load_relaxed(&m->g->failed) || at_load_relaxed(&m->g->suspect);
    for (uint32_t i = 0; i < slots_used(m); i++) yes = yes || at_load_relaxed(&m->slots[i].syncing);
    return yes;
}

/* m has `control` mapped, and the file reaches to the segment table. */
static int rewrite_all(mm *m, mm_result *r)
{
    const mm_identity *id = (const mm_identity *)m->control;
    bool known = id->layout_version == MM_LAYOUT_VERSION && id->fingerprint == mm_layout_fingerprint(); /* else all of it */
    uint64_t size = mm_os_size(m->config.log) / MM_BLOCK * MM_BLOCK, stable = at_load_relaxed(&m->g->stable);
    uint64_t entries = (mm_os_size(m->config.control) - MM_CONTROL_SEGMENTS) / sizeof(mm_segment);
    if (known && !suspected(m)) return MM_OK;
    uint8_t *chunk = malloc(CHUNK);
    if (!chunk) return mm_os_failed(r, ENOMEM);
    int e = 0;
    for (uint64_t n = 0; !e && n << m->segment_shift < size; n++) {
        uint64_t begin = n << m->segment_shift, stop = begin + m->segment_size < size ? begin + m->segment_size : size;
        if (!known || n >= entries || !on_disk(m, n, stable)) e = rewrite(m, begin, stop, chunk);
    }
    free(chunk);
    return e ? mm_os_failed(r, e) : MM_OK;
}

/* Nobody is attached; c names the `control` of the life that ended, of this boot, and the log.  Rewrites what its failed sync may have left
 * clean and lost, or one that a process died in.  The caller syncs. */
int mm_rewrite(const mm_config *c, mm_result *r)
{
    memset(r, 0, sizeof *r);
    uint64_t window = mm_os_size(c->control) / MM_BLOCK * MM_BLOCK;
    if (window < MM_CONTROL_SEGMENTS + MM_BLOCK) return mm_corrupt(r, MM_FILE_CONTROL, window);
    mm *m = calloc(1, sizeof *m);
    if (!m) return mm_os_failed(r, ENOMEM);
    m->config = *c;
    mm_set_limits(m);
    int e = mm_os_map(c->control, window, &m->control), rc = e ? mm_os_failed(r, e) : MM_OK;
    if (!rc) {
        m->g = (mm_globals *)(m->control + MM_CONTROL_GLOBALS);
        m->slots = (mm_slot *)(m->control + MM_CONTROL_SLOTS);
        m->segments = (mm_segment *)(m->control + MM_CONTROL_SEGMENTS);
        rc = rewrite_all(m, r);
        mm_os_unmap(m->control, window);
    }
    free(m);
    return rc;
}
