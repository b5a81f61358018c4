/* log.c - records: looking at one, checking it, helping it, writing one.
 *
 * A record is believed in steps.  mm_look: it lies inside the published log, in one segment, is of this page, of a known kind.
 * mm_verify: its checksum holds (seeded with uuid, salt of the generation, address).  mm_look_head: it was found through a head
 * word, so it is published; its commit word, if 0, is stored before anything it says is used (invariant 3).
 */
#include <string.h>

#include "mapped.h"

uint32_t mm_checksum_payload(uint32_t seed, uint64_t address, const void *p, uint64_t n)
{
    return crc32c_extend(crc32c_word(seed, address), p, n);
}

uint32_t mm_checksum_header(uint32_t crc, const mm_record *rec)
{
    return crc32c_extend(crc, &rec->shape, MM_RECORD_HEADER - sizeof rec->crc_commit);
}

/* One store sets checksum and commit = 0, so the disk never holds a new checksum beside an old commit word.  Not yet published. */
void mm_seal_record(mm_record *rec, uint32_t payload_crc)
{
    at_store_relaxed(&rec->crc_commit, mm_checksum_header(payload_crc, rec));
}

/* The record at `at`, if all of it lies before `end` and holds: its span, else 0.  *word: its checksum and commit word. */
uint64_t mm_record_whole(const mm *m, uint64_t at, uint64_t end, uint32_t seed, uint64_t *word)
{
    if (at + MM_RECORD_HEADER > end) return 0;
    const mm_record *rec = (const mm_record *)(m->log + at);
    uint64_t n = mm_shape_body(rec->shape), span = mm_span_of(n);
    *word = at_load_relaxed(&rec->crc_commit);
    if (at + span > end || mm_checksum_header(mm_checksum_payload(seed, at, rec + 1, n), rec) != (uint32_t)*word) return 0;
    return *word >> 32 && *word != mm_committed((uint32_t)*word) ? 0 : span;
}

/* What the owner of a lease has written above its fill: the last record of the publish that it is in, if that is whole, else 0.  Nobody but its owner, who may
 * just be writing it, knows whether it is published; a commit word says so. */
uint64_t mm_record_late(mm *m, uint64_t lease, uint64_t shape, uint64_t fill)
{
    mm_result ignored;
    const mm_segment *s = mm_segment_of(m, lease, &ignored);
    uint64_t end = lease + (shape & 0xFFFFFFFF) * MM_BLOCK, w = s ? at_load_acquire(&s->word) : 0, state = mm_segword_state(w), word, span;
    if (mm_segword_generation(w) != shape >> 32 || (state != MM_SEG_OPEN && state != MM_SEG_SEALED && state != MM_SEG_CLAIMED)) return 0;
    if ((end - 1) >> m->segment_shift != lease >> m->segment_shift || !mm_log_reaches(m, end)) return 0;
    for (uint64_t at = lease + fill; (span = mm_record_whole(m, at, end, mm_segment_seed(m, s), &word)) != 0; at += span)
        if (!(mm_shape_flags(((const mm_record *)(m->log + at))->shape) & MM_FLAG_INNER)) return at;
    return 0;
}

static bool sane(const mm *m, const mm_view *v, uint64_t pid)
{
    const mm_record *rec = v->record;
    uint8_t kind = mm_shape_kind(v->shape), flags = mm_shape_flags(v->shape), depth = mm_shape_depth(v->shape);
    uint64_t length = mm_shape_length(v->shape), index = mm_shape_index(v->shape), room = m->segment_size - (v->address & (m->segment_size - 1));
    if (mm_record_pid(rec) != pid || (flags & ~MM_FLAGS_KNOWN) || depth == 0 || mm_version_wts(v->version) == 0) return false;
    if (flags & MM_FLAG_INDEX && (kind != MM_KIND_DELTA || flags & MM_FLAG_INNER || index == 0 || index > MM_INDEX_MAX)) return false;
    if (flags & MM_FLAG_EXTENT && (length != sizeof(mm_extent) || kind == MM_KIND_FREE)) return false;
    if (mm_shape_span(v->shape) > room || mm_version_wts(v->version) > MM_MAX_WTS) return false;
    if (kind == MM_KIND_DELTA) return depth > 1 && v->prev != 0 && v->prev != v->address;
    return (kind == MM_KIND_BASE || (kind == MM_KIND_FREE && length == 0 && !(flags & MM_FLAG_COMPRESSED))) && depth == 1 && v->prev == 0;
}

