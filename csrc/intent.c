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
 * Carrying.  Each process writes to pages of its own, so one sync for several would write a page of each.  Where there is little of it the intent carries
 * the bytes of the other leases that are not durable yet, and its author's own pages are all that is synced.  A recovery puts what intents carry into
 * its place first (promote.c): below its fill a lease never changes, so the log is then as the kernel could have left it by writing those pages back a
 * moment before.  What was carried once need not be again: `lease_durable` of a slot says how far its lease is durable, in its place or in an intent, and rises
 * when the sync has ended.  Those intents are found as long as they are needed: the base of each is overwritten for a newer mark alone, and a mark is made
 * after a sync of all of the log, from which on what was carried before is in its place.  For the same reason such a flush notes no mark, which
 * would say that it is: it leaves a witness (marks.c).
 *
 * Died or stopped here: an intent without a commit word is scratch; one with it claims no more than what can be seen.  Between the sync and `lease_durable`:
 * the next one carries the same again.
 */
#include <string.h>

#include "mapped.h"

/* The fill of a lease with what its owner has published and not yet counted.  Each publish is one record, or the records of one group. */
uint64_t mm_fill_with_late(mm *m, uint64_t lease, uint64_t shape, uint64_t fill)
{
    uint64_t last = mm_record_late(m, lease, shape, fill), word = last ? at_load_acquire((at_word *)(m->log + last)) : 0;
    return word >> 32 ? last + mm_shape_span(((const mm_record *)(m->log + last))->shape) - lease : fill;
}

/* The announcement first: without one all that was committed before lies below the fill that is loaded then (release: mm_publish_end).  The turn before
 * and after: what is said to be durable is said of this lease (release: announce_lease, after the fill is 0 and before the address). */
static bool slot_fill(mm *m, const mm_slot *s, mm_lease_fill *l, uint64_t *durable)
{
    uint64_t turn = at_load_acquire(&s->lease_durable) >> 32;
    bool announces = at_load_acquire(&s->announce) != 0;
    uint64_t lease = at_load_acquire(&s->lease), shape = at_load_acquire(&s->lease_shape), fill = at_load_acquire(&s->lease_fill);
    if (at_load_acquire(&s->lease) != lease || (lease && !fill)) return false; /* a new one begins just now */
    *durable = at_load_acquire(&s->lease_durable);
    if (*durable >> 32 != turn) return false;
    if (lease && announces) fill = mm_fill_with_late(m, lease, shape, fill);
    *l = (mm_lease_fill){ lease, (uint32_t)fill, (uint32_t)(shape >> 32) };
    return true;
}

/* How far all slots are.  Before the leases of a mark are listed, so the mark knows at least as much; the caller holds the publish mutex meanwhile: its own
 * publishes are seen from outside, not in their middle, and what is its lease here is in the mark.  Epoch 0: nothing to go by, neither as a base nor
 * for an intent; so where the epoch has gone on since the flush stepped it: a mark that is newer than a base knows at least as much as the base, and
 * the sync before it began after all that an older intent carries was written. */
void mm_fills_now(mm *m, uint64_t epoch, mm_fills *f)
{
    f->retirements = mm_log_reaches(m, MM_BLOCK) ? at_load_acquire(mm_retirements(m)) : 0;
    f->segments = mm_segments_used(m);
    f->count = (uint32_t)mm_slots_used(m);
    f->epoch = f->count <= MM_FILLS_MOST ? epoch : 0;
    for (uint32_t i = 0; i < f->count && f->epoch; i++)
        if (!slot_fill(m, &m->slots[i], &f->leases[i], &f->durable[i])) f->epoch = 0;
    if (at_load_acquire(&m->g->epoch) != epoch + 1) f->epoch = 0;
}

static void raise_durable(at_word *w, uint64_t turn, uint64_t fill)
{
    uint64_t seen = at_load_relaxed(w);
    while (seen >> 32 == turn && (seen & 0xFFFFFFFF) < fill && !at_cas_acq_rel(w, &seen, turn << 32 | fill)) { } /* release: the sync has ended */
}

/* The sync after `now` has ended, and what was not synced is carried: all of it is durable. */
void mm_fills_durable(mm *m, const mm_fills *now, const mm_intent *said)
{
    for (uint32_t i = 0; now->epoch && i < now->count; i++) {
        bool own = said->put && i == m->slot_index;
        raise_durable(&m->slots[i].lease_durable, now->durable[i] >> 32, own ? said->lease.fill : now->leases[i].fill);
    }
    if (said->put) m->placed = said->lease;
}

/* ---- what an intent says --------------------------------------------------------------------------------------------------------- */

#define CARRY_MOST 2048u /* bytes of other leases, at most: more of them take less time in a sync of the log than in an intent */

typedef struct news {
    mm_lease_fill grown[MM_FILLS_MOST]; /* leases that grew since the base */
    uint32_t from[MM_FILLS_MOST];       /* of each: where what is not durable begins, if somebody is to carry it; else its fill */
    uint32_t count, pieces;
    uint64_t bytes;                     /* that it would carry */
} news;

static void add(news *n, const mm_lease_fill *l, uint64_t from)
{
    if (from < l->fill) n->pieces++;
    else from = l->fill;
    n->bytes += l->fill - from;
    n->from[n->count] = (uint32_t)from;
    n->grown[n->count++] = *l;
}

