/* read.c - reading a page: the chain from the head down, verified, handed out oldest first.
 *
 * Content is named by wts: what a caller has cached at wts k is continued by the deltas with wts > k, whatever was moved or
 * consolidated meanwhile.  Depth and version strictly decrease along a chain, so a hostile one ends.
 */
#include <string.h>

#include "mapped.h"

bool mm_chain_follows(const mm_view *newer, const mm_view *older)
{
    return mm_shape_depth(older->shape) + 1 == mm_shape_depth(newer->shape) && older->version < newer->version
           && mm_shape_kind(older->shape) != MM_KIND_FREE;
}

typedef struct fetching {
    uint64_t since;   /* ticks, before the record at hand was looked at; 0: nothing is read ahead */
    uint32_t covered; /* the kernel was asked for so many records already */
} fetching;

/* A record that took long to look at came from the device, and so will the rest: all of it is asked for at once. */
__attribute__((noinline, cold)) static fetching fetch_rest(mm *m, const mm_view *v, uint32_t count, fetching f)
{
    mm_count(m, MM_COUNT_pulls, 1);
    mm_time_end(m, MM_TIME_pull, f.since, 1);
    if (count >= f.covered) f.covered = count + 1 + mm_fetch_older(m, v);
    if (mm_shape_body(v->shape) > MM_BLOCK / 2) mm_fetch(m, v->address, mm_shape_span(v->shape));
    mm_fetch_around(m, v->address);
    f.since = mm_os_ticks();
    return f;
}

/* One look at the clock a record is all that a warm chain pays. */
static inline void fetch_ahead(mm *m, const mm_view *v, uint32_t count, fetching *f)
{
    uint64_t now = mm_os_ticks();
    if (now - f->since > MM_TICKS_SLOW) *f = fetch_rest(m, v, count, *f);
    else f->since = now;
}

/* Collects what is newer than known_wts (0: all), newest first; each record's checksum holds. */
static int walk(mm *m, uint64_t pid, const mm_view *head, uint64_t known_wts, mm_chain_view *c, fetching *f, mm_result *r)
{
    mm_view v = *head;
    if (mm_version_wts(v.version) < known_wts) known_wts = 0; /* cannot be: read all, trust nothing cached */
    c->count = 0;
    c->whole = false;
    for (;;) {
        if (known_wts && mm_version_wts(v.version) <= known_wts) return MM_OK;
        if (f->since) fetch_ahead(m, &v, c->count, f);
        int rc = mm_verify(m, &v, r);
        if (rc) return rc;
        c->at[c->count++] = v;
        if (mm_shape_kind(v.shape) != MM_KIND_DELTA) {
            c->whole = true;
            return MM_OK;
        }
        mm_view older;
        rc = mm_look(m, pid, v.prev, &older, r);
        if (rc) return rc;
        if (c->count == MM_CHAIN_MAX || !mm_chain_follows(&v, &older)) return mm_corrupt(r, MM_FILE_LOG, v.address);
        v = older;
    }
}

int mm_walk(mm *m, uint64_t pid, const mm_view *head, uint64_t known_wts, mm_chain_view *c, mm_result *r)
{
    return walk(m, pid, head, known_wts, c, &(fetching){ 0, 0 }, r);
}

int mm_chain_open(mm *m, mm_chain_view *c, bool verify, mm_result *r)
{
    uint64_t shapes = 0;
    c->payload = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        int rc = mm_extent_open(m, &c->at[i], r);
        if (!rc && verify) rc = mm_extent_verify(m, &c->at[i], r);
        if (rc) return rc;
        c->payload += c->at[i].length;
        shapes |= c->at[i].shape;
    }
    c->compressed = mm_is_compressed(shapes);
    return MM_OK;
}

static uint64_t array_header(uint8_t *out, uint32_t n)
{
    if (n < 16) {
        out[0] = (uint8_t)(0x90 | n);
        return 1;
    }
    out[0] = 0xDC;
    out[1] = (uint8_t)(n >> 8);
    out[2] = (uint8_t)n;
    return 3;
}

/* One msgpack array: a header, and the fragments as they are. */
int mm_emit_array(mm *m, const mm_chain_view *c, uint8_t *buffer, uint64_t capacity, mm_result *r)
{
    r->length = 3 + c->payload;
    if (capacity < r->length) return MM_SPACE;
    uint64_t at = array_header(buffer, c->count);
    for (uint32_t i = c->count; i-- > 0;) {
        int rc = mm_extent_copy(m, &c->at[i], buffer + at, r);
        if (rc) return rc;
        at += c->at[i].length;
    }
    r->length = at;
    r->cost = mm_merge_cost(buffer, at);
    return MM_OK;
}

