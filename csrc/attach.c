/* attach.c - the life of an attachment: map, claim a slot, close.  And the volatile files: made fresh, identified.
 *
 * Bytes of a store are input.  Every size that `control` publishes is compared with the size of the file before it is
 * believed (the *_safe words), so a hostile one gives MM_CORRUPT, never a fault.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mapped.h"

#define CONTROL_WINDOW (MM_CONTROL_SEGMENTS + MM_MAX_SEGMENTS * sizeof(mm_segment))
#define TABLE_FRESH 1024u /* head words of a new store */

uint64_t mm_layout_fingerprint(void)
{
    const uint64_t parts[] = { MM_LAYOUT_VERSION, MM_FORMAT, sizeof(mm_record), sizeof(mm_globals), sizeof(mm_slot), sizeof(mm_segment),
                               sizeof(mm_identity), MM_CONTROL_GLOBALS, MM_CONTROL_SLOTS, MM_CONTROL_SEGMENTS, MM_SLOTS, MM_PINS, MM_VIEWS,
                               MM_WORDS_OFFSET, MM_BLOCK, offsetof(mm_globals, log_size), offsetof(mm_globals, max_pid),
                               offsetof(mm_globals, slots_used), offsetof(mm_slot, views), offsetof(mm_segment, salt) };
    uint64_t f = crc32c_extend(0, parts, sizeof parts);
    return f << 32 | crc32c_extend(1, parts, sizeof parts);
}

/* ---- fresh volatile files ------------------------------------------------------------------------------------------ */

static int format_words(int fd, uint32_t role, const uint64_t *open_id, uint64_t words, mm_result *r)
{
    mm_words_header h = { MM_WORDS_MAGIC, MM_LAYOUT_VERSION, role, { open_id[0], open_id[1] } };
    int e = mm_os_grow(fd, 0, MM_WORDS_OFFSET + words * 8);
    if (!e) e = mm_os_write_at(fd, &h, sizeof h, 0);
    return e ? mm_os_failed(r, e) : MM_OK;
}

/* The open id travels in the identity block, which mm_format leaves invalid (no magic) until mm_identity_write. */
int mm_format(const mm_config *c, mm_result *r)
{
    mm_identity id;
    memset(&id, 0, sizeof id);
    int e = mm_os_random(id.open_id, sizeof id.open_id);
    if (!e) e = mm_os_grow(c->control, 0, MM_CONTROL_SLOTS + MM_SLOTS_READY * sizeof(mm_slot));
    if (!e) e = mm_os_grow(c->control, MM_CONTROL_SEGMENTS, MM_CONTROL_FRESH);
    if (!e) e = mm_os_write_at(c->control, &id, sizeof id, 0);
    mm_globals g;
    memset(&g, 0, sizeof g);
    atomic_init(&g.epoch.v, 1);
    atomic_init(&g.table_pages.v, TABLE_FRESH);
    atomic_init(&g.max_pid.v, 2);
    atomic_init(&g.sweep.v, MM_SWEEP_DONE);
    if (!e) e = mm_os_write_at(c->control, &g, sizeof g, MM_CONTROL_GLOBALS);
    if (e) return mm_os_failed(r, e);
    int rc = format_words(c->table, 1, id.open_id, TABLE_FRESH, r);
    if (!rc) rc = format_words(c->ids, 2, id.open_id, TABLE_FRESH / 64, r);
    if (!rc) rc = format_words(c->rts, 3, id.open_id, 0, r);
    return rc;
}

int mm_set_epoch(const mm_config *c, uint64_t epoch, uint64_t stable, mm_result *r)
{
    int e = mm_os_write_at(c->control, &epoch, 8, MM_CONTROL_GLOBALS + offsetof(mm_globals, epoch));
    if (!e) e = mm_os_write_at(c->control, &stable, 8, MM_CONTROL_GLOBALS + offsetof(mm_globals, stable));
    if (!e) e = mm_os_write_at(c->control, &stable, 8, MM_CONTROL_GLOBALS + offsetof(mm_globals, marked)); /* the marks were synced */
    if (!e) e = mm_os_write_at(c->control, &epoch, 8, MM_CONTROL_GLOBALS + offsetof(mm_globals, life));
    if (!e) e = mm_os_write_at(c->control, &epoch, 8, MM_CONTROL_GLOBALS + offsetof(mm_globals, dirty)); /* what counts may be newer than D */
    return e ? mm_os_failed(r, e) : MM_OK;
}

/* ---- identity -------------------------------------------------------------------------------------------------------- */

static uint32_t identity_crc(const mm_identity *id)
{
    return crc32c_extend(0, (const uint8_t *)id + offsetof(mm_identity, layout_version), sizeof *id - offsetof(mm_identity, layout_version));
}

