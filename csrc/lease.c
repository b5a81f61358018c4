/* lease.c - leases: runs of blocks in the open segment, each written by one process with a bump pointer of its own.
 *
 * A lease is announced in the slot, then taken by one CAS on the segment's fill word, which holds the generation too; then it begins with
 * a checksummed header.  It ends when its owner takes the next one, leaves, or is reaped: then its header is told how far it was used (`end`).  So
 * damage inside a lease is never taken for its end, whoever reads it: a recovery, a cleaner.
 *
 * Died here: an announced or taken lease is just less live data; who reaps the slot ends it.  Stopped here: others take leases of their own.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

#define LEASE_LARGEST (64u * 1024u)

/* ---- the end of a lease ------------------------------------------------------------------------------------------------------ */

uint32_t mm_lease_end_crc(uint32_t seed, uint64_t address, uint64_t filled, uint64_t epoch)
{
    return crc32c_word(crc32c_word(crc32c_word(seed, address), filled), epoch);
}

/* Blocks of the lease whose header stands at `at`, inside the log, or 0. */
uint64_t mm_lease_blocks(const mm *m, uint64_t at, uint32_t seed, uint64_t generation)
{
    mm_lease_header h;
    memcpy(&h, m->log + at, sizeof h);
    bool ok = h.magic == MM_LEASE_MAGIC && h.address == at && h.generation == generation && h.blocks
              && h.crc == crc32c_extend(seed, (const uint8_t *)&h + 4, MM_LEASE_SUMMED - 4) && h.blocks <= (m->segment_size - at % m->segment_size) / MM_BLOCK;
    return ok ? h.blocks : 0;
}

/* How far the lease was used when it ended, and the epoch that covers it; 0: it has not ended, or does not say so. */
uint64_t mm_lease_ended_at(uint32_t seed, const mm_lease_header *h, uint64_t *epoch)
{
    uint64_t end = at_load_acquire(&h->end), filled = end & 0xFFFFFFFF;
    *epoch = at_load_relaxed(&h->end_epoch);
    return end && end >> 32 == mm_lease_end_crc(seed, h->address, filled, *epoch) && filled >= sizeof *h && filled <= (uint64_t)h->blocks * MM_BLOCK ? filled : 0;
}

/* Stored once, the epoch first: whatever version of the sector is on the disk, what it says is whole or it says nothing.  The epoch is loaded after
 * the last commit word, so a mark that has reached it says that all of the lease is durable. */
void mm_lease_close(mm *m, uint64_t address, uint64_t generation, uint64_t filled)
{
    mm_result ignored;
    uint64_t inside = address & (m->segment_size - 1);
    mm_segment *s = mm_segment_of(m, address, &ignored);
    if (!s || !filled || address % MM_BLOCK || inside < MM_BLOCK || !mm_log_reaches(m, address + MM_BLOCK)) return;
    uint64_t w = at_load_acquire(&s->word), state = mm_segword_state(w);
    if (mm_segword_generation(w) != generation || (state != MM_SEG_OPEN && state != MM_SEG_SEALED && state != MM_SEG_CLAIMED)) return;
    mm_lease_header *h = (mm_lease_header *)(m->log + address);
    if (h->magic != MM_LEASE_MAGIC || h->address != address || h->generation != generation || at_load_acquire(&h->end)) return;
    uint64_t epoch = at_load_acquire(&m->g->epoch);
    at_store_relaxed(&h->end_epoch, epoch);
    at_store_release(&h->end, (uint64_t)mm_lease_end_crc(mm_segment_seed(m, s), address, filled, epoch) << 32 | filled);
}

/* ---- announcing ---------------------------------------------------------------------------------------------------------------- */

static uint64_t last_generation(const mm_lease *l) { return l->start ? l->generation : l->previous_generation; }

