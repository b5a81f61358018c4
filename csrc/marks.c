/* marks.c - how far the log is durable: written by flushes, read by recoveries.
 *
 * A slot has two blocks of eight sectors.  A mark goes over the block with the smaller epoch, or the one with a witness, one flush of a slot at a time, and a new
 * owner of a slot first makes durable what its predecessor may have written and not synced, so the newest mark is never the one that is
 * overwritten (model: marks.pml).
 *
 * A mark is written after the log was synced.  So any whole sector of it proves its epoch, whether the write was torn or another sector
 * was damaged later.  A sector that is zero proves that no mark was ever finished in its block.  Only a block without a whole and without a
 * zero sector hides what it said: that is MM_CORRUPT.
 *
 * A witness says less: its epoch was durable, but the log need not be on the disk in its places (intent.c).  It stands in the first sector of the block that
 * the next mark goes over, and is no part of the mark whose other sectors may stand behind it.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

typedef struct mark_block { mm_mark_sector sectors[MM_MARK_SECTORS]; } mark_block;
_Static_assert(sizeof(mark_block) == MM_BLOCK, "a block of marks");

static uint64_t block_offset(uint32_t slot, uint32_t block) { return ((uint64_t)slot * 2 + block) * MM_BLOCK; }

static uint32_t sector_crc(const mm_mark_sector *s, const uint8_t *uuid)
{
    return crc32c_extend(crc32c_extend(0, uuid, 16), (const uint8_t *)s + 12, sizeof *s - 12);
}

static bool zero(const void *p, uint64_t n)
{
    const uint8_t *b = p;
    for (uint64_t i = 0; i < n; i++)
        if (b[i]) return false;
    return true;
}

static bool sector_whole(const mm_config *c, const mm_mark_sector *s, uint32_t slot, uint32_t place)
{
    return s->magic == MM_MARK_MAGIC && s->slot == slot && s->place == place && s->count <= MM_SECTOR_LEASES && s->crc == sector_crc(s, c->uuid);
}

static bool is_witness(const mm_config *c, const mm_mark_sector *s, uint32_t slot, uint32_t place)
{
    return s->magic == MM_WITNESS_MAGIC && s->slot == slot && s->place == place && s->crc == sector_crc(s, c->uuid);
}

/* The mark of a block: the leases of those sectors that have its newest epoch.  Epoch 0: it has no whole sector. */
static void judge(const mm_config *c, const mark_block *b, uint32_t slot, uint32_t block, mm_mark *k)
{
    k->epoch = k->segments = k->discarded = k->witness = 0;
    k->retirements = 0;
    k->count = 0;
    for (uint32_t i = 0; i < MM_MARK_SECTORS; i++) {
        const mm_mark_sector *s = &b->sectors[i];
        if (is_witness(c, s, slot, block * MM_MARK_SECTORS + i)) k->witness = s->epoch;
        if (!sector_whole(c, s, slot, block * MM_MARK_SECTORS + i) || s->epoch < k->epoch) continue;
        if (s->epoch > k->epoch) k->count = 0;
        k->epoch = s->epoch;
        k->segments = s->segments;
        k->retirements = s->retirements;
        k->discarded = s->discarded;
        memcpy(k->leases + k->count, s->leases, s->count * sizeof *s->leases);
        k->count += s->count;
    }
}

/* ---- writing ----------------------------------------------------------------------------------------------------------- */

static void encode(const mm_config *c, const mm_mark *k, uint32_t slot, uint32_t block, mark_block *b)
{
    memset(b, 0, sizeof *b);
    for (uint32_t i = 0; i < MM_MARK_SECTORS; i++) {
        mm_mark_sector *s = &b->sectors[i];
        uint32_t from = i * MM_SECTOR_LEASES, n = k->count > from ? k->count - from : 0;
        *s = (mm_mark_sector){ .magic = MM_MARK_MAGIC, .count = n < MM_SECTOR_LEASES ? n : MM_SECTOR_LEASES, .epoch = k->epoch,
                               .slot = slot, .place = block * MM_MARK_SECTORS + i, .segments = (uint32_t)k->segments,
                               .retirements = k->retirements, .discarded = k->discarded };
        memcpy(s->leases, k->leases + from, s->count * sizeof *s->leases);
        s->crc = sector_crc(s, c->uuid);
    }
}

/* What a former owner wrote may not be on the disk: it died before its sync, or its sync failed and the kernel calls the page clean.
 * Writing the same bytes again makes it dirty; then one sync. */