static int identity_of_files(const mm_config *c, mm_identity *id)
{
    int e = mm_os_identity(c->control, &id->control);
    if (!e) e = mm_os_identity(c->table, &id->table);
    if (!e) e = mm_os_identity(c->log, &id->log);
    if (!e) e = mm_os_identity(c->ids, &id->ids);
    if (!e) e = mm_os_identity(c->rts, &id->rts);
    return e;
}

/* Everything but the first word, then the first word: a death in between leaves files that nobody trusts. */
int mm_identity_write(const mm_config *c, int ready, mm_result *r)
{
    mm_identity old, id;
    int e = mm_os_read_at(c->control, &old, sizeof old, 0);
    if (e) return e < 0 ? mm_corrupt(r, MM_FILE_CONTROL, 0) : mm_os_failed(r, e);
    memset(&id, 0, sizeof id);
    id.layout_version = MM_LAYOUT_VERSION;
    id.fingerprint = mm_layout_fingerprint();
    memcpy(id.uuid, c->uuid, sizeof id.uuid);
    memcpy(id.boot_id, c->boot_id, sizeof id.boot_id);
    memcpy(id.open_id, old.open_id, sizeof id.open_id);
    e = identity_of_files(c, &id);
    id.crc = identity_crc(&id);
    if (!e) e = mm_os_write_at(c->control, (const uint8_t *)&id + 8, sizeof id - 8, 8);
    uint64_t magic = ready ? MM_CONTROL_MAGIC : MM_CONTROL_REPLACED;
    if (!e) e = mm_os_write_at(c->control, &magic, 8, 0);
    return e ? mm_os_failed(r, e) : MM_OK;
}

int mm_identity_clear(const mm_config *c, mm_result *r)
{
    uint64_t magic, gone = MM_CONTROL_REPLACED;
    int e = mm_os_read_at(c->control, &magic, 8, 0);
    if (e <= 0 && (e < 0 || magic != MM_CONTROL_MAGIC)) return MM_OK;
    if (!e) e = mm_os_write_at(c->control, &gone, 8, 0);
    return e ? mm_os_failed(r, e) : MM_OK;
}

static int mismatch(mm_result *r, uint32_t what)
{
    r->file = what;
    return MM_MISMATCH;
}

static bool words_belong(int fd, uint32_t role, const mm_identity *id)
{
    mm_words_header h;
    return mm_os_read_at(fd, &h, sizeof h, 0) == 0 && h.magic == MM_WORDS_MAGIC && h.role == role && h.layout_version == MM_LAYOUT_VERSION
           && memcmp(h.open_id, id->open_id, sizeof h.open_id) == 0;
}

int mm_identity_check(const mm_config *c, mm_result *r)
{
    mm_identity id, files;
    int e = mm_os_read_at(c->control, &id, sizeof id, 0);
    if (e > 0) return mm_os_failed(r, e);
    if (e < 0 || (id.magic != MM_CONTROL_MAGIC && id.magic != MM_CONTROL_REPLACED)) return mismatch(r, MM_MISMATCH_ABSENT);
    if (id.crc != identity_crc(&id)) return mismatch(r, MM_MISMATCH_CHECKSUM);
    if (memcmp(id.uuid, c->uuid, sizeof id.uuid)) return mismatch(r, MM_MISMATCH_UUID);
    if (memcmp(id.boot_id, c->boot_id, sizeof id.boot_id)) return mismatch(r, MM_MISMATCH_BOOT);
    memset(&files, 0, sizeof files);
    e = identity_of_files(c, &files);
    if (e) return mm_os_failed(r, e);
    if (memcmp(&files.control, &id.control, sizeof id.control) || memcmp(&files.log, &id.log, sizeof id.log))
        return mismatch(r, MM_MISMATCH_FILES);
    uint64_t failed = 0;
    e = mm_os_read_at(c->control, &failed, 8, MM_CONTROL_GLOBALS + offsetof(mm_globals, failed));
    if (e || failed) return mismatch(r, MM_MISMATCH_FAILED); /* the kernel may call lost pages clean: only what is durable counts */
    r->offset = 1; /* control and log are of this boot: only the table would have to be made again */
    if (id.magic == MM_CONTROL_REPLACED) return mismatch(r, MM_MISMATCH_ABSENT);
    if (memcmp(&files.control, &id.control, 5 * sizeof id.control)) return mismatch(r, MM_MISMATCH_FILES);
    if (id.layout_version != MM_LAYOUT_VERSION || id.fingerprint != mm_layout_fingerprint()) return mismatch(r, MM_MISMATCH_LAYOUT);
    if (!words_belong(c->table, 1, &id) || !words_belong(c->ids, 2, &id) || !words_belong(c->rts, 3, &id)) return mismatch(r, MM_MISMATCH_FILES);
    if (!mm_control_holds(c)) return mismatch(r, MM_MISMATCH_CONTROL);
    return MM_OK;
}

