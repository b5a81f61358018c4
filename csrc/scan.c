/* scan.c - reads the log from its bytes alone, and rebuilds the table from it.
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
    bool counts, followed;                   /* holds a record that counts; so does the lease of its slot that came next */
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
} scan;

static bool colour_counts(const scan *s, uint64_t colour)
{
    if (colour > s->limit) return false;
    for (uint32_t i = 0; i < s->pairs; i++)
        if (colour > s->discards[2 * i] && colour <= s->discards[2 * i + 1]) return false;
    return true;
}

static int apply(scan *s, uint64_t address, const mm_record *rec)
{
    uint64_t pid = mm_record_pid(rec);
    int rc = mm_table_cover(s->m, pid, s->r);
    if (rc) return rc;
    uint64_t head = at_load_relaxed(&s->m->table[pid]);
    if (head) {
        const mm_record *now = (const mm_record *)(s->m->log + mm_head_address(head));
        if (now->version >= rec->version) return MM_OK;
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

/* The record at `at`, if it is whole: its span, else 0. */
static uint64_t whole_record(const scan *s, uint64_t at, uint64_t end, uint32_t seed, uint64_t *word)
{
    if (at + MM_RECORD_HEADER > end) return 0;
    const mm_record *rec = (const mm_record *)(s->m->log + at);
    uint64_t n = mm_shape_length(rec->shape), span = mm_span_of(n);
    *word = at_load_relaxed(&rec->crc_commit);
    if (at + span > end || mm_checksum_header(mm_checksum_payload(seed, at, rec + 1, n), rec) != (uint32_t)*word) return 0;
    if (*word >> 32 && *word != mm_committed((uint32_t)*word)) return 0;
    return span;
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
static uint64_t lease_blocks(const scan *s, uint64_t at, uint64_t end, uint32_t seed, uint64_t generation)
{
    mm_lease_header h;
    memcpy(&h, s->m->log + at, sizeof h);
    bool ok = h.magic == MM_LEASE_MAGIC && h.address == at && h.generation == generation && h.blocks
              && h.crc == crc32c_extend(seed, (const uint8_t *)&h + 4, sizeof h - 4) && h.blocks <= (s->m->segment_size - at % s->m->segment_size) / MM_BLOCK;
    (void)end;
    return ok ? h.blocks : 0;
}

static bool header_holds(const scan *s, uint64_t n, mm_segment_header *h)
{
    memcpy(h, s->m->log + (n << s->m->segment_shift), sizeof *h);
    return h->magic == MM_SEGMENT_MAGIC && h->crc == crc32c_extend(0, (const uint8_t *)h + 12, sizeof *h - 12) && h->number == n
           && memcmp(h->uuid, s->m->config.uuid, sizeof h->uuid) == 0;
}

/* Nothing is ever appended to a segment of an earlier life: it is SEALED. */
static int scan_segment(scan *s, uint64_t n)
{
    mm *m = s->m;
    mm_segment_header h;
    mm_segment *e = &m->segments[n];
    uint64_t base = n << m->segment_shift, end = base + m->segment_size;
    if (end > s->size) end = s->size;
    if (base + MM_BLOCK > s->size || !header_holds(s, n, &h)) {
        at_add_relaxed(&m->g->free_segments, 1);
        return MM_OK;
    }
    s->report->segments++;
    if (h.stable > s->stable) s->stable = h.stable;
    if (h.epoch > s->report->max_colour) s->report->max_colour = h.epoch;
    at_store_relaxed(&e->salt, h.salt);
    at_store_relaxed(&e->opened, h.epoch);
    at_store_relaxed(&e->fill, (uint64_t)h.generation << 32 | m->segment_size / MM_BLOCK);
    at_store_relaxed(&e->word, mm_segword(MM_SEG_SEALED, h.generation, MM_SLOTS));
    uint32_t seed = mm_segment_seed(m, e);
    for (uint64_t at = base + MM_BLOCK; at + MM_BLOCK <= end;) {
        uint64_t blocks = lease_blocks(s, at, end, seed, h.generation), stop = at + blocks * MM_BLOCK;
        int rc = blocks ? scan_lease(s, at, stop < end ? stop : end, seed) : MM_OK;
        if (rc) return rc;
        at = blocks ? stop : at + MM_BLOCK;
    }
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

static int require(const scan *s, uint64_t address, uint64_t filled, found_lease **found)
{
    found_lease *l = find_lease(s, address);
    if (!l) return mm_corrupt(s->r, MM_FILE_LOG, address);
    *found = l;
    return l->end - l->address >= filled ? MM_OK : mm_corrupt(s->r, MM_FILE_LOG, l->end);
}

/* Below a fill that the newest mark lists, and in the lease that came before one with a record that counts (its author had seen all of it),
 * every record must be whole: a bad one there is damage, not the end of a lease that nobody synced. */
static int check_required(scan *s)
{
    mm_mark mark;
    found_lease *l;
    int rc = mm_mark_newest(&s->m->config, &mark, s->r);
    if (!rc && mark.epoch == 0 && at_load_relaxed(&s->m->g->max_pid) > 2) rc = mm_corrupt(s->r, MM_FILE_MARKS, 0);
    if (!rc && s->stable > mark.epoch) rc = mm_corrupt(s->r, MM_FILE_MARKS, 0); /* a newer mark was there once */
    for (uint32_t i = 0; !rc && i < mark.count; i++) rc = require(s, mark.leases[i].address, mark.leases[i].fill, &l);
    for (uint64_t i = 0; !rc && i < s->found; i++) {
        if (!s->leases[i].counts || !s->leases[i].previous) continue;
        rc = require(s, s->leases[i].previous, s->leases[i].filled, &l);
        if (!rc) l->followed = true;
    }
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

/* Pages found, and what of the log they hold. */
static int count_pages(scan *s)
{
    mm_view v;
    bool helped;
    for (uint64_t pid = 0; pid < at_load_relaxed(&s->m->g->max_pid); pid++) {
        uint64_t h = pid < pv_load_relaxed(&s->m->table_safe) ? at_load_relaxed(&s->m->table[pid]) : 0;
        if (!h) continue;
        s->report->pages++;
        int rc = mm_look_head(s->m, pid, h, &v, &helped, s->r);
        while (!rc) {
            at_add_relaxed(&s->m->segments[v.address >> s->m->segment_shift].live, mm_span_of(mm_shape_length(v.shape)));
            if (mm_shape_kind(v.shape) != MM_KIND_DELTA) break;
            rc = mm_look(s->m, pid, v.prev, &v, s->r);
        }
        if (rc) return rc;
    }
    return MM_OK;
}

static int scan_all(scan *s)
{
    mm *m = s->m;
    s->size = mm_os_size(m->config.log);
    uint64_t n = (s->size + m->segment_size - 1) >> m->segment_shift;
    if (n > MM_MAX_SEGMENTS || s->size > m->log_window) return mm_corrupt(s->r, MM_FILE_LOG, s->size);
    int e = mm_os_grow(m->config.control, MM_CONTROL_SEGMENTS, MM_CONTROL_SEGMENTS + (n * sizeof(mm_segment) + MM_BLOCK) / MM_BLOCK * MM_BLOCK);
    if (e) return mm_os_failed(s->r, e);
    at_store_relaxed(&m->g->segments, n);
    at_store_relaxed(&m->g->log_size, s->size);
    for (uint64_t i = 0; i < n; i++) {
        int rc = scan_segment(s, i);
        if (rc) return rc;
    }
    at_store_relaxed(&m->g->sweep, 0); /* free ids are found again */
    int rc = check_required(s);
    if (!rc) rc = hand_on_leases(s);
    return rc ? rc : count_pages(s);
}

int mm_rebuild(const mm_config *c, uint64_t limit, const uint64_t *discards, uint32_t pairs, mm_scan_report *report, mm_result *r)
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
    scan s = { .m = m, .limit = limit, .discards = discards, .pairs = pairs, .report = report, .r = r };
    int rc = scan_all(&s);
    free(s.leases);
    mm_os_unmap_files(m);
    free(m);
    return rc;
}
