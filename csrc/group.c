/* group.c - group publish: several records of one page, next to each other, made visible by one CAS and one commit word.
 *
 * Consolidation writes the merge of everything up to a version as a new base and copies on top, as they are, the deltas that came since;
 * when it loses the CAS it copies what came in between and tries again, so a page that is appended to without pause is still
 * consolidated.  All records but the last are INNER and never get a commit word of their own; the last one says how many they are.
 * The content does not change: wts stays, place rises.
 *
 * Died before the CAS: scratch beyond the bump pointer.  Died after: whoever finds the last record commits the group.
 */
#include <string.h>

#include "internal.h"

typedef struct group {
    uint64_t pid, base_wts;
    const uint8_t *payload;
    uint64_t length;
    uint8_t tag, flags;
    mm_run *run; /* where the payload lies that `payload` then only names, or NULL */
    mm_view head;
    uint64_t head_word, base_version; /* version of the record that the base stands for */
    mm_chain_view since;              /* deltas newer than base_wts, newest first */
} group;

/* What is newer than the base now.  MM_CONFLICT: the page was replaced, freed, or is consolidated as far already. */
static int survey(mm *m, group *g, at_word *head, mm_result *r)
{
    bool helped;
    mm_view stop;
    g->head_word = at_load_acquire(head);
    if (!g->head_word) return MM_NOPAGE;
    int rc = mm_look_head(m, g->pid, g->head_word, &g->head, &helped, r);
    if (rc) return rc;
    if (mm_shape_kind(g->head.shape) == MM_KIND_FREE || mm_version_wts(g->head.version) < g->base_wts) return MM_CONFLICT;
    rc = mm_walk(m, g->pid, &g->head, g->base_wts, &g->since, r);
    if (rc) return rc;
    if (g->since.whole) return MM_CONFLICT;
    stop = g->head;
    if (g->since.count) rc = mm_look(m, g->pid, g->since.at[g->since.count - 1].prev, &stop, r);
    if (rc) return rc;
    if (mm_version_wts(stop.version) != g->base_wts || mm_shape_kind(stop.shape) != MM_KIND_DELTA) return MM_CONFLICT;
    g->base_version = stop.version;
    return g->since.count < m->max_depth ? MM_OK : MM_CHAIN;
}

static uint64_t group_bytes(const group *g)
{
    uint64_t sum = mm_span_of(g->length);
    for (uint32_t i = 0; i < g->since.count; i++) sum += mm_span_of(mm_shape_length(g->since.at[i].shape));
    return sum;
}

/* One record of a group at `at`, commit word 0; where the next one goes.  What is copied lies together: none has an index. */
uint64_t mm_group_record(mm *m, uint64_t pid, uint64_t at, uint64_t prev, uint64_t shape, uint64_t version, uint64_t colour, const void *payload)
{
    mm_record *rec = (mm_record *)(m->log + at);
    uint64_t n = mm_shape_length(shape);
    if (payload != rec + 1) at_copy(rec + 1, payload, n);
    rec->shape = shape;
    rec->page_colour = mm_page_colour(pid, colour);
    rec->version = version;
    rec->prev_colour = mm_prev_colour(prev, colour);
    at_written(&rec->shape, MM_RECORD_HEADER - sizeof rec->crc_commit);
    MM_POINT();
    mm_seal_record(rec, mm_checksum_payload(m->lease.seed, at, rec + 1, n));
    return at + mm_span_of(n);
}

/* Writes the group beyond the bump pointer; the address of its last record. */
static uint64_t write_group(mm *m, const group *g)
{
    uint64_t colour = at_load_acquire(&m->g->epoch), at = m->lease.bump, last = at;
    uint32_t n = g->since.count;
    uint64_t shape = mm_shape((uint32_t)g->length, 1, MM_KIND_BASE, (uint8_t)((n ? MM_FLAG_INNER : 0) | g->flags), g->tag, 0);
    at = mm_group_record(m, g->pid, at, 0, shape, mm_version_moved(g->base_version), colour, g->payload);
    for (uint32_t i = 1; i <= n; i++) {
        const mm_view *v = &g->since.at[n - i];
        uint8_t flags = (uint8_t)((i < n ? MM_FLAG_INNER : 0) | (mm_shape_flags(v->shape) & MM_FLAGS_OF_PAYLOAD));
        shape = mm_shape(mm_shape_length(v->shape), (uint8_t)(i + 1), MM_KIND_DELTA, flags, mm_shape_tag(v->shape), i < n ? 0 : (uint8_t)n);
        uint64_t here = at;
        at = mm_group_record(m, g->pid, here, last, shape, mm_version_moved(v->version), colour, v->payload);
        last = here;
    }
    return last;
}

/* The CAS won: the commit word, then the bookkeeping.  The content is what it was; of the old records those up to the wts `merged` are in the new base,
 * the others were copied, and name the runs that they did. */
