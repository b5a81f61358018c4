/* snapshot.c - the page table as it was, written while everybody goes on, and read by a recovery to have less of the log to read.
 *
 * It makes nothing true or false: what recoveries discarded stands in `config`, so a recovery without a snapshot, or with an older one, finds
 * the same (model: discard.pml), but for a record that was published and that nobody committed, hence nobody has seen: a recovery
 * removes the snapshots that it did not use, so that no later one decides otherwise.  A damaged one costs time.
 *
 * Order of the copy (models: reuse.pml, scan.pml).  a0 = epoch; fence; a = min(a0, the epochs announced by publishes under way): who is not
 * seen loads its colour later, so what the heads miss has a colour >= a.  Then, under one pin: the segment states, then the leases announced in the
 * slots, then the heads.  A lease is announced before it is taken, and taken only in an OPEN segment; so what is published after its head was
 * copied lies in a segment that was OPEN, or under a lease, or has been opened since.  The pin keeps the segments of the heads from being used
 * again before their generations are read.  Then a flush, b: the heads' records are durable, with colours <= b.
 *
 * Died or stopped anywhere here: a file that has no header, or the name of a temporary one.  The pin of a stopped one delays the reuse of space.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define PAGES_AT_ONCE 4096u

static uint64_t body_size(uint64_t segments, uint64_t pages) { return segments * sizeof(mm_snapshot_entry) + pages * 8; }
static uint64_t chunks_of(uint64_t body) { return (body + MM_SNAPSHOT_CHUNK - 1) / MM_SNAPSHOT_CHUNK; }

static uint32_t salted(const uint8_t *uuid, uint64_t salt) { return crc32c_word(crc32c_extend(0, uuid, 16), salt); }

static uint32_t header_crc(const uint8_t *block, const uint8_t *uuid)
{
    return crc32c_extend(crc32c_extend(0, uuid, 16), block + 12, MM_BLOCK - 12);
}

/* ---- writing --------------------------------------------------------------------------------------------------------------- */

typedef struct writer {
    mm *m;
    int fd;
    uint32_t seed, filled;
    uint64_t chunks, room, begun;
    uint32_t *sums;
    uint8_t *chunk;
    mm_snapshot_entry *entries;
    mm_snapshot_taken *taken;
} writer; /* what it holds is freed by mm_snapshot_write, also after a fault */

static int put_chunk(writer *w)
{
    if (!w->filled) return 0;
    if (w->chunks == w->room) {
        uint64_t room = w->room ? 2 * w->room : 64;
        uint32_t *more = realloc(w->sums, room * sizeof *more);
        if (!more) return ENOMEM;
        w->sums = more;
        w->room = room;
    }
    w->sums[w->chunks] = crc32c_extend(crc32c_word(w->seed, w->chunks), w->chunk, w->filled);
    int e = mm_fail_at(w->m->config.failpoints, MM_FAIL_SNAP_WRITE);
    if (!e) e = mm_os_write_at(w->fd, w->chunk, w->filled, MM_BLOCK + w->chunks * MM_SNAPSHOT_CHUNK);
    w->chunks++;
    w->filled = 0;
    return e;
}

static int put(writer *w, const void *p, uint64_t n)
{
    const uint8_t *b = p;
    while (n) {
        uint64_t part = MM_SNAPSHOT_CHUNK - w->filled < n ? MM_SNAPSHOT_CHUNK - w->filled : n;
        memcpy(w->chunk + w->filled, b, part);
        w->filled += (uint32_t)part;
        b += part;
        n -= part;
        int e = w->filled == MM_SNAPSHOT_CHUNK ? put_chunk(w) : 0;
        if (e) return e;
    }
    return 0;
}

/* The smallest colour that a publish under way may still get. */
static uint64_t oldest_colour(mm *m)
{
    uint64_t a = at_load_acquire(&m->g->epoch);
    at_fence_full(); /* who announces after this loads its colour after a0 */
    for (uint32_t i = 0; i < MM_SLOTS && i < at_load_acquire(&m->g->slots_used); i++) {
        uint64_t announced = at_load_acquire(&m->slots[i].announce);
        if (announced && announced < a) a = announced;
    }
    return a;
}

