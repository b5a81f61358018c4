/* page.c - publish: the verbs that put one record on one page.
 *
 * The order of steps is the protocol (docs/design.md, Publish; model: publish.pml):
 *   announce, fence -> lease still ours? -> load the head -> help -> look at the version -> load the epoch: the colour ->
 *   write the record beyond the bump pointer, commit word 0 -> CAS the head -> commit word -> fence, LSN -> bump pointer -> account.
 *
 * Died before the CAS: the bytes are scratch, nothing happened.  Died after it: the operation happened; whoever finds the record
 * through the head stores its commit word.  Stopped anywhere: others find the old head or the new one, and go on.
 * A lost CAS leaves the bump pointer where it was; the next try loads the head, the colour and everything else again.
 */
#include <string.h>

#include "mapped.h"

enum verb { VERB_APPEND, VERB_LINK, VERB_REPLACE, VERB_FREE, VERB_CREATE };

typedef struct change {
    enum verb verb;
    uint64_t pid, wts, from; /* wts: of the caller's key; from: VERB_CREATE, the head word that must be there */
    const void *payload;
    uint64_t length;
    uint8_t tag, flags;
    bool judged; /* the payload was looked at, and `tag` is right */
    mm_run *run; /* where the payload lies that `payload` then only names, or NULL */
    bool frees;          /* its space may come from the reserve: a FREE record, and what keeps reading possible */
} change;

typedef struct plan { /* what the record will say, given the head that was found */
    uint64_t head;       /* the head word to CAS from */
    bool exists;         /* `old` is valid */
    mm_view old;
    uint64_t version, prev;
    uint8_t kind, depth;
    uint64_t room;       /* for the index, at most */
    mm_index index;
} plan;

/* ---- deciding ------------------------------------------------------------------------------------------------------------ */

static void key_of(mm *m, uint64_t pid, uint64_t head, uint64_t version, mm_result *r)
{
    r->key = (mm_key){ pid, head, mm_version_wts(version), at_load_acquire(&m->g->epoch) };
}

/* A group of records must fit one lease (relocation, consolidation).  Records under 1/512 of a group cannot exceed half of it in
 * 250 steps; larger ones are added up here.  The first DELTA always fits (mm_inline_limit): three quarters with its BASE, and what it is merged to, at most
 * half, with it. */
static int chain_bytes_fit(mm *m, const change *c, const mm_view *head, mm_result *r)
{
    uint64_t span = mm_span_of(c->length), half = m->group_limit / 2;
    bool base = mm_shape_depth(head->shape) == 1;
    if (base || span < m->group_limit / 512) return MM_OK;
    mm_view v = *head;
    for (uint64_t sum = span;;) {
        sum += mm_shape_span(v.shape);
        if (sum > half) return MM_CHAIN;
        if (mm_shape_kind(v.shape) != MM_KIND_DELTA) return MM_OK;
        int rc = mm_look(m, c->pid, v.prev, &v, r);
        if (rc) return rc;
    }
}

/* A refusal says something about the page: only what its checksum covers may be said. */
static int refuse(mm *m, const plan *p, int status, mm_result *r)
{
    int rc = mm_verify(m, &p->old, r);
    return rc ? rc : status;
}

static int plan_delta(mm *m, const change *c, plan *p, mm_result *r)
{
    if (mm_shape_tag(p->old.shape) != c->tag) return refuse(m, p, MM_TYPE, r);
    if (mm_shape_depth(p->old.shape) >= m->max_depth) return MM_CHAIN;
    p->kind = MM_KIND_DELTA;
    p->depth = (uint8_t)(mm_shape_depth(p->old.shape) + 1);
    p->prev = p->old.address;
    mm_index_make(&p->old, p->room, &p->index);
    return chain_bytes_fit(m, c, &p->old, r);
}