/* What the core has no decompressor for: the fragments as they are stored, each behind the address of its record, its length and whether it is
 * compressed (mmpc/_compression.py).  Of what is to be merged the newest is enough where the newest is the value. */
int mm_emit_stored(mm *m, const mm_chain_view *c, uint8_t *buffer, uint64_t capacity, mm_result *r)
{
    if (r->merged && m->merge_kind == MM_MERGE_LWW) r->count = 1;
    uint64_t at = 0;
    for (uint32_t i = 0; i < r->count; i++) at += 16 + c->at[i].length;
    r->length = at;
    if (capacity < at) return MM_SPACE;
    at = 0;
    for (uint32_t i = r->count; i-- > 0;) {
        const mm_view *v = &c->at[i];
        uint64_t words[2] = { v->address, v->length << 1 | mm_is_compressed(v->shape) };
        memcpy(buffer + at, words, sizeof words);
        int rc = mm_extent_copy(m, v, buffer + at + sizeof words, r);
        if (rc) return rc;
        at += sizeof words + v->length;
    }
    return MM_COMPRESSED;
}

static int emit_merged(mm *m, mm_chain_view *c, uint8_t *buffer, uint64_t capacity, mm_result *r)
{
    mm_span spans[MM_CHAIN_MAX];
    for (uint32_t i = 0; i < c->count; i++)
        spans[i] = (mm_span){ c->at[c->count - 1 - i].body, c->at[c->count - 1 - i].length };
    uint64_t bound = mm_merge_bound((int)m->merge_kind, spans, c->count), length = 0;
    r->length = bound;
    if (capacity < bound) return MM_SPACE;
    int rc = mm_chain_open(m, c, true, r);
    if (rc) return rc;
    uint64_t n = mm_row(m) && c->count > 1 ? mm_sample(mm_row_count(mm_row(m), MM_COUNT_merges, 1), MM_EVERY_merge) : 0;
    uint64_t begun = n ? mm_os_ticks() : 0;
    rc = mm_merge((int)m->merge_kind, spans, c->count, buffer, capacity, &length);
    if (n) mm_time_end(m, MM_TIME_merge, begun, n);
    if (rc == MM_MERGE_MEMORY) return mm_os_failed(r, 12 /* ENOMEM */);
    if (rc) {
        r->file = MM_FILE_LOG;
        r->offset = c->at[0].address;
        return MM_UNUSABLE;
    }
    r->length = length;
    r->merged = 1;
    r->cost = mm_merge_cost(buffer, length);
    return MM_OK;
}

typedef struct read_call {
    uint64_t pid, known_wts;
    int how;
    uint8_t *buffer;
    uint64_t capacity;
} read_call;

/* What the caller has is the newest. */
__attribute__((noinline, cold)) static void count_hit(mm *m, uint64_t begun)
{
    uint64_t n = mm_sample(mm_row_count(mm_row(m), MM_COUNT_cache_hits_asked, 1), MM_EVERY_get_hit);
    if (n) mm_time_end(m, MM_TIME_get_hit, begun, n);
}

__attribute__((noinline, cold)) static void time_read(mm *m, uint64_t begun, uint64_t n) { mm_time_end(m, MM_TIME_page_in, begun, n); }

/* The slow ones are all timed, of the others some (metrics.h).  Which are slow the walk's last look at the clock tells (`looked`), so that most reads take none
 * for it: what comes after is work in memory, and takes long only where there is much to copy. */
static inline void count_read(mm *m, const read_call *a, const mm_chain_view *c, uint64_t begun, uint64_t looked)
{
    if (!mm_row(m)) return;
    if (a->how >= MM_READ_FRAGMENTS) {
        if (a->how == MM_READ_FRAGMENTS) mm_count(m, MM_COUNT_fragment_reads, 1);
        return;
    }
    if (!c->count) {
        count_hit(m, begun);
        return;
    }
    bool slow = (c->payload > MM_BLOCK ? mm_os_ticks() : looked) - begun > MM_TICKS_SLOW;
    uint64_t n = mm_row_count(mm_row(m), slow ? MM_COUNT_cache_misses_slow : MM_COUNT_cache_misses, 1);
    n = slow ? 1 : mm_sample(n, MM_EVERY_page_in);
    if (n) time_read(m, begun, n);
}

/* Whether the page is one base that the buffer has no room for.  Its bytes are not looked at then: they will be, when the caller comes back with room.
 * All that is said of it before its checksum is how much, and that cannot be more than a record has (mm_look). */