/* States first, leases second.  The last lease of a slot that is free holds nothing new: whoever claims it takes another one. */
static void copy_segments(mm *m, uint64_t n, mm_snapshot_entry *entries)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t word = at_load_acquire(&m->segments[i].word), state = mm_segword_state(word);
        bool open = state == MM_SEG_OPEN || state == MM_SEG_PREPARING;
        bool none = state == MM_SEG_FREE || state == MM_SEG_PUNCHING || state == MM_SEG_HOLE;
        /* A free one is none.  Its header may never have been written: then a restart forgets its generation, and it comes again. */
        entries[i].word = none ? 0 : mm_segword_generation(word) << 32 | (open ? MM_SNAPSHOT_SCAN : 0);
        entries[i].live = at_load_relaxed(&m->segments[i].live);
        if (state == MM_SEG_EXTENT && mm_segword_rest(word) & MM_REST_RUN) entries[i].word |= MM_SNAPSHOT_RUN;
        else if (state == MM_SEG_EXTENT) entries[i].word = 0; /* the first one of its run speaks for it */
    }
    for (uint32_t i = 0; i < MM_SLOTS && i < at_load_acquire(&m->g->slots_used); i++) {
        bool live = (at_load_acquire(&m->slots[i].state) & 255) == MM_SLOT_LIVE;
        uint64_t segment = at_load_acquire(&m->slots[i].lease) >> m->segment_shift;
        if (live && segment < n && at_load_relaxed(&m->slots[i].lease)) entries[segment].word |= MM_SNAPSHOT_SCAN;
    }
}

static int copy_heads(writer *w, uint64_t pages)
{
    uint64_t heads[PAGES_AT_ONCE];
    for (uint64_t pid = 0; pid < pages;) {
        uint64_t n = pages - pid < PAGES_AT_ONCE ? pages - pid : PAGES_AT_ONCE;
        for (uint64_t i = 0; i < n; i++) heads[i] = at_load_acquire(&w->m->table[pid + i]); /* the record is complete */
        int e = put(w, heads, n * 8);
        if (e) return e;
        pid += n;
    }
    return put_chunk(w);
}

/* Up to the last head word that is not 0: max_pid, which may have been damaged while nobody was here, decides nothing that lasts. */
static uint64_t used_pages(mm *m, uint64_t table_pages)
{
    uint64_t least = at_load_acquire(&m->g->max_pid), n = table_pages;
    while (n > least && !at_load_relaxed(&m->table[n - 1])) n--;
    return n;
}

static int copy_heads_and_segments(writer *w, mm_snapshot_header *h, mm_result *r)
{
    mm *m = w->m;
    at_word *head;
    h->log_taken = at_load_acquire(&m->g->log_taken);
    w->begun = at_add_seq_cst(&m->g->epoch, 1) + 1; /* a step: what was written before has a smaller LSN */
    mm_epoch_time(m, w->begun);
    h->a = oldest_colour(m);
    h->segments = at_load_acquire(&m->g->segments);
    if (h->segments && !mm_segment_of(m, (h->segments - 1) << m->segment_shift, r)) return MM_CORRUPT;
    w->entries = calloc(h->segments + 1, sizeof *w->entries);
    if (!w->entries) return mm_os_failed(r, ENOMEM);
    copy_segments(m, h->segments, w->entries);
    h->pages = at_load_acquire(&m->g->table_pages);
    int rc = h->pages ? mm_head(m, h->pages - 1, &head, r) : MM_OK; /* compares the sizes */
    if (!rc) h->pages = used_pages(m, h->pages);
    int e = rc ? 0 : put(w, w->entries, h->segments * sizeof *w->entries);
    if (!rc && !e) e = copy_heads(w, h->pages);
    if (!rc && !e) rc = mm_measure(m, r); /* a cut table: zeros would be pages that a recovery does not look for */
    h->log_size = at_load_acquire(&m->g->log_size);
    return rc ? rc : e ? mm_os_failed(r, e) : MM_OK;
}

/* The checksums, then the header, then a sync: what has a header that holds is whole. */
static int finish(writer *w, mm_snapshot_header *h, mm_result *r)
{
    uint8_t block[MM_BLOCK] = { 0 };
    uint64_t sums = w->chunks * sizeof *w->sums;
    h->chunks_crc = crc32c_extend(crc32c_extend(0, w->m->config.uuid, 16), w->sums, sums);
    memcpy(block, h, sizeof *h);
    h->crc = header_crc(block, w->m->config.uuid);
    memcpy(block, h, sizeof *h);
    mm_failpoints *f = w->m->config.failpoints;
    int e = mm_fail_at(f, MM_FAIL_SNAP_WRITE_CRC);
    if (!e && sums) e = mm_os_write_at(w->fd, w->sums, sums, MM_BLOCK + body_size(h->segments, h->pages));
    if (!e) e = mm_fail_at(f, MM_FAIL_SNAP_WRITE_LEN);
    if (!e) e = mm_os_write_at(w->fd, block, sizeof block, 0);
    if (!e) e = mm_os_sync(w->fd);
    if (!e) e = mm_fail_at(f, MM_FAIL_SNAP_WRITE_POST);
    return e ? mm_os_failed(r, e) : MM_OK;
}

