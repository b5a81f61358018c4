/* mapped.c - the log as it is mapped here: how much of it, and how much is read for one fault.
 *
 * What was in the log before is mapped for random access: a fault reads one page, not the read-ahead window of the device, which may be
 * megabytes for a record of a hundred bytes.  So whoever waited for a record asks for the rest by himself: the older ones of its chain (index.c),
 * the rest of a long payload, and, where several faults came close together, more and more of the granule they came in.  What is written in
 * this life is mapped as usual, since the kernel makes larger folios there (a tenth of the time of an append), until somebody waits for it.
 *
 * `mapped_capacity` bounds what stays mapped, by a clock over the granules that this process used.  To drop a granule is to forget its page
 * table entries: the bytes, dirty ones too, are the page cache's, and whoever uses it again, or still does, faults it in again.  A copy that is
 * under way may do so behind the hand, unseen: so the hand drops what no bit speaks for as well, wherever it goes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "mapped.h"

#define GRANULE (UINT64_C(1) << MM_GRANULE_SHIFT)
#define LEAST 2u /* granules: the one at hand, and the one that is written to */

/* The log below `end` is read at random. */
static void at_random(mm *m, uint64_t end)
{
    uint64_t old = pv_load_relaxed(&m->random_end);
    if (end <= old || end > m->log_window || !pv_cas(&m->random_end, &old, end)) return;
    madvise(m->log + old, end - old, MADV_RANDOM);
}

int mm_mapped_begin(mm *m)
{
    if (m->config.carried) return 0; /* what stands in private memory is not dropped */
    m->granule_count = m->log_window >> MM_GRANULE_SHIFT;
    void *p = mmap(NULL, m->granule_count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return errno;
    m->granules = p;
    at_random(m, mm_os_size(m->config.log) & ~(GRANULE - 1));
    return 0;
}

void mm_mapped_end(mm *m)
{
    if (m->granules) munmap(m->granules, m->granule_count);
    m->granules = NULL;
}

void mm_mapped_bound(mm *m, uint64_t bytes)
{
    uint64_t n = bytes >> MM_GRANULE_SHIFT;
    pv_store(&m->mapped_limit, !bytes ? 0 : n < LEAST ? LEAST : n);
}

uint64_t mm_mapped(const mm *m) { return pv_load_relaxed(&m->mapped) << MM_GRANULE_SHIFT; }

/* ---- the clock ------------------------------------------------------------------------------------------------------------------ */

static void drop(mm *m, uint64_t from, uint64_t to)
{
    if (from < to) madvise(m->log + (from << MM_GRANULE_SHIFT), (to - from) << MM_GRANULE_SHIFT, MADV_DONTNEED);
}

/* The hand comes to a granule: does it stay? */
static bool spared(mm *m, uint64_t g)
{
    pv_byte *b = &m->granules[g];
    uint8_t bits = pv_load_byte(b);
    if (!(bits & MM_GRANULE_MAPPED)) return false;
    if (bits & MM_GRANULE_USED) {
        pv_and_byte(b, (uint8_t)~MM_GRANULE_USED);
        return true;
    }
    if (pv_and_byte(b, (uint8_t)~MM_GRANULE_MAPPED) & MM_GRANULE_MAPPED) pv_add(&m->mapped, UINT64_MAX);
    return false;
}

/* Goes on until the bound is kept.  The second round finds no bit that the first one cleared, unless somebody is at it just now. */
static void sweep(mm *m, uint64_t limit)
{
    uint64_t end = (pv_load_relaxed(&m->log_safe) + GRANULE - 1) >> MM_GRANULE_SHIFT, at = m->hand < end ? m->hand : 0, from = at;
    for (uint64_t steps = 2 * end; steps-- && pv_load_relaxed(&m->mapped) > limit;) {
        if (spared(m, at)) {
            drop(m, from, at);
            from = at + 1;
        }
        if (++at < end) continue;
        drop(m, from, at);
        at = from = 0;
    }
    drop(m, from, at);
    m->hand = at;
}

void mm_mapped_note(mm *m, uint64_t granule)
{
    uint64_t limit = pv_load_relaxed(&m->mapped_limit), one = 1, none = 0;
    if (pv_or_byte(&m->granules[granule], MM_GRANULE_USED | MM_GRANULE_MAPPED) & MM_GRANULE_MAPPED) return;
    if (pv_add(&m->mapped, one) < limit || !limit) return;
    if (!pv_cas(&m->sweeping, &none, 1)) return; /* somebody is at it, and sees the new count */
    sweep(m, limit);
    pv_store(&m->sweeping, 0);
}

/* ---- reading ahead ------------------------------------------------------------------------------------------------------------------ */

void mm_fetch(const mm *m, uint64_t address, uint64_t n)
{
    uint64_t end = pv_load_relaxed(&m->log_safe);
    if (address < end) (void)posix_fadvise(m->config.log, (off_t)address, (off_t)(n < end - address ? n : end - address), POSIX_FADV_WILLNEED);
}

/* The last waits are remembered by granule: the turn of the last one, and how many came before it in a row, none more than RECENT waits after the
 * other.  Each doubles what is asked for, up to the granule: a scan of a cold store, or the first look at a small one, waits a few times for
 * each, and gets that misses now and then read nothing in vain.  It only steers: threads may overwrite what others noted. */
#define RECENT 64u
#define FIRST (UINT64_C(16) << 10)

void mm_fetch_around(mm *m, uint64_t address)
{
    uint64_t granule = address >> MM_GRANULE_SHIFT, turn = pv_add(&m->waits, 1), n = FIRST;
    pv_word *w = &m->recent[granule % MM_RECENT];
    uint64_t seen = pv_load_relaxed(w), row = 0;
    if (seen >> 40 == (granule & 0xFFFFFF) && ((turn - (seen >> 8)) & 0xFFFFFFFF) < RECENT) row = (seen & 255) + 1;
    if (row > 7) row = 7;
    pv_store_relaxed(w, (granule & 0xFFFFFF) << 40 | (turn & 0xFFFFFFFF) << 8 | row);
    at_random(m, (granule + 1) << MM_GRANULE_SHIFT);
    if (row) mm_fetch(m, address & ~((n << row) - 1), n << row);
}