/* ---- attach ------------------------------------------------------------------------------------------------------------ */

/* Forgets the numbers too: after a fork, or a second call, they may belong to somebody else's files. */
static void close_files(mm_config *c)
{
    int32_t *fds[] = { &c->control, &c->table, &c->log, &c->ids, &c->rts, &c->marks, &c->lock };
    for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (*fds[i] >= 0) close(*fds[i]);
        *fds[i] = -1;
    }
}

void mm_os_unmap_files(mm *m)
{
    mm_os_unmap(m->control, m->control_window);
    mm_os_unmap(m->log, m->log_window);
    mm_os_unmap(m->table_map, m->words_window);
    mm_os_unmap(m->ids_map, m->words_window);
    mm_os_unmap(m->rts_map, m->words_window);
    m->control = m->log = m->table_map = m->ids_map = m->rts_map = NULL;
    mm_metrics_unmap(m);
}

/* Windows for log and word files.  2 TiB and 2^34 head words: an address holds more, but a process has room for 128 TiB in all its stores.
 * The smaller ones are for limited address spaces (ulimit -v, sanitizers). */
static const struct { uint64_t log, words; } windows[] = {
    { UINT64_C(1) << 41, UINT64_C(1) << 37 }, { UINT64_C(1) << 36, UINT64_C(1) << 32 }, { UINT64_C(1) << 30, UINT64_C(1) << 26 } };

static int map_windows(mm *m, unsigned size)
{
    const mm_config *c = &m->config;
    m->control_window = CONTROL_WINDOW;
    m->log_window = windows[size].log;
    m->words_window = windows[size].words;
    enum mm_map how = c->observes == MM_OBSERVE_LIVE ? MM_MAP_READ : MM_MAP_SHARED;
    int e = mm_os_map(c->control, m->control_window, how, &m->control);
    if (!e) e = mm_os_map(c->log, m->log_window, c->carried || c->observes == MM_OBSERVE_ALONE ? MM_MAP_PRIVATE : how, &m->log);
    if (!e) e = mm_os_map(c->table, m->words_window, how, &m->table_map);
    if (!e) e = mm_os_map(c->ids, m->words_window, how, &m->ids_map);
    if (!e) e = mm_os_map(c->rts, m->words_window, how, &m->rts_map);
    if (e) mm_os_unmap_files(m);
    return e;
}

int mm_os_map_files(mm *m)
{
    int e = ENOMEM;
    for (unsigned size = 0; e == ENOMEM && size < sizeof windows / sizeof *windows; size++) e = map_windows(m, size);
    if (e) return e;
    m->g = (mm_globals *)(m->control + MM_CONTROL_GLOBALS);
    m->slots = (mm_slot *)(m->control + MM_CONTROL_SLOTS);
    m->segments = (mm_segment *)(m->control + MM_CONTROL_SEGMENTS);
    m->table = (at_word *)(m->table_map + MM_WORDS_OFFSET);
    m->ids = (at_word *)(m->ids_map + MM_WORDS_OFFSET);
    m->rts = (at_word *)(m->rts_map + MM_WORDS_OFFSET);
    m->table_capacity = (m->words_window - MM_WORDS_OFFSET) / 8;
    return 0;
}

void mm_set_limits(mm *m)
{
    const mm_config *c = &m->config;
    m->segment_shift = c->segment_shift;
    m->segment_size = UINT64_C(1) << c->segment_shift;
    m->group_limit = m->segment_size - MM_BLOCK - sizeof(mm_lease_header) - sizeof(mm_segment_stamp);
    m->merge_kind = c->merge_kind;
    m->threshold = c->threshold;
    m->id_interval = c->id_interval ? c->id_interval : MM_ID_INTERVAL;
    m->tidy_depth = c->threshold;
    m->max_depth = c->threshold < 31 ? c->threshold * 8 : 250; /* depth is a byte */
    m->uuid_seed = crc32c_extend(0, c->uuid, sizeof c->uuid);
    m->lease.next_size = MM_BLOCK;
}

static int sizes_hold(mm *m, mm_result *r)
{
    if (mm_os_size(m->config.control) < MM_CONTROL_FRESH) return mm_corrupt(r, MM_FILE_CONTROL, mm_os_size(m->config.control));
    at_word *head;
    int rc = mm_head(m, 0, &head, r); /* compares the table's size */
    if (rc) return rc == MM_NOPAGE ? mm_corrupt(r, MM_FILE_TABLE, 0) : rc;
    return mm_log_whole(m, r);
}

