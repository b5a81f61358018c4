/* scan.c - reads the log from its bytes, all of it or what a snapshot does not know, and rebuilds the table from it.
 *
 * Segment header -> leases (stepping over absent ones by a block) -> records, up to the first bad one of a lease.  A scan never looks for
 * records inside what it has stepped over, and every checksum is seeded with the generation's salt and the address, so a payload that
 * looks like a record is none.  A group counts only if all its inner records stand right before its last one.
 * Exclusive callers only: nobody is attached.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

typedef struct found_lease {
    uint64_t address, end, previous, filled; /* end: of its last whole record */
    bool counts, followed, behind;           /* holds a record that counts; the lease that came next is required; those before are looked at */
} found_lease;

typedef struct scan {
    mm *m;
    uint64_t limit, size;
    const uint64_t *discards;
    uint32_t pairs;
    mm_scan_report *report;
    mm_result *r;
    uint64_t inner_pid; /* consecutive INNER records right before, of this page */
    uint32_t inner;
    found_lease *leases; /* in order of address */
    uint64_t found, room;
    uint64_t stable;     /* newest durable epoch that any header knows of */
    uint64_t segments;
    bool *read;          /* for each segment: its records have to be read; all of them without a snapshot */
    int snapshot;        /* descriptor, or -1 */
    const mm_snapshot_info *info;
    mm_snapshot_entry *entries;
    uint64_t *owed, owed_count, owed_room; /* pages whose head in the snapshot is gone: a record that was read must stand for it */
} scan;

static bool colour_counts(const scan *s, uint64_t colour)
{
    if (colour > s->limit) return false;
    for (uint32_t i = 0; i < s->pairs; i++)
        if (colour > s->discards[2 * i] && colour <= s->discards[2 * i + 1]) return false;
    return true;
}

static uint64_t segment_end(const scan *s, uint64_t n)
{
    uint64_t end = (n + 1) << s->m->segment_shift;
    return end < s->size ? end : s->size;
}

/* The record at `at`, if it is whole: its span, else 0. */
static uint64_t whole_record(const scan *s, uint64_t at, uint64_t end, uint32_t seed, uint64_t *word)
{
    if (at + MM_RECORD_HEADER > end) return 0;
    const mm_record *rec = (const mm_record *)(s->m->log + at);
    uint64_t n = mm_shape_body(rec->shape), span = mm_span_of(n);
    *word = at_load_relaxed(&rec->crc_commit);
    if (at + span > end || mm_checksum_header(mm_checksum_payload(seed, at, rec + 1, n), rec) != (uint32_t)*word) return 0;
    if (*word >> 32 && *word != mm_committed((uint32_t)*word)) return 0;
    return span;
}

/* The head of a snapshot is compared by its version: damaged, it must not give way to an older record that was read. */
static bool head_whole(const scan *s, uint64_t address)
{
    uint64_t n = address >> s->m->segment_shift, word;
    return whole_record(s, address, segment_end(s, n), mm_segment_seed(s->m, &s->m->segments[n]), &word) != 0;
}

static int apply(scan *s, uint64_t address, const mm_record *rec)
{
    uint64_t pid = mm_record_pid(rec);
    int rc = mm_table_cover(s->m, pid, s->r);
    if (rc) return rc;
    uint64_t head = at_load_relaxed(&s->m->table[pid]);
    if (head) {
        const mm_record *now = (const mm_record *)(s->m->log + mm_head_address(head));
        /* Of two that are equal the one that was read wins: a snapshot may name a record that nobody committed or saw, and that a
         * recovery without that snapshot did not find. */
        if (now->version > rec->version) return MM_OK;
        if (s->snapshot >= 0 && !head_whole(s, mm_head_address(head))) return mm_corrupt(s->r, MM_FILE_LOG, mm_head_address(head));
    }
    at_store_relaxed(&s->m->table[pid], mm_head_next(head, address));
    at_max_release(&s->m->g->max_pid, pid + 1);
    s->report->applied++;
    return MM_OK;
}