/* What to write on top of the head found, or why not.  The head's record is committed when this returns. */
static int make_plan(mm *m, const change *c, at_word *head, plan *p, mm_result *r)
{
    bool helped;
    p->head = at_load_acquire(head);
    p->exists = p->head != 0;
    p->kind = c->verb == VERB_FREE ? MM_KIND_FREE : MM_KIND_BASE;
    p->depth = 1;
    p->prev = 0;
    p->index.n = 0;
    p->version = mm_version(1, 0);
    if (!p->exists) return c->verb != VERB_CREATE ? MM_NOPAGE : c->from ? MM_CONFLICT : MM_OK;
    int rc = mm_look_head(m, c->pid, p->head, &p->old, &helped, r);
    if (rc) return rc;
    key_of(m, c->pid, p->head, p->old.version, r);
    r->kind = mm_shape_kind(p->old.shape);
    p->version = mm_version(mm_version_wts(p->old.version) + 1, 0);
    if (mm_version_wts(p->version) > MM_MAX_WTS) return MM_LIMIT;
    if (c->verb == VERB_CREATE) return p->head == c->from ? MM_OK : MM_CONFLICT;
    bool stale = c->verb != VERB_APPEND && mm_version_wts(p->old.version) != c->wts;
    if (mm_shape_kind(p->old.shape) == MM_KIND_FREE) return refuse(m, p, MM_FREED, r);
    if (stale) return refuse(m, p, MM_CONFLICT, r);
    return c->verb == VERB_APPEND || c->verb == VERB_LINK ? plan_delta(m, c, p, r) : MM_OK;
}

/* ---- writing --------------------------------------------------------------------------------------------------------------- */

static void write_record(mm *m, const change *c, const plan *p, uint32_t payload_crc)
{
    uint64_t colour = at_load_acquire(&m->g->epoch); /* after everything that was looked at; again at each retry */
    mm_record *rec = (mm_record *)(m->log + m->lease.bump);
    uint32_t n = p->index.n;
    at_copy((uint8_t *)(rec + 1) + c->length, p->index.bytes, n); /* 0 bytes too: an access more or less would tell where a record lies */
    rec->shape = mm_shape((uint32_t)c->length, p->depth, p->kind, (uint8_t)((n ? MM_FLAG_INDEX : 0) | c->flags), c->tag, (uint8_t)n);
    rec->page_colour = mm_page_colour(c->pid, colour);
    rec->version = p->version;
    rec->prev_colour = mm_prev_colour(p->prev, colour);
    at_written(&rec->shape, MM_RECORD_HEADER - sizeof rec->crc_commit);
    MM_POINT();
    mm_seal_record(rec, crc32c_extend(payload_crc, p->index.bytes, n));
}

/* The CAS won: the operation has happened. */
static void finish(mm *m, const change *c, const plan *p, uint64_t head, mm_result *r)
{
    uint64_t address = m->lease.bump, span = mm_span_of(c->length + p->index.n);
    at_word *w = (at_word *)(m->log + address);
    at_store_release(w, mm_committed((uint32_t)at_load_relaxed(w))); /* release: who sees it, sees a whole record (intent.c) */
    at_fence_full(); /* commit word, then the epoch: stable >= LSN covers the record (model: LSN_COLOUR) */
    r->key = (mm_key){ c->pid, head, mm_version_wts(p->version), at_load_acquire(&m->g->epoch) };
    if (at_load_relaxed(&m->g->dirty) < r->key.lsn) at_max_release(&m->g->dirty, r->key.lsn);
    r->generation = m->lease.generation;
    r->kind = p->kind;
    r->depth = p->depth;
    m->lease.bump += span;
    at_store_release(&m->slot->lease_fill, m->lease.bump - m->lease.start);
    m->lease.live += (int64_t)span;
    at_store_relaxed(&m->slot->operations, at_load_relaxed(&m->slot->operations) + 1);
    if (p->kind != MM_KIND_DELTA && p->exists) mm_retire_chain(m, c->pid, &p->old, UINT64_MAX);
}

/* Writers consolidate when the fragments on top weigh something against the base, so that a large page is not rewritten for every ten
 * small fragments; at 8 x the threshold they must (MM_CHAIN). */
static bool worth_tidying(mm *m, uint64_t pid, uint64_t address, uint32_t depth)
{
    if (depth <= m->threshold || depth % m->threshold) return false;
    mm_result ignored;
    mm_view v;
    uint64_t deltas = 0;
    while (mm_look(m, pid, address, &v, &ignored) == MM_OK) {
        if (mm_extent_open(m, &v, &ignored)) return false;
        if (mm_shape_kind(v.shape) != MM_KIND_DELTA) return deltas * 4 >= v.length;
        deltas += v.length;
        address = v.prev;
    }
    return false;
}

