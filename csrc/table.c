/* table.c - head words, and page ids that can be used again.
 *
 * Reuse of an id (model: ids.pml).  A set bit in `ids` is a hint and proves nothing.  A candidate is a FREE head word h
 * with an epoch e loaded after it; when every pin is newer than e nobody holds the page that was, and the CAS *from h
 * itself* decides who owns the id.  A death loses hints; the sweep, asked for by whoever reaps, finds them again.
 */
#include "internal.h"

/* ---- head words ------------------------------------------------------------------------------------------------------ */

/* Both files hold that many words. */
static int table_whole(mm *m, uint64_t published, mm_result *r)
{
    uint64_t size = mm_os_size(m->config.table), there = size > MM_WORDS_OFFSET ? (size - MM_WORDS_OFFSET) / 8 : 0;
    if (published > there || published > m->table_capacity) return mm_corrupt(r, MM_FILE_TABLE, size);
    if (mm_os_size(m->config.ids) < MM_WORDS_OFFSET + published / 8) return mm_corrupt(r, MM_FILE_IDS, mm_os_size(m->config.ids));
    return MM_OK;
}

/* Believes the published size as far as the file reaches. */
static int table_refresh(mm *m, mm_result *r)
{
    uint64_t published = at_load_acquire(&m->g->table_pages);
    int rc = table_whole(m, published, r);
    if (rc) return rc;
    pv_store(&m->table_safe, published);
    return MM_OK;
}

int mm_head(mm *m, uint64_t pid, at_word **head, mm_result *r)
{
    if (pid >= pv_load_relaxed(&m->table_safe)) {
        if (pid > MM_MAX_PID || pid >= at_load_acquire(&m->g->table_pages)) return MM_NOPAGE;
        int rc = table_refresh(m, r);
        if (rc) return rc;
        if (pid >= pv_load_relaxed(&m->table_safe)) return MM_NOPAGE;
    }
    *head = &m->table[pid];
    return MM_OK;
}

/* Grows table and hints to hold `pid`.  No lock: growth is idempotent, the published size only rises. */
int mm_table_cover(mm *m, uint64_t pid, mm_result *r)
{
    for (;;) {
        if (pid < pv_load_relaxed(&m->table_safe)) return MM_OK;
        uint64_t now = at_load_acquire(&m->g->table_pages);
        if (pid < now) {
            int rc = table_refresh(m, r);
            if (rc) return rc;
            continue;
        }
        uint64_t want = now + (now < 8192 ? 8192 : now > (UINT64_C(1) << 20) ? UINT64_C(1) << 20 : now);
        if (want <= pid) want = (pid + 8192) & ~UINT64_C(8191);
        if (want > m->table_capacity) return MM_LIMIT;
        int rc = table_whole(m, now, r); /* growth would put zeros where somebody cut it: pages that were never allocated */
        if (rc) return rc;
        int e = mm_fail_at(m->config.failpoints, MM_FAIL_TABLE_GROWTH);
        if (!e) e = mm_os_grow(m->config.table, MM_WORDS_OFFSET + now * 8, MM_WORDS_OFFSET + want * 8);
        if (!e) e = mm_os_grow(m->config.ids, MM_WORDS_OFFSET + now / 8, MM_WORDS_OFFSET + want / 8);
        if (e) return mm_os_failed(r, e);
        at_max_release(&m->g->table_pages, want);
    }
}

/* ---- hints -------------------------------------------------------------------------------------------------------------- */

static void hint_set(mm *m, uint64_t pid)
{
    uint64_t bit = UINT64_C(1) << (pid % 64);
    if (!(at_or_relaxed(&m->ids[pid / 64], bit) & bit)) at_add_relaxed(&m->g->free_ids, 1);
}

/* Takes one set bit out of at most `words` words from the cursor on; false when there is none. */
static bool hint_take(mm *m, uint64_t words, uint64_t *pid)
{
    uint64_t n = pv_load_relaxed(&m->table_safe) / 64, at = n ? at_load_relaxed(&m->g->id_cursor) % n : 0;
    for (uint64_t k = 0; k < words && k < n; k++, at = at + 1 == n ? 0 : at + 1) {
        uint64_t w = at_load_relaxed(&m->ids[at]);
        while (w) {
            uint64_t bit = w & -w;
            w = at_and_relaxed(&m->ids[at], ~bit);
            if (w & bit) {
                uint64_t left = at_load_relaxed(&m->g->free_ids);
                if (left) at_add_relaxed(&m->g->free_ids, UINT64_MAX); /* only a hint: it may drift */
                at_store_relaxed(&m->g->id_cursor, at);
                *pid = at * 64 + (uint64_t)__builtin_ctzll(bit);
                return true;
            }
        }
    }
    at_store_relaxed(&m->g->id_cursor, at);
    return false;
}