static bool too_long_alone(const mm *m, const read_call *a, const mm_view *v, mm_result *r)
{
    bool known = a->known_wts && mm_version_wts(v->version) <= a->known_wts;
    if (v->length <= a->capacity || mm_shape_kind(v->shape) != MM_KIND_BASE || mm_is_large(v->shape) || known) return false;
    bool merged = a->how == MM_READ_MERGED && m->merge_kind && a->pid >= 2;
    r->length = merged ? mm_merge_bound((int)m->merge_kind, &(mm_span){ v->body, v->length }, 1) : 3 + (uint64_t)v->length;
    return true;
}

static int read_pinned(mm *m, const read_call *a, mm_result *r)
{
    at_word *head;
    mm_view v;
    bool helped;
    mm_chain_view c;
    int rc = mm_head(m, a->pid, &head, r);
    if (rc) return rc;
    uint64_t begun = mm_os_ticks();
    fetching f = { begun, 0 };
    uint64_t h = at_load_acquire(head);
    if (!h) return MM_NOPAGE;
    rc = mm_look_head(m, a->pid, h, &v, &helped, r);
    if (rc) return rc;
    r->key = (mm_key){ a->pid, h, mm_version_wts(v.version), at_load_acquire(&m->g->epoch) };
    r->generation = v.generation;
    r->kind = mm_shape_kind(v.shape);
    r->depth = mm_shape_depth(v.shape);
    if (too_long_alone(m, a, &v, r)) return MM_SPACE;
    rc = walk(m, a->pid, &v, a->known_wts, &c, &f, r);
    if (rc) return rc;
    r->whole = c.whole;
    r->count = c.count;
    r->tidy = r->depth > m->tidy_depth;
    if (r->kind == MM_KIND_FREE) return MM_OK;
    rc = mm_chain_open(m, &c, false, r);
    if (rc) return rc;
    bool merged = a->how & MM_READ_MERGED && c.whole && m->merge_kind && a->pid >= 2;
    if (c.compressed) {
        r->merged = merged;
        rc = mm_emit_stored(m, &c, a->buffer, a->capacity, r);
    } else
        rc = merged ? emit_merged(m, &c, a->buffer, a->capacity, r) : mm_emit_array(m, &c, a->buffer, a->capacity, r);
    if (!rc || rc == MM_COMPRESSED) count_read(m, a, &c, begun, f.since);
    return rc;
}

static int read_page(mm *m, void *args, mm_result *r)
{
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    const read_call *a = args;
    rc = m->config.observes ? mm_observe(m, a->pid, a->buffer, a->capacity, r) : read_pinned(m, a, r);
    rc = mm_blame(m, rc, r);
    mm_leave(m, pin);
    return rc;
}

int mm_read(mm *m, uint64_t pid, uint64_t known_wts, int how, uint8_t *buffer, uint64_t capacity, mm_result *r)
{
    read_call a = { pid, known_wts, how, buffer, capacity };
    memset(r, 0, sizeof *r);
    r->key.pid = pid;
    return mm_guarded(m, r, read_page, &a);
}

/* ---- looking ------------------------------------------------------------------------------------------------------------------ */

typedef struct chain_call {
    uint64_t pid, *triples;
    uint32_t capacity;
    bool whole; /* looks at every byte */
} chain_call;

static int chain_pinned(mm *m, const chain_call *a, mm_result *r)
{
    at_word *head;
    mm_view v;
    bool helped;
    mm_chain_view c;
    int rc = mm_head(m, a->pid, &head, r);
    fetching f = { mm_os_ticks(), 0 };
    uint64_t h = rc ? 0 : at_load_acquire(head);
    if (!rc && !h) rc = MM_NOPAGE;
    if (!rc) rc = mm_look_head(m, a->pid, h, &v, &helped, r);
    if (!rc) rc = walk(m, a->pid, &v, 0, &c, &f, r);
    if (!rc && a->whole) rc = mm_chain_open(m, &c, true, r);
    for (uint32_t i = 0; !rc && i < c.count && i < a->capacity; i++) {
        a->triples[3 * i] = c.at[i].address;
        a->triples[3 * i + 1] = c.at[i].version;
        a->triples[3 * i + 2] = c.at[i].shape;
    }
    if (!rc) r->count = c.count;
    return rc;
}

static int chain(mm *m, void *args, mm_result *r)
{
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    rc = mm_blame(m, chain_pinned(m, args, r), r);
    mm_leave(m, pin);
    return rc;
}

int mm_chain(mm *m, uint64_t pid, uint64_t *triples, uint32_t capacity, mm_result *r)
{
    memset(r, 0, sizeof *r);
    return mm_guarded(m, r, chain, &(chain_call){ pid, triples, capacity, false });
}

