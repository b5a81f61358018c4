/* view.c - zero-copy views: what keeps a segment from being used again while somebody reads its bytes without a pin.
 *
 * A slot has 64 view words; each names a segment and its generation, and stands for all views of this process that look into it: their number is
 * private.  A word is noted before the pin of the call is dropped, and whoever wants to use a segment again looks at the pins first and the
 * views second, so one of the two is seen (model: views.pml; VIEWS_FIRST, LATE_NOTE).  A view delays nothing but the reuse of that segment.
 * With 64 segments under view in one process the next view keeps a pin instead, one for all of these: that delays every reuse, as a Tx does, and
 * refuses nobody.
 *
 * No mutex: an entry whose number is all ones is somebody's who stores or clears its word.  So a fork finds nothing locked, and a fault of
 * the mapping loses one entry at most.
 *
 * Died anywhere: the reaper clears the words.  Stopped: they stay, and the segments wait.
 */
#include <string.h>

#include "internal.h"

#define OVERFLOW MM_VIEWS      /* the entry that stands for a pin */
#define CHANGING UINT64_MAX    /* of mm_holding.count */
#define RESCANS 8

static bool mine(const mm *m) { return *m->alive == MM_ALIVE; }
static uint64_t word_of(uint64_t segment, uint64_t generation) { return generation << 32 | (segment + 1); }

/* ---- holding ------------------------------------------------------------------------------------------------------------------ */

/* One view more in an entry that has some. */
static bool join(mm_holding *h)
{
    uint64_t n = pv_load(&h->count);
    while (n && n != CHANGING)
        if (pv_cas(&h->count, &n, n + 1)) return true;
    return false;
}

static int clear_word(mm *m, void *index, mm_result *r)
{
    (void)r;
    at_store_release(&m->slot->views[*(uint32_t *)index], 0); /* what was read through the view was read before */
    return MM_OK;
}

/* One view less; false: there is none.  The last one takes the word, or the pin, away.  In a forked child the slot is the parent's, and stays
 * as it is. */
static bool part(mm *m, uint32_t k)
{
    mm_holding *h = &m->views[k];
    uint64_t n = pv_load(&h->count), next;
    do {
        if (n == 0 || n == CHANGING) return false;
        next = n > 1 ? n - 1 : CHANGING;
    } while (!pv_cas(&h->count, &n, next));
    if (next != CHANGING) return true;
    uint32_t pin = (uint32_t)pv_load(&h->word);
    if (k != OVERFLOW && mine(m)) mm_guarded(m, NULL, clear_word, &k);
    pv_store(&h->word, 0);
    pv_store(&h->count, 0);
    if (k == OVERFLOW) mm_unpin(m, pin);
    return true;
}

/* The entry may have changed hands between the look at its word and the joining. */
static bool join_word(mm *m, uint32_t k, uint64_t word)
{
    mm_holding *h = &m->views[k];
    if (pv_load_relaxed(&h->word) != word || !join(h)) return false;
    if (pv_load(&h->word) == word) return true;
    part(m, k);
    return false;
}

/* Under the caller's pin.  OVERFLOW: every word names another segment. */
static uint32_t note(mm *m, uint64_t word)
{
    for (uint32_t k = 0; k < MM_VIEWS; k++)
        if (join_word(m, k, word)) return k;
    for (uint32_t k = 0; k < MM_VIEWS; k++) {
        mm_holding *h = &m->views[k];
        uint64_t none = 0;
        if (pv_load_relaxed(&h->count) || !pv_cas(&h->count, &none, CHANGING)) continue;
        pv_store(&h->word, word);
        at_store_release(&m->slot->views[k], word); /* the release of the pin comes after it */
        pv_store(&h->count, 1);
        return k;
    }
    return OVERFLOW;
}

/* True: `pin` is kept from here on.  False: there is one already, which is as old or older, so it holds all that this view's caller could see: what
 * is retired later is retired at its epoch or above. */
static bool keep_pin(mm *m, uint32_t pin)
{
    mm_holding *h = &m->views[OVERFLOW];
    for (uint64_t none = 0; !join(h); none = 0, mm_os_yield()) {
        if (!pv_cas(&h->count, &none, CHANGING)) continue;
        pv_store(&h->word, pin);
        pv_store(&h->count, 1);
        return true;
    }
    return false;
}

int mm_view_drop(mm *m, uint32_t hold)
{
    if (hold > OVERFLOW || !part(m, hold)) return 0;
    uint64_t old = pv_add(&m->busy, (uint64_t)0 - MM_VIEW_ONE);
    if (!mine(m)) return m->heir && hold != OVERFLOW ? mm_view_drop(m->heir, hold) : 0;
    if (old == (MM_CLOSING | MM_VIEW_ONE)) {
        mm_finish(m);
        return MM_VIEW_LAST;
    }
    return pv_load(&m->guards) ? MM_VIEW_GUARDED : 0;
}