/* One valid record: does it count? */
static int take(scan *s, uint64_t address, const mm_record *rec, uint64_t word)
{
    uint64_t pid = mm_record_pid(rec), colour = mm_record_colour(rec);
    uint32_t inner = s->inner_pid == pid ? s->inner : 0;
    s->report->records++;
    if (colour > s->report->max_colour) s->report->max_colour = colour;
    if (mm_shape_flags(rec->shape) & MM_FLAG_INNER) {
        s->inner = inner + 1;
        s->inner_pid = pid;
        return MM_OK;
    }
    s->inner = 0;
    if (word >> 32 == 0 || mm_shape_inner(rec->shape) > inner) return MM_OK;
    s->report->committed++;
    if (colour_counts(s, colour)) {
        s->leases[s->found - 1].counts = true;
        return apply(s, address, rec);
    }
    s->report->discarded++;
    return MM_OK;
}

static int note_lease(scan *s, uint64_t at)
{
    if (s->found == s->room) {
        uint64_t room = s->room ? s->room * 2 : 256;
        found_lease *more = realloc(s->leases, room * sizeof *more);
        if (!more) return mm_os_failed(s->r, ENOMEM);
        s->leases = more;
        s->room = room;
    }
    mm_lease_header h;
    memcpy(&h, s->m->log + at, sizeof h);
    if (h.stable > s->stable) s->stable = h.stable;
    s->leases[s->found++] = (found_lease){ .address = at, .end = at + sizeof h, .previous = h.previous, .filled = h.filled };
    s->report->leases++;
    return MM_OK;
}

static int scan_lease(scan *s, uint64_t at, uint64_t end, uint32_t seed)
{
    uint64_t word, span;
    int rc = note_lease(s, at);
    if (rc) return rc;
    s->inner = 0;
    at += sizeof(mm_lease_header);
    while ((span = whole_record(s, at, end, seed, &word)) != 0) {
        rc = take(s, at, (const mm_record *)(s->m->log + at), word);
        if (rc) return rc;
        s->report->bytes += span;
        at += span;
        s->leases[s->found - 1].end = at;
    }
    return MM_OK;
}

/* Blocks of the lease at `at`, or 0 if there is none. */
static uint64_t lease_blocks(const scan *s, uint64_t at, uint32_t seed, uint64_t generation)
{
    mm_lease_header h;
    memcpy(&h, s->m->log + at, sizeof h);
    bool ok = h.magic == MM_LEASE_MAGIC && h.address == at && h.generation == generation && h.blocks
              && h.crc == crc32c_extend(seed, (const uint8_t *)&h + 4, sizeof h - 4) && h.blocks <= (s->m->segment_size - at % s->m->segment_size) / MM_BLOCK;
    return ok ? h.blocks : 0;
}

static bool header_holds(const scan *s, uint64_t n, mm_segment_header *h)
{
    memcpy(h, s->m->log + (n << s->m->segment_shift), sizeof *h);
    return h->magic == MM_SEGMENT_MAGIC && h->crc == crc32c_extend(0, (const uint8_t *)h + 12, sizeof *h - 12) && h->number == n
           && memcmp(h->uuid, s->m->config.uuid, sizeof h->uuid) == 0;
}

/* The header of segment n.  Nothing is ever appended to a segment of an earlier life: it is SEALED. */
static void adopt_segment(scan *s, uint64_t n)
{
    mm *m = s->m;
    mm_segment_header h;
    mm_segment *e = &m->segments[n];
    uint64_t base = n << m->segment_shift;
    if (base + MM_BLOCK > s->size || mm_os_data(m->config.log, base) > base || !header_holds(s, n, &h)) {
        at_add_relaxed(&m->g->free_segments, 1);
        s->read[n] = false;
        return;
    }
    s->report->segments++;
    if (h.stable > s->stable) s->stable = h.stable;
    if (h.epoch > s->report->max_colour) s->report->max_colour = h.epoch;
    at_store_relaxed(&e->salt, h.salt);
    at_store_relaxed(&e->opened, h.epoch);
    at_store_relaxed(&e->fill, (uint64_t)h.generation << 32 | m->segment_size / MM_BLOCK);
    at_store_relaxed(&e->word, mm_segword(MM_SEG_SEALED, h.generation, MM_SLOTS));
    const mm_snapshot_entry *known = s->entries && n < s->info->segments ? &s->entries[n] : NULL;
    s->read[n] = !known || known->word & MM_SNAPSHOT_SCAN || known->word >> 32 != h.generation;
    if (!s->read[n]) at_store_relaxed(&e->live, known->live);
}