static int try_publish(mm *m, const change *c, mm_result *r)
{
    at_word *head;
    int rc = mm_head(m, c->pid, &head, r);
    if (rc) return rc;
    plan p;
    p.room = MM_INDEX_MAX;
    rc = make_plan(m, c, head, &p, r); /* refuses before any space is taken */
    if (rc) return rc;
    if (c->run) mm_run_name(m, c->run, c->pid);
    rc = mm_reserve(m, mm_span_of(c->length + p.index.n), c->frees ? MM_FREES : MM_GROWS, r);
    if (rc) return rc;
    if (c->length) at_copy(m->log + m->lease.bump + MM_RECORD_HEADER, c->payload, c->length);
    uint32_t crc = mm_checksum_payload(m->lease.seed, m->lease.bump, c->payload, c->length);
    p.room = m->lease.end - m->lease.bump - MM_RECORD_HEADER - c->length; /* another head, another index: what was reserved stays */
    for (;;) {
        write_record(m, c, &p, crc);
        uint64_t found = p.head, next = mm_head_next(p.head, m->lease.bump);
        /* Release: whoever loads this head finds the record complete.  Acquire on failure: we look into the winner's record. */
        if (at_cas_acq_rel(head, &found, next)) {
            finish(m, c, &p, next, r);
            return MM_OK;
        }
        at_store_relaxed(&m->slot->conflicts, at_load_relaxed(&m->slot->conflicts) + 1);
        mm_count_alone(m, MM_COUNT_retries, 1);
        rc = make_plan(m, c, head, &p, r);
        if (rc) return rc;
    }
}

static int check_payload(const mm *m, change *c, mm_result *r)
{
    if (c->judged) return MM_OK;
    if (c->length > mm_limit(m)) {
        r->length = mm_limit(m);
        return MM_TOOBIG;
    }
    c->tag = 0;
    if (!m->merge_kind || c->verb == VERB_FREE || c->pid < 2) return MM_OK;
    c->tag = mm_merge_class((int)m->merge_kind, c->payload, c->length);
    return c->tag ? MM_OK : MM_TYPE;
}

/* A lease taken since the last write that returned has made a snapshot worth its while, or a share of the cleaning due. */
static void tell_due(mm *m, mm_result *r)
{
    r->due = m->due || mm_clean_owed(m);
    m->due = false;
}

/* ---- counting (metrics.h): under the mutex of publishing, so a store does for an addition --------------------------------------------- */

static const struct { uint8_t counter, time; } counted_as[] = {
    [VERB_APPEND] = { MM_COUNT_appends, MM_TIME_append },     [VERB_LINK] = { MM_COUNT_links, MM_TIME_link },
    [VERB_REPLACE] = { MM_COUNT_replaces, MM_TIME_replace },  [VERB_FREE] = { MM_COUNT_frees, MM_TIME_free },
    [VERB_CREATE] = { MM_COUNT_allocates, MM_TIME_allocate } };
_Static_assert(MM_EVERY_append == MM_EVERY_link && MM_EVERY_link == MM_EVERY_replace && MM_EVERY_replace == MM_EVERY_free
               && MM_EVERY_free == MM_EVERY_allocate && MM_EVERY_allocate == MM_EVERY_payload, "one sample for all that a write says");

static uint64_t begin_write(const mm *m, const change *c)
{
    const mm_metrics_row *row = mm_row(m);
    return row && mm_sample(at_noted(&row->counters[counted_as[c->verb].counter]), MM_EVERY_append) ? mm_os_ticks() : 0;
}

__attribute__((noinline, cold)) static void time_write(mm *m, const change *c, uint64_t begun, uint64_t n)
{
    mm_time_end_alone(m, counted_as[c->verb].time, begun, n);
    if (c->verb != VERB_FREE) mm_note_value_alone(m, MM_TIME_payload, c->length, n);
}