void mm_group_committed(mm *m, const mm_view *old, uint64_t last, uint64_t bytes, uint64_t merged, mm_result *r)
{
    at_word *w = (at_word *)(m->log + last);
    at_store_release(w, mm_committed((uint32_t)at_load_relaxed(w))); /* release: who sees it, sees a whole group (intent.c) */
    at_fence_full();
    r->key.wts = mm_version_wts(mm_version_moved(old->version));
    r->key.lsn = at_load_acquire(&m->g->epoch);
    r->generation = m->lease.generation;
    m->lease.bump += bytes;
    at_store_release(&m->slot->lease_fill, m->lease.bump - m->lease.start);
    m->lease.live += (int64_t)bytes;
    mm_retire_chain(m, r->key.pid, old, merged);
}

/* The caller holds the mutex and has announced.  Each lost CAS is somebody else's progress; it gives up after many. */
static int publish_group(mm *m, group *g, mm_result *r)
{
    at_word *head;
    int rc = mm_head(m, g->pid, &head, r);
    for (int tries = 0; !rc && tries < 256; tries++) {
        rc = survey(m, g, head, r);
        if (rc) break;
        uint64_t bytes = group_bytes(g);
        if (bytes > m->group_limit) {
            r->length = m->group_limit;
            return MM_TOOBIG;
        }
        rc = mm_reserve(m, bytes, MM_GROWS, r);
        if (rc) break;
        uint64_t last = write_group(m, g), found = g->head_word, next = mm_head_next(g->head_word, last);
        if (at_cas_acq_rel(head, &found, next)) { /* release: the whole group is complete for whoever loads this head */
            r->key = (mm_key){ .pid = g->pid, .head = next };
            r->depth = g->since.count + 1;
            mm_group_committed(m, &g->head, last, bytes, g->base_wts, r);
            return MM_OK;
        }
        at_store_relaxed(&m->slot->conflicts, at_load_relaxed(&m->slot->conflicts) + 1);
        mm_count_alone(m, MM_COUNT_retries, 1);
    }
    return rc ? rc : MM_CONFLICT;
}

static int begin(mm *m, uint64_t pid, mm_result *r)
{
    memset(r, 0, sizeof *r);
    r->key.pid = pid;
    if (pid < 2) return MM_RESERVED;
    int rc = mm_publish_begin(m, r);
    if (!rc) mm_announce(m);
    return rc;
}

/* One append in ten consolidates, so of these too only some are timed. */
static uint64_t begin_group(const mm *m)
{
    const mm_metrics_row *row = mm_row(m);
    return row && mm_sample(at_noted(&row->counters[MM_COUNT_consolidations]), MM_EVERY_consolidate) ? mm_os_ticks() : 0;
}

static void count_group(mm *m, uint64_t begun, int rc)
{
    mm_metrics_row *row = mm_row(m);
    if (!row) return;
    if (rc == MM_CONFLICT) mm_row_count_alone(row, MM_COUNT_consolidations_lost, 1);
    if (rc) return;
    uint64_t n = mm_row_count_alone(row, MM_COUNT_consolidations, 1);
    if (begun) mm_time_end_alone(m, MM_TIME_consolidate, begun, mm_sample(n, MM_EVERY_consolidate));
}

static int consolidate(mm *m, void *args, mm_result *r)
{
    group *g = args;
    int rc = begin(m, g->pid, r);
    if (rc) return rc;
    uint64_t begun = begin_group(m);
    rc = mm_blame(m, publish_group(m, g, r), r);
    count_group(m, begun, rc);
    mm_publish_end(m);
    return rc;
}

/* A base in a run; what `run` holds is told what became of it. */
static int consolidate_large(mm *m, group *g, mm_run *run, mm_result *r)
{
    g->payload = (const uint8_t *)&run->extent;
    g->length = sizeof run->extent;
    g->flags |= MM_FLAG_EXTENT;
    int rc = mm_guarded(m, r, consolidate, g);
    mm_run_done(m, run, rc);
    return rc;
}

int mm_consolidate(mm *m, uint64_t pid, uint64_t base_wts, const void *payload, uint64_t length, mm_result *r)
{
    uint8_t tag = m->merge_kind && length <= mm_limit(m) ? mm_merge_class((int)m->merge_kind, payload, length) : 0;
    return mm_consolidate_payload(m, pid, base_wts, payload, length, tag, 0, r);
}

/* tag: of the fragment that the payload is, or stands for (flags). */
int mm_consolidate_payload(mm *m, uint64_t pid, uint64_t base_wts, const void *payload, uint64_t length, uint8_t tag, uint8_t flags, mm_result *r)
{
    mm_run run;
    group g = { .pid = pid, .base_wts = base_wts, .payload = payload, .length = length, .tag = tag, .flags = flags };
    memset(r, 0, sizeof *r);
    r->key.pid = pid;
    r->length = mm_limit(m);
    if (length > r->length) return MM_TOOBIG;
    if ((tag != 0) != (m->merge_kind != 0)) return MM_TYPE;
    if (length <= mm_inline_limit(m, MM_KIND_BASE)) return mm_guarded(m, r, consolidate, &g);
    int rc = mm_run_write(m, pid, payload, length, &run, r);
    return rc ? rc : consolidate_large(m, &g, &run, r);
}