static int read_segment(scan *s, uint64_t n)
{
    mm *m = s->m;
    uint32_t seed = mm_segment_seed(m, &m->segments[n]);
    uint64_t generation = mm_segword_generation(at_load_relaxed(&m->segments[n].word)), end = segment_end(s, n);
    s->report->scanned++;
    for (uint64_t at = (n << m->segment_shift) + MM_BLOCK; at + MM_BLOCK <= end;) {
        uint64_t data = mm_os_data(m->config.log, at); /* a hole is not even looked at: in memory file systems that takes room */
        if (data / MM_BLOCK > at / MM_BLOCK) {
            at = data < end ? data / MM_BLOCK * MM_BLOCK : end;
            continue;
        }
        uint64_t blocks = lease_blocks(s, at, seed, generation), stop = at + blocks * MM_BLOCK;
        int rc = blocks ? scan_lease(s, at, stop < end ? stop : end, seed) : MM_OK;
        if (rc) return rc;
        at = blocks ? stop : at + MM_BLOCK;
    }
    return MM_OK;
}

/* ---- the heads of a snapshot ------------------------------------------------------------------------------------------------- */

/* A head counts, committed or not, if its segment still has the generation that the snapshot noted (C8).  Else the page has a newer record. */
static int take_head(scan *s, uint64_t pid, uint64_t *head)
{
    uint64_t address = mm_head_address(*head), n = address >> s->m->segment_shift;
    if (n >= s->info->segments || address + MM_RECORD_HEADER > s->info->log_size) return mm_corrupt(s->r, MM_FILE_SNAPSHOT, MM_BLOCK);
    if (address + MM_RECORD_HEADER > s->size) return mm_corrupt(s->r, MM_FILE_LOG, s->size); /* the log was cut */
    uint64_t word = at_load_relaxed(&s->m->segments[n].word);
    if (mm_segword_state(word) == MM_SEG_FREE) return mm_corrupt(s->r, MM_FILE_LOG, n << s->m->segment_shift); /* its header was whole then */
    if (mm_segword_generation(word) == s->entries[n].word >> 32) return MM_OK;
    *head = 0;
    if (s->owed_count == s->owed_room) {
        uint64_t room = s->owed_room ? 2 * s->owed_room : 256, *more = realloc(s->owed, room * sizeof *more);
        if (!more) return mm_os_failed(s->r, ENOMEM);
        s->owed = more;
        s->owed_room = room;
    }
    s->owed[s->owed_count++] = pid;
    return MM_OK;
}

static int take_heads(scan *s)
{
    mm *m = s->m;
    uint64_t pages = s->info->pages;
    int rc = pages ? mm_table_cover(m, pages - 1, s->r) : MM_OK;
    for (uint64_t from = 0; !rc && from < pages; from += 8192) {
        uint64_t n = pages - from < 8192 ? pages - from : 8192, *heads = (uint64_t *)(void *)(m->table + from); /* nobody else is here */
        int e = mm_snapshot_heads(s->snapshot, s->info, from, n, heads);
        if (e) return e < 0 ? mm_corrupt(s->r, MM_FILE_SNAPSHOT, MM_BLOCK) : mm_os_failed(s->r, e);
        for (uint64_t i = 0; !rc && i < n; i++)
            if (heads[i]) rc = take_head(s, from + i, &heads[i]);
        at_written(heads, n * 8);
    }
    if (!rc) at_max_release(&m->g->max_pid, pages);
    return rc;
}

static int check_owed(const scan *s)
{
    for (uint64_t i = 0; i < s->owed_count; i++)
        if (!at_load_relaxed(&s->m->table[s->owed[i]])) return mm_corrupt(s->r, MM_FILE_LOG, s->info->log_size);
    return MM_OK;
}

/* ---- what must be there (C14) ------------------------------------------------------------------------------------------------------ */

static found_lease *find_lease(const scan *s, uint64_t address)
{
    uint64_t low = 0, high = s->found;
    while (low < high) {
        uint64_t mid = (low + high) / 2;
        if (s->leases[mid].address < address) low = mid + 1;
        else high = mid;
    }
    return low < s->found && s->leases[low].address == address ? &s->leases[low] : NULL;
}