/* A write that ended with `rc`. */
static inline void end_write(mm *m, const change *c, uint64_t begun, int rc)
{
    mm_metrics_row *row = mm_row(m);
    if (!row) return;
    if (rc) {
        if (rc == MM_CONFLICT) mm_row_count_alone(row, MM_COUNT_conflicts, 1);
        return;
    }
    uint64_t n = mm_row_count_alone(row, counted_as[c->verb].counter, 1);
    mm_row_count_alone(row, MM_COUNT_payload_bytes, c->length);
    if (begun) time_write(m, c, begun, mm_sample(n, MM_EVERY_append));
}

static int publish(mm *m, void *args, mm_result *r)
{
    change *c = args;
    memset(r, 0, sizeof *r);
    r->key.pid = c->pid;
    int rc = check_payload(m, c, r);
    if (!rc) rc = mm_publish_begin(m, r);
    if (rc) return rc;
    uint64_t begun = begin_write(m, c);
    mm_announce(m);
    rc = mm_blame(m, try_publish(m, c, r), r);
    if (!rc && c->verb == VERB_FREE) mm_id_freed(m, c->pid, r->key.head);
    if (!rc && c->pid != 1) tell_due(m, r); /* who draws a number does nothing else */
    if (!rc && r->kind == MM_KIND_DELTA) r->tidy = worth_tidying(m, c->pid, mm_head_address(r->key.head), r->depth);
    if (c->verb != VERB_CREATE && c->pid != 1) end_write(m, c, begun, rc); /* else it is the store's own doing: a page at its beginning, numbers (ids.c) */
    mm_publish_end(m);
    return rc;
}

/* ---- large payloads ------------------------------------------------------------------------------------------------------------ */

/* Whether there is any use in writing it.  A chain that is full may be consolidated meanwhile. */
static int would_refuse(mm *m, void *args, mm_result *r)
{
    change *c = args;
    at_word *head;
    plan p = { .room = MM_INDEX_MAX };
    memset(r, 0, sizeof *r);
    r->key.pid = c->pid;
    int rc = check_payload(m, c, r);
    if (!rc) rc = mm_publish_begin(m, r);
    if (rc) return rc;
    mm_announce(m);
    change small = *c;
    small.length = sizeof(mm_extent);
    if (c->verb != VERB_CREATE) rc = mm_head(m, c->pid, &head, r);
    if (!rc && c->verb != VERB_CREATE) rc = make_plan(m, &small, head, &p, r);
    rc = mm_blame(m, rc, r);
    mm_publish_end(m);
    return rc == MM_CHAIN ? MM_OK : rc;
}

/* A verb: `body` publishes a change.  A payload that is too large for a record is written to a run first, with no lock held (extent.c). */
static int perform(mm *m, mm_body *body, change *c, mm_result *r)
{
    mm_run run;
    bool delta = c->verb == VERB_APPEND || c->verb == VERB_LINK;
    if (c->length <= mm_inline_limit(m, delta ? MM_KIND_DELTA : MM_KIND_BASE)) return mm_guarded(m, r, body, c);
    int rc = mm_guarded(m, r, would_refuse, c);
    if (rc) return rc;
    rc = mm_run_write(m, c->verb == VERB_CREATE ? MM_MAX_PID : c->pid, c->payload, c->length, &run, r);
    if (rc) return rc;
    change small = *c;
    small.payload = &run.extent;
    small.length = sizeof run.extent;
    small.flags |= MM_FLAG_EXTENT;
    small.judged = true;
    small.run = &run;
    rc = mm_guarded(m, r, body, &small);
    mm_run_done(m, &run, rc);
    return rc;
}

/* ---- the verbs --------------------------------------------------------------------------------------------------------------- */

/* A chain that is full is consolidated here when C knows how to merge; a losing consolidator means that another one won.  What is compressed the
 * caller has to. */
static int publish_delta(mm *m, void *args, mm_result *r)
{
    const change *c = args;
    for (int tries = 0;; tries++) {
        int rc = publish(m, args, r);
        if (rc != MM_CHAIN || !m->merge_kind || tries == 100) return rc;
        rc = mm_consolidate_native(m, c->pid, r);
        if (rc == MM_COMPRESSED) return MM_CHAIN;
        if (rc != MM_OK && rc != MM_CONFLICT && rc != MM_CHAIN) return rc;
    }
}

int mm_append(mm *m, uint64_t pid, const void *payload, uint64_t length, mm_result *r)
{
    change c = { .verb = VERB_APPEND, .pid = pid, .payload = payload, .length = length };
    return pid < 2 ? MM_RESERVED : perform(m, publish_delta, &c, r);
}

