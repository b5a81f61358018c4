/* observe.c - reading a page of a live store without a word of one's own in it: no pin, no help, no store.
 *
 * Nothing keeps the bytes in place meanwhile, so they are copied first and believed last:
 *   1. head, the segments' generations, the chain's headers, as they stand;
 *   2. the head again, the same: so the whole chain was reachable all the while, hence in place (invariant 5), and each generation is that of
 *      its record.  What was read so far is true, errors too;
 *   3. checksums, and the copy;
 *   4. the segments again, each of the same generation and in use: none was given away before the copy was done.  That the head has changed by
 *      then does not matter: it is what the page was at 2.
 * Else from the beginning.  A head comes back as the same word only if its record was freed, retired, flushed, used again and written at the same
 * place between two loads; then 4 finds another generation.
 *
 * Nothing is parsed where it lies: a fragment is looked into in the copy.  Bounds are those of mm_look, on fields read once.
 */
#include <string.h>

#include "mapped.h"

#define TRIES 4096u
#define PATIENT 64u /* tries without giving the processor away */

/* The run of a record that is in place itself: so what it says is read as it was written. */
static bool run_in_place(mm *m, const mm_view *v)
{
    mm_extent x;
    mm_result ignored;
    memcpy(&x, v->payload, sizeof x);
    const mm_segment *s = mm_segment_of(m, x.address, &ignored);
    uint64_t w = s ? at_load_acquire(&s->word) : 0, state = mm_segword_state(w);
    return (state == MM_SEG_EXTENT || state == MM_SEG_RETIRED) && mm_segword_generation(w) == x.generation;
}

static bool in_place(mm *m, const mm_view *v)
{
    uint64_t w = at_load_acquire(&m->segments[v->address >> m->segment_shift].word), state = mm_segword_state(w);
    bool used = state == MM_SEG_OPEN || state == MM_SEG_SEALED || state == MM_SEG_CLAIMED || state == MM_SEG_RETIRED;
    return used && mm_segword_generation(w) == v->generation && (!mm_is_large(v->shape) || run_in_place(m, v));
}

/* FREE and PUNCHING have the generation still: the bytes may be gone. */
static bool all_in_place(mm *m, const mm_chain_view *c)
{
    for (uint32_t i = 0; i < c->count; i++)
        if (!in_place(m, &c->at[i])) return false;
    return true;
}

static int gather(mm *m, uint64_t pid, uint64_t head, mm_chain_view *c, mm_result *r)
{
    bool helped;
    mm_view v;
    c->count = 0;
    c->whole = true;
    int rc = mm_look_head(m, pid, head, &v, &helped, r);
    while (!rc) {
        c->at[c->count++] = v;
        if (mm_shape_kind(v.shape) != MM_KIND_DELTA) return MM_OK;
        mm_view older;
        rc = mm_look(m, pid, v.prev, &older, r);
        if (!rc && (c->count == MM_CHAIN_MAX || !mm_chain_follows(&v, &older))) rc = mm_corrupt(r, MM_FILE_LOG, v.address);
        v = older;
    }
    return rc;
}

static int copy(mm *m, mm_chain_view *c, uint8_t *buffer, uint64_t capacity, mm_result *r)
{
    for (uint32_t i = 0; i < c->count; i++) {
        int rc = mm_verify(m, &c->at[i], r);
        if (rc) return rc;
    }
    int rc = r->kind == MM_KIND_FREE ? MM_OK : mm_chain_open(m, c, false, r);
    if (r->kind == MM_KIND_FREE || rc) return rc;
    return c->compressed ? mm_emit_stored(m, c, buffer, capacity, r) : mm_emit_array(m, c, buffer, capacity, r);
}

/* False: what was read need not be so. */
static bool observed(mm *m, uint64_t pid, uint8_t *buffer, uint64_t capacity, mm_result *r, int *status)
{
    mm_chain_view c;
    at_word *head;
    if ((*status = mm_head(m, pid, &head, r)) != MM_OK) return true;
    uint64_t h = at_load_acquire(head); /* the record is complete */
    *status = h ? gather(m, pid, h, &c, r) : MM_NOPAGE;
    at_fence_full(); /* all that was loaded, before the head */
    if (at_load_acquire(head) != h) return false;
    if (*status) return true;
    const mm_view *v = &c.at[0];
    r->key = (mm_key){ pid, h, mm_version_wts(v->version), at_load_acquire(&m->g->epoch) };
    r->generation = v->generation;
    r->kind = mm_shape_kind(v->shape);
    r->depth = mm_shape_depth(v->shape);
    r->count = c.count;
    r->whole = 1;
    *status = copy(m, &c, buffer, capacity, r);
    at_fence_full(); /* the copy, before the words of the segments; who gives one away stores its word first */
    return all_in_place(m, &c);
}

int mm_observe(mm *m, uint64_t pid, uint8_t *buffer, uint64_t capacity, mm_result *r)
{
    int status = MM_BUSY;
    for (uint32_t tries = 0; tries < TRIES; tries++) {
        if (observed(m, pid, buffer, capacity, r, &status)) return status;
        if (tries >= PATIENT) mm_os_yield();
    }
    return MM_BUSY; /* somebody changes the page all the time */
}
