/* promote.c - for who recovers from a loss of power: is there an intent that is newer than the newest mark, and is all there that it lists?  Then a mark is
 * made that says so, before anything else is done; from there on a recovery knows of marks alone.
 *
 * Intents lie in leases that some mark on the disk lists (intent.c), so those are read.  The newest intent of which all holds is taken: who made an older one
 * had it durable before, or nobody was told.  One with a colour that was discarded, or not above the newest mark, is as if it were not there; so is one whose base
 * is above it: then these files are a copy, and what was written before the base may be missing.
 * Cut off anywhere, it is done again and finds the same, or, in a copy, a newer one: through the base, which is not overwritten; the log is only read.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

typedef struct place { uint64_t address, colour, base, lease, n; } place; /* of an intent; n: entries; lease: that it lies in */
typedef struct listed { mm_lease_fill lease; uint64_t epoch; } listed;     /* by the mark of that epoch */

typedef struct search {
    mm *m;
    mm_mark newest;
    uint32_t block;                /* of the newest mark */
    listed *leases;
    place *intents;
    uint64_t count, room, found, space;
    uint64_t epoch;                /* of the newest intent that holds, or 0 */
    uint64_t stable;               /* newest durable epoch that an intent knows of */
    const uint64_t *discards;
    uint32_t pairs;
    place chosen;
    mm_result *r;
} search;

/* One more entry fits behind the `count` of an array. */
static bool fits(void **array, uint64_t count, uint64_t *room, uint64_t size)
{
    if (count < *room) return true;
    uint64_t more = *room ? 2 * *room : 64;
    void *p = realloc(*array, more * size);
    if (!p) return false;
    *array = p;
    *room = more;
    return true;
}

static int take_mark(void *ctx, uint32_t block, const mm_mark *k, bool hidden)
{
    search *s = ctx;
    if (hidden) return mm_corrupt(s->r, MM_FILE_MARKS, (uint64_t)block * MM_BLOCK); /* and is not written over */
    if (k->epoch > s->newest.epoch) {
        s->newest = *k;
        s->block = block;
    }
    for (uint32_t i = 0; i < k->count; i++) {
        void *p = s->leases;
        if (!fits(&p, s->count, &s->room, sizeof *s->leases)) return mm_os_failed(s->r, 12 /* ENOMEM */);
        s->leases = p;
        s->leases[s->count++] = (listed){ k->leases[i], k->epoch };
    }
    return MM_OK;
}

static int by_address(const void *a, const void *b)
{
    const mm_lease_fill *x = &((const listed *)a)->lease, *y = &((const listed *)b)->lease;
    return x->address != y->address ? (x->address < y->address ? -1 : 1) : x->generation < y->generation ? -1 : x->generation > y->generation;
}

static int newest_first(const void *a, const void *b)
{
    const place *x = a, *y = b;
    return x->colour == y->colour ? 0 : x->colour > y->colour ? -1 : 1;
}

/* Where the records of a lease may end at most; 0: it is not there.  *seed: of its checksums. */
static uint64_t lease_end(const search *s, const mm_lease_fill *l, uint32_t *seed)
{
    mm *m = s->m;
    uint64_t size = mm_os_size(m->config.log), base = l->address & ~(m->segment_size - 1), n = base >> m->segment_shift;
    mm_segment_header h;
    if (l->address % MM_BLOCK || l->address == base || l->address + MM_BLOCK > size || size > m->log_window) return 0;
    if (mm_os_data(m->config.log, base) > base || mm_os_data(m->config.log, l->address) > l->address) return 0; /* a hole is not even looked at */
    memcpy(&h, m->log + base, sizeof h);
    if (h.magic != MM_SEGMENT_MAGIC || h.crc != crc32c_extend(0, (const uint8_t *)&h + 12, sizeof h - 12) || h.number != n) return 0;
    if (memcmp(h.uuid, m->config.uuid, sizeof h.uuid) || h.generation != l->generation) return 0;
    *seed = crc32c_word(m->uuid_seed, h.salt);
    uint64_t blocks = mm_lease_blocks(m, l->address, *seed, l->generation), end = l->address + blocks * MM_BLOCK;
    return !blocks ? 0 : end < size ? end : size;
}

