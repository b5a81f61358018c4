/* restore.c - puts a given payload on a given page of a fresh store: what a salvage does with what it found.
 *
 * The steps are those of page.c (announce, head, help, room, colour, record, CAS, commit word, LSN), and a death cuts them the same way.
 * What differs: any page id may be named, 0 and 1 too, the table is made to cover it, and the kind is the caller's.  A BASE or FREE record
 * starts the page anew, a DELTA continues the head as it stands.  No chain is consolidated on the way: it is as long as it was.
 */
#include <string.h>

#include "internal.h"

typedef struct restored {
    const void *payload;
    uint64_t pid, version, prev, length;
    uint8_t kind, depth, tag, flags;
    mm_run *run; /* where the payload lies that `payload` then only names, or NULL */
} restored;

static int continue_head(mm *m, uint64_t head, restored *t, mm_result *r)
{
    mm_view old;
    bool helped;
    if (!head) return t->kind == MM_KIND_DELTA ? MM_NOPAGE : MM_OK;
    int rc = mm_look_head(m, t->pid, head, &old, &helped, r);
    if (rc) return rc;
    t->version = mm_version(mm_version_wts(old.version) + 1, 0);
    if (mm_version_wts(t->version) > MM_MAX_WTS) return MM_LIMIT;
    if (t->kind != MM_KIND_DELTA) return MM_OK;
    if (mm_shape_kind(old.shape) == MM_KIND_FREE) return MM_FREED;
    if (mm_shape_depth(old.shape) == UINT8_MAX) return MM_CHAIN;
    t->prev = old.address;
    t->depth = (uint8_t)(mm_shape_depth(old.shape) + 1);
    return MM_OK;
}

static int put(mm *m, restored *t, mm_result *r)
{
    at_word *head;
    const void *payload = t->payload;
    uint64_t length = t->length;
    int rc = mm_table_cover(m, t->pid, r);
    if (!rc) rc = mm_head(m, t->pid, &head, r);
    if (rc) return rc;
    uint64_t found = at_load_acquire(head);
    rc = continue_head(m, found, t, r);
    if (!rc) rc = mm_reserve(m, mm_span_of(length), MM_GROWS, r);
    if (rc) return rc;
    if (t->run) mm_run_name(m, t->run, t->pid);
    uint64_t address = m->lease.bump, next = mm_head_next(found, address), colour = at_load_acquire(&m->g->epoch);
    mm_record *rec = (mm_record *)(m->log + address);
    if (length) at_copy(rec + 1, payload, length);
    rec->shape = mm_shape((uint32_t)length, t->depth, t->kind, t->flags, t->tag, 0);
    rec->page_colour = mm_page_colour(t->pid, colour);
    rec->version = t->version;
    rec->prev_colour = mm_prev_colour(t->prev, colour);
    at_written(&rec->shape, MM_RECORD_HEADER - sizeof rec->crc_commit);
    mm_seal_record(rec, mm_checksum_payload(m->lease.seed, address, payload, length));
    if (!at_cas_acq_rel(head, &found, next)) return MM_CONFLICT;
    at_max_release(&m->g->max_pid, t->pid + 1);
    at_store_release(&rec->crc_commit, mm_committed((uint32_t)at_load_relaxed(&rec->crc_commit))); /* release: who sees it, sees a whole record (intent.c) */
    at_fence_full(); /* commit word, then the LSN */
    r->key = (mm_key){ t->pid, next, mm_version_wts(t->version), at_load_acquire(&m->g->epoch) };
    at_max_release(&m->g->dirty, r->key.lsn);
    m->lease.bump += mm_span_of(length);
    at_store_release(&m->slot->lease_fill, m->lease.bump - m->lease.start);
    m->lease.live += (int64_t)mm_span_of(length);
    return MM_OK;
}

static int publish(mm *m, void *args, mm_result *r)
{
    int rc = mm_publish_begin(m, r);
    if (rc) return rc;
    mm_announce(m);
    rc = put(m, args, r);
    const restored *t = args;
    if (!rc && t->kind == MM_KIND_FREE) mm_id_return(m, t->pid); /* a hint: else only the sweep of a recovery would find the id */
    mm_publish_end(m);
    return rc;
}

static bool tagged(const mm *m, uint64_t pid, uint32_t kind) { return m->merge_kind && pid >= 2 && kind != MM_KIND_FREE; }

static int restore(mm *m, uint64_t pid, uint32_t kind, const void *payload, uint64_t length, uint8_t tag, uint8_t flags, mm_result *r)
{
    memset(r, 0, sizeof *r);
    r->length = mm_limit(m);
    if (pid > MM_MAX_PID) return MM_LIMIT;
    if (length > r->length) return MM_TOOBIG;
    if (kind < MM_KIND_BASE || kind > MM_KIND_FREE || (kind == MM_KIND_FREE && (length || flags))) return MM_TYPE;
    if ((tag != 0) != tagged(m, pid, kind)) return MM_TYPE;
    restored t = { .payload = payload, .length = length, .pid = pid, .version = mm_version(1, 0), .kind = (uint8_t)kind, .depth = 1, .tag = tag, .flags = flags };
    if (length <= mm_inline_limit(m, (enum mm_kind)kind)) return mm_guarded(m, r, publish, &t);
    mm_run run;
    int rc = mm_run_write(m, pid, payload, length, &run, r);
    if (rc) return rc;
    t.payload = &run.extent;
    t.length = sizeof run.extent;
    t.flags |= MM_FLAG_EXTENT;
    t.run = &run;
    rc = mm_guarded(m, r, publish, &t);
    mm_run_done(m, &run, rc);
    return rc;
}

int mm_restore(mm *m, uint64_t pid, uint32_t kind, const void *payload, uint64_t length, mm_result *r)
{
    uint8_t tag = tagged(m, pid, kind) && length <= mm_limit(m) ? mm_merge_class((int)m->merge_kind, payload, length) : 0;
    return restore(m, pid, kind, payload, length, tag, 0, r);
}

int mm_restore_compressed(mm *m, uint64_t pid, uint32_t kind, uint32_t tag, const void *frame, uint64_t length, mm_result *r)
{
    return restore(m, pid, kind, frame, length, (uint8_t)tag, MM_FLAG_COMPRESSED, r);
}
