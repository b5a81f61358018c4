/* flush.c - durability: one epoch step, one sync of the log, one mark, one sync of the marks.
 *
 * cut(D) = every committed record with colour <= D, D the newest mark.  If B's author saw A, A's commit word was stored before B's
 * colour was loaded, hence before the epoch left D, hence before the sync (model: publish.pml).  A stopped or dead process is
 * just a record that nobody saw; nothing has to be found or waited for.
 *
 * A mark goes over the block of the slot with the smaller valid mark, one flush of a slot at a time, and a new owner of a slot syncs
 * `marks` before its first one, so a torn mark never hurts the newest (model: marks.pml).
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

static uint32_t mark_crc(const mm_mark *k, const uint8_t *uuid)
{
    uint32_t c = crc32c_extend(0, uuid, 16);
    return crc32c_extend(c, (const uint8_t *)k + 12, sizeof *k - 12);
}

/* 0: valid, -1: not a mark (a hole, or torn), else an errno. */
static int mark_read(const mm_config *c, uint32_t slot, uint32_t block, mm_mark *k)
{
    int e = mm_os_read_at(c->marks, k, sizeof *k, ((uint64_t)slot * 2 + block) * sizeof *k);
    if (e) return e;
    return k->magic == MM_MARK_MAGIC && k->slot == slot && k->block == block && k->crc == mark_crc(k, c->uuid) ? 0 : -1;
}

/* Between the epoch step and the sync: what lies below these fills is durable when the mark is, so damage there is damage (C14). */
static void list_leases(mm *m, mm_mark *k)
{
    memset(k, 0, sizeof *k);
    for (uint32_t i = 0; i < MM_SLOTS && i < at_load_acquire(&m->g->slots_used) && k->count < MM_MARK_LEASES; i++) {
        mm_slot *s = &m->slots[i];
        uint64_t lease = at_load_acquire(&s->lease), fill = at_load_acquire(&s->lease_fill);
        if (!lease || !fill || at_load_acquire(&s->lease) != lease) continue; /* a new lease begins just now */
        k->leases[k->count].address = lease;
        k->leases[k->count++].fill = fill;
    }
}

static int write_mark(mm *m, mm_mark *k, uint64_t epoch, mm_result *r)
{
    mm_mark a, b;
    uint32_t slot = m->slot_index;
    int ea = mark_read(&m->config, slot, 0, &a), eb = mark_read(&m->config, slot, 1, &b);
    if (ea > 0 || eb > 0) return mm_os_failed(r, ea > 0 ? ea : eb);
    uint32_t block = ea == 0 && (eb != 0 || b.epoch < a.epoch) ? 1 : 0;
    uint64_t at = ((uint64_t)slot * 2 + block) * sizeof a;
    int e = 0;
    if (!m->mark_synced) e = mm_os_sync(m->config.marks);
    if (e) return mm_os_failed(r, e);
    m->mark_synced = 1;
    k->magic = MM_MARK_MAGIC;
    k->epoch = epoch;
    k->slot = slot;
    k->block = block;
    k->crc = mark_crc(k, m->config.uuid);
    e = mm_os_write_at(m->config.marks, k, sizeof *k, at);
    if (!e) e = mm_os_sync(m->config.marks);
    return e ? mm_os_failed(r, e) : MM_OK;
}

/* A failed sync is final for everybody: the kernel may call the lost pages clean from now on. */
static int sync_failed(mm *m, int error, mm_result *r)
{
    uint64_t none = 0;
    at_cas_acq_rel(&m->g->failed, &none, (uint64_t)error);
    r->os_error = error;
    return MM_FAILED;
}

static int flush_now(mm *m, mm_result *r)
{
    uint64_t mine = (uint64_t)m->slot_index * 2 * sizeof(mm_mark);
    int e = m->mark_synced ? 0 : mm_os_grow(m->config.marks, mine, mine + 2 * sizeof(mm_mark));
    if (e) return mm_os_failed(r, e); /* no room for the mark: before anything has begun */
    uint64_t E = at_add_seq_cst(&m->g->epoch, 1);
    at_fence_full(); /* who loaded E as its colour has its commit words in memory */
    at_store_seq_cst(&m->slot->syncing, E);
    mm_mark mark;
    list_leases(m, &mark);
    e = mm_os_sync(m->config.log);
    if (e) return sync_failed(m, e, r);
    int rc = write_mark(m, &mark, E, r);
    if (rc) return sync_failed(m, r->os_error, r);
    at_max_release(&m->g->stable, E);
    at_store_release(&m->slot->syncing, 0);
    return MM_OK;
}

int mm_flush(mm *m, uint64_t lsn, uint64_t *advanced, mm_result *r)
{
    uint32_t pin;
    memset(r, 0, sizeof *r);
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    uint64_t target = lsn ? lsn : at_load_acquire(&m->g->epoch), before = at_load_acquire(&m->g->stable);
    bool dirty = at_load_acquire(&m->g->dirty) > before;
    pthread_mutex_lock(&m->flushing);
    uint64_t failed = at_load_acquire(&m->g->failed);
    if (failed) {
        r->os_error = (int32_t)failed;
        rc = MM_FAILED;
    } else if (at_load_acquire(&m->g->stable) < target)
        rc = flush_now(m, r);
    pthread_mutex_unlock(&m->flushing);
    *advanced = dirty || lsn ? at_load_acquire(&m->g->stable) - before : 0;
    mm_leave(m, pin);
    return rc;
}

/* ---- reading marks, with nobody attached -------------------------------------------------------------------------------------- */

/* Zero bytes are a mark never written; anything else that does not hold was torn by a crash, or is damaged. */
static bool written(const mm_mark *k)
{
    const uint8_t *b = (const uint8_t *)k;
    for (uint64_t i = 0; i < sizeof *k; i++)
        if (b[i]) return true;
    return false;
}

/* The newest whole mark (epoch 0: none).  A crash tears at most the newest of a slot's two; none whole at all is damage. */
int mm_mark_newest(const mm_config *c, mm_mark *newest, mm_result *r)
{
    mm_mark k;
    bool torn = false;
    memset(newest, 0, sizeof *newest);
    uint64_t size = mm_os_size(c->marks), blocks = size / sizeof k;
    for (uint64_t i = 0; i < blocks && i < 2 * MM_SLOTS; i++) {
        int e = mark_read(c, (uint32_t)(i / 2), (uint32_t)(i % 2), &k);
        if (e > 0) return mm_os_failed(r, e);
        if (e == 0 && k.epoch > newest->epoch) *newest = k;
        if (e < 0) torn |= written(&k);
    }
    return newest->epoch == 0 && torn ? mm_corrupt(r, MM_FILE_MARKS, 0) : MM_OK;
}

int mm_marks_newest(const mm_config *c, uint64_t *epoch, mm_result *r)
{
    mm_mark k;
    int rc = mm_mark_newest(c, &k, r);
    *epoch = k.epoch;
    return rc;
}