/* All of it up to its fill is there: records, committed or inside a group. */
static bool filled(const search *s, const mm_lease_fill *l)
{
    uint32_t seed = 0;
    uint64_t end = lease_end(s, l, &seed), at = l->address + sizeof(mm_lease_header), stop = l->address + l->fill, word, span;
    if (stop > end) return false;
    for (; at < stop; at += span) {
        span = mm_record_whole(s->m, at, stop, seed, &word);
        if (!span || (!(word >> 32) && !(mm_shape_flags(((const mm_record *)(s->m->log + at))->shape) & MM_FLAG_INNER))) return false;
    }
    return at == stop;
}

static bool discarded(const search *s, uint64_t colour)
{
    for (uint32_t i = 0; i < s->pairs; i++)
        if (colour > s->discards[2 * i] && colour <= s->discards[2 * i + 1]) return true;
    return false;
}

/* What the record at `at` says, if it is an intent that may count. */
static int take_intent(search *s, uint64_t at, uint64_t lease)
{
    const mm_record *rec = (const mm_record *)(s->m->log + at);
    uint64_t colour = mm_record_colour(rec), length = mm_shape_length(rec->shape), n = (length - MM_INTENT_HEADER) / sizeof(mm_lease_fill), stable;
    if (length < MM_INTENT_HEADER || n > MM_FILLS_MOST || discarded(s, colour)) return MM_OK;
    memcpy(&stable, rec + 1, sizeof stable);
    if (stable > s->stable) s->stable = stable;
    if (colour <= s->newest.epoch || rec->version > s->newest.epoch) return MM_OK;
    void *p = s->intents;
    if (!fits(&p, s->found, &s->space, sizeof *s->intents)) return mm_os_failed(s->r, 12 /* ENOMEM */);
    s->intents = p;
    s->intents[s->found++] = (place){ at, colour, rec->version, lease, n };
    return MM_OK;
}

static int intents_of(search *s, const mm_lease_fill *l)
{
    uint32_t seed = 0;
    uint64_t end = lease_end(s, l, &seed), word, span;
    for (uint64_t at = l->address + sizeof(mm_lease_header); (span = mm_record_whole(s->m, at, end, seed, &word)) != 0; at += span) {
        bool intent = mm_shape_kind(((const mm_record *)(s->m->log + at))->shape) == MM_KIND_INTENT && word >> 32;
        int rc = intent ? take_intent(s, at, l->address) : MM_OK;
        if (rc) return rc;
    }
    return MM_OK;
}

static mm_lease_fill entry(const search *s, const place *p, uint64_t i)
{
    mm_lease_fill l;
    memcpy(&l, s->m->log + p->address + MM_RECORD_HEADER + MM_INTENT_HEADER + i * sizeof l, sizeof l);
    return l;
}

static bool holds(const search *s, const place *p)
{
    for (uint64_t i = 0; i < p->n; i++) {
        mm_lease_fill l = entry(s, p, i);
        if (!filled(s, &l)) return false;
    }
    return true;
}

static void require(mm_mark *k, const mm_lease_fill *l)
{
    uint32_t j = 0;
    while (j < k->count && (k->leases[j].address != l->address || k->leases[j].generation != l->generation)) j++;
    if (j == MM_MARK_LEASES || (j < k->count && k->leases[j].fill >= l->fill)) return;
    k->leases[j] = *l;
    if (j == k->count) k->count++;
}

/* The mark that the intent stands for: what it and its base list must be there from now on.  (Of the newest mark some sectors may be all that there is.) */
static void adopt(search *s, const place *p)
{
    s->newest.epoch = p->colour;
    for (uint64_t i = 0; i < s->count; i++)
        if (s->leases[i].epoch == p->base) require(&s->newest, &s->leases[i].lease);
    for (uint64_t i = 0; i < p->n; i++) {
        mm_lease_fill l = entry(s, p, i);
        require(&s->newest, &l);
    }
}

static int find_intent(mm *m, void *ctx, mm_result *r)
{
    search *s = ctx;
    int rc = mm_marks_each(&m->config, take_mark, s, r);
    if (rc || !s->count) return rc;
    qsort(s->leases, s->count, sizeof *s->leases, by_address);
    for (uint64_t i = 0; !rc && i < s->count; i++)
        if (!i || by_address(&s->leases[i - 1], &s->leases[i])) rc = intents_of(s, &s->leases[i].lease);
    if (rc) return rc;
    const place *best = NULL;
    qsort(s->intents, s->found, sizeof *s->intents, newest_first);
    for (uint64_t i = 0; i < s->found && !best; i++)
        if (holds(s, &s->intents[i])) best = &s->intents[i];
    if (best) {
        s->epoch = best->colour;
        adopt(s, best);
        s->chosen = *best;
    }
    return s->stable > s->newest.epoch ? mm_corrupt(r, MM_FILE_LOG, s->intents ? s->intents[0].address : 0) : MM_OK; /* one that was durable holds no more */
}