typedef struct merging {
    group g;
    mm_chain_view chain;
    mm_span spans[MM_CHAIN_MAX]; /* oldest first */
    uint64_t bound;              /* bytes of the merge, at most */
} merging;

/* The chain of the page as it stands now, every byte of it verified. */
static int find_chain(mm *m, merging *w, mm_result *r)
{
    at_word *head;
    mm_view v;
    bool helped;
    mm_chain_view *c = &w->chain;
    int rc = mm_head(m, w->g.pid, &head, r);
    if (rc) return rc;
    uint64_t h = at_load_acquire(head);
    if (!h) return MM_NOPAGE;
    rc = mm_look_head(m, w->g.pid, h, &v, &helped, r);
    if (rc) return rc;
    if (mm_shape_kind(v.shape) != MM_KIND_DELTA) return MM_CONFLICT;
    rc = mm_walk(m, w->g.pid, &v, 0, c, r);
    if (!rc) rc = mm_chain_open(m, c, false, r);
    for (uint32_t i = 0; !rc && i < c->count; i++) w->spans[c->count - 1 - i] = (mm_span){ c->at[i].body, c->at[i].length };
    w->g.base_wts = mm_version_wts(v.version);
    if (rc) return rc;
    w->bound = mm_merge_bound((int)m->merge_kind, w->spans, c->count);
    if (c->compressed || (m->config.compress_from && w->bound >= m->config.compress_from)) return MM_COMPRESSED;
    return mm_chain_open(m, c, true, r);
}

static int merge_to(mm *m, merging *w, uint8_t *out, mm_result *r)
{
    const mm_chain_view *c = &w->chain;
    MM_POINT();
    int rc = mm_merge((int)m->merge_kind, w->spans, c->count, out, w->bound, &w->g.length);
    if (rc) {
        r->file = MM_FILE_LOG;
        r->offset = c->at[0].address;
        return rc == MM_MERGE_MEMORY ? mm_os_failed(r, 12 /* ENOMEM */) : MM_UNUSABLE;
    }
    w->g.payload = out;
    w->g.tag = mm_merge_class((int)m->merge_kind, out, w->g.length);
    return w->g.tag ? MM_OK : MM_UNUSABLE;
}

/* Merges straight into the lease.  MM_SPACE: what comes of it may be too large for one. */
static int merge_chain(mm *m, merging *w, mm_result *r)
{
    int rc = find_chain(m, w, r);
    if (rc) return rc;
    if (w->bound > mm_inline_limit(m, MM_KIND_BASE)) return MM_SPACE;
    rc = mm_reserve(m, mm_span_of(w->bound), MM_GROWS, r);
    if (rc) return rc;
    uint8_t *out = m->log + m->lease.bump + MM_RECORD_HEADER;
    rc = merge_to(m, w, out, r);
    at_written(out, w->bound);
    return rc ? rc : publish_group(m, &w->g, r);
}

static int consolidate_native(mm *m, void *args, mm_result *r)
{
    merging *w = args;
    int rc = begin(m, w->g.pid, r);
    if (rc) return rc;
    uint64_t begun = begin_group(m);
    rc = mm_blame(m, merge_chain(m, w, r), r);
    count_group(m, begun, rc);
    mm_publish_end(m);
    return rc;
}

/* The page may have grown since the run was taken: MM_SPACE, again. */
static int merge_to_run(mm *m, void *args, mm_result *r)
{
    merging *w = args;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    rc = find_chain(m, w, r);
    if (!rc && w->bound > w->g.run->room) rc = MM_SPACE;
    if (!rc) rc = merge_to(m, w, w->g.run->body, r);
    if (!rc) rc = mm_run_seal(m, w->g.run, w->g.length, r);
    rc = mm_blame(m, rc, r);
    mm_leave(m, pin);
    return rc;
}

#define LARGE_TRIES 8

/* Into a run, with no lock held; a result that turns out to be small lies in one until the page is merged again. */
static int merge_large(mm *m, merging *w, mm_result *r)
{
    mm_run run;
    int rc = MM_SPACE;
    for (int tries = 0; (rc == MM_SPACE || rc == MM_BUSY) && tries < LARGE_TRIES; tries++) {
        r->length = mm_limit(m);
        if (w->bound > r->length) return MM_TOOBIG;
        rc = mm_run_take(m, w->g.pid, w->bound, &run, r);
        if (rc) return rc;
        w->g.run = &run;
        rc = mm_guarded(m, r, merge_to_run, w);
        if (rc) mm_run_done(m, &run, rc);
    }
    if (rc == MM_SPACE || rc == MM_BUSY) return MM_CONFLICT;
    return rc ? rc : consolidate_large(m, &w->g, &run, r);
}

int mm_consolidate_native(mm *m, uint64_t pid, mm_result *r)
{
    merging w;
    w.g = (group){ .pid = pid };
    if (!m->merge_kind) return MM_CHAIN;
    int rc = mm_guarded(m, r, consolidate_native, &w);
    return rc == MM_SPACE ? merge_large(m, &w, r) : rc;
}