uint32_t mm_view_count(const mm *m) { return (uint32_t)((pv_load(&m->busy) & ~MM_CLOSING) / MM_VIEW_ONE); }

int mm_view_usable(const mm *m, uint32_t hold)
{
    while (!mine(m) && m->heir && hold != OVERFLOW) m = m->heir;
    return mine(m);
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------ */

/* Where a record's payload lies, in one piece, and the segment that must not be used again while it is looked at.  A payload that lies elsewhere in
 * the log (an extent) has the first segment of its own run there, which is freed as a whole. */
typedef struct payload { const uint8_t *p; uint64_t length, segment, generation; } payload;

static payload payload_of(const mm *m, const mm_view *v)
{
    mm_extent x;
    if (!mm_is_large(v->shape)) return (payload){ v->payload, v->length, v->address >> m->segment_shift, v->generation };
    memcpy(&x, v->payload, sizeof x);
    return (payload){ v->body, v->length, x.address >> m->segment_shift, x.generation };
}

/* Its bytes do not change in a generation of its segment (invariant 2), so one look at the checksum is enough.  The table is exact: the address is
 * mixed by a product that can be undone (large records all begin at the same place of a block), its high bits choose a pair of entries, and the rest and
 * the generation are compared.  What is pushed out of a pair is verified again. */
#define PAIR_BITS 11
_Static_assert(MM_VERIFIED == 2u << PAIR_BITS && MM_ADDR_BITS - PAIR_BITS + 24 + 1 <= 64, "pair, rest and generation are all of an address");

static int verify_once(mm *m, const mm_view *v, uint64_t quick, mm_result *r)
{
    uint64_t mixed = (v->address >> 3) * UINT64_C(0x9E3779B97F4A7C15) & MM_ADDR_MASK;
    uint64_t rest = mixed & (MM_ADDR_MASK >> PAIR_BITS), mark = rest << 25 | (uint64_t)(v->generation & 0xFFFFFF) << 1 | 1;
    pv_word *pair = &m->verified[2 * (mixed >> (MM_ADDR_BITS - PAIR_BITS))];
    uint64_t newer = pv_load_relaxed(&pair[0]);
    if (newer == mark || pv_load_relaxed(&pair[1]) == mark) return MM_OK;
    r->length = v->length;
    if (r->length > quick) return MM_SPACE;
    int rc = mm_verify(m, v, r);
    if (!rc) rc = mm_extent_verify(m, v, r);
    if (rc) return rc;
    pv_store_relaxed(&pair[1], newer);
    pv_store_relaxed(&pair[0], mark);
    return MM_OK;
}

typedef struct view_call {
    uint64_t pid, quick;
    mm_form *form;
    uint32_t *hold;
    uint32_t pin;
    bool kept; /* the pin is the view's now */
} view_call;

static int show(mm *m, view_call *a, mm_view *v, mm_result *r)
{
    if (mm_is_compressed(v->shape)) return MM_COMPRESSED; /* who reads it then looks at the checksum */
    int rc = mm_is_large(v->shape) ? mm_verify(m, v, r) : MM_OK;
    if (!rc) rc = mm_extent_open(m, v, r);
    if (!rc) rc = verify_once(m, v, a->quick, r);
    if (rc) return rc;
    payload p = payload_of(m, v);
    if (mm_form_read(p.p, p.length, a->form)) return mm_corrupt(r, MM_FILE_LOG, v->address);
    if (a->form->kind == MM_FORM_OTHER) return MM_OK;
    uint32_t k = note(m, word_of(p.segment, p.generation));
    if (k == OVERFLOW) a->kept = keep_pin(m, a->pin);
    pv_add(&m->busy, MM_VIEW_ONE); /* the bit of the pin is there still: nobody unmaps in between */
    *a->hold = k;
    mm_count(m, MM_COUNT_views, 1);
    return MM_OK;
}

static int view_pinned(mm *m, view_call *a, mm_result *r)
{
    at_word *head;
    mm_view v;
    bool helped;
    if (a->pid < 2) return MM_RESERVED;
    int rc = mm_head(m, a->pid, &head, r);
    if (rc) return rc;
    uint64_t h = at_load_acquire(head);
    if (!h) return MM_NOPAGE;
    rc = mm_look_head(m, a->pid, h, &v, &helped, r);
    if (rc) return rc;
    r->key = (mm_key){ a->pid, h, mm_version_wts(v.version), at_load_acquire(&m->g->epoch) };
    r->generation = v.generation;
    r->kind = mm_shape_kind(v.shape);
    r->depth = mm_shape_depth(v.shape);
    if (r->kind == MM_KIND_FREE) return MM_FREED;
    if (r->kind == MM_KIND_DELTA && m->merge_kind != MM_MERGE_LWW) return MM_CHAIN; /* with LastWriteWins the newest fragment is the value */
    return show(m, a, &v, r);
}

static int view_page(mm *m, void *args, mm_result *r)
{
    view_call *a = args;
    int rc = mm_enter(m, &a->pin, NULL);
    if (rc) return rc;
    rc = mm_blame(m, view_pinned(m, a, r), r);
    if (a->kept) mm_note_pin(MM_PIN_NONE);
    else mm_leave(m, a->pin);
    return rc;
}

int mm_view_page(mm *m, uint64_t pid, uint64_t quick, mm_form *form, uint32_t *hold, mm_result *r)
{
    memset(r, 0, sizeof *r);
    r->key.pid = pid;
    return mm_guarded(m, r, view_page, &(view_call){ .pid = pid, .quick = quick, .form = form, .hold = hold });
}

/* ---- who wants to use a segment again ----------------------------------------------------------------------------------------- */

static bool slot_views(const mm_slot *s, uint64_t word)
{
    for (uint32_t k = 0; k < MM_VIEWS; k++)
        if (at_load_acquire(&s->views[k]) == word) return true;
    return false;
}

static bool any_views(mm *m, uint64_t word)
{
    for (uint32_t i = 0; i < mm_slots_used(m); i++) {
        const mm_slot *s = &m->slots[i];
        if ((at_load_acquire(&s->state) & 255) == MM_SLOT_LIVE && slot_views(s, word) && !mm_reap_if_dead(m, i)) return true;
    }
    return false;
}

/* True when a view of a living process holds this generation of the segment, or may.  To be asked after mm_oldest_pin said that every pin is newer
 * (C13): who read under one of the pins that are gone has noted what it views.  A forked child takes over what its parent holds, from one slot to another,
 * and steps the epoch before the parent lets go: so an epoch that stood still means that nobody slipped from a slot not yet looked at to one that
 * had been.  A slot that is in the way is asked whether it lives. */
bool mm_viewed(mm *m, uint64_t segment, uint64_t generation)
{
    uint64_t epoch = at_load_acquire(&m->g->epoch);
    for (int tries = 0; tries < RESCANS; tries++) {
        at_fence_full();
        if (any_views(m, word_of(segment, generation))) return true;
        uint64_t now = at_load_acquire(&m->g->epoch);
        if (now == epoch) return false;
        epoch = now;
    }
    return true; /* the clock runs: to be asked again later */
}

/* ---- forks -------------------------------------------------------------------------------------------------------------------- */

/* In a child an inherited attachment holds nothing by itself: its heir does, or the guard of the process it came from. */
int mm_views_guard(mm *m, uint64_t *held)
{
    held[0] = held[1] = 0;
    if (!mine(m)) return 0;
    for (uint32_t k = 0; k <= OVERFLOW; k++) {
        if (!join(&m->views[k])) continue;
        pv_add(&m->busy, MM_VIEW_ONE);
        held[k / 64] |= UINT64_C(1) << k % 64;
    }
    if (!held[0] && !held[1]) return 0;
    pv_add(&m->guards, 1);
    return 1;
}

int mm_views_unguard(mm *m, const uint64_t *held)
{
    int said = 0;
    pv_add(&m->guards, UINT64_MAX);
    for (uint32_t k = 0; k <= OVERFLOW; k++)
        if (held[k / 64] >> k % 64 & 1) said |= mm_view_drop(m, k);
    return said;
}

/* The parent holds all of it meanwhile, so it does not matter what became of the segments since.  What a thread was just opening or dropping at the
 * fork is nobody's here. */
static int adopt(mm *m, void *parent, mm_result *r)
{
    (void)r;
    mm *old = parent;
    for (uint32_t k = 0; k < MM_VIEWS; k++) {
        uint64_t n = pv_load(&old->views[k].count), word = pv_load(&old->views[k].word);
        if (n == 0 || n == CHANGING) continue;
        pv_store(&m->views[k].word, word);
        at_store_release(&m->slot->views[k], word);
        pv_store(&m->views[k].count, n);
        pv_add(&m->busy, n * MM_VIEW_ONE);
    }
    at_add_seq_cst(&m->g->epoch, 1); /* before the parent lets go: mm_viewed */
    return MM_OK;
}

int mm_views_adopt(mm *m, mm *old)
{
    if (mm_guarded(m, NULL, adopt, old)) return 0;
    old->heir = m;
    return pv_load(&old->views[OVERFLOW].count) == 0;
}
