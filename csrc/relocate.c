/* relocate.c - moves the chain of a page, as it is, to where the log is written now: how a segment is emptied, and what `rewrite` does.
 *
 * A group publish (group.c): copies of all records of the chain next to each other, all but the newest INNER, made visible by one CAS of the head
 * and one commit word.  Nothing is decoded.  wts stays, place + 1.  A lost CAS means that somebody changed the page: it is looked at again.
 *
 * Died before the CAS: scratch.  Died after it: whoever finds the newest copy commits the group.  The old records stay as they are until their
 * segment is used again (reuse.c).
 */
#include "internal.h"

/* Whether the chain, walked from the head as it is now, holds the record at `address`.  The head is helped. */
int mm_chain_passes(mm *m, uint64_t pid, uint64_t address, uint64_t version, mm_result *r)
{
    at_word *head;
    mm_view v;
    bool helped;
    int rc = mm_head(m, pid, &head, r);
    if (rc) return rc == MM_NOPAGE ? 0 : -rc; /* scratch of a page that never came to be */
    uint64_t h = at_load_acquire(head);
    if (!h) return 0;
    rc = mm_look_head(m, pid, h, &v, &helped, r);
    for (uint32_t k = 0; !rc && k < MM_CHAIN_MAX; k++) { /* versions strictly decrease */
        if (v.address == address) return 1;
        if (v.version <= version || mm_shape_kind(v.shape) != MM_KIND_DELTA) return 0;
        rc = mm_look(m, pid, v.prev, &v, r);
    }
    return rc ? -rc : -MM_CORRUPT;
}

static bool touches(const mm *m, const mm_chain_view *c, uint64_t segment)
{
    for (uint32_t i = 0; i < c->count; i++)
        if (segment == MM_NO_SEGMENT || c->at[i].address >> m->segment_shift == segment) return true;
    return false;
}

static uint64_t bytes_of(const mm_chain_view *c)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < c->count; i++) sum += mm_span_of(mm_shape_length(c->at[i].shape));
    return sum;
}

/* Copies beyond the bump pointer, oldest first; the address of the newest. */
static uint64_t write_copies(mm *m, uint64_t pid, const mm_chain_view *c)
{
    uint64_t colour = at_load_acquire(&m->g->epoch), at = m->lease.bump, last = 0; /* after everything that was looked at */
    for (uint32_t i = c->count; i-- > 0;) {
        const mm_view *v = &c->at[i];
        uint64_t s = v->shape, here = at;
        uint8_t depth = (uint8_t)(c->count - i), inner = i ? 0 : (uint8_t)(c->count - 1);
        uint8_t flags = (uint8_t)((i ? MM_FLAG_INNER : 0) | (mm_shape_flags(s) & MM_FLAGS_OF_PAYLOAD)); /* what names a run is moved, the run is not */
        s = mm_shape(mm_shape_length(s), depth, mm_shape_kind(s), flags, mm_shape_tag(s), inner);
        at = mm_group_record(m, pid, here, last, s, mm_version_moved(v->version), colour, v->payload);
        last = here;
    }
    return last;
}

/* One try.  MM_CONFLICT: somebody was faster. */
static int move_once(mm *m, uint64_t pid, uint64_t segment, at_word *head, uint64_t *moved, mm_result *r)
{
    mm_view v;
    bool helped;
    mm_chain_view c;
    uint64_t h = at_load_acquire(head);
    if (!h) return MM_NOPAGE;
    int rc = mm_look_head(m, pid, h, &v, &helped, r);
    if (!rc) rc = mm_walk(m, pid, &v, 0, &c, r);
    if (rc || !touches(m, &c, segment)) return rc;
    uint64_t bytes = bytes_of(&c);
    if (bytes > m->group_limit) return mm_corrupt(r, MM_FILE_LOG, v.address); /* writers keep chains below half of it */
    rc = mm_reserve(m, bytes, MM_MOVES, r);
    if (rc) return rc;
    uint64_t last = write_copies(m, pid, &c), found = h, next = mm_head_next(h, last);
    if (!at_cas_acq_rel(head, &found, next)) { /* release: the whole group is complete for whoever loads this head */
        at_store_relaxed(&m->slot->conflicts, at_load_relaxed(&m->slot->conflicts) + 1);
        mm_count_alone(m, MM_COUNT_retries, 1);
        return MM_CONFLICT;
    }
    r->key = (mm_key){ .pid = pid, .head = next };
    r->kind = mm_shape_kind(v.shape);
    r->depth = c.count;
    mm_group_committed(m, &v, last, bytes, 0, r);
    *moved += bytes;
    if (r->kind == MM_KIND_FREE) mm_id_return(m, pid); /* who had the id as a candidate had it with the old head */
    return MM_OK;
}

/* Moves the chain of the page if it has a record in `segment` (MM_NO_SEGMENT: in any case).  Each turn that is lost is somebody else's progress, who
 * may have left the segment with it.  *moved += bytes copied. */
int mm_relocate(mm *m, uint64_t pid, uint64_t segment, uint64_t *moved, mm_result *r)
{
    at_word *head;
    int rc = mm_publish_begin(m, r);
    if (rc) return rc;
    uint64_t begun = mm_time_begin(m), before = *moved;
    mm_announce(m);
    rc = mm_head(m, pid, &head, r);
    if (!rc) {
        do rc = move_once(m, pid, segment, head, moved, r);
        while (rc == MM_CONFLICT);
    }
    rc = mm_blame(m, rc, r);
    if (*moved != before) {
        mm_count_alone(m, MM_COUNT_rewrites, 1);
        mm_time_end_alone(m, MM_TIME_rewrite, begun, 1);
    }
    mm_publish_end(m);
    return rc;
}

/* ---- rewrite ----------------------------------------------------------------------------------------------------------------------- */

static int rewrite_page(mm *m, void *pid, mm_result *r)
{
    uint64_t moved = 0;
    int rc = mm_relocate(m, *(uint64_t *)pid, MM_NO_SEGMENT, &moved, r);
    r->length = moved;
    return rc;
}

/* Moves the page to the end of the log, as it is: nobody sees a change.  r->length: bytes written. */
int mm_rewrite_page(mm *m, uint64_t pid, mm_result *r)
{
    __builtin_memset(r, 0, sizeof *r);
    r->key.pid = pid;
    return mm_guarded(m, r, rewrite_page, &pid);
}