static int measure_and_claim(mm *m, void *args, mm_result *r)
{
    (void)args;
    mm_carried_put(m);
    m->config.carried = NULL;
    int rc = sizes_hold(m, r);
    if (rc || !m->config.observes) return rc ? rc : mm_slot_claim(m, r);
    m->slot = m->unshared; /* pins go there, and hold nothing */
    m->slot_index = MM_SLOTS;
    return MM_OK;
}

static int attach(mm *m, mm_result *r)
{
    pthread_mutex_init(&m->publish, NULL);
    pthread_mutex_init(&m->sharing, NULL);
    pthread_mutex_init(&m->flushing, NULL);
    pthread_mutex_init(&m->cleaning, NULL);
    m->alive = mm_os_wiped_page();
    if (!m->alive) return mm_os_failed(r, errno);
    if (m->config.observes && !(m->unshared = calloc(1, sizeof *m->unshared))) return mm_os_failed(r, ENOMEM);
    int e = mm_os_map_files(m);
    if (!e) e = mm_mapped_begin(m);
    if (e) return mm_os_failed(r, e);
    mm_set_limits(m); /* before the claim: a reaper looks into segments */
    mm_guard_install();
    int rc = mm_guarded(m, r, measure_and_claim, NULL);
    m->tidy_depth += m->slot_index % 4; /* readers of one page do not all consolidate it at the same depth */
    return rc;
}

static void release_memory(mm *m)
{
    if (m->alive) munmap(m->alive, 4096);
    mm_mapped_end(m);
    free(m->unshared);
    free(m);
}

mm *mm_attach(const mm_config *c, int *status, mm_result *r)
{
    mm *m = calloc(1, sizeof *m);
    if (!m) {
        mm_config copy = *c;
        close_files(&copy);
        *status = mm_os_failed(r, ENOMEM);
        return NULL;
    }
    m->config = *c;
    m->attach_begun = m->ticks_begun = mm_os_ticks();
    m->time_begun = mm_os_monotonic();
    *status = attach(m, r);
    if (*status == MM_OK) return m;
    mm_os_unmap_files(m);
    close_files(&m->config);
    release_memory(m);
    return NULL;
}

/* ---- the end ------------------------------------------------------------------------------------------------------------- */

static int release_slot(mm *m, void *args, mm_result *r)
{
    (void)args, (void)r;
    if (!m->config.observes) mm_slot_release(m);
    return MM_OK;
}

/* Exactly one caller gets here with `finished` still 0: mm_close, or the last call that leaves. */
void mm_finish(mm *m)
{
    uint64_t expected = 0;
    if (!pv_cas(&m->finished, &expected, 1)) return;
    mm_guarded(m, NULL, release_slot, NULL); /* a slot that cannot be written to is free when its byte is: who claims it reaps it */
    mm_os_unmap_files(m);
    close_files(&m->config);
}

static int give_back(mm *m, void *args, mm_result *r)
{
    (void)args, (void)r;
    mm_ids_give_back(m);
    mm_announce(m);
    mm_account_flush(m);
    at_store_release(&m->slot->announce, 0);
    return MM_OK;
}

void mm_close(mm *m)
{
    if (*m->alive != MM_ALIVE) {
        mm_orphan(m);
        return;
    }
    pthread_mutex_lock(&m->publish); /* no publish is under way, and none begins once the flag is set */
    if (!(pv_load(&m->busy) & MM_CLOSING)) mm_guarded(m, NULL, give_back, NULL);
    uint64_t old = pv_or(&m->busy, MM_CLOSING);
    pthread_mutex_unlock(&m->publish);
    if (!(old & ~MM_CLOSING)) mm_finish(m);
}

/* A child that inherited an attachment: its copies of the descriptors go (the parent's lock then ends with the parent), its
 * mapping stays until mm_destroy, since a cached object may still be compared with it. */
void mm_orphan(mm *m)
{
    *m->alive = 0;
    close_files(&m->config);
}

void mm_destroy(mm *m)
{
    if (*m->alive == MM_ALIVE) mm_close(m);
    else mm_orphan(m);
    if (!pv_load(&m->finished)) mm_os_unmap_files(m);
    release_memory(m);
}

int mm_is_closed(const mm *m) { return pv_load(&m->finished) != 0; }
uint32_t mm_slot_number(const mm *m) { return m->slot_index; }
/* A payload up to this lies in its record: a BASE that fits half a group, a DELTA that fits a quarter, so that any DELTA may follow any BASE. */
uint64_t mm_inline_limit(const mm *m, enum mm_kind kind)
{
    return (m->group_limit / (kind == MM_KIND_DELTA ? 4 : 2) - MM_RECORD_HEADER - MM_INDEX_MAX) & ~UINT64_C(7);
}
uint64_t mm_limit(const mm *m)
{
    (void)m;
    return MM_EXTENT_MOST;
}