static int pages_given(mm *m, void *end, mm_result *r)
{
    (void)r;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    uint64_t given = at_load_acquire(&m->g->max_pid), table = at_load_acquire(&m->g->table_pages);
    *(uint64_t *)end = given < table ? given : table;
    mm_leave(m, pin);
    return MM_OK;
}

int mm_check(mm *m, uint64_t *pages, mm_result *r)
{
    *pages = 0;
    uint64_t none, end = 0;
    memset(r, 0, sizeof *r);
    int found = mm_guarded(m, r, pages_given, &end);
    if (found) return found;
    for (uint64_t pid = 0; pid < end; pid++) {
        int rc = mm_guarded(m, r, chain, &(chain_call){ pid, &none, 0, true });
        r->key.pid = pid;
        if (rc == MM_NOPAGE) continue;
        if (rc) return rc;
        (*pages)++;
    }
    return MM_OK;
}

static void count_segments(mm *m, mm_stats *s)
{
    mm_result ignored;
    if (s->segments && !mm_segment_of(m, (s->segments - 1) << m->segment_shift, &ignored)) return;
    for (uint64_t i = 0; i < s->segments; i++) {
        uint64_t word = at_load_acquire(&m->segments[i].word), state = mm_segword_state(word), rest = mm_segword_rest(word);
        int64_t live = (int64_t)at_load_relaxed(&m->segments[i].live);
        bool free = state == MM_SEG_FREE || state == MM_SEG_HOLE || state == MM_SEG_PUNCHING;
        s->segments_free += free;
        s->segments_retired += state == MM_SEG_RETIRED;
        if (state == MM_SEG_EXTENT && rest & MM_REST_RUN) {
            s->log_used += at_load_relaxed(&m->segments[i].looked);
            s->log_live += at_load_relaxed(&m->segments[i].looked);
        }
        if (free || state == MM_SEG_RETIRED || state == MM_SEG_EXTENT) continue;
        s->log_used += m->segment_size;
        if (live > 0) s->log_live += (uint64_t)live;
    }
    s->written = at_load_relaxed(&m->g->log_taken);
    s->cleaned = at_load_relaxed(&m->g->cleaned);
    s->moved = at_load_relaxed(&m->g->moved);
}

static int get_stats(mm *m, void *out, mm_result *r)
{
    (void)r;
    mm_stats *s = out;
    uint32_t pin;
    int rc = mm_enter_failed(m, &pin, NULL);
    if (rc) return rc;
    mm_lock(m, MM_HOLD_PUBLISH);
    s->oldest_pin = mm_oldest_pin(m);
    mm_unlock(m, MM_HOLD_PUBLISH);
    s->epoch = at_load_acquire(&m->g->epoch);
    s->stable = at_load_acquire(&m->g->stable);
    s->pages = at_load_acquire(&m->g->max_pid);
    s->free_hints = at_load_relaxed(&m->g->free_ids);
    s->segments = at_load_acquire(&m->g->segments);
    s->log_bytes = at_load_acquire(&m->g->log_size);
    s->table_bytes = at_load_acquire(&m->g->table_pages) * 8;
    s->reaped = at_load_relaxed(&m->g->reaped);
    s->helped = at_load_relaxed(&m->g->helped);
    s->slot = m->slot_index;
    for (uint32_t i = 0; i < MM_SLOTS && i < at_load_acquire(&m->g->slots_used); i++) {
        if ((at_load_acquire(&m->slots[i].state) & 255) == MM_SLOT_LIVE) {
            s->slots++;
            for (uint32_t k = 0; k < MM_VIEWS; k++) s->views += at_load_relaxed(&m->slots[i].views[k]) != 0;
        }
        s->operations += at_load_relaxed(&m->slots[i].operations);
        s->conflicts += at_load_relaxed(&m->slots[i].conflicts);
    }
    count_segments(m, s);
    mm_leave(m, pin);
    return MM_OK;
}

int mm_get_stats(mm *m, mm_stats *s)
{
    memset(s, 0, sizeof *s);
    return mm_guarded(m, NULL, get_stats, s);
}

typedef struct clock_call { uint64_t *epoch, *stable; } clock_call;

static int read_clock(mm *m, void *args, mm_result *r)
{
    (void)r;
    const clock_call *c = args;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    *c->epoch = at_load_acquire(&m->g->epoch);
    *c->stable = at_load_acquire(&m->g->stable);
    mm_leave(m, pin);
    return MM_OK;
}

int mm_clock(mm *m, uint64_t *epoch, uint64_t *stable) { return mm_guarded(m, NULL, read_clock, &(clock_call){ epoch, stable }); }

uint32_t mm_crc32c(uint32_t crc, const void *p, uint64_t n) { return crc32c_extend(crc, p, n); }