int mm_look(mm *m, uint64_t pid, uint64_t address, mm_view *v, mm_result *r)
{
    mm_segment *s = mm_segment_of(m, address, r);
    uint64_t inside = address & (m->segment_size - 1);
    if (!s || inside < MM_BLOCK + sizeof(mm_lease_header) || inside + MM_RECORD_HEADER > m->segment_size
        || !mm_log_reaches(m, address + MM_RECORD_HEADER)) return mm_corrupt(r, MM_FILE_LOG, address);
    const mm_record *rec = (const mm_record *)(m->log + address);
    MM_POINT();
    *v = (mm_view){ .record = rec, .payload = (const uint8_t *)(rec + 1), .address = address, .shape = rec->shape, .version = rec->version,
                    .prev = mm_record_prev(rec), .colour = mm_record_colour(rec), .seed = mm_segment_seed(m, s),
                    .generation = (uint32_t)mm_segword_generation(at_load_relaxed(&s->word)) };
    if (!sane(m, v, pid) || !mm_log_reaches(m, address + mm_shape_span(v->shape))) return mm_corrupt(r, MM_FILE_LOG, address);
    v->body = v->payload;
    v->length = mm_shape_length(v->shape);
    mm_mapped_use(m, address, mm_shape_span(v->shape));
    return MM_OK;
}

/* The payload is read from the mapping once, here; who uses it later reads bytes that cannot change under a pin. */
int mm_verify(mm *m, const mm_view *v, mm_result *r)
{
    (void)m;
    MM_POINT();
    mm_record copy;
    copy.shape = v->shape;
    copy.page_colour = v->record->page_colour;
    copy.version = v->version;
    copy.prev_colour = v->record->prev_colour;
    uint32_t crc = mm_checksum_header(mm_checksum_payload(v->seed, v->address, v->payload, mm_shape_body(v->shape)), &copy);
    uint64_t word = at_load_relaxed(&v->record->crc_commit);
    if ((uint32_t)word != crc || (word >> 32 && word != mm_committed(crc))) return mm_corrupt(r, MM_FILE_LOG, v->address);
    return MM_OK;
}

/* The author may be dead and reaped, so nobody else says that a flush has to cover the record.  A helper that dies in here is seen by its
 * slot: whoever looks whether anything is dirty finds it `helping`, and its reaper raises `dirty` (model: clean.pml, HELP_COUNT).  And its lease may be no
 * slot's any more: the segment is marked before the commit word is stored, for good, since a helper may be late (model: written.pml, HELP_STICKY). */
static void help(mm *m, const mm_view *v, at_word *w, uint64_t word)
{
    if (m->slot) at_add_seq_cst(&m->slot->helping, 1); /* a rebuild has none, and nobody beside it */
    if (at_load_relaxed(&m->segments[v->address >> m->segment_shift].opened) < at_load_relaxed(&m->g->life)) mm_want_mark(m, UINT64_MAX); /* in no slot's lease */
    at_max_release(&m->segments[v->address >> m->segment_shift].written, MM_WRITTEN_ALWAYS);
    at_store_release(w, mm_committed((uint32_t)word)); /* release: who sees it, sees a whole record (intent.c) */
    at_fence_full();
    at_max_release(&m->g->dirty, at_load_acquire(&m->g->epoch));
    at_add_relaxed(&m->g->helped, 1);
    mm_count(m, MM_COUNT_helps, 1);
    if (m->slot) at_add_seq_cst(&m->slot->helping, UINT64_MAX);
}

/* Helping: every helper stores the same bytes, and only a head word entitles to it (model: BLIND_HELP).  The fence stands between the
 * commit word and the colour, or LSN, that the caller loads next (model: fence.pml). */
