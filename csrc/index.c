/* index.c - the index of a DELTA: where the older records of its page lie, so that a chain that is not in memory is fetched at once.
 *
 * A chain names one predecessor at a time, so a walk over a cold one waits for the device once a record.  With the index it waits twice: for the
 * record at hand, and for all the others together.  An index is a list of entries: the first speaks of the predecessor, the next of the one
 * before that, and so on.  An entry says how far away the next older record begins, in blocks, and whether the one it speaks of goes on in the
 * next block: zigzag of the distance, then that bit, in groups of seven bits, lowest first.  One that says nothing (same block, does not go on)
 * is left out.  So the index of a record is one entry and the index of its predecessor, and that of a page whose records lie together is empty.
 *
 * It steers what is read ahead, and nothing else: no offset in it is ever followed.  It ends where MM_INDEX_MAX does; a longer chain is fetched
 * in steps.  A move or a merge leaves it out: the records lie together then.
 */
#include <string.h>

#include "mapped.h"

#define BLOCKS_MOST ((int64_t)(MM_MAX_ADDRESS / MM_BLOCK))

static int64_t block_of(uint64_t address) { return (int64_t)(address / MM_BLOCK); }

static uint32_t put_entry(uint8_t *out, int64_t distance, bool goes_on)
{
    uint64_t z = ((uint64_t)distance << 1 ^ (distance < 0 ? UINT64_MAX : 0)) << 1 | goes_on;
    uint32_t n = 0;
    for (; z > 127; z >>= 7) out[n++] = (uint8_t)(z | 128);
    out[n++] = (uint8_t)z;
    return n;
}

/* Bytes of the entry at p, or 0: it does not end within n. */
static uint32_t get_entry(const uint8_t *p, uint32_t n, int64_t *distance, bool *goes_on)
{
    uint64_t z = 0;
    for (uint32_t i = 0; i < n && i < 9; i++) {
        z |= (uint64_t)(p[i] & 127) << 7 * i;
        if (p[i] & 128) continue;
        *goes_on = z & 1;
        *distance = (int64_t)(z >> 2 ^ (z & 2 ? UINT64_MAX : 0));
        return i + 1;
    }
    return 0;
}

/* The longest beginning of p[0..n) that fits and ends with a whole entry. */
static uint32_t whole_part(const uint8_t *p, uint32_t n, uint64_t room)
{
    if (n > room) n = (uint32_t)room;
    while (n && p[n - 1] & 128) n--;
    return n;
}

void mm_index_make(const mm_view *prev, uint64_t room, mm_index *out)
{
    uint8_t first[10];
    bool more = mm_shape_kind(prev->shape) == MM_KIND_DELTA;
    int64_t distance = more ? block_of(prev->prev) - block_of(prev->address) : 0;
    bool goes_on = block_of(prev->address + MM_RECORD_HEADER + mm_shape_length(prev->shape) - 1) != block_of(prev->address);
    uint32_t n = distance || goes_on ? put_entry(first, distance, goes_on) : 0;
    if (room > MM_INDEX_MAX) room = MM_INDEX_MAX;
    out->n = 0;
    if (n > room) return;
    memcpy(out->bytes, first, n);
    uint32_t rest = more ? whole_part(prev->payload + mm_shape_length(prev->shape), mm_shape_index(prev->shape), room - n) : 0;
    memcpy(out->bytes + n, prev->payload + mm_shape_length(prev->shape), rest);
    out->n = n + rest;
}

static void fetch_block(const mm *m, int64_t block, bool goes_on)
{
    if (block >= 0 && block < BLOCKS_MOST) mm_fetch(m, (uint64_t)block * MM_BLOCK, goes_on ? 2 * MM_BLOCK : MM_BLOCK);
}

uint32_t mm_fetch_older(const mm *m, const mm_view *v)
{
    if (mm_shape_kind(v->shape) != MM_KIND_DELTA) return 0;
    const uint8_t *p = v->payload + mm_shape_length(v->shape);
    uint32_t left = mm_shape_index(v->shape), blocks = 1, n;
    int64_t at = block_of(v->prev), distance;
    bool goes_on;
    for (; (n = get_entry(p, left, &distance, &goes_on)) != 0; p += n, left -= n, blocks++) {
        fetch_block(m, at, goes_on);
        if (distance > BLOCKS_MOST || distance < -BLOCKS_MOST) return blocks;
        at += distance;
    }
    fetch_block(m, at, false);
    return blocks;
}
