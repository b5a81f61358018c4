/* promote.c - for who recovers: is there an intent that is newer than the newest mark, and is all there that it lists?  Then a mark is
 * made that says so, before anything else is done; from there on a recovery knows of marks alone.
 *
 * First what intents carry is put into its place in the log (intent.c), that of all that may count, believed or not: the log is then as the kernel could have left it.  What a
 * piece brings may be an intent too, so this is done until nothing new comes of it.
 *
 * Intents lie in leases that some mark on the disk lists (intent.c), so those are read.  The newest intent of which all holds is taken: who made an older one
 * had it durable before, or nobody was told.  One with a colour that was discarded, or not above the newest mark, is as if it were not there; so is one whose base
 * is above it: then these files are a copy, and what was written before the base may be missing.
 * Cut off anywhere, it is done again and finds the same, or, in a copy, a newer one: through the base, which is not overwritten; to the log nothing is
 * written but what stands in it already.
 *
 * Where no power was lost all is in its place, and an intent whose sync failed looks like one whose sync ended.  Then the newest witness says how far intents
 * count.  A witness, or an intent, that knows of a newer durable epoch than is found proves that something is lost.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

typedef struct place { /* of an intent */
    uint64_t address, colour, base, lease; /* lease: that it lies in */
    uint32_t n, pieces;                    /* that it lists; that it carries */
} place;
typedef struct listed { mm_lease_fill lease; uint64_t epoch; } listed;     /* by the mark of that epoch */