static int write_snapshot(writer *w, mm_result *r)
{
    mm *m = w->m;
    mm_snapshot_header h = { .magic = MM_SNAPSHOT_MAGIC, .format = MM_FORMAT, .segment_shift = m->segment_shift, .created = mm_os_now() };
    uint64_t advanced;
    int e = mm_os_random(&h.salt, sizeof h.salt);
    if (e) return mm_os_failed(r, e);
    w->seed = salted(m->config.uuid, h.salt);
    int rc = copy_heads_and_segments(w, &h, r);
    if (!rc) rc = mm_flush(m, at_load_acquire(&m->g->epoch), &advanced, r);
    if (rc) return rc;
    h.b = at_load_acquire(&m->g->stable);
    *w->taken = (mm_snapshot_taken){ h.b, w->begun, h.log_taken };
    return finish(w, &h, r);
}

/* Writes a snapshot into an empty file; whole and durable on return, under whatever name it has. */
static int write_pinned(mm *m, void *args, mm_result *r)
{
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL); /* to the end: it also keeps the mapping */
    if (rc) return rc;
    uint64_t begun = mm_time_begin(m);
    rc = write_snapshot(args, r);
    if (!rc) {
        mm_count(m, MM_COUNT_snapshots, 1);
        mm_time_end(m, MM_TIME_snapshot, begun, 1);
    }
    mm_leave(m, pin);
    return rc;
}

int mm_snapshot_write(mm *m, int fd, mm_snapshot_taken *t, mm_result *r)
{
    memset(r, 0, sizeof *r);
    writer w = { .m = m, .fd = fd, .taken = t, .chunk = malloc(MM_SNAPSHOT_CHUNK) };
    int rc = w.chunk ? mm_guarded(m, r, write_pinned, &w) : mm_os_failed(r, ENOMEM);
    free(w.chunk);
    free(w.sums);
    free(w.entries);
    return rc;
}

static int named(mm *m, void *taken, mm_result *r)
{
    (void)r;
    const mm_snapshot_taken *t = taken;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    at_max_release(&m->g->log_snapshot, t->log_taken); /* died before: another one is written */
    at_max_release(&m->g->snapshot_epoch, t->begun);
    at_store_relaxed(&m->g->snapshot_due, 0);
    at_add_relaxed(&m->g->snapshots, 1);
    mm_leave(m, pin);
    return MM_OK;
}

/* Not before: a snapshot that got no name would let the last close cut off what only it explains (rewrite.c, truncate_log). */
void mm_snapshot_named(mm *m, const mm_snapshot_taken *t)
{
    mm_snapshot_taken taken = *t;
    mm_guarded(m, NULL, named, &taken);
}

/* ---- when ---------------------------------------------------------------------------------------------------------------------- */

#define SNAPSHOT_LEAST (UINT64_C(64) << 20)
#define SNAPSHOT_PATIENCE UINT64_C(60000000000) /* ns until another process may take the work from one that does not get on with it */

/* The log written since the newest one is worth a new one: twice the size of what would be written, and 64 MiB. */
bool mm_snapshot_wanted(mm *m)
{
    uint64_t size = body_size(at_load_relaxed(&m->g->segments), at_load_relaxed(&m->g->max_pid));
    uint64_t since = at_load_relaxed(&m->g->log_taken) - at_load_relaxed(&m->g->log_snapshot);
    return since >= SNAPSHOT_LEAST && since >= 2 * size;
}

static int claim(mm *m, void *answer, mm_result *r)
{
    (void)r;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    uint64_t now = mm_os_monotonic(), due = at_load_acquire(&m->g->snapshot_due);
    bool free = due <= now || due > now + 2 * SNAPSHOT_PATIENCE;
    *(bool *)answer = free && mm_snapshot_wanted(m) && at_cas_acq_rel(&m->g->snapshot_due, &due, now + SNAPSHOT_PATIENCE);
    mm_leave(m, pin);
    return MM_OK;
}

static int stale(mm *m, void *answer, mm_result *r)
{
    (void)r;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    *(bool *)answer = at_load_acquire(&m->g->dirty) >= at_load_acquire(&m->g->snapshot_epoch)
                 || at_load_acquire(&m->g->log_taken) != at_load_acquire(&m->g->log_snapshot);
    mm_leave(m, pin);
    return MM_OK;
}

/* 1: the caller is to write one now. */
int mm_snapshot_claim(mm *m)
{
    bool mine = false;
    return mm_guarded(m, NULL, claim, &mine) == MM_OK && mine;
}