/* Announced before it is taken: a snapshot that sees the segment full sees the lease (model: scan.pml). */
static void announce_lease(mm *m, uint64_t address, uint64_t generation, uint64_t blocks)
{
    const mm_lease *l = &m->lease;
    at_store_relaxed(&m->slot->last_fill, 0); /* while it is 0 nobody believes last_lease */
    at_store_release(&m->slot->last_shape, last_generation(l) << 32);
    at_store_release(&m->slot->last_lease, l->start ? l->start : l->previous);
    at_store_release(&m->slot->last_fill, l->start ? l->bump - l->start : l->filled);
    at_store_relaxed(&m->slot->lease_fill, 0); /* before the address: nobody pairs the old fill with the new lease */
    at_store_release(&m->slot->lease_durable, ((at_load_relaxed(&m->slot->lease_durable) >> 32) + 1) << 32); /* release: who sees the turn sees the fill of 0 (intent.c) */
    at_store_release(&m->slot->lease_shape, generation << 32 | blocks); /* release: who sees it with the old address sees the fill of 0 */
    at_store_seq_cst(&m->slot->lease, address);
    at_fence_full(); /* then the colour of the first record: who stepped the epoch after that was loaded sees the lease (intent.c) */
}

/* No new lease came of it: the last one stands in the slot again. */
static void announce_again(mm *m)
{
    const mm_lease *l = &m->lease;
    at_store_relaxed(&m->slot->lease_shape, last_generation(l) << 32 | (l->start ? (l->end - l->start + MM_BLOCK - 1) / MM_BLOCK : 0));
    at_store_seq_cst(&m->slot->lease, l->start ? l->start : l->previous);
    at_store_release(&m->slot->lease_fill, l->start ? l->bump - l->start : l->filled);
}

/* The lease is no slot's any more: until a flush begins after this, its segment holds bytes that no sync covers (flush.c, C15). */
void mm_lease_ended(mm *m)
{
    mm_lease *l = &m->lease;
    l->previous = l->start;
    l->previous_generation = l->generation;
    l->filled = l->bump - l->start;
    mm_lease_close(m, l->previous, l->generation, l->filled);
    at_max_release(&m->segments[l->segment].written, at_load_acquire(&m->g->epoch));
}

/* Where it was written to is not known any more: the bytes behind the bump pointer may be a published record. */
void mm_lease_give_up(mm *m)
{
    mm_lease *l = &m->lease;
    if (l->start) {
        l->previous = l->start;
        l->previous_generation = l->generation;
        l->filled = l->bump - l->start;
    }
    l->start = 0;
    l->live = 0;
    announce_again(m);
    at_max_release(&m->segments[l->segment].written, at_load_acquire(&m->g->epoch));
}

/* ---- taking one ------------------------------------------------------------------------------------------------------------------ */

/* m->lease changes as a whole, at the end: a fault on the way leaves the old one. */
static void begin_lease(mm *m, uint64_t n, uint64_t generation, uint64_t first, uint64_t blocks, bool reserve)
{
    mm_account_flush(m);
    if (m->lease.start) mm_lease_ended(m);
    at_add_relaxed(&m->g->log_taken, blocks * MM_BLOCK);
    if (!pv_load_relaxed(&m->helping)) pv_add(&m->debt, blocks * MM_BLOCK);
    pv_store(&m->scarce, reserve);
    if (mm_snapshot_wanted(m) && at_load_relaxed(&m->g->snapshot_due) < mm_os_monotonic()) m->due = true;
    mm_lease l = m->lease;
    l.start = (n << m->segment_shift) + first * MM_BLOCK;
    l.end = l.start + blocks * MM_BLOCK;
    if (l.end == (n + 1) << m->segment_shift) l.end -= sizeof(mm_segment_stamp); /* its place */
    l.segment = (uint32_t)n;
    l.generation = (uint32_t)generation;
    l.seed = mm_segment_seed(m, &m->segments[n]);
    l.reserve = reserve;
    if (!reserve) l.next_size = l.next_size * 2 < LEASE_LARGEST ? l.next_size * 2 : LEASE_LARGEST;
    mm_lease_header h = { .magic = MM_LEASE_MAGIC, .address = l.start, .blocks = (uint32_t)blocks, .generation = l.generation,
                          .previous = l.previous, .filled = (uint32_t)l.filled, .previous_generation = l.previous_generation,
                          .stable = at_load_acquire(&m->g->stable) };
    h.crc = crc32c_extend(l.seed, (const uint8_t *)&h + 4, MM_LEASE_SUMMED - 4);
    mm_os_touch(m->log + l.start, l.end - l.start);
    at_copy(m->log + l.start, &h, sizeof h);
    l.bump = l.start + sizeof h;
    m->lease = l;
    at_store_release(&m->slot->lease_fill, sizeof h);
}

