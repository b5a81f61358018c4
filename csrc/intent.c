/* intent.c - flushes with one sync: what a mark would say stands in the log too, so the sync that makes the records durable makes it durable with them.
 *
 * An intent is a record of no page, in the lease of who flushes, with the flush's epoch D as its colour.  It lists the leases that were written to since its
 * author's newest mark, its base, each with its fill.  D is durable when the intent is whole and so is every listed lease up to its fill: then the sync had
 * ended, or all that it was for is on the disk anyway.  A recovery that finds that (promote.c) makes a mark of it and goes on as ever.  The mark itself is written
 * behind the sync, and made durable by whichever sync comes by (marks.c).
 *
 * Why that is enough.  Below its fill a lease holds whole records, committed or in a group, and never changes; what counts in cut(D) was committed before
 * the epoch left D, hence before the fills were loaded, and lies below them.  One record of a slot may lie above: published, its commit word
 * stored by somebody else, its owner not yet back to raise the fill; then the slot announces a publish, and the record is looked at here.  A dead owner's
 * is committed by its reaper (slot.c) before the lease can leave the slot.
 *
 * What an intent cannot say it is not used for: a lease that the author's newest mark does not list, the retirement of a segment, or whatever raised
 * `mark_wanted`.  Then the flush makes a mark, with two syncs.  An intent is found through the leases that marks list, and its author's newest mark is not
 * overwritten before there is a newer one, so it is found.  It is believed as long as all that it lists is there: so nothing that is retired is used again before a
 * *mark* covers that (reuse.c): an intent that listed it is older than that mark.  (Model: intent.pml.)
 *
 * Died or stopped here: an intent without a commit word is scratch; one with it claims no more than what can be seen.
 */
#include <string.h>

#include "mapped.h"

/* The fill of a lease with what its owner has published and not yet counted.  Each publish is one record, or the records of one group. */
uint64_t mm_fill_with_late(mm *m, uint64_t lease, uint64_t shape, uint64_t fill)
{
    uint64_t last = mm_record_late(m, lease, shape, fill), word = last ? at_load_acquire((at_word *)(m->log + last)) : 0;
    return word >> 32 ? last + mm_shape_span(((const mm_record *)(m->log + last))->shape) - lease : fill;
}

/* The announcement first: without one all that was committed before lies below the fill that is loaded then (release: mm_publish_end). */
static bool slot_fill(mm *m, const mm_slot *s, mm_lease_fill *l)
{
    bool announces = at_load_acquire(&s->announce) != 0;
    uint64_t lease = at_load_acquire(&s->lease), shape = at_load_acquire(&s->lease_shape), fill = at_load_acquire(&s->lease_fill);
    if (at_load_acquire(&s->lease) != lease || (lease && !fill)) return false; /* a new one begins just now */
    if (lease && announces) fill = mm_fill_with_late(m, lease, shape, fill);
    *l = (mm_lease_fill){ lease, (uint32_t)fill, (uint32_t)(shape >> 32) };
    return true;
}

/* How far all slots are.  Before the leases of a mark are listed, so the mark knows at least as much; the caller holds the publish mutex meanwhile: its own
 * publishes are seen from outside, not in their middle, and what is its lease here is in the mark.  Epoch 0: nothing to go by, neither as a base nor
 * for an intent; so where the epoch has gone on since the flush stepped it: a mark that is newer than a base knows at least as much as the base. */
void mm_fills_now(mm *m, uint64_t epoch, mm_fills *f)
{
    f->retirements = mm_log_reaches(m, MM_BLOCK) ? at_load_acquire(mm_retirements(m)) : 0;
    f->segments = mm_segments_used(m);
    f->count = (uint32_t)mm_slots_used(m);
    f->epoch = f->count <= MM_FILLS_MOST ? epoch : 0;
    for (uint32_t i = 0; i < f->count && f->epoch; i++)
        if (!slot_fill(m, &m->slots[i], &f->leases[i])) f->epoch = 0;
    if (at_load_acquire(&m->g->epoch) != epoch + 1) f->epoch = 0;
}

/* The leases that grew since the base; false: there is news that an intent cannot tell. */
static bool differences(const mm_fills *base, const mm_fills *now, mm_lease_fill *grown, uint32_t *n)
{
    *n = 0;
    if (!base->epoch || !now->epoch || base->count != now->count || base->segments != now->segments || base->retirements != now->retirements) return false;
    for (uint32_t i = 0; i < now->count; i++) {
        const mm_lease_fill *a = &base->leases[i], *b = &now->leases[i];
        if (a->address != b->address || a->generation != b->generation || b->fill < a->fill) return false;
        if (b->fill > a->fill) grown[(*n)++] = *b;
    }
    return true;
}

/* The caller has announced a publish, so a lease whose segment is not taken stays. */
static bool put_record(mm *m, uint64_t epoch, const mm_lease_fill *grown, uint32_t n)
{
    struct { uint64_t stable; mm_lease_fill grown[MM_FILLS_MOST]; } says = { .stable = at_load_acquire(&m->g->stable) };
    mm_lease *l = &m->lease;
    uint64_t w = at_load_acquire(&m->segments[l->segment].word), state = mm_segword_state(w), bytes = MM_INTENT_HEADER + n * sizeof *grown;
    bool ours = l->start && mm_segword_generation(w) == l->generation && (state == MM_SEG_OPEN || state == MM_SEG_SEALED);
    if (!ours || l->start != m->base.leases[m->slot_index].address || l->bump + mm_span_of(bytes) > l->end) return false;
    memcpy(says.grown, grown, n * sizeof *grown);
    mm_note(MM_HOLD_LEASE, 0);
    mm_mapped_use(m, l->bump, mm_span_of(bytes));
    at_word *word = (at_word *)(m->log + l->bump);
    l->bump = mm_group_record(m, MM_MAX_PID, l->bump, 0, mm_shape((uint32_t)bytes, 1, MM_KIND_INTENT, 0, 0, 0), m->base.epoch, epoch, &says);
    at_store_release(word, mm_committed((uint32_t)at_load_relaxed(word))); /* release: who reads it, reads a whole record */
    at_store_release(&m->slot->lease_fill, l->bump - l->start);
    return true;
}

/* For the flush that has stepped the epoch from `now->epoch`, between that and its sync.  True: one sync is enough; false: it is to make a mark. */
bool mm_intent_put(mm *m, const mm_fills *now)
{
    mm_lease_fill grown[MM_FILLS_MOST];
    mm_result ignored;
    uint32_t n;
    if (at_load_acquire(&m->g->mark_wanted) > at_load_acquire(&m->g->marked) || !differences(&m->base, now, grown, &n)) return false;
    if (mm_publish_begin(m, &ignored)) return false;
    mm_announce(m);
    bool put = put_record(m, now->epoch, grown, n);
    mm_publish_end(m);
    return put;
}