/* ---- candidates: private, guarded by mm.publish ---------------------------------------------------------------------------- */

static void candidate_push(mm *m, uint64_t pid, uint64_t head, uint64_t epoch)
{
    if (m->candidate_count == MM_CANDIDATES) {
        hint_set(m, pid);
        return;
    }
    m->candidates[(m->candidate_first + m->candidate_count++) % MM_CANDIDATES] = (mm_candidate){ pid, head, epoch };
}

/* The winner of a freeing CAS has the head; the epoch is loaded after it (model: COLOUR). */
void mm_id_freed(mm *m, uint64_t pid, uint64_t head)
{
    at_fence_full();
    candidate_push(m, pid, head, at_load_acquire(&m->g->epoch));
}

/* An id that was taken and not used. */
void mm_id_return(mm *m, uint64_t pid)
{
    if (pid < pv_load_relaxed(&m->table_safe)) hint_set(m, pid);
}

void mm_ids_give_back(mm *m)
{
    for (; m->candidate_count; m->candidate_count--) hint_set(m, m->candidates[m->candidate_first++ % MM_CANDIDATES].pid);
}

/* A hint becomes a candidate when its head is a FREE record; a head of 0 needs no ageing, nobody ever held that page. */
static int adopt(mm *m, uint64_t pid, bool *fresh, mm_result *r)
{
    at_word *head;
    int rc = mm_head(m, pid, &head, r);
    *fresh = false;
    if (rc) return rc == MM_NOPAGE ? MM_OK : rc;
    uint64_t h = at_load_acquire(head);
    if (h == 0) {
        *fresh = pid >= 2;
        return MM_OK;
    }
    mm_view v;
    bool helped;
    rc = mm_look_head(m, pid, h, &v, &helped, r);
    if (rc) return rc;
    if (mm_shape_kind(v.shape) == MM_KIND_FREE) mm_id_freed(m, pid, h);
    return MM_OK;
}

/* Looks for lost hints among a few ids, after somebody has reaped a dead process.  They count as looked at before they are: a page that
 * is damaged costs one call an error, not every one; who dies here is reaped, and the sweep begins again. */
static int sweep_some(mm *m, mm_result *r)
{
    uint64_t from = at_load_relaxed(&m->g->sweep);
    if (from == MM_SWEEP_DONE) return MM_OK;
    uint64_t end = at_load_acquire(&m->g->max_pid), safe = pv_load_relaxed(&m->table_safe);
    if (end > safe) end = safe;
    uint64_t pid = from < 2 ? 2 : from, stop = pid + 32 < end ? pid + 32 : end;
    if (!at_cas_acq_rel(&m->g->sweep, &from, stop < end ? stop : MM_SWEEP_DONE)) return MM_OK; /* another one looks, or a reaper asked again */
    for (; pid < stop; pid++) {
        uint64_t h = at_load_acquire(&m->table[pid]);
        mm_view v;
        bool helped, free = h == 0;
        if (h) {
            int rc = mm_look_head(m, pid, h, &v, &helped, r);
            if (rc) return rc;
            free = mm_shape_kind(v.shape) == MM_KIND_FREE;
        }
        if (free) hint_set(m, pid);
    }
    return MM_OK;
}

static bool aged(mm *m, const mm_candidate *c)
{
    if (m->oldest_pin > c->epoch) return true;
    if (m->since_scan < 16) return false; /* looking at all slots costs: not at every call */
    m->since_scan = 0;
    uint64_t now = c->epoch;
    if (at_cas_acq_rel(&m->g->epoch, &now, c->epoch + 1)) mm_epoch_time(m, c->epoch + 1); /* somebody has to move the clock on; lost: somebody did */
    m->oldest_pin = mm_oldest_pin(m);
    return m->oldest_pin > c->epoch;
}

/* The next id that was never used; the table holds it before it is taken, so a full disk takes none away. */
static int id_new(mm *m, uint64_t *pid, mm_result *r)
{
    uint64_t p = at_load_acquire(&m->g->max_pid);
    do {
        /* The table covered each id before it was taken: a larger one was never given, and is not worth growing for. */
        if (p < 2 || p > at_load_acquire(&m->g->table_pages)) return mm_corrupt(r, MM_FILE_CONTROL, MM_CONTROL_GLOBALS + offsetof(mm_globals, max_pid));
        if (p > MM_MAX_PID) return MM_LIMIT;
        int rc = mm_table_cover(m, p, r);
        if (rc) return rc;
    } while (!at_cas_acq_rel(&m->g->max_pid, &p, p + 1));
    *pid = p;
    return MM_OK;
}