static int with_log(const mm_config *c, mm_body *body, search *s, mm_result *r)
{
    memset(r, 0, sizeof *r);
    mm *m = calloc(1, sizeof *m);
    if (!m) return mm_os_failed(r, 12 /* ENOMEM */);
    m->config = *c;
    m->slot_index = MM_SLOTS;
    m->log_window = (mm_os_size(c->log) + MM_BLOCK) / MM_BLOCK * MM_BLOCK;
    int e = mm_os_map(c->log, m->log_window, c->observes ? MM_MAP_READ : MM_MAP_SHARED, &m->log);
    if (e) {
        free(m);
        return mm_os_failed(r, e);
    }
    mm_set_limits(m);
    mm_guard_install();
    s->m = m;
    s->r = r;
    int rc = mm_guarded(m, r, body, s);
    mm_os_unmap(m->log, m->log_window);
    free(s->leases);
    free(s->intents);
    free(m);
    return rc;
}

/* The newest durable epoch, as marks and intents say. Changes nothing. */
int mm_durable(const mm_config *c, const uint64_t *discards, uint32_t pairs, uint64_t *epoch, mm_result *r)
{
    search s = { .discards = discards, .pairs = pairs };
    int rc = with_log(c, find_intent, &s, r);
    *epoch = s.newest.epoch;
    return rc;
}

static int look_for_base(void *ctx, uint32_t block, const mm_mark *k, bool hidden)
{
    search *s = ctx;
    (void)hidden;
    if (k->epoch == s->chosen.base) s->block = block;
    return MM_OK;
}

/* What the intent says is on the disk before the mark is: where no power was lost after all, the page cache may be all that has it. */
static int make_durable(const search *s)
{
    uint64_t end = s->chosen.address + MM_BLOCK;
    int e = mm_log_rewrite(s->m, s->chosen.lease, (end + MM_BLOCK - 1) / MM_BLOCK * MM_BLOCK);
    for (uint64_t i = 0; !e && i < s->chosen.n; i++) {
        mm_lease_fill l = entry(s, &s->chosen, i);
        e = mm_log_rewrite(s->m, l.address, l.address + (l.fill + MM_BLOCK - 1) / MM_BLOCK * MM_BLOCK);
    }
    return e ? e : mm_os_sync(s->m->config.log);
}

static int promote(mm *m, void *ctx, mm_result *r)
{
    search *s = ctx;
    int rc = find_intent(m, s, r);
    if (rc || !s->newest.epoch) return rc;
    /* Over the neighbour of its base, where its author would have put the next mark: the base may be the only one that lists the lease it lies in, as
     * the newest mark would if all of it were there.  Cut off, the intent is found again (model: PROMOTE_OVER_BASE).  In a copy there may be no base. */
    if (s->epoch) rc = mm_marks_each(&m->config, look_for_base, s, r);
    if (rc) return rc;
    int e = s->epoch ? make_durable(s) : 0;
    if (!e) e = s->epoch ? mm_mark_promote(&m->config, &s->newest, s->block) : mm_mark_settle(&m->config, s->block);
    return e ? mm_os_failed(r, e) : MM_OK;
}

/* The newest mark says all that is durable, and is durable itself, on return.  For who recovers alone after a loss of power. */
int mm_promote(const mm_config *c, const uint64_t *discards, uint32_t pairs, mm_result *r)
{
    search s = { .discards = discards, .pairs = pairs };
    return with_log(c, promote, &s, r);
}

static int settle_newest(mm *m, void *ctx, mm_result *r)
{
    search *s = ctx;
    int rc = mm_marks_each(&m->config, take_mark, s, r), e = rc || !s->newest.epoch ? 0 : mm_mark_settle(&m->config, s->block);
    return rc ? rc : e ? mm_os_failed(r, e) : MM_OK;
}

/* The newest mark is durable on return.  For who recovers where no power was lost: it says all that is. */
int mm_marks_settle(const mm_config *c, mm_result *r)
{
    search s = { .pairs = 0 };
    return with_log(c, settle_newest, &s, r);
}