typedef struct search {
    mm *m;
    mm_mark newest;
    uint32_t block;                /* of the newest mark */
    listed *leases;
    place *intents;
    uint64_t count, room, found, space;
    uint64_t epoch;                /* of the newest intent that holds, or 0 */
    uint64_t stable;               /* newest durable epoch that an intent, or a witness, knows of */
    uint64_t witness;              /* newest one */
    bool this_boot, changes;       /* changes: the log may be written to */
    uint64_t put;                  /* pieces that were not in their place */
    mm_carried *carried;           /* where that is said, or NULL */
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
    if (k->witness > s->witness) s->witness = k->witness;
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

/* The entry of an intent's list, or the head of a piece: they need not be aligned. */
static mm_lease_fill entry(const search *s, const place *p, uint32_t i)
{
    mm_lease_fill l;
    memcpy(&l, s->m->log + p->address + MM_RECORD_HEADER + sizeof(mm_intent_header) + i * sizeof l, sizeof l);
    return l;
}

static mm_piece piece(const uint8_t *at)
{
    mm_piece x;
    memcpy(&x, at, sizeof x);
    return x;
}

/* Its pieces are whole, and end where it ends. */
static bool fits_payload(const search *s, const place *p, uint64_t length)
{
    const uint8_t *begin = s->m->log + p->address + MM_RECORD_HEADER;
    uint64_t at = sizeof(mm_intent_header) + p->n * sizeof(mm_lease_fill);
    for (uint32_t i = 0; i < p->pieces && at + sizeof(mm_piece) <= length; i++) {
        mm_piece x = piece(begin + at);
        uint32_t fill = x.entry < p->n ? entry(s, p, x.entry).fill : 0;
        if (x.from < sizeof(mm_lease_header) || x.from > fill || (x.from | fill) % 8) return false;
        at += sizeof x + (fill - x.from);
        if (i + 1 == p->pieces) return at == length;
    }
    return p->pieces == 0 && at == length;
}

/* What the record at `at` says, if it is an intent that may count. */
static int take_intent(search *s, uint64_t at, uint64_t lease)
{
    const mm_record *rec = (const mm_record *)(s->m->log + at);
    uint64_t colour = mm_record_colour(rec), length = mm_shape_length(rec->shape);
    mm_intent_header head;
    if (length < sizeof head || discarded(s, colour)) return MM_OK;
    memcpy(&head, rec + 1, sizeof head);
    place p = { at, colour, rec->version, lease, head.listed, head.carried };
    if (head.listed > MM_FILLS_MOST || head.carried > head.listed || !fits_payload(s, &p, length)) return MM_OK;
    if (head.stable > s->stable) s->stable = head.stable;
    if (colour <= s->newest.epoch) return MM_OK;
    void *room = s->intents;
    if (!fits(&room, s->found, &s->space, sizeof *s->intents)) return mm_os_failed(s->r, 12 /* ENOMEM */);
    s->intents = room;
    s->intents[s->found++] = p;
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

/* ---- putting pieces into their places ------------------------------------------------------------------------------------------------ */

struct mm_carried { /* pieces, each its address and length and then its bytes, a multiple of 8 */
    uint64_t used, room;
    uint64_t words[];
};

void mm_carried_free(mm_carried *c) { free(c); }

/* Says what is not in its place, for who keeps a log of his own. */
static int carry_away(search *s, uint64_t address, const uint8_t *bytes, uint64_t n)
{
    mm_carried *c = s->carried;
    uint64_t more = 2 + n / 8, used = c ? c->used : 0, room = c ? c->room : 0;
    if (used + more > room) {
        room = 2 * (used + more);
        c = realloc(c, sizeof *c + room * sizeof *c->words);
        if (!c) return mm_os_failed(s->r, 12 /* ENOMEM */);
        s->carried = c;
    }
    c->room = room;
    c->words[used] = address;
    c->words[used + 1] = n;
    memcpy(&c->words[used + 2], bytes, n);
    c->used = used + more;
    return MM_OK;
}

/* Who only looks has mapped the log privately. */
static int put_piece(search *s, uint64_t address, const uint8_t *bytes, uint64_t n)
{
    if (!n || !memcmp(s->m->log + address, bytes, n)) return MM_OK;
    s->put++;
    int e = s->changes ? mm_os_write_at(s->m->config.log, bytes, n, address) : 0;
    if (e) return mm_os_failed(s->r, e);
    if (s->changes) return MM_OK;
    memcpy(s->m->log + address, bytes, n);
    return carry_away(s, address, bytes, n);
}

/* Where the lease is still what it was: else a mark that is newer covers what the intent said, or there is damage. */
static int put_pieces(search *s, const place *p)
{
    const uint8_t *at = s->m->log + p->address + MM_RECORD_HEADER + sizeof(mm_intent_header) + p->n * sizeof(mm_lease_fill);
    int rc = MM_OK;
    for (uint32_t i = 0, seed; i < p->pieces && !rc; i++) {
        mm_piece x = piece(at);
        mm_lease_fill l = entry(s, p, x.entry);
        at += sizeof x;
        if (lease_end(s, &l, &seed) >= l.address + l.fill) rc = put_piece(s, l.address + x.from, at, l.fill - x.from);
        at += l.fill - x.from;
    }
    return rc;
}

/* Inside a guard, by who has the log to himself.  It may have been cut since it was looked at. */
void mm_carried_put(mm *m)
{
    const mm_carried *c = m->config.carried;
    for (uint64_t i = 0; c && i < c->used; i += 2 + c->words[i + 1] / 8)
        if (c->words[i] + c->words[i + 1] <= mm_os_size(m->config.log)) memcpy(m->log + c->words[i], &c->words[i + 2], c->words[i + 1]);
}

/* ---- which one counts ----------------------------------------------------------------------------------------------------------------- */

static bool holds(const search *s, const place *p)
{
    if (p->base > s->newest.epoch || (s->this_boot && p->colour > s->witness)) return false;
    for (uint32_t i = 0; i < p->n; i++) {
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
    for (uint32_t i = 0; i < p->n; i++) {
        mm_lease_fill l = entry(s, p, i);
        require(&s->newest, &l);
    }
}

/* Ends where no more of them turn up, whatever they say. */
static int look_for_intents(search *s)
{
    int rc = MM_OK;
    uint64_t before;
    do {
        before = s->found;
        s->found = s->put = 0;
        for (uint64_t i = 0; !rc && i < s->count; i++)
            if (!i || by_address(&s->leases[i - 1], &s->leases[i])) rc = intents_of(s, &s->leases[i].lease);
        for (uint64_t i = 0; !rc && i < s->found; i++) rc = put_pieces(s, &s->intents[i]);
    } while (!rc && s->put && s->found > before);
    return rc;
}

static int find_intent(mm *m, void *ctx, mm_result *r)
{
    search *s = ctx;
    int rc = mm_marks_each(&m->config, take_mark, s, r);
    if (rc || (s->this_boot && s->witness <= s->newest.epoch)) return rc;
    s->stable = s->witness;
    if (s->count) qsort(s->leases, s->count, sizeof *s->leases, by_address);
    rc = look_for_intents(s);
    if (rc) return rc;
    const place *best = NULL;
    if (s->found) qsort(s->intents, s->found, sizeof *s->intents, newest_first);
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
    int e = mm_os_map(c->log, m->log_window, s->changes ? MM_MAP_SHARED : MM_MAP_PRIVATE, &m->log);
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

/* Changes nothing. */
int mm_durable(const mm_config *c, const uint64_t *discards, uint32_t pairs, int this_boot, uint64_t *epoch, mm_carried **carried, mm_result *r)
{
    search s = { .discards = discards, .pairs = pairs, .this_boot = this_boot != 0 };
    int rc = with_log(c, find_intent, &s, r);
    *epoch = s.newest.epoch;
    if (carried && !rc) *carried = s.carried;
    else mm_carried_free(s.carried);
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
    for (uint32_t i = 0; !e && i < s->chosen.n; i++) {
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

/* The newest mark says all that is durable, and is durable itself, on return.  For who recovers alone. */
int mm_promote(const mm_config *c, const uint64_t *discards, uint32_t pairs, int this_boot, mm_result *r)
{
    search s = { .discards = discards, .pairs = pairs, .this_boot = this_boot != 0, .changes = true };
    return with_log(c, promote, &s, r);
}