static int settle(mm *m, const mark_block *b)
{
    int e = mm_os_write_at(m->config.marks, b, 2 * sizeof *b, block_offset(m->slot_index, 0));
    return e ? e : mm_os_sync(m->config.marks);
}

/* A witness that is newer than the mark in its block goes by intents, which are found through the mark in the other one: so that stays, though it is older
 * than what is left of this one.  Else the older mark goes (model: TAKE_SMALLER). */
static uint32_t block_to_go_over(const mm_mark *k)
{
    for (uint32_t i = 0; i < 2; i++)
        if (k[i].witness > k[i].epoch) return i;
    return k[0].epoch > k[1].epoch;
}

int mm_mark_prepare(mm *m)
{
    if (m->mark_ready) return 0;
    uint64_t at = block_offset(m->slot_index, 0);
    mark_block b[2];
    mm_mark k[2];
    int e = mm_fail_at(m->config.failpoints, MM_FAIL_MARK_PREPARE);
    if (!e) e = mm_os_read_at(m->config.marks, b, sizeof b, at); /* allocated when the slot was claimed */
    if (e) return e < 0 ? EIO : e;
    if (!zero(b, sizeof b)) e = settle(m, b);
    if (e) return e;
    for (uint32_t i = 0; i < 2; i++) judge(&m->config, &b[i], m->slot_index, i, &k[i]);
    m->mark_block = block_to_go_over(k);
    m->mark_ready = 1;
    return 0;
}

int mm_mark_write(mm *m, const mm_mark *k)
{
    int e = mm_mark_note(m, k);
    if (!e) e = mm_os_sync(m->config.marks);
    if (!e) m->mark_block ^= 1;
    return e;
}

/* Always over the same block, until one is synced: that one is never written over, and an intent is found through it (intent.c).  What it says is durable
 * already, so any sector of it may be on the disk. */
int mm_mark_note(mm *m, const mm_mark *k)
{
    mark_block b;
    encode(&m->config, k, m->slot_index, m->mark_block, &b);
    return mm_os_write_at(m->config.marks, &b, sizeof b, block_offset(m->slot_index, m->mark_block));
}

/* Over the block that holds no base, as a note. */
int mm_mark_witness(mm *m, uint64_t epoch)
{
    mm_mark_sector s = { .magic = MM_WITNESS_MAGIC, .epoch = epoch, .slot = m->slot_index, .place = m->mark_block * MM_MARK_SECTORS };
    s.crc = sector_crc(&s, m->config.uuid);
    return mm_os_write_at(m->config.marks, &s, sizeof s, block_offset(m->slot_index, m->mark_block));
}

/* The same bytes again, and a sync: an earlier one may not have written them, and nobody says so any more. */
int mm_mark_settle(const mm_config *c, uint32_t block)
{
    mark_block b;
    int e = mm_os_read_at(c->marks, &b, sizeof b, (uint64_t)block * MM_BLOCK);
    if (!e) e = mm_os_write_at(c->marks, &b, sizeof b, (uint64_t)block * MM_BLOCK);
    return e < 0 ? EIO : e ? e : mm_os_sync(c->marks);
}

