/* peek.h - the two loads that validate a cached object, inline for the hot face.
 *
 * Equal words mean: the page's head and the generation of the segment it points into are those of the cached object, so it
 * is the same record.  Relaxed loads suffice: nothing is dereferenced, and nothing new is learnt from an equal word.
 * The words lie in mappings that stay until mm_close; callers hold the GIL and drop their pointer before closing.
 *
 * A word that cannot be read is 0 (at_peek), as no cached head and no generation is: the get becomes a call, which finds and reports the damage.
 */
#ifndef MMPC_PEEK_H
#define MMPC_PEEK_H

#include "internal.h"

/* True while the attachment may be peeked at: not closed, not inherited by a fork, and no sync has failed. */
static inline bool mm_peek_safe(const mm *m)
{
    return m && !(pv_load_relaxed(&m->busy) & MM_CLOSING) && *m->alive == MM_ALIVE && !at_peek(&m->g->failed);
}

/* The page's head word; 0 when the page lies outside what this process knows of the table. */
static inline uint64_t mm_peek_head(const mm *m, uint64_t pid)
{
    if (pid >= pv_load_relaxed(&m->table_safe)) return 0;
    return at_peek(&m->table[pid]);
}

/* The generation of the segment that `head` points into; all ones when that lies outside. */
static inline uint64_t mm_peek_generation(const mm *m, uint64_t head)
{
    uint64_t n = mm_head_address(head) >> m->segment_shift;
    if (n >= pv_load_relaxed(&m->segments_safe)) return UINT64_MAX;
    return mm_segword_generation(at_peek(&m->segments[n].word));
}

static inline bool mm_is_counting(const mm *m) { return mm_row(m) != NULL; }
/* The caller holds the GIL, and nobody else adds to these two words. */
static inline void mm_count_hits(const mm *m, uint64_t n)
{
    if (mm_row(m)) at_count_alone(&mm_row(m)->counters[MM_COUNT_cache_hits], n);
}
static inline void mm_count_eviction(const mm *m)
{
    if (mm_row(m)) at_count_alone(&mm_row(m)->counters[MM_COUNT_cache_evictions], 1);
}

#endif
