/* control.c - whether the words of `control` can be: asked before anybody attaches, since damage at rest to some of them would be believed.
 *
 * A smaller epoch, or a larger `stable`, would make a flush do nothing, or leave what it flushed out of the durable state; a smaller
 * `table_pages` makes pages vanish; a smaller fill of the open segment gives space away twice; a larger `id_limit` hands numbers out that come
 * again.  `control` and `log` are of this boot, so a
 * rebuild from the log loses nothing: what cannot be is MM_MISMATCH, not an error.  Not all damage can be noticed (docs/design.md).
 *
 * Others may be attached and at work.  Each word is read before the one that bounds it, by a system call of its own, so what holds at every
 * moment holds for what is read here.
 */
#include <string.h>

#include "internal.h"

#define TRIES 50u
#define MAX_COLOUR ((UINT64_C(1) << (MM_COLOUR_LOW + 64 - MM_ADDR_BITS)) - 1)

static uint64_t word_at(int fd, uint64_t offset)
{
    uint64_t w = 0;
    return mm_os_read_at(fd, &w, sizeof w, offset) ? 0 : w;
}

static uint64_t global(const mm_config *c, uint64_t offset) { return word_at(c->control, MM_CONTROL_GLOBALS + offset); }

/* stable <= the newest mark or witness < epoch, dirty <= epoch.  Marks that are damaged bound nothing.  A config from before a recovery discarded colours:
 * who opens by it would make marks that do not know of them.  It was read before a recovery that has just ended, or it was put back. */
static bool clock_holds(const mm_config *c)
{
    mm_result ignored;
    mm_mark k = { .epoch = 0 };
    uint64_t stable = global(c, offsetof(mm_globals, stable)), said = 0;
    bool known = c->marks >= 0;
    for (unsigned tries = 0; known && said < stable && tries < TRIES; tries++) { /* a witness is one sector, and may be under the pen */
        if (tries) mm_os_nap(1000000);
        known = mm_mark_newest(c, &k, &ignored) == MM_OK;
        said = k.witness > k.epoch ? k.witness : k.epoch;
    }
    if (known && k.discarded > c->discarded) return false;
    uint64_t marked = known ? said : stable;
    uint64_t dirty = global(c, offsetof(mm_globals, dirty)), epoch = global(c, offsetof(mm_globals, epoch));
    return stable <= marked && marked < epoch && dirty <= epoch && epoch <= MAX_COLOUR;
}

/* True when a word of the table behind the first `pages` is not 0. */
static bool heads_beyond(int fd, uint64_t pages, uint64_t size)
{
    uint64_t w[512];
    for (uint64_t at = MM_WORDS_OFFSET + pages * 8; at + 8 <= size;) {
        uint64_t n = size - at < sizeof w ? (size - at) / 8 * 8 : sizeof w;
        if (mm_os_read_at(fd, w, n, at)) return false;
        for (uint64_t i = 0; i < n / 8; i++)
            if (w[i]) return true;
        at += n;
    }
    return false;
}

/* All head words lie below `table_pages`, and it below the end of the file; so does max_pid. */
static bool table_holds(const mm_config *c)
{
    uint64_t max_pid = global(c, offsetof(mm_globals, max_pid)), pages = global(c, offsetof(mm_globals, table_pages));
    uint64_t size = mm_os_size(c->table);
    if (pages > MM_MAX_PID || MM_WORDS_OFFSET + pages * 8 > size || max_pid < 2 || max_pid > pages) return false;
    if (mm_os_size(c->ids) < MM_WORDS_OFFSET + pages / 8 || mm_os_size(c->control) < MM_CONTROL_SEGMENTS + MM_BLOCK) return false;
    return !heads_beyond(c->table, pages, size) || global(c, offsetof(mm_globals, table_pages)) != pages; /* it has just grown */
}

/* End of the lease that slot i has begun in this generation of segment n, or 0. */
static uint64_t lease_end(const mm_config *c, uint32_t i, uint64_t n, uint64_t generation)
{
    uint64_t at = MM_CONTROL_SLOTS + (uint64_t)i * sizeof(mm_slot);
    mm_lease_header h;
    uint64_t fill = word_at(c->control, at + offsetof(mm_slot, lease_fill)), lease = word_at(c->control, at + offsetof(mm_slot, lease));
    if (!fill || !lease || lease % MM_BLOCK || lease >> c->segment_shift != n || mm_os_read_at(c->log, &h, sizeof h, lease)) return 0;
    return h.magic == MM_LEASE_MAGIC && h.address == lease && h.generation == generation ? lease + (uint64_t)h.blocks * MM_BLOCK : 0;
}

/* The leases of the slots in the open segment lie below its fill: a lease is begun after the fill word was raised. */
static bool fill_holds(const mm_config *c)
{
    uint64_t open = global(c, offsetof(mm_globals, open_segment)), n = (open & 0xFFFFFFFF) - 1, generation = open >> 32, end = 0;
    uint64_t used = global(c, offsetof(mm_globals, slots_used));
    if (!open || n >= MM_MAX_SEGMENTS) return true;
    for (uint32_t i = 0; i < MM_SLOTS && i < used; i++) {
        uint64_t e = lease_end(c, i, n, generation);
        if (e > end) end = e;
    }
    uint64_t fill = word_at(c->control, MM_CONTROL_SEGMENTS + n * sizeof(mm_segment) + offsetof(mm_segment, fill));
    return !end || fill >> 32 != generation || (n << c->segment_shift) + (fill & 0xFFFFFFFF) * MM_BLOCK >= end;
}

/* Numbers are handed out below a ceiling, whose LSN was loaded before it was told of. */
static bool numbers_hold(const mm_config *c)
{
    uint64_t limit = global(c, offsetof(mm_globals, id_limit)), ceiling = global(c, offsetof(mm_globals, id_ceiling));
    uint64_t lsn = global(c, offsetof(mm_globals, id_lsn)), epoch = global(c, offsetof(mm_globals, epoch));
    return limit <= ceiling && ceiling <= MM_MAX_ID && lsn <= epoch;
}

bool mm_control_holds(const mm_config *c) { return clock_holds(c) && table_holds(c) && fill_holds(c) && numbers_hold(c); }