/* An id to allocate and the head word to CAS from: an aged candidate, an id that was never used but lost, or a new one.
 * The caller holds the mutex and has announced. */
int mm_id_take(mm *m, uint64_t *pid, uint64_t *head, mm_result *r)
{
    int rc = sweep_some(m, r);
    *head = 0;
    m->since_scan++;
    if (++m->allocations % 512 == 0) mm_reap_dead(m); /* the ids that a killed process had freed come back by the sweep */
    for (int tries = 0; !rc && tries < 4 && m->candidate_count < MM_CANDIDATES && at_load_relaxed(&m->g->free_ids); tries++) {
        bool fresh;
        if (!hint_take(m, 512, pid)) break;
        rc = adopt(m, *pid, &fresh, r);
        if (!rc && fresh) return MM_OK;
    }
    if (rc) return rc;
    if (m->candidate_count && aged(m, &m->candidates[m->candidate_first % MM_CANDIDATES])) {
        mm_candidate *c = &m->candidates[m->candidate_first++ % MM_CANDIDATES];
        m->candidate_count--;
        *pid = c->pid;
        *head = c->head;
        return MM_OK;
    }
    return id_new(m, pid, r);
}

/* ---- read timestamps ---------------------------------------------------------------------------------------------------------- */

static int rts_refresh(mm *m, mm_result *r)
{
    uint64_t published = at_load_acquire(&m->g->rts_pages), size = mm_os_size(m->config.rts);
    if (published > m->table_capacity || (published && size < MM_WORDS_OFFSET + published * 8)) return mm_corrupt(r, MM_FILE_RTS, size);
    pv_store(&m->rts_safe, published);
    return MM_OK;
}

static int rts_cover(mm *m, uint64_t pid, mm_result *r)
{
    uint64_t now = at_load_acquire(&m->g->rts_pages), want = (pid + 8192) & ~UINT64_C(8191);
    if (pid >= now) {
        int rc = rts_refresh(m, r); /* growth would put zeros where somebody cut it */
        if (rc) return rc;
        int e = mm_os_grow(m->config.rts, MM_WORDS_OFFSET + now * 8, MM_WORDS_OFFSET + want * 8);
        if (e) return mm_os_failed(r, e);
        at_max_release(&m->g->rts_pages, want);
    }
    return rts_refresh(m, r);
}

static int with_head(mm *m, uint64_t pid, mm_result *r)
{
    at_word *head;
    int rc = mm_head(m, pid, &head, r);
    return rc ? rc : at_load_relaxed(head) ? MM_OK : mm_blame(m, MM_NOPAGE, r);
}

typedef struct rts_call { uint64_t pid, ts; } rts_call;

static int bump_rts(mm *m, void *args, mm_result *r)
{
    const rts_call *c = args;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    rc = with_head(m, c->pid, r);
    if (!rc && c->pid >= pv_load_relaxed(&m->rts_safe)) rc = rts_cover(m, c->pid, r);
    if (!rc) at_max_release(&m->rts[c->pid], c->ts);
    mm_leave(m, pin);
    return rc;
}

/* 0 is also what the end of a cut file reads as: then the size is looked at. */
static int get_rts(mm *m, void *args, mm_result *r)
{
    rts_call *c = args;
    uint32_t pin;
    int rc = mm_enter(m, &pin, NULL);
    if (rc) return rc;
    rc = with_head(m, c->pid, r);
    if (!rc && c->pid < pv_load_relaxed(&m->rts_safe)) c->ts = at_load_acquire(&m->rts[c->pid]);
    if (!rc && !c->ts) rc = rts_refresh(m, r);
    if (!rc && !c->ts && c->pid < pv_load_relaxed(&m->rts_safe)) c->ts = at_load_acquire(&m->rts[c->pid]);
    mm_leave(m, pin);
    return rc;
}

int mm_bump_rts(mm *m, uint64_t pid, uint64_t ts, mm_result *r) { return mm_guarded(m, r, bump_rts, &(rts_call){ pid, ts }); }

int mm_get_rts(mm *m, uint64_t pid, uint64_t *ts, mm_result *r)
{
    rts_call c = { pid, 0 };
    int rc = mm_guarded(m, r, get_rts, &c);
    if (!rc) *ts = c.ts;
    return rc;
}
