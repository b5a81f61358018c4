/* ids.c - generate_id: numbers that rise, and that no process, life, crash or loss of power hands out twice.
 *
 * `next_id` is drawn from by fetch_add.  What is drawn is handed out only below `id_limit`, and `id_limit` never passes a ceiling that is durable: the
 * value of a COUNTER record (page 1) whose commit word was in memory before an epoch E that is durable.  A recovery goes on at the ceiling of the
 * newest COUNTER record that counts.  That record is the durable one or a later one, and ceilings rise with the versions of the page; so it lies above
 * all that was handed out.  Nothing depends on who recovers, or on his interval (docs/design.md, Ids).
 *
 * Once in an interval somebody writes the next ceiling, two intervals ahead, and waits only if the one before is not durable by now.
 *
 * Died anywhere: a number that was drawn is lost; a ceiling that was written is found through the page's head, and helped, by whoever comes next.
 * Stopped anywhere: others write the ceiling themselves; nobody waits.
 */
#include <string.h>

#include "internal.h"

/* What is known of page 1: its ceiling, the version that holds it, and an epoch loaded after it was seen committed. */
typedef struct ceiling { uint64_t value, wts, lsn; } ceiling;

typedef struct draw_call {
    uint64_t *id;
    bool covered;
    uint64_t value, lsn, stable; /* of the newest ceiling that somebody told of */
} draw_call;

static int draw_one(mm *m, void *id, mm_result *r)
{
    (void)r;
    uint64_t n = at_add_relaxed(&m->g->next_id, 1); /* one word: who draws after somebody else has returned gets more */
    *(uint64_t *)id = n;
    return n < at_load_relaxed(&m->g->id_limit) ? MM_OK : MM_BUSY; /* the limit itself says what is durable; a stale one is smaller */
}

int mm_id_quick(mm *m, uint64_t *id) { return mm_guarded(m, NULL, draw_one, id); }

/* `id_ceiling` before `id_lsn`, as they are raised in the other order: the LSN is that of this ceiling, or of a later one. */
static int draw(mm *m, void *args, mm_result *r)
{
    draw_call *c = args;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL); /* keeps the mapping */
    if (rc) return rc;
    if (*c->id == MM_ID_NONE) c->covered = draw_one(m, c->id, r) == MM_OK;
    else c->covered = *c->id < at_load_relaxed(&m->g->id_limit);
    c->value = at_load_acquire(&m->g->id_ceiling);
    c->lsn = at_load_acquire(&m->g->id_lsn);
    c->stable = at_load_acquire(&m->g->stable);
    mm_leave(m, pin);
    return MM_OK;
}

static int bad_counter(mm_result *r, const mm_view *v) { return mm_corrupt(r, MM_FILE_LOG, v->address); }

/* What page 1 says.  Its record is committed, by us if need be, before the epoch is loaded: stable >= lsn covers it. */
static int read_counter(mm *m, ceiling *c, mm_result *r)
{
    at_word *head;
    mm_view v;
    bool helped;
    mm_token t;
    int rc = mm_head(m, 1, &head, r);
    uint64_t h = rc ? 0 : at_load_acquire(head);
    if (!rc && !h) rc = MM_NOPAGE;
    if (!rc) rc = mm_look_head(m, 1, h, &v, &helped, r);
    if (!rc) rc = mm_verify(m, &v, r);
    if (rc) return rc;
    c->lsn = at_load_acquire(&m->g->epoch);
    const uint8_t *end = v.payload + mm_shape_length(v.shape), *p = mm_msgpack_token(v.payload, end, &t);
    if (mm_shape_kind(v.shape) != MM_KIND_BASE || p != end || t.type != MM_UINT || t.n > MM_MAX_ID) return bad_counter(r, &v);
    c->value = t.n;
    c->wts = mm_version_wts(v.version);
    return MM_OK;
}

/* The LSN before the ceiling: who loads the ceiling (acquire) sees an LSN that covers it. */
static void tell(mm *m, const ceiling *c)
{
    at_max_release(&m->g->id_lsn, c->lsn);
    at_max_release(&m->g->id_ceiling, c->value);
}

static int look(mm *m, void *args, mm_result *r)
{
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    rc = mm_blame(m, read_counter(m, args, r), r);
    if (!rc) tell(m, args);
    mm_leave(m, pin);
    return rc;
}

static int told(mm *m, void *args, mm_result *r)
{
    (void)r;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    tell(m, args);
    mm_leave(m, pin);
    return rc;
}

/* Page 1 has a ceiling of at least `want`, committed.  Lost CASes: somebody else wrote one, which may do; so values rise with versions. */
static int write_ceiling(mm *m, uint64_t want, bool frees, ceiling *c, mm_result *r)
{
    for (;;) {
        int rc = mm_guarded(m, r, look, c);
        if (rc || c->value >= want) return rc;
        uint8_t payload[9];
        mm_key key = { .pid = 1, .wts = c->wts };
        rc = mm_replace_reserved(m, &key, payload, (uint64_t)(mm_put_uint(payload, want) - payload), frees, r);
        if (rc == MM_CONFLICT) continue;
        c->value = want;
        c->lsn = r->key.lsn;
        return rc ? rc : mm_guarded(m, r, told, c);
    }
}

static int raise_limit(mm *m, void *to, mm_result *r)
{
    (void)r;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    at_max_release(&m->g->id_limit, *(uint64_t *)to);
    mm_leave(m, pin);
    return rc;
}

/* The first of an interval: the next ceiling is written, the one before must be durable.  A life begins with none, so its first number waits for a
 * flush; later ones do not where others flush now and then. */
static int cover(mm *m, const draw_call *d, bool frees, mm_result *r)
{
    uint64_t id = *d->id, step = m->id_interval, need, want, advanced;
    if (id > MM_MAX_ID - 3 * step) return MM_LIMIT;
    need = id - id % step + step;
    want = need + step;
    ceiling c;
    int rc = write_ceiling(m, want, frees, &c, r);
    bool durable = d->value >= need && d->stable >= d->lsn;
    if (!rc && !durable) rc = mm_flush(m, c.lsn, &advanced, r);
    return rc ? rc : mm_guarded(m, r, raise_limit, &need);
}

int mm_generate_id(mm *m, uint64_t *id, int frees, mm_result *r)
{
    draw_call d = { .id = id };
    memset(r, 0, sizeof *r);
    for (;;) {
        int rc = mm_guarded(m, r, draw, &d);
        if (!rc && d.covered) return MM_OK;
        if (!rc) rc = cover(m, &d, frees, r);
        if (rc) return rc;
    }
}

/* Nobody else is attached that draws: the words of a life that begins.  A page 1 that cannot be read leaves them at 0, so that who asks for a number
 * meets the damage, and nobody else does. */
static int begin(mm *m, void *args, mm_result *r)
{
    (void)args;
    ceiling c;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    bool known = read_counter(m, &c, r) == MM_OK;
    at_store_relaxed(&m->g->id_limit, 0);
    at_store_relaxed(&m->g->id_lsn, known ? c.lsn : 0);
    at_store_relaxed(&m->g->id_ceiling, known ? c.value : 0);
    at_store_relaxed(&m->g->next_id, !known ? 0 : c.value ? c.value : 2 * m->id_interval);
    mm_leave(m, pin);
    return MM_OK;
}

int mm_ids_begin(mm *m, mm_result *r)
{
    int rc = mm_guarded(m, r, begin, NULL);
    memset(r, 0, sizeof *r);
    return rc;
}