/* For who recovers.  What stands in `block` stays as it is until this one is durable. */
int mm_mark_promote(const mm_config *c, const mm_mark *k, uint32_t block)
{
    mark_block b;
    encode(c, k, block / 2, block % 2 ^ 1, &b);
    int e = mm_os_write_at(c->marks, &b, sizeof b, block_offset(block / 2, block % 2 ^ 1));
    return e ? e : mm_os_sync(c->marks);
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

static bool some_sector_zero(const mark_block *b)
{
    for (uint32_t i = 0; i < MM_MARK_SECTORS; i++)
        if (zero(&b->sectors[i], sizeof b->sectors[i])) return true;
    return false;
}

/* MM_CORRUPT: the file was cut.  Other results are the body's. */
int mm_marks_each(const mm_config *c, mm_mark_body *body, void *ctx, mm_result *r)
{
    uint64_t size = mm_os_size(c->marks);
    if (size != MM_MARKS_SIZE) return mm_corrupt(r, MM_FILE_MARKS, size < MM_MARKS_SIZE ? size : MM_MARKS_SIZE);
    for (uint64_t at = 0; at < size;) {
        uint64_t data = mm_os_data(c->marks, at); /* holes are most of it */
        if (data >= size) break;
        at = data / MM_BLOCK * MM_BLOCK;
        uint32_t block = (uint32_t)(at / MM_BLOCK);
        mark_block b;
        mm_mark k;
        int e = mm_os_read_at(c->marks, &b, sizeof b, at);
        if (e) return e < 0 ? mm_corrupt(r, MM_FILE_MARKS, at) : mm_os_failed(r, e);
        judge(c, &b, block / 2, block % 2, &k);
        int rc = body(ctx, block, &k, k.epoch == 0 && !some_sector_zero(&b));
        if (rc) return rc;
        at += MM_BLOCK;
    }
    return MM_OK;
}

typedef struct newest_mark { mm_mark *newest; uint64_t hidden; } newest_mark;

static int keep_newest(void *ctx, uint32_t block, const mm_mark *k, bool hidden)
{
    newest_mark *n = ctx;
    uint64_t witness = k->witness > n->newest->witness ? k->witness : n->newest->witness;
    if (k->epoch > n->newest->epoch) *n->newest = *k;
    n->newest->witness = witness;
    if (hidden && n->hidden == UINT64_MAX) n->hidden = (uint64_t)block * MM_BLOCK;
    return MM_OK;
}

/* The newest mark (epoch 0: none was ever made), with the newest witness of any block.  MM_CORRUPT: the file was cut, or a block hides what it said. */
int mm_mark_newest(const mm_config *c, mm_mark *newest, mm_result *r)
{
    newest_mark n = { newest, UINT64_MAX };
    memset(newest, 0, sizeof *newest);
    int rc = mm_marks_each(c, keep_newest, &n, r);
    return rc ? rc : n.hidden != UINT64_MAX ? mm_corrupt(r, MM_FILE_MARKS, n.hidden) : MM_OK;
}

/* ---- mending ------------------------------------------------------------------------------------------------------------- */

/* A sector that is neither whole nor zero says again what the whole ones beside it say.  Which leases it listed is not known: it lists none.
 * Beside zeros alone it is of a mark that was never finished, and becomes zeros. */
static int mend(const mm_config *c, uint32_t slot, uint32_t block)
{
    mark_block b;
    mm_mark k;
    int e = mm_os_read_at(c->marks, &b, sizeof b, block_offset(slot, block));
    if (e) return e < 0 ? EIO : e;
    judge(c, &b, slot, block, &k);
    for (uint32_t i = 0; !e && i < MM_MARK_SECTORS; i++) {
        mm_mark_sector *s = &b.sectors[i];
        uint32_t place = block * MM_MARK_SECTORS + i;
        if (sector_whole(c, s, slot, place) || is_witness(c, s, slot, place) || zero(s, sizeof *s)) continue;
        memset(s, 0, sizeof *s);
        if (k.epoch) {
            *s = (mm_mark_sector){ .magic = MM_MARK_MAGIC, .epoch = k.epoch, .slot = slot, .place = block * MM_MARK_SECTORS + i,
                                   .segments = (uint32_t)k.segments, .retirements = k.retirements, .discarded = k.discarded };
            s->crc = sector_crc(s, c->uuid);
        }
        e = mm_os_write_at(c->marks, s, sizeof *s, block_offset(slot, block) + i * sizeof *s);
    }
    return e;
}

/* A loss of power may leave a sector of a mark torn, and its slot may not be used again: it would look like damage for ever, and be one copy
 * less of what the mark says.  For who recovers, when all is decided; nobody is attached, and mm_mark_newest found no block that hides what it
 * said.  Cut off or not synced it has changed no epoch. */
int mm_marks_mend(const mm_config *c, mm_result *r)
{
    uint64_t size = mm_os_size(c->marks);
    if (size > MM_MARKS_SIZE) size = MM_MARKS_SIZE;
    for (uint64_t at = 0; at < size; at += MM_BLOCK) {
        uint64_t data = mm_os_data(c->marks, at);
        if (data >= size) break;
        at = data / MM_BLOCK * MM_BLOCK;
        int e = mend(c, (uint32_t)(at / MM_BLOCK / 2), (uint32_t)(at / MM_BLOCK % 2));
        if (e) return mm_os_failed(r, e);
    }
    return MM_OK;
}

int mm_marks_newest(const mm_config *c, uint64_t *epoch, mm_result *r)
{
    mm_mark k;
    int rc = mm_mark_newest(c, &k, r);
    *epoch = k.epoch;
    return rc;
}