/* What lies in a segment that was not read is known by its heads: damage there is found by who reads the page. */
static int require(const scan *s, uint64_t address, uint64_t filled, found_lease **found)
{
    uint64_t n = address >> s->m->segment_shift;
    *found = NULL;
    if (n < s->segments && !s->read[n] && mm_segword_state(at_load_relaxed(&s->m->segments[n].word)) == MM_SEG_SEALED) return MM_OK;
    found_lease *l = find_lease(s, address);
    if (!l) return mm_corrupt(s->r, MM_FILE_LOG, address);
    *found = l;
    return l->end - l->address >= filled ? MM_OK : mm_corrupt(s->r, MM_FILE_LOG, l->end);
}

/* The leases before one that was synced, or that holds a record that counts (its author had seen all of them), back to the first.  One that
 * holds nothing is no end of it: its owner died, or lost, before it published. */
static int require_before(const scan *s, found_lease *l)
{
    int rc = MM_OK;
    while (!rc && l && l->previous && !l->behind) {
        l->behind = true;
        rc = require(s, l->previous, l->filled, &l);
        if (!rc && l) l->followed = true;
    }
    return rc;
}

/* Below a fill that the newest mark lists, and in the leases that came before those, every record must be whole: a bad one there is damage,
 * not the end of a lease that nobody synced. */
static int check_required(scan *s)
{
    mm_mark mark;
    found_lease *l;
    int rc = mm_mark_newest(&s->m->config, &mark, s->r);
    if (!rc && mark.epoch == 0 && at_load_relaxed(&s->m->g->max_pid) > 2) rc = mm_corrupt(s->r, MM_FILE_MARKS, 0);
    if (!rc && s->stable > mark.epoch) rc = mm_corrupt(s->r, MM_FILE_MARKS, 0); /* a newer mark was there once */
    for (uint32_t i = 0; !rc && i < mark.count; i++) {
        rc = require(s, mark.leases[i].address, mark.leases[i].fill, &l);
        if (rc || !l) continue;
        l->counts = true;
        rc = require_before(s, l);
    }
    for (uint64_t i = 0; !rc && i < s->found; i++)
        if (s->leases[i].counts) rc = require_before(s, &s->leases[i]);
    return rc;
}

/* The last leases of the life that ended go into the slots: the next life's first leases and marks name them, so they stay required. */
static int hand_on_leases(scan *s)
{
    uint64_t slot = 0;
    for (uint64_t i = 0; i < s->found && slot < MM_SLOTS; i++) {
        const found_lease *l = &s->leases[i];
        if (!l->counts || l->followed) continue;
        uint64_t block = (MM_CONTROL_SLOTS + slot * sizeof(mm_slot)) & ~(uint64_t)(MM_BLOCK - 1);
        int e = mm_os_grow(s->m->config.control, block, block + MM_BLOCK);
        if (e) return mm_os_failed(s->r, e);
        at_store_relaxed(&s->m->slots[slot].lease, l->address);
        at_store_relaxed(&s->m->slots[slot].lease_fill, l->end - l->address);
        at_max_release(&s->m->g->slots_used, ++slot);
    }
    return MM_OK;
}

/* Adds up the live bytes of the segments that were read; what they hold of a chain is whole. */
static int count_chain(scan *s, uint64_t pid, uint64_t head)
{
    mm *m = s->m;
    mm_view v;
    bool helped;
    int rc = mm_look_head(m, pid, head, &v, &helped, s->r);
    while (!rc) {
        uint64_t n = v.address >> m->segment_shift;
        if (s->read[n]) at_add_relaxed(&m->segments[n].live, mm_shape_span(v.shape));
        if (mm_shape_kind(v.shape) != MM_KIND_DELTA) break;
        rc = mm_look(m, pid, v.prev, &v, s->r);
    }
    return rc;
}