int mm_look_head(mm *m, uint64_t pid, uint64_t head, mm_view *v, bool *helped, mm_result *r)
{
    *helped = false;
    if (!mm_head_sound(head)) return mm_corrupt(r, MM_FILE_TABLE, MM_WORDS_OFFSET + pid * 8);
    int rc = mm_look(m, pid, mm_head_address(head), v, r);
    if (rc) return rc;
    if (mm_shape_flags(v->shape) & MM_FLAG_INNER) return mm_corrupt(r, MM_FILE_LOG, v->address);
    at_word *w = (at_word *)(m->log + v->address); /* crc_commit is the first word of a record */
    uint64_t word = at_load_acquire(w);
    if (word == mm_committed((uint32_t)word)) return MM_OK;
    if (word >> 32) return mm_corrupt(r, MM_FILE_LOG, v->address);
    rc = mm_verify(m, v, r); /* never commits what does not hold */
    if (rc || m->config.observes) return rc; /* published, as its head says: nothing is built on what an observer saw */
    help(m, v, w, word);
    *helped = true;
    return MM_OK;
}

/* Room for `bytes` at lease.bump.  Called in an announced publish: the lease is dropped when the cleaner has taken its segment (model: lease.pml). */
int mm_reserve(mm *m, uint64_t bytes, enum mm_purpose purpose, mm_result *r)
{
    mm_lease *l = &m->lease;
    mm_note(MM_HOLD_LEASE, 0);
    if (l->start) {
        uint64_t w = at_load_acquire(&m->segments[l->segment].word), state = mm_segword_state(w);
        bool ours = mm_segword_generation(w) == l->generation && (state == MM_SEG_OPEN || state == MM_SEG_SEALED);
        if (ours && l->bump + bytes <= l->end) {
            mm_mapped_use(m, l->bump, bytes);
            if (!l->reserve || purpose == MM_FREES || (purpose == MM_MOVES && !l->frees)) return MM_OK;
            int rc = mm_segment_refill(m, 0, r);
            l->reserve = rc != MM_OK;
            if (!rc || purpose == MM_GROWS) return rc; /* copies take a lease of their own */
        }
        if (!ours) {
            l->live = 0;
            mm_lease_ended(m);
            l->start = 0;
        }
    }
    uint64_t begun = mm_time_begin(m);
    int rc = mm_segment_lease(m, bytes, purpose, r);
    if (rc) return rc;
    mm_time_end_alone(m, MM_TIME_lease, begun, 1);
    mm_count_alone(m, MM_COUNT_leases, 1);
    mm_count_alone(m, MM_COUNT_leased_bytes, l->end - l->start);
    mm_mapped_use(m, l->start, l->end - l->start);
    return MM_OK;
}

/* A record was replaced: its run is given back, if that is what it says, and its checksum holds. */
static void retire_run(mm *m, uint64_t pid, const mm_view *v)
{
    mm_result ignored;
    mm_extent x;
    if (!mm_is_large(v->shape) || mm_verify(m, v, &ignored)) return;
    memcpy(&x, v->payload, sizeof x);
    mm_run_retire(m, x.address >> m->segment_shift, x.generation, pid);
}

/* The bytes of a replaced chain are live no more, and nobody names the runs of its records up to `wts` (newer ones were copied).  Stops at the first
 * thing that looks odd: counters only steer, and a run that nobody names is found later (mm_runs_sweep). */
void mm_retire_chain(mm *m, uint64_t pid, const mm_view *head, uint64_t wts)
{
    mm_result ignored;
    mm_view v = *head;
    for (uint32_t k = 0; k < MM_CHAIN_MAX; k++) {
        mm_account(m, v.address, -(int64_t)mm_shape_span(v.shape));
        if (mm_version_wts(v.version) <= wts) retire_run(m, pid, &v);
        if (mm_shape_kind(v.shape) != MM_KIND_DELTA || mm_look(m, pid, v.prev, &v, &ignored)) return;
    }
}