/* Blocks for what the victim still holds: a larger lease would stay with who cleaned, and be missed by who cleans next. */
static uint64_t moves(mm *m, uint64_t room)
{
    uint64_t blocks = (mm_room_of(pv_load_relaxed(&m->left)) + MM_BLOCK - 1) / MM_BLOCK, most = LEASE_LARGEST / MM_BLOCK;
    if (blocks > room) blocks = room;
    return blocks < most ? blocks : most;
}

/* Allocates what a lease from `at` on needs: `want` blocks, or no more than `need` where there is little room; the reserve behind it, or itself
 * from the reserve if that is what it is for.  Before anything is taken: a full disk takes nothing. */
static int cover_lease(mm *m, uint64_t n, uint64_t at, uint64_t need, uint64_t *want, enum mm_purpose purpose, bool *reserve, mm_result *r)
{
    uint64_t asked = *want, room = (((n + 1) << m->segment_shift) - at) / MM_BLOCK;
    *reserve = false;
    int rc = mm_room_behind(m, n, at, at + *want * MM_BLOCK, MM_GROWS, r);
    if (mm_is_full(rc) && *want > need) {
        *want = need;
        rc = mm_room_behind(m, n, at, at + need * MM_BLOCK, MM_GROWS, r);
    }
    if (!mm_is_full(rc) || purpose == MM_GROWS) return rc;
    *reserve = true;
    if (purpose == MM_MOVES) asked = moves(m, room);
    for (; purpose == MM_MOVES && asked > need; asked /= 2) { /* many records: small leases would waste what they are to gain */
        *want = asked;
        rc = mm_room_behind(m, n, at, at + asked * MM_BLOCK, purpose, r);
        if (!mm_is_full(rc)) return rc;
    }
    *want = need;
    return mm_room_behind(m, n, at, at + need * MM_BLOCK, purpose, r);
}

/* A lease that was taken from the reserve may be used for anything once the reserve is whole again behind all that is taken. */
int mm_segment_refill(mm *m, uint64_t copies, mm_result *r)
{
    uint64_t open = at_load_acquire(&m->g->open_segment), n = (open & 0xFFFFFFFF) - 1;
    mm_segment *s = open ? mm_segment_of(m, n << m->segment_shift, r) : NULL;
    if (!s) return copies ? MM_OK : mm_room_next(m, MM_NO_SEGMENT, 0, MM_GROWS, r);
    uint64_t taken = at_load_acquire(&s->fill) & 0xFFFFFFFF, at = (n << m->segment_shift) + taken * MM_BLOCK;
    if (taken > mm_blocks_of(m)) return mm_corrupt(r, MM_FILE_CONTROL, (uint64_t)((uint8_t *)&s->fill - m->control));
    return copies ? mm_room_copies(m, n, at, copies, r) : mm_room_behind(m, n, at, at, MM_GROWS, r);
}