/* Pages found; those whose newest record was read now are walked, the others when somebody reads them. */
static int count_pages(scan *s)
{
    mm *m = s->m;
    for (uint64_t pid = 0; pid < at_load_relaxed(&m->g->max_pid); pid++) {
        uint64_t h = pid < pv_load_relaxed(&m->table_safe) ? at_load_relaxed(&m->table[pid]) : 0;
        if (!h) continue;
        s->report->pages++;
        int rc = s->read[mm_head_address(h) >> m->segment_shift] ? count_chain(s, pid, h) : MM_OK;
        if (rc) return rc;
    }
    return MM_OK;
}

static int prepare_scan(scan *s)
{
    mm *m = s->m;
    s->size = mm_os_size(m->config.log);
    uint64_t n = s->segments = (s->size + m->segment_size - 1) >> m->segment_shift;
    if (n > MM_MAX_SEGMENTS || s->size > m->log_window) return mm_corrupt(s->r, MM_FILE_LOG, s->size);
    int e = mm_os_grow(m->config.control, MM_CONTROL_SEGMENTS, MM_CONTROL_SEGMENTS + (n * sizeof(mm_segment) + MM_BLOCK) / MM_BLOCK * MM_BLOCK);
    if (e) return mm_os_failed(s->r, e);
    at_store_relaxed(&m->g->segments, n);
    at_store_relaxed(&m->g->log_size, s->size);
    s->read = calloc(n + 1, sizeof *s->read);
    if (!s->read) return mm_os_failed(s->r, ENOMEM);
    if (s->snapshot < 0) return MM_OK;
    s->entries = malloc(s->info->segments * sizeof *s->entries + 1);
    if (!s->entries) return mm_os_failed(s->r, ENOMEM);
    e = mm_snapshot_entries(s->snapshot, s->info, s->entries);
    return e ? mm_corrupt(s->r, MM_FILE_SNAPSHOT, MM_BLOCK) : MM_OK;
}

/* How much was written since the snapshot, so that the next one comes in time. */
static void note_snapshot(scan *s)
{
    uint64_t before = s->info ? s->info->log_taken : 0, read = 0;
    for (uint64_t i = 0; i < s->segments; i++) read += s->read[i] ? s->m->segment_size : 0;
    at_store_relaxed(&s->m->g->log_snapshot, before);
    at_store_relaxed(&s->m->g->log_taken, before + read);
    at_store_relaxed(&s->m->g->snapshot_epoch, s->info ? s->info->a : 1);
}

static int scan_all(mm *m, void *args, mm_result *r)
{
    scan *s = args;
    (void)m, (void)r;
    int rc = prepare_scan(s);
    for (uint64_t i = 0; !rc && i < s->segments; i++) adopt_segment(s, i);
    if (!rc && s->snapshot >= 0) rc = take_heads(s);
    for (uint64_t i = 0; !rc && i < s->segments; i++)
        if (s->read[i]) rc = read_segment(s, i);
    if (!rc) rc = check_required(s);
    if (!rc) rc = check_owed(s);
    if (!rc) rc = hand_on_leases(s);
    if (!rc) rc = count_pages(s);
    if (!rc) rc = mm_log_round(s->m, &s->size, s->r);
    if (rc) return rc;
    at_store_relaxed(&s->m->g->sweep, 0); /* free ids are found again */
    at_store_relaxed(&s->m->g->log_size, s->size);
    note_snapshot(s);
    return MM_OK;
}

int mm_rebuild(const mm_config *c, uint64_t limit, const uint64_t *discards, uint32_t pairs, int snapshot, const mm_snapshot_info *info,
               mm_scan_report *report, mm_result *r)
{
    memset(report, 0, sizeof *report);
    memset(r, 0, sizeof *r);
    mm *m = calloc(1, sizeof *m);
    if (!m) return mm_os_failed(r, ENOMEM);
    m->config = *c;
    m->slot_index = MM_SLOTS;
    int e = mm_os_map_files(m);
    if (e) {
        free(m);
        return mm_os_failed(r, e);
    }
    mm_set_limits(m);
    scan s = { .m = m, .limit = limit, .discards = discards, .pairs = pairs, .snapshot = snapshot, .info = snapshot < 0 ? NULL : info,
               .report = report, .r = r };
    mm_guard_install();
    int rc = mm_guarded(m, r, scan_all, &s);
    free(s.leases);
    free(s.read);
    free(s.entries);
    free(s.owed);
    mm_os_unmap_files(m);
    free(m);
    return rc;
}
