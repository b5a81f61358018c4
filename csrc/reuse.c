/* reuse.c - segments that nobody needs any more: retired by a cleaner, used again, or given back to the file system.
 *
 * RETIRED at e: the chains of all pages had left it when e was loaded, and the heads that were looked at were committed (C9).  It becomes FREE when
 * every pin and announcement is newer than e, no view holds it, and a mark covers e: then what replaced its records is durable, nobody can reach
 * them (models: reuse.pml, views.pml), and no intent that lists them is needed any more (intent.c).  Before that its header says that it was retired, durably, so that a recovery, or whoever verifies the
 * log, does not ask for what is overwritten.
 *
 * Died here: RETIRED and FREE are states like others, anybody goes on; PUNCHING becomes HOLE when its owner is reaped.
 */
#include <string.h>

#include "internal.h"

/* The caller has seen that no chain passes through segment n, which it has claimed, and has helped every head that it looked at. */
int mm_segment_retire(mm *m, uint64_t n, mm_result *r)
{
    mm_segment *s = &m->segments[n];
    uint64_t w = at_load_acquire(&s->word), base = n << m->segment_shift;
    if (mm_segword_state(w) != MM_SEG_CLAIMED || mm_segword_rest(w) != m->slot_index) return MM_CONFLICT; /* it is not ours any more: nothing is said */
    if (!mm_log_reaches(m, base + MM_BLOCK)) return mm_corrupt(r, MM_FILE_LOG, base);
    at_add_seq_cst(mm_retirements(m), 1); /* before it is written, and before its epoch: a plain copy of the log that has the one has the other */
    at_fence_full(); /* the commit words stored for others, and the last look at a head, before the epoch (C9) */
    mm_segment_retired t = { .magic = MM_RETIRED_MAGIC, .generation = (uint32_t)mm_segword_generation(w), .number = n,
                             .epoch = at_load_acquire(&m->g->epoch) };
    t.crc = crc32c_extend(m->uuid_seed, (const uint8_t *)&t + 12, sizeof t - 12);
    at_copy(m->log + base + mm_retired_offset(t.generation), &t, sizeof t);
    at_fence_full(); /* a flush that covers the epoch loaded now began its sync after the copy */
    uint64_t since = at_load_acquire(&m->g->epoch);
    at_store_relaxed(&s->since, since);
    mm_want_mark(m, since); /* an intent would not do: the number of retirements tells who was about to write one */
    mm_segment_step(m, n, &w, MM_SEG_RETIRED, 0); /* lost: it was taken from us, as from a dead one */
    return MM_OK;
}

/* The claim goes back: the segment may be written to again, by whoever has a lease in it, so nothing may say that it was retired.  Its cleaner
 * may have died when it had just said so.  Durable with the first record that comes into it. */
bool mm_segment_unclaim(mm *m, uint64_t n, uint64_t *w, uint64_t owner)
{
    static const mm_segment_retired none;
    uint8_t *said = m->log + (n << m->segment_shift) + mm_retired_offset(mm_segword_generation(*w));
    if (mm_segword_state(*w) != MM_SEG_CLAIMED || at_load_acquire(&m->segments[n].word) != *w) return false; /* it is not claimed any more */
    if (mm_log_reaches(m, (n << m->segment_shift) + MM_BLOCK) && memcmp(said, &none, sizeof none)) at_copy(said, &none, sizeof none);
    at_fence_full(); /* a flush that covers the epoch loaded now began its sync after the copy */
    mm_want_mark(m, at_load_acquire(&m->g->epoch)); /* an intent does not list it; also what another one cleared, and died */
    at_fence_full(); /* who steps the epoch that is loaded now sees that a mark is wanted */
    at_max_release(&m->segments[n].written, at_load_acquire(&m->g->epoch)); /* before it is SEALED: rewrite.c */
    return mm_segment_step(m, n, w, MM_SEG_SEALED, owner); /* release: it is forgotten before anybody writes */
}

/* The caller holds the mutex.  Pins first, views second: a view is noted before its pin goes (C13). */
void mm_reclaim(mm *m)
{
    uint64_t marked = at_load_acquire(&m->g->marked), oldest = 0;
    for (uint64_t n = 0; n < pv_load_relaxed(&m->segments_safe); n++) {
        uint64_t w = at_load_acquire(&m->segments[n].word), since = at_load_relaxed(&m->segments[n].since);
        if (mm_segword_state(w) != MM_SEG_RETIRED || since > marked) continue;
        if (!oldest) oldest = mm_oldest_holder(m);
        if (since >= oldest || mm_viewed(m, n, mm_segword_generation(w))) continue;
        if (mm_segword_rest(w) & MM_REST_RUN) mm_run_release(m, n, w);
        else mm_segment_step(m, n, &w, MM_SEG_FREE, 0);
    }
}

/* ---- giving back to the file system ---------------------------------------------------------------------------------------------- */

/* FREE segments that keep their bytes: where the reserve lies (room.c); beside writers one more, that was just emptied, so that they need not allocate it
 * anew. */
#define SPARE_BUSY 1u

/* The first block stays: its header says which generation was retired; and the last one, which says that the rest is gone (mm_segment_stamp).  That is
 * said once: beside a hole the store would need room, where the file system keeps several blocks in one page, and be a SIGBUS on a full disk.  A
 * file system that cannot punch keeps the bytes.  One that was given a number and no bytes yet has nothing to give back behind the end of the log. */
bool mm_punch_segment(mm *m, uint64_t n)
{
    if (n >= pv_load_relaxed(&m->segments_safe)) return false;
    uint64_t w = at_load_acquire(&m->segments[n].word);
    if (mm_segword_state(w) != MM_SEG_FREE || !mm_segment_step(m, n, &w, MM_SEG_PUNCHING, m->slot_index)) return false;
    uint64_t begin = (n << m->segment_shift) + MM_BLOCK, end = (n + 1) << m->segment_shift, published = at_load_acquire(&m->g->log_size);
    bool whole = mm_log_reaches(m, end) && mm_os_grow(m->config.log, end - MM_BLOCK, end) == 0; /* one of an earlier life may end with a hole */
    uint64_t generation = mm_segword_generation(w);
    if (whole && (mm_segment_is_stamped(m, n, generation) || mm_segment_stamp_end(m, n, generation, at_load_acquire(&m->g->stable)))) end -= MM_BLOCK;
    if (end > published) end = published;
    bool any = begin < end && mm_log_reaches(m, end) && !mm_fail_at(m->config.failpoints, MM_FAIL_LOG_PUNCH);
    if (any && mm_os_punch(m->config.log, begin, end) == 0) at_written(m->log + begin, end - begin);
    mm_segment_step(m, n, &w, MM_SEG_HOLE, 0);
    return true;
}

/* All but the first few FREE segments become holes; at most `most` of them.  The caller has a pin. */
uint64_t mm_punch(mm *m, uint64_t most)
{
    mm_result ignored;
    uint64_t kept = 0, punched = 0, n = at_load_acquire(&m->g->segments), spare = mm_room_pieces(m) + (most == UINT64_MAX ? 0 : SPARE_BUSY);
    if (n && !mm_segment_of(m, (n - 1) << m->segment_shift, &ignored)) return 0;
    for (uint64_t i = 0; i < n && punched < most; i++) {
        uint64_t w = at_load_acquire(&m->segments[i].word);
        if (mm_segword_state(w) != MM_SEG_FREE) continue;
        if (kept < spare && mm_segment_usable(m, i, w)) kept++;
        else punched += mm_punch_segment(m, i);
    }
    return punched;
}