/* 1: something was written since the newest snapshot. */
int mm_snapshot_stale(mm *m)
{
    bool answer = false;
    return mm_guarded(m, NULL, stale, &answer) == MM_OK && answer;
}

/* ---- reading ------------------------------------------------------------------------------------------------------------------- */

static int damaged(mm_result *r, uint64_t offset) { return mm_corrupt(r, MM_FILE_SNAPSHOT, offset); }

/* The header, judged with the size of the file.  MM_CORRUPT: no snapshot of this store. */
int mm_snapshot_look(const mm_config *c, int fd, mm_snapshot_info *info, mm_result *r)
{
    uint8_t block[MM_BLOCK];
    mm_snapshot_header h;
    memset(r, 0, sizeof *r);
    int e = mm_os_read_at(fd, block, sizeof block, 0);
    if (e) return e < 0 ? damaged(r, mm_os_size(fd)) : mm_os_failed(r, e);
    memcpy(&h, block, sizeof h);
    if (h.magic != MM_SNAPSHOT_MAGIC || h.crc != header_crc(block, c->uuid)) return damaged(r, 0);
    if (h.format != MM_FORMAT || h.segment_shift != c->segment_shift || h.segments > MM_MAX_SEGMENTS || h.pages > MM_MAX_PID || h.a > h.b) return damaged(r, 0);
    uint64_t body = body_size(h.segments, h.pages);
    if (mm_os_size(fd) != MM_BLOCK + body + 4 * chunks_of(body)) return damaged(r, mm_os_size(fd));
    *info = (mm_snapshot_info){ .a = h.a, .b = h.b, .salt = h.salt, .segments = h.segments, .pages = h.pages, .log_size = h.log_size,
                                .log_taken = h.log_taken, .chunks_crc = h.chunks_crc };
    return MM_OK;
}

static int check_chunk(const mm_config *c, int fd, const mm_snapshot_info *i, uint64_t k, uint8_t *chunk, uint32_t sum, mm_result *r)
{
    uint64_t at = k * MM_SNAPSHOT_CHUNK, body = body_size(i->segments, i->pages), n = body - at < MM_SNAPSHOT_CHUNK ? body - at : MM_SNAPSHOT_CHUNK;
    int e = mm_os_read_at(fd, chunk, n, MM_BLOCK + at);
    if (e) return e < 0 ? damaged(r, MM_BLOCK + at) : mm_os_failed(r, e);
    return crc32c_extend(crc32c_word(salted(c->uuid, i->salt), k), chunk, n) == sum ? MM_OK : damaged(r, MM_BLOCK + at);
}

static int check_chunks(const mm_config *c, int fd, const mm_snapshot_info *i, uint32_t *sums, uint8_t *chunk, mm_result *r)
{
    uint64_t body = body_size(i->segments, i->pages), n = chunks_of(body);
    int e = mm_os_read_at(fd, sums, n * sizeof *sums, MM_BLOCK + body);
    if (e) return e < 0 ? damaged(r, MM_BLOCK + body) : mm_os_failed(r, e);
    if (crc32c_extend(crc32c_extend(0, c->uuid, 16), sums, n * sizeof *sums) != i->chunks_crc) return damaged(r, MM_BLOCK + body);
    for (uint64_t k = 0; k < n; k++) {
        int rc = check_chunk(c, fd, i, k, chunk, sums[k], r);
        if (rc) return rc;
    }
    return MM_OK;
}

/* Every byte of it: only then is anything taken over. */
int mm_snapshot_check(const mm_config *c, int fd, const mm_snapshot_info *i, mm_result *r)
{
    uint64_t n = chunks_of(body_size(i->segments, i->pages));
    uint32_t *sums = malloc(n * sizeof *sums + 4);
    uint8_t *chunk = malloc(MM_SNAPSHOT_CHUNK);
    memset(r, 0, sizeof *r);
    int rc = sums && chunk ? check_chunks(c, fd, i, sums, chunk, r) : mm_os_failed(r, ENOMEM);
    free(sums);
    free(chunk);
    return rc;
}

int mm_snapshot_entries(int fd, const mm_snapshot_info *i, mm_snapshot_entry *out)
{
    return mm_os_read_at(fd, out, i->segments * sizeof *out, MM_BLOCK);
}

int mm_snapshot_heads(int fd, const mm_snapshot_info *i, uint64_t from, uint64_t n, void *out)
{
    return mm_os_read_at(fd, out, n * 8, MM_BLOCK + i->segments * sizeof(mm_snapshot_entry) + from * 8);
}