/* One try in segment n.  MM_OK: the lease is ours; MM_BUSY: look again (somebody was faster); MM_SPACE: the segment has too little left. */
static int try_lease(mm *m, uint64_t n, uint64_t generation, uint64_t need, enum mm_purpose purpose, mm_result *r)
{
    mm_segment *s = &m->segments[n];
    uint64_t w = at_load_acquire(&s->word), f = at_load_acquire(&s->fill), first = f & 0xFFFFFFFF, room = mm_blocks_of(m) - first;
    if (mm_segword_state(w) != MM_SEG_OPEN || mm_segword_generation(w) != generation || f >> 32 != generation) return MM_SPACE;
    uint64_t want = m->lease.next_size / MM_BLOCK;
    bool reserve;
    if (want < need) want = need;
    if (first == 0 || first > mm_blocks_of(m)) return mm_corrupt(r, MM_FILE_CONTROL, (uint64_t)((uint8_t *)&s->fill - m->control));
    if (room < need) return MM_SPACE;
    if (want > room) want = room;
    int rc = cover_lease(m, n, (n << m->segment_shift) + first * MM_BLOCK, need, &want, purpose, &reserve, r);
    if (rc) return rc;
    announce_lease(m, (n << m->segment_shift) + first * MM_BLOCK, generation, want);
    if (!at_cas_acq_rel(&s->fill, &f, mm_fill_word(generation, first + want))) return MM_BUSY;
    begin_lease(m, n, generation, first, want, reserve);
    m->lease.frees = reserve && purpose == MM_FREES;
    return MM_OK;
}

/* The open segment (the word `open`; s is NULL: there is none) has too little left: seals it and opens another, once there is room in that.
 * MM_BUSY: look again. */
static int move_on(mm *m, mm_segment *s, uint64_t open, uint64_t need, enum mm_purpose purpose, mm_result *r)
{
    uint64_t n = s ? (uint64_t)(s - m->segments) : MM_NO_SEGMENT;
    int rc = mm_room_next(m, n, need, MM_GROWS, r);
    if (mm_is_full(rc) && purpose != MM_GROWS) rc = mm_room_next(m, n, need, purpose, r);
    if (!rc && s) mm_segment_seal(m, s, open >> 32);
    if (!rc && at_load_acquire(&m->g->open_segment) == open) rc = mm_segment_open(m, open, r);
    if (mm_is_full(rc) && at_load_acquire(&m->g->open_segment) != open) rc = MM_OK; /* somebody else had room */
    return rc ? rc : MM_BUSY;
}

/* The log cannot grow to where the next lease of segment n would end: what is left to give room back may lie below. */
static bool bare(mm *m, const mm_segment *s, uint64_t n, uint64_t need)
{
    mm_result ignored;
    uint64_t taken = at_load_acquire(&s->fill) & 0xFFFFFFFF, end = taken + need < mm_blocks_of(m) ? taken + need : mm_blocks_of(m);
    return mm_is_full(mm_log_cover(m, (n << m->segment_shift) + end * MM_BLOCK, &ignored));
}

/* A lease with room for `bytes` behind its header.  The caller has announced a publish.  Each turn of the loop means that somebody made
 * progress; the bound is against a hostile `control`. */
int mm_segment_lease(mm *m, uint64_t bytes, enum mm_purpose purpose, mm_result *r)
{
    uint64_t need = (bytes + sizeof(mm_lease_header) + sizeof(mm_segment_stamp) + MM_BLOCK - 1) / MM_BLOCK; /* it may be the last of its segment */
    bool reaped = false;
    for (uint32_t tries = 0; tries < 1u << 20; tries++) {
        uint64_t open = at_load_acquire(&m->g->open_segment), n = (open & 0xFFFFFFFF) - 1;
        mm_segment *s = open ? mm_segment_of(m, n << m->segment_shift, r) : NULL;
        if (open && !s) break;
        int rc = open ? try_lease(m, n, open >> 32, need, purpose, r) : MM_SPACE;
        bool below = s && mm_is_full(rc) && purpose != MM_GROWS && bare(m, s, n, need);
        if (rc == MM_SPACE || below) rc = move_on(m, s, open, need, purpose, r);
        if (rc == MM_BUSY) continue;
        if (mm_is_full(rc) && !reaped) { /* the dead may have been preparing a segment */
            reaped = true;
            if (mm_reap_dead(m)) continue;
        }
        if (rc) announce_again(m);
        return rc;
    }
    return mm_corrupt(r, MM_FILE_CONTROL, MM_CONTROL_GLOBALS + offsetof(mm_globals, open_segment));
}