int mm_link(mm *m, const mm_key *key, const void *payload, uint64_t length, mm_result *r)
{
    change c = { .verb = VERB_LINK, .pid = key->pid, .wts = key->wts, .payload = payload, .length = length };
    return key->pid < 2 ? MM_RESERVED : perform(m, publish_delta, &c, r);
}

int mm_replace(mm *m, const mm_key *key, const void *payload, uint64_t length, mm_result *r)
{
    change c = { .verb = VERB_REPLACE, .pid = key->pid, .wts = key->wts, .payload = payload, .length = length };
    return key->pid < 2 ? MM_RESERVED : perform(m, publish, &c, r);
}

int mm_free(mm *m, const mm_key *key, mm_result *r)
{
    change c = { .verb = VERB_FREE, .pid = key->pid, .wts = key->wts, .frees = true };
    return key->pid < 2 ? MM_RESERVED : perform(m, publish, &c, r);
}

int mm_replace_reserved(mm *m, const mm_key *key, const void *payload, uint64_t length, int frees, mm_result *r)
{
    change c = { .verb = VERB_REPLACE, .pid = key->pid, .wts = key->wts, .payload = payload, .length = length, .frees = frees != 0 };
    return key->pid > 1 ? MM_RESERVED : perform(m, publish, &c, r);
}

int mm_install(mm *m, uint64_t pid, const void *payload, uint64_t length, mm_result *r)
{
    change c = { .verb = VERB_CREATE, .pid = pid, .payload = payload, .length = length };
    return perform(m, publish, &c, r);
}

/* An id is a hint until the CAS from the head it was taken with: a lost one is simply dropped (model: ids.pml). */
static int allocate(mm *m, void *args, mm_result *r)
{
    change *c = args;
    memset(r, 0, sizeof *r);
    int rc = check_payload(m, c, r);
    if (!rc) rc = mm_publish_begin(m, r);
    if (rc) return rc;
    uint64_t begun = begin_write(m, c);
    mm_announce(m);
    do {
        rc = mm_id_take(m, &c->pid, &c->from, r);
        if (rc) break;
        rc = try_publish(m, c, r);
        if (rc && rc != MM_CONFLICT) mm_id_return(m, c->pid);
    } while (rc == MM_CONFLICT);
    rc = mm_blame(m, rc, r);
    if (!rc) tell_due(m, r);
    end_write(m, c, begun, rc);
    mm_publish_end(m);
    return rc;
}

int mm_allocate(mm *m, const void *payload, uint64_t length, mm_result *r)
{
    change c = { .verb = VERB_CREATE, .pid = 2, .payload = payload, .length = length };
    return perform(m, allocate, &c, r);
}

int mm_write_compressed(mm *m, uint32_t verb, const mm_key *key, uint32_t tag, const void *frame, uint64_t length, mm_result *r)
{
    static const enum verb verbs[] = { VERB_CREATE, VERB_APPEND, VERB_LINK, VERB_REPLACE, VERB_REPLACE };
    bool meta = verb == MM_WRITE_META;
    if (verb == MM_WRITE_CONSOLIDATE) return mm_consolidate_payload(m, key->pid, key->wts, frame, length, (uint8_t)tag, MM_FLAG_COMPRESSED, r);
    memset(r, 0, sizeof *r);
    r->length = mm_limit(m);
    if (length > r->length) return MM_TOOBIG;
    if (verb > MM_WRITE_META || (tag != 0) != (m->merge_kind != 0 && !meta)) return MM_TYPE;
    change c = { .verb = verbs[verb], .pid = verb == MM_WRITE_ALLOCATE ? 2 : key->pid, .wts = key->wts, .payload = frame, .length = length,
                 .tag = (uint8_t)tag, .flags = MM_FLAG_COMPRESSED, .judged = true };
    if (meta ? c.pid != 0 : c.pid < 2) return MM_RESERVED;
    bool delta = verb == MM_WRITE_APPEND || verb == MM_WRITE_LINK;
    return perform(m, verb == MM_WRITE_ALLOCATE ? allocate : delta ? publish_delta : publish, &c, r);
}
