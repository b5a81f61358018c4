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
    uint64_t ended, stable;                  /* bytes used when it ended, if that is durable, or 0; durable epoch when it began */
    uint32_t previous_generation, seed;
    bool open;                               /* does not say how far it was used, or in a life that was discarded */
    bool counts, followed, behind;           /* holds a record that counts; the lease that came next is required; those before are looked at */
} found_lease;

typedef struct scan {
    mm *m;
    uint64_t limit, size;
    const mm_gone *gone;
    mm_scan_report *report;
    mm_result *r;
    uint64_t inner_pid; /* consecutive INNER records right before, of this page */
    uint32_t inner;
    found_lease *leases; /* in order of address */
    uint64_t found, room;
    uint64_t stable;     /* newest durable epoch that any header knows of */
    uint64_t segments, in_use; /* of the log; as the newest mark says */
    bool *read;          /* for each segment: its records have to be read; all of them without a snapshot */
    bool *torn;          /* retired durably, and its header does not hold */
    uint32_t *covered;   /* generation of the run that a segment is, or was, of, as the header of that says, or 0 */
    uint64_t *tail;      /* of one that was read: where its last lease ends */
    int snapshot;        /* descriptor, or -1 */
    const mm_snapshot_info *info;
    mm_snapshot_entry *entries;
    uint64_t *owed, owed_count, owed_room; /* pages whose head in the snapshot is gone: a record that was read must stand for it */
} scan;

static bool colour_counts(const scan *s, uint64_t colour)
{
    if (colour > s->limit) return false;
    for (uint32_t i = 0; i < s->gone->pairs; i++)
        if (colour > s->gone->discards[2 * i] && colour <= s->gone->discards[2 * i + 1]) return false;
    return true;
}

/* Segment n was cut off since (rewrite.c): what a lease that begins when `stable` was durable, or a snapshot of then, names there was free. */
static bool cut_since(const scan *s, uint64_t stable, uint64_t n)
{
    bool gone = false;
    for (uint32_t i = 0; i < s->gone->cut_count; i++) gone = gone || (stable < s->gone->cuts[2 * i] && n >= s->gone->cuts[2 * i + 1]);
    return gone;
}

static uint64_t segment_end(const scan *s, uint64_t n)
{
    uint64_t end = (n + 1) << s->m->segment_shift;
    return end < s->size ? end : s->size;
}