/* False: there is news that an intent cannot tell.  A lease that is the same as in the base was that of the slot all the time: so is the turn of `durable`. */
static bool differences(const mm *m, const mm_fills *now, news *n)
{
    const mm_fills *base = &m->base;
    n->count = n->pieces = n->bytes = 0;
    if (!base->epoch || !now->epoch || base->count != now->count || base->segments != now->segments || base->retirements != now->retirements) return false;
    for (uint32_t i = 0; i < now->count; i++) {
        const mm_lease_fill *a = &base->leases[i], *b = &now->leases[i];
        if (a->address != b->address || a->generation != b->generation || b->fill < a->fill) return false;
        uint64_t durable = now->durable[i] & 0xFFFFFFFF;
        if (durable > b->fill) durable = 0; /* somebody was faster, or it is damaged: all of it, once more */
        if (b->fill > a->fill) add(n, b, i == m->slot_index ? b->fill : durable > a->fill ? durable : a->fill);
    }
    return true;
}

typedef struct saying {
    mm_intent_header head;
    uint8_t rest[MM_FILLS_MOST * (sizeof(mm_lease_fill) + sizeof(mm_piece)) + CARRY_MOST];
} saying;

/* Word by word: somebody may be storing a commit word that is there already. */
static uint8_t *carry(const mm *m, uint8_t *to, uint32_t entry, const mm_lease_fill *l, uint32_t from)
{
    const at_word *bytes = (const at_word *)(m->log + l->address + from);
    memcpy(to, &(mm_piece){ entry, from }, sizeof(mm_piece));
    to += sizeof(mm_piece);
    for (uint32_t i = 0; i < (l->fill - from) / 8; i++, to += 8) memcpy(to, &(uint64_t){ at_load_relaxed(&bytes[i]) }, 8);
    return to;
}

/* The payload; how long it is. */
static uint32_t say(mm *m, const news *n, bool carries, saying *s)
{
    uint8_t *to = s->rest + n->count * sizeof *n->grown;
    s->head = (mm_intent_header){ at_load_acquire(&m->g->stable), n->count, carries ? n->pieces : 0 };
    memcpy(s->rest, n->grown, n->count * sizeof *n->grown);
    for (uint32_t i = 0; carries && i < n->count; i++)
        if (n->from[i] < n->grown[i].fill) to = carry(m, to, i, &n->grown[i], n->from[i]);
    return (uint32_t)(to - (uint8_t *)s);
}

/* All of it lies in the log: `control` may say anything. */
static bool may_carry(mm *m, const news *n)
{
    mm_result ignored;
    bool may = n->pieces && n->bytes <= CARRY_MOST;
    for (uint32_t i = 0; may && i < n->count; i++) {
        const mm_lease_fill *l = &n->grown[i];
        may = (l->address | n->from[i] | l->fill) % 8 == 0 && mm_segment_of(m, l->address, &ignored) && mm_log_reaches(m, l->address + l->fill);
        if (may && n->from[i] < l->fill) mm_mapped_use(m, l->address + n->from[i], l->fill - n->from[i]);
    }
    return may;
}

/* The caller has announced a publish, so a lease whose segment is not taken stays. */
static bool put_record(mm *m, uint64_t epoch, const saying *s, uint32_t bytes, mm_intent *said)
{
    mm_lease *l = &m->lease;
    uint64_t w = at_load_acquire(&m->segments[l->segment].word), state = mm_segword_state(w);
    bool ours = l->start && mm_segword_generation(w) == l->generation && (state == MM_SEG_OPEN || state == MM_SEG_SEALED);
    if (!ours || l->start != m->base.leases[m->slot_index].address || l->bump + mm_span_of(bytes) > l->end) return false;
    mm_note(MM_HOLD_LEASE, 0);
    mm_mapped_use(m, l->bump, mm_span_of(bytes));
    at_word *word = (at_word *)(m->log + l->bump);
    l->bump = mm_group_record(m, MM_MAX_PID, l->bump, 0, mm_shape(bytes, 1, MM_KIND_INTENT, 0, 0, 0), m->base.epoch, epoch, s);
    at_store_release(word, mm_committed((uint32_t)at_load_relaxed(word))); /* release: who reads it, reads a whole record */
    at_store_release(&m->slot->lease_fill, l->bump - l->start);
    said->lease = (mm_lease_fill){ l->start, (uint32_t)(l->bump - l->start), l->generation };
    return true;
}

/* For the flush that has stepped the epoch from `now->epoch`, between that and its sync.  put: one sync is enough; else it is to make a mark. */
void mm_intent_put(mm *m, const mm_fills *now, mm_intent *said)
{
    news n;
    saying s;
    mm_result ignored;
    *said = (mm_intent){ .put = false };
    if (at_load_acquire(&m->g->mark_wanted) > at_load_acquire(&m->g->marked) || !differences(m, now, &n)) return;
    if (mm_publish_begin(m, &ignored)) return;
    mm_announce(m);
    said->carries = may_carry(m, &n);
    uint32_t bytes = say(m, &n, said->carries, &s);
    said->put = put_record(m, now->epoch, &s, bytes, said);
    said->carries = said->carries && said->put;
    mm_publish_end(m);
}

/* Bytes of our lease that are in their place on the disk: by the sync before the base, or one of ours since. */
uint64_t mm_intent_placed(const mm *m, const mm_lease_fill *l)
{
    uint64_t fill = m->base.leases[m->slot_index].fill;
    bool known = m->placed.address == l->address && m->placed.generation == l->generation;
    return known && m->placed.fill > fill ? m->placed.fill : fill;
}