/* The head of a snapshot is compared by its version: damaged, it must not give way to an older record that was read. */
static bool head_whole(const scan *s, uint64_t address)
{
    uint64_t n = address >> s->m->segment_shift, word;
    return mm_record_whole(s->m, address, segment_end(s, n), mm_segment_seed(s->m, &s->m->segments[n]), &word) != 0;
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
    if (colour > s->report->max_colour) s->report->max_colour = colour;
    if (mm_shape_kind(rec->shape) == MM_KIND_INTENT) { /* a mark says what it said, or it was for nothing (promote.c) */
        s->inner = 0;
        return MM_OK;
    }
    s->report->records++;
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

static int note_lease(scan *s, uint64_t at, uint32_t seed)
{
    if (s->found == s->room) {
        uint64_t room = s->room ? s->room * 2 : 256;
        found_lease *more = realloc(s->leases, room * sizeof *more);
        if (!more) return mm_os_failed(s->r, ENOMEM);
        s->leases = more;
        s->room = room;
    }
    const mm_lease_header *h = (const mm_lease_header *)(s->m->log + at);
    uint64_t epoch, ended = mm_lease_ended_at(seed, h, &epoch);
    if (h->stable > s->stable) s->stable = h->stable;
    s->leases[s->found++] = (found_lease){ .address = at, .end = at + sizeof *h, .previous = h->previous, .filled = h->filled, .seed = seed,
                                           .previous_generation = h->previous_generation, .stable = h->stable, .open = !ended || !colour_counts(s, epoch),
                                           .ended = ended && colour_counts(s, epoch) ? ended : 0 };
    s->report->leases++;
    return MM_OK;
}

static int scan_lease(scan *s, uint64_t at, uint64_t end, uint32_t seed)
{
    uint64_t word, span;
    int rc = note_lease(s, at, seed);
    if (rc) return rc;
    s->inner = 0;
    at += sizeof(mm_lease_header);
    while ((span = mm_record_whole(s->m, at, end, seed, &word)) != 0) {
        rc = take(s, at, (const mm_record *)(s->m->log + at), word);
        if (rc) return rc;
        s->report->bytes += span;
        at += span;
        s->leases[s->found - 1].end = at;
    }
    return MM_OK;
}

static bool header_holds(const scan *s, uint64_t n, mm_segment_header *h)
{
    memcpy(h, s->m->log + (n << s->m->segment_shift), sizeof *h);
    return h->magic == MM_SEGMENT_MAGIC && h->crc == crc32c_extend(0, (const uint8_t *)h + 12, sizeof *h - 12) && h->number == n
           && memcmp(h->uuid, s->m->config.uuid, sizeof h->uuid) == 0;
}

/* What the segment says of the retirement of an even, or an odd, generation; false: nothing that counts. */
static bool retirement(scan *s, uint64_t n, uint64_t parity, mm_segment_retired *t)
{
    memcpy(t, s->m->log + (n << s->m->segment_shift) + mm_retired_offset(parity), sizeof *t);
    if (t->magic != MM_RETIRED_MAGIC || t->number != n || t->crc != crc32c_extend(s->m->uuid_seed, (const uint8_t *)t + 12, sizeof *t - 12)) return false;
    return colour_counts(s, t->epoch);
}

/* The epoch at which this generation of the segment (0: whichever was the last) was retired, if the state that counts knows of it, or 0. */
static uint64_t retired_at(scan *s, uint64_t n, uint64_t *generation)
{
    uint64_t epoch = 0, wanted = *generation;
    for (uint64_t parity = 0; parity < 2; parity++) {
        mm_segment_retired t;
        if (!retirement(s, n, parity, &t) || (wanted && t.generation != wanted) || t.epoch <= epoch) continue;
        epoch = t.epoch;
        *generation = t.generation;
    }
    return epoch;
}

/* A generation that is needed no more.  Its header may have been torn by who was about to use the segment again. */
static bool adopt_retired(scan *s, uint64_t n, uint64_t generation)
{
    uint64_t epoch = retired_at(s, n, &generation);
    if (!epoch) return false;
    at_store_relaxed(&s->m->segments[n].since, epoch);
    at_store_relaxed(&s->m->segments[n].word, mm_segword(MM_SEG_RETIRED, generation, MM_SLOTS));
    s->read[n] = false;
    return true;
}

/* Somebody who is in the cut names the generation that came after the retired one, or after the run: the header was whole then, and is damaged.  Any
 * other is of an earlier life of that place, whose numbers were drawn anew when the log had been truncated: they say nothing of before and after. */
static bool header_lost(const scan *s, uint64_t n, uint64_t generation)
{
    uint64_t retired = n < s->segments && s->torn[n] ? mm_segword_generation(at_load_relaxed(&s->m->segments[n].word)) : 0;
    return retired && generation == mm_generation_after(retired);
}

/* What the end of the segment knows, also of a generation that came after that of its header. */
static void look_for_stamp(scan *s, uint64_t n)
{
    mm_segment_stamp t;
    uint64_t end = (n + 1) << s->m->segment_shift;
    if (end > s->size || mm_os_data(s->m->config.log, end - sizeof t) > end - sizeof t) return;
    memcpy(&t, s->m->log + end - sizeof t, sizeof t);
    if (t.magic != MM_STAMP_MAGIC || t.number != n) return;
    if (t.crc == crc32c_extend(s->m->uuid_seed, (const uint8_t *)&t + 12, sizeof t - 12) && t.stable > s->stable) s->stable = t.stable;
}

/* ---- runs (run.c) --------------------------------------------------------------------------------------------------------------- */

/* The header of a run says of which generation all its segments are: until one of them has a header of a later one, whatever stands there is its
 * payload, or what was before. */
static void look_for_run(scan *s, uint64_t n)
{
    mm_run_header h;
    uint64_t base = n << s->m->segment_shift;
    if (base + MM_BLOCK > s->size || mm_os_data(s->m->config.log, base) > base) return;
    if (!mm_run_look(s->m, n, &h) || h.generation <= s->covered[n]) return;
    if (h.stable > s->stable) s->stable = h.stable;
    if (h.epoch > s->report->max_epoch) s->report->max_epoch = h.epoch;
    for (uint64_t i = n; i < s->segments && i - n < h.segments; i++)
        if (s->covered[i] < h.generation) s->covered[i] = h.generation;
}

/* No later life of the segment is known than that in the run; free, unless a record that counts names the run (claim_run). */
static bool adopt_covered(scan *s, uint64_t n)
{
    mm_segment_header h;
    uint64_t generation = 0;
    if (!s->covered[n]) return false;
    if ((header_holds(s, n, &h) && h.generation > s->covered[n]) || (retired_at(s, n, &generation) && generation > s->covered[n])) {
        s->covered[n] = 0;
        return false;
    }
    at_store_relaxed(&s->m->segments[n].word, mm_segword(MM_SEG_FREE, s->covered[n], 0));
    at_add_relaxed(&s->m->g->free_segments, 1);
    s->torn[n] = true;
    s->read[n] = false;
    return true;
}

/* A record that counts names a run: its segments are no more free.  It may be met twice. */
static int claim_run(scan *s, uint64_t pid, const mm_view *v)
{
    mm *m = s->m;
    mm_extent x;
    mm_run_header h;
    int rc = mm_verify(m, v, s->r);
    if (rc) return rc;
    memcpy(&x, v->payload, sizeof x);
    uint64_t n = x.address >> m->segment_shift, w = n < s->segments ? at_load_relaxed(&m->segments[n].word) : 0;
    if (w == mm_segword(MM_SEG_EXTENT, x.generation, MM_REST_RUN | MM_SLOTS) && at_load_relaxed(&m->segments[n].live) == pid) return MM_OK;
    bool there = n < s->segments && !(x.address & (m->segment_size - 1)) && s->covered[n] == x.generation && mm_run_look(m, n, &h);
    if (!there || h.generation != x.generation || h.salt != x.salt || h.page != pid || x.length > MM_EXTENT_MOST
        || mm_extent_span(x.length) > h.segments << m->segment_shift) return mm_corrupt(s->r, MM_FILE_LOG, x.address);
    if (h.segments > s->segments - n || x.address + mm_extent_span(x.length) > s->size) return mm_corrupt(s->r, MM_FILE_LOG, s->size); /* the log was cut */
    for (uint64_t i = n; i < n + h.segments; i++) {
        if (at_load_relaxed(&m->segments[i].word) != mm_segword(MM_SEG_FREE, x.generation, 0)) return mm_corrupt(s->r, MM_FILE_LOG, i << m->segment_shift);
        at_store_relaxed(&m->segments[i].word, mm_segword(MM_SEG_EXTENT, x.generation, i == n ? MM_REST_RUN | MM_SLOTS : MM_REST_MEMBER | n));
    }
    at_add_relaxed(&m->g->free_segments, 0 - h.segments);
    at_store_relaxed(&m->segments[n].salt, h.salt);
    at_store_relaxed(&m->segments[n].opened, h.epoch);
    at_store_relaxed(&m->segments[n].live, pid);
    at_store_relaxed(&m->segments[n].fill, mm_fill_word(x.generation, h.segments));
    at_store_relaxed(&m->segments[n].looked, (mm_extent_span(x.length) + MM_BLOCK - 1) / MM_BLOCK * MM_BLOCK);
    return MM_OK;
}

/* The header of segment n.  Nothing is ever appended to a segment of an earlier life: it is SEALED, or RETIRED if it was. */
static void adopt_segment(scan *s, uint64_t n)
{
    mm *m = s->m;
    mm_segment_header h;
    mm_segment *e = &m->segments[n];
    uint64_t base = n << m->segment_shift;
    if (adopt_covered(s, n)) {
        look_for_stamp(s, n);
        return;
    }
    if (base + MM_BLOCK > s->size || mm_os_data(m->config.log, base) > base || !header_holds(s, n, &h)) {
        look_for_stamp(s, n);
        s->torn[n] = base + MM_BLOCK <= s->size && adopt_retired(s, n, 0);
        if (s->torn[n]) return;
        at_add_relaxed(&m->g->free_segments, 1);
        s->read[n] = false;
        return;
    }
    s->report->segments++;
    if (h.stable > s->stable) s->stable = h.stable;
    if (h.epoch > s->report->max_epoch) s->report->max_epoch = h.epoch;
    at_store_relaxed(&e->salt, h.salt);
    at_store_relaxed(&e->opened, h.epoch);
    at_store_relaxed(&e->fill, (uint64_t)h.generation << 32 | m->segment_size / MM_BLOCK);
    if (adopt_retired(s, n, h.generation)) {
        look_for_stamp(s, n);
        return;
    }
    at_store_relaxed(&e->word, mm_segword(MM_SEG_SEALED, h.generation, MM_SLOTS));
    const mm_snapshot_entry *known = s->entries && n < s->info->segments && !cut_since(s, s->info->b, n) ? &s->entries[n] : NULL;
    s->read[n] = !known || known->word & MM_SNAPSHOT_SCAN || known->word >> 32 != h.generation;
    if (!s->read[n]) at_store_relaxed(&e->live, known->live);
}

/* Begins a lease of the next generation here, by one who knew of a newer durable epoch than any mark does?  Then the header of the segment was
 * copied while it held what counts, and this when it was used again: a plain copy of a store in use.  (Its checksum needs a salt that is not here.) */
static void look_for_later_life(scan *s, uint64_t at, uint64_t generation)
{
    mm_lease_header h;
    memcpy(&h, s->m->log + at, sizeof h);
    if (h.magic == MM_LEASE_MAGIC && h.address == at && h.generation == mm_generation_after(generation) && h.stable > s->stable) s->stable = h.stable;
}

static int read_segment(scan *s, uint64_t n)
{
    mm *m = s->m;
    uint32_t seed = mm_segment_seed(m, &m->segments[n]);
    uint64_t generation = mm_segword_generation(at_load_relaxed(&m->segments[n].word)), end = segment_end(s, n);
    s->report->scanned++;
    mm_os_look_through(m->log + (n << m->segment_shift), end - (n << m->segment_shift));
    look_for_stamp(s, n);
    s->tail[n] = (n << m->segment_shift) + MM_BLOCK;
    for (uint64_t at = s->tail[n]; at + MM_BLOCK <= end;) {
        uint64_t data = mm_os_data(m->config.log, at); /* a hole is not even looked at: in memory file systems that takes room */
        if (data / MM_BLOCK > at / MM_BLOCK) {
            at = data < end ? data / MM_BLOCK * MM_BLOCK : end;
            continue;
        }
        uint64_t blocks = mm_lease_blocks(m, at, seed, generation), stop = at + blocks * MM_BLOCK;
        int rc = blocks ? scan_lease(s, at, stop < end ? stop : end, seed) : MM_OK;
        if (rc) return rc;
        if (!blocks) look_for_later_life(s, at, generation);
        at = blocks ? stop : at + MM_BLOCK;
        if (blocks) s->tail[n] = stop;
    }
    return MM_OK;
}

/* ---- the heads of a snapshot ------------------------------------------------------------------------------------------------- */

/* A record that was read must stand for the page. */
static int owe(scan *s, uint64_t pid)
{
    if (s->owed_count == s->owed_room) {
        uint64_t room = s->owed_room ? 2 * s->owed_room : 256, *more = realloc(s->owed, room * sizeof *more);
        if (!more) return mm_os_failed(s->r, ENOMEM);
        s->owed = more;
        s->owed_room = room;
    }
    s->owed[s->owed_count++] = pid;
    return MM_OK;
}

/* A head counts, committed or not, if its segment still has the generation that the snapshot noted, and was not retired (C8), nor cut off since: an older
 * snapshot may come back.  Else the page has a newer record. */
static int take_head(scan *s, uint64_t pid, uint64_t *head)
{
    uint64_t address = mm_head_address(*head), n = address >> s->m->segment_shift, end = address + MM_RECORD_HEADER;
    if (n >= s->info->segments || end > s->info->log_size) return mm_corrupt(s->r, MM_FILE_SNAPSHOT, MM_BLOCK);
    bool cut = cut_since(s, s->info->b, n);
    if (!cut && header_lost(s, n, s->entries[n].word >> 32)) return mm_corrupt(s->r, MM_FILE_LOG, n << s->m->segment_shift);
    uint64_t word = n < s->segments ? at_load_relaxed(&s->m->segments[n].word) : 0;
    bool there = mm_segword_state(word) == MM_SEG_SEALED && mm_segword_generation(word) == s->entries[n].word >> 32;
    if (cut || (mm_segword_generation(word) && !there)) {
        *head = 0;
        return owe(s, pid);
    }
    if (end > s->size) return mm_corrupt(s->r, MM_FILE_LOG, s->size); /* the log was cut */
    return there ? MM_OK : mm_corrupt(s->r, MM_FILE_LOG, n << s->m->segment_shift); /* its header was whole then */
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

/* What lies in a segment that was not read is known by its heads: damage there is found by who reads the page.  One that was retired, or is used
 * again, holds nothing that is needed. */
static int require(const scan *s, uint64_t address, uint32_t generation, uint64_t filled, found_lease **found)
{
    uint64_t n = address >> s->m->segment_shift, word = n < s->segments ? at_load_relaxed(&s->m->segments[n].word) : 0;
    *found = NULL;
    if (header_lost(s, n, generation)) return mm_corrupt(s->r, MM_FILE_LOG, n << s->m->segment_shift);
    if (mm_segword_state(word) == MM_SEG_RETIRED || (mm_segword_generation(word) && mm_segword_generation(word) != generation)) return MM_OK;
    if (mm_segword_state(word) == MM_SEG_SEALED && !s->read[n]) return MM_OK;
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
        uint64_t n = l->previous >> s->m->segment_shift;
        if (n >= s->in_use || cut_since(s, l->stable, n)) return MM_OK; /* free when the newest mark was made: it may have been cut off since */
        rc = require(s, l->previous, l->previous_generation, l->filled, &l);
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
    s->in_use = rc ? 0 : mark.segments;
    if (!rc && mark.epoch == 0 && at_load_relaxed(&s->m->g->max_pid) > 2) rc = mm_corrupt(s->r, MM_FILE_MARKS, 0);
    uint64_t durable = s->limit != UINT64_MAX && s->limit > mark.epoch ? s->limit : mark.epoch; /* an intent said more, to who must not write a mark */
    if (!rc && s->stable > durable) rc = mm_corrupt(s->r, MM_FILE_MARKS, 0); /* a newer mark was there once */
    if (!rc && s->segments < mark.segments) rc = mm_corrupt(s->r, MM_FILE_LOG, s->size); /* the log was cut */
    uint32_t retirements = s->size >= MM_BLOCK ? (uint32_t)at_load_relaxed(mm_retirements(s->m)) : 0;
    if (!rc && (int32_t)(retirements - mark.retirements) < 0) rc = mm_corrupt(s->r, MM_FILE_LOG, MM_RETIREMENTS_OFFSET); /* `log` is older than `marks` */
    if (!rc && s->m->config.discarded < mark.discarded) rc = mm_corrupt(s->r, MM_FILE_CONFIG, 0); /* it is older than it was */
    for (uint64_t i = 0; !rc && i < s->found; i++)
        if (s->leases[i].ended > s->leases[i].end - s->leases[i].address) rc = mm_corrupt(s->r, MM_FILE_LOG, s->leases[i].end);
    for (uint32_t i = 0; !rc && i < mark.count; i++) {
        rc = require(s, mark.leases[i].address, mark.leases[i].generation, mark.leases[i].fill, &l);
        if (rc || !l) continue;
        l->counts = true;
        rc = require_before(s, l);
    }
    for (uint64_t i = 0; !rc && i < s->found; i++)
        if (s->leases[i].counts) rc = require_before(s, &s->leases[i]);
    return rc;
}

/* Above all epochs that the life that ended knew, and what is discarded of it now: a mark that says as much is one of the next life. */
static uint64_t next_epoch(const scan *s)
{
    mm_mark mark;
    uint64_t epoch = s->report->max_colour > s->report->max_epoch ? s->report->max_colour : s->report->max_epoch;
    if (mm_mark_newest(&s->m->config, &mark, s->r) == MM_OK && mark.epoch > epoch) epoch = mark.epoch;
    for (uint32_t i = 0; i < s->gone->pairs; i++)
        if (s->gone->discards[2 * i + 1] > epoch) epoch = s->gone->discards[2 * i + 1];
    return epoch + (s->report->max_colour > s->limit ? 2 : 1); /* + 1 is the end of the pair that is to come (mmpc/_recovery.py) */
}

/* What the life that was discarded said of the retirement of segments, or had not said whole, must not be believed later, when epochs have gone on.
 * Where neither this nor the header of the segment begins as it should, a payload may stand there. */
static void forget_retirements(scan *s)
{
    static const mm_segment_retired none;
    uint64_t epoch = next_epoch(s);
    for (uint64_t n = 0; n < s->segments; n++) {
        uint64_t base = n << s->m->segment_shift, magic[2];
        if (s->covered[n] || base + MM_BLOCK > s->size || mm_os_data(s->m->config.log, base) > base) continue;
        uint64_t state = mm_segword_state(at_load_relaxed(&s->m->segments[n].word));
        mm_segment_header h;
        if ((state == MM_SEG_SEALED || state == MM_SEG_RETIRED) && header_holds(s, n, &h)) mm_segment_clear_unused(s->m, n);
        memcpy(&magic[0], s->m->log + base, sizeof magic[0]);
        for (uint64_t parity = 0; parity < 2; parity++) {
            mm_segment_retired t;
            uint8_t *said = s->m->log + base + mm_retired_offset(parity);
            memcpy(&magic[1], said, sizeof magic[1]);
            if (magic[0] != MM_SEGMENT_MAGIC && magic[1] != MM_RETIRED_MAGIC) continue;
            if (retirement(s, n, parity, &t) || !memcmp(said, &none, sizeof none)) continue;
            at_copy(said, &none, sizeof none);
            at_store_relaxed(&s->m->segments[n].written, epoch); /* until a flush after this, it may not be on the disk (rewrite.c) */
        }
    }
}

#define TAIL_BLOCKS 4u /* less is not worth a system call */
/* What was allocated behind the last lease of a segment serves nobody any more; on a full disk it is the room that the next one needs. */
static void give_back_tails(scan *s)
{
    for (uint64_t n = 0; n < s->segments && !s->m->config.observes; n++) {
        uint64_t end = segment_end(s, n);
        if (s->tail[n] && s->tail[n] + TAIL_BLOCKS * MM_BLOCK <= end && mm_os_punch(s->m->config.log, s->tail[n], end) == 0)
            at_written(s->m->log + s->tail[n], end - s->tail[n]);
    }
}

/* Leases that nobody ended, or whose end was discarded, end now, where their whole records end.  Durable with the first mark of the next life. */
static void end_leases(scan *s)
{
    uint64_t epoch = next_epoch(s);
    for (uint64_t i = 0; i < s->found; i++) {
        const found_lease *l = &s->leases[i];
        if (!l->open) continue;
        mm_lease_header *h = (mm_lease_header *)(s->m->log + l->address);
        at_store_relaxed(&h->end, 0); /* in this order: cut off anywhere, it says something whole, or nothing */
        at_store_release(&h->end_epoch, epoch);
        at_store_release(&h->end, (uint64_t)mm_lease_end_crc(l->seed, l->address, l->end - l->address, epoch) << 32 | (l->end - l->address));
    }
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
        at_store_relaxed(&s->m->slots[slot].lease_shape, mm_segword_generation(at_load_relaxed(&s->m->segments[l->address >> s->m->segment_shift].word)) << 32);
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
        if (mm_is_large(v.shape)) rc = claim_run(s, pid, &v);
        if (rc) break;
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

/* Runs that a snapshot knows: their pages are walked, also those whose records were not read now. */
static int claim_known_runs(scan *s)
{
    for (uint64_t i = 0; s->entries && i < s->info->segments; i++) {
        uint64_t pid = s->entries[i].live, h;
        if (!(s->entries[i].word & MM_SNAPSHOT_RUN) || pid >= at_load_relaxed(&s->m->g->max_pid) || pid >= pv_load_relaxed(&s->m->table_safe)) continue;
        h = at_load_relaxed(&s->m->table[pid]);
        int rc = h && !s->read[mm_head_address(h) >> s->m->segment_shift] ? count_chain(s, pid, h) : MM_OK;
        if (rc) return rc;
    }
    return MM_OK;
}

/* What nobody names of them is given back.  The header of a run speaks for the others until theirs are durable, as with any that is released; its last
 * block stays: the newest mark may count its segments as in use. */
static void give_back_runs(scan *s)
{
    mm *m = s->m;
    uint64_t epoch = next_epoch(s);
    for (uint64_t n = 0; n < s->segments; n++) {
        mm_run_header h;
        uint64_t begin = n << m->segment_shift, end = segment_end(s, n), free = mm_segword(MM_SEG_FREE, s->covered[n], 0);
        if (!s->covered[n] || at_load_relaxed(&m->segments[n].word) != free || begin + MM_BLOCK > end) continue;
        bool own = mm_os_data(m->config.log, begin) == begin && mm_run_look(m, n, &h) && h.generation == s->covered[n];
        if (!own) mm_run_tombstone(m, n, s->covered[n], 0);
        else if (h.segments > s->segments - n) mm_run_shorten(m, n, &h, s->segments - n);
        begin += MM_BLOCK;
        if (n + 1 == s->segments || s->covered[n + 1] != s->covered[n]) end = (end - 1) / MM_BLOCK * MM_BLOCK;
        if (begin < end && mm_os_data(m->config.log, begin) < end && mm_os_punch(m->config.log, begin, end) == 0) at_written(m->log + begin, end - begin);
        at_store_relaxed(&m->segments[n].since, own && h.segments > 1 ? epoch : 0);
        at_store_relaxed(&m->segments[n].word, mm_segword(MM_SEG_HOLE, s->covered[n], 0));
    }
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
    mm_os_look_here_and_there(m->log, s->size, m->config.log, m->segment_size); /* at headers, first */
    s->read = calloc(n + 1, sizeof *s->read);
    s->torn = calloc(n + 1, sizeof *s->torn);
    s->tail = calloc(n + 1, sizeof *s->tail);
    s->covered = calloc(n + 1, sizeof *s->covered);
    if (!s->read || !s->torn || !s->tail || !s->covered) return mm_os_failed(s->r, ENOMEM);
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
    (void)r;
    mm_carried_put(m);
    int rc = prepare_scan(s);
    for (uint64_t i = 0; !rc && i < s->segments; i++) look_for_run(s, i);
    for (uint64_t i = 0; !rc && i < s->segments; i++) adopt_segment(s, i);
    if (!rc && s->snapshot >= 0) rc = take_heads(s);
    for (uint64_t i = 0; !rc && i < s->segments; i++)
        if (s->read[i]) rc = read_segment(s, i);
    if (!rc) rc = check_required(s);
    if (!rc) rc = check_owed(s);
    if (!rc) rc = count_pages(s);
    if (!rc) rc = claim_known_runs(s);
    if (!rc) forget_retirements(s);
    if (!rc) end_leases(s);
    if (!rc) give_back_tails(s);
    if (!rc) rc = hand_on_leases(s);
    if (!rc) give_back_runs(s);
    if (!rc) rc = mm_log_round(s->m, &s->size, s->r);
    if (rc) return rc;
    at_store_relaxed(&s->m->g->sweep, 0); /* free ids are found again */
    at_store_relaxed(&s->m->g->log_size, s->size);
    note_snapshot(s);
    return MM_OK;
}

int mm_rebuild(const mm_config *c, uint64_t limit, const mm_gone *gone, int snapshot, const mm_snapshot_info *info, mm_scan_report *report, mm_result *r)
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
    scan s = { .m = m, .limit = limit, .gone = gone, .snapshot = snapshot, .info = snapshot < 0 ? NULL : info, .report = report, .r = r };
    mm_guard_install();
    int rc = mm_guarded(m, r, scan_all, &s);
    void *const held[] = { s.leases, s.read, s.torn, s.tail, s.covered, s.entries, s.owed };
    for (unsigned i = 0; i < sizeof held / sizeof *held; i++) free(held[i]);
    mm_os_unmap_files(m);
    free(m);
    return rc;
}
