/* views.c - threads view pages that are replaced all the time, while one reuses what was replaced as a cleaner would: as soon as every pin is newer
 * and no view holds the segment, it writes over the old record.  No view ever sees that.
 *
 * Two viewers share an attachment, one has its own, and each keeps many views: more segments than a slot has words for.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "harness.h"
#include "internal.h"

enum { VIEWERS = 3, PAGES = 80, HOT = 3, KEPT = 120, PAYLOAD = 29000, HEAD = 3 }; /* two pages a segment */

typedef struct kept { mm_form form; uint32_t hold; uint8_t byte; } kept;
typedef struct viewer {
    pthread_t thread;
    mm *m;
    uint64_t random, views;
    uint32_t count;
    kept kept[KEPT];
} viewer;

static uint64_t pages[PAGES];
static atomic_bool stop;

/* Mostly one of a few. */
static uint64_t any_page(uint64_t *random) { return pages[next_random(random) % (next_random(random) % 8 ? HOT : PAGES)]; }

static void fill(uint8_t *p, uint8_t byte)
{
    p[0] = 0xC5;
    p[1] = PAYLOAD >> 8;
    p[2] = PAYLOAD & 255;
    memset(p + HEAD, byte, PAYLOAD);
}

static void must_be_whole(const kept *k)
{
    MUST(k->form.bytes == PAYLOAD && k->form.kind == MM_FORM_BYTES, "a view of %llu bytes", (unsigned long long)k->form.bytes);
    for (uint32_t i = 0; i < PAYLOAD; i += 97) MUST(k->form.data[i] == k->byte, "byte %u under a view is %02x, was %02x", i, k->form.data[i], k->byte);
}

static void drop(viewer *w, uint32_t i)
{
    must_be_whole(&w->kept[i]);
    MUST(mm_view_drop(w->m, w->kept[i].hold) == 0, "mm_view_drop");
    w->kept[i] = w->kept[--w->count];
}

static void *view(void *arg)
{
    viewer *w = arg;
    mm_result r;
    while (!atomic_load(&stop)) {
        bool many = w->views / 1024 % 8 == 7; /* mostly few, now and then more than a slot has words for */
        while (w->count >= (many ? KEPT : 3)) drop(w, (uint32_t)(next_random(&w->random) % w->count));
        kept *k = &w->kept[w->count];
        k->hold = MM_VIEW_NONE;
        int rc = mm_view_page(w->m, many ? pages[next_random(&w->random) % PAGES] : any_page(&w->random), UINT64_MAX, &k->form, &k->hold, &r);
        MUST(rc == MM_OK && k->hold != MM_VIEW_NONE, "mm_view_page: %d", rc);
        k->byte = k->form.data[0];
        must_be_whole(k);
        w->count++;
        w->views++;
    }
    while (w->count) drop(w, 0);
    return NULL;
}

/* May what was replaced be written over?  Pins first, views second. */
static bool reusable(mm *m, uint64_t segment, uint64_t generation, uint64_t retired)
{
    mm_lock(m, MM_HOLD_PUBLISH);
    bool free = mm_oldest_pin(m) > retired;
    mm_os_yield(); /* whoever is about to drop a pin does it here */
    free = free && !mm_viewed(m, segment, generation);
    mm_unlock(m, MM_HOLD_PUBLISH);
    return free;
}

static void reuse_one(mm *m, uint64_t pid, uint8_t byte, uint64_t *reused)
{
    static uint8_t payload[HEAD + PAYLOAD], buffer[2 * PAYLOAD];
    mm_result r;
    MUST(mm_read(m, pid, 0, 1, buffer, sizeof buffer, &r) == MM_OK, "mm_read");
    mm_key key = r.key;
    uint64_t address = mm_head_address(key.head), generation = r.generation;
    fill(payload, byte);
    MUST(mm_replace(m, &key, payload, sizeof payload, &r) == MM_OK, "mm_replace");
    uint64_t retired = at_add_seq_cst(&m->g->epoch, 1);
    for (int tries = 0; tries < 30; tries++) {
        if (reusable(m, address >> m->segment_shift, generation, retired)) {
            uint64_t w = at_load_acquire(&m->segments[address >> m->segment_shift].word); /* only this thread writes, and helps to clean */
            if (mm_segword_generation(w) == generation && mm_segword_state(w) != MM_SEG_FREE)
                memset(m->log + address + MM_RECORD_HEADER, 0xEE, HEAD + PAYLOAD);
            ++*reused;
            return;
        }
        mm_os_yield();
    }
}

static void held_is_viewed(mm *m, mm *other)
{
    mm_form form;
    mm_result r;
    uint32_t hold = MM_VIEW_NONE;
    MUST(mm_view_page(m, pages[0], UINT64_MAX, &form, &hold, &r) == MM_OK, "mm_view_page");
    uint64_t segment = mm_head_address(r.key.head) >> m->segment_shift;
    mm_lock(other, MM_HOLD_PUBLISH);
    MUST(mm_viewed(other, segment, r.generation), "a view is not seen");
    MUST(!mm_viewed(other, segment, r.generation + 1) && !mm_viewed(other, segment + 1, r.generation), "a view that nobody has is seen");
    mm_view_drop(m, hold);
    MUST(!mm_viewed(other, segment, r.generation), "a view that was dropped is seen");
    mm_unlock(other, MM_HOLD_PUBLISH);
}

static void run(uint64_t seed, int rounds)
{
    static uint8_t payload[HEAD + PAYLOAD];
    static viewer viewers[VIEWERS];
    store s;
    mm_result r;
    uint64_t random = seed | 1, reused = 0, views = 0;
    make_store(&s, MM_MERGE_LWW, 10, 16);
    mm *cleaner = must_attach(&s), *shared = must_attach(&s);
    fill(payload, 1);
    for (int i = 0; i < PAGES; i++) {
        MUST(mm_allocate(cleaner, payload, sizeof payload, &r) == MM_OK, "mm_allocate");
        pages[i] = r.key.pid;
    }
    held_is_viewed(shared, cleaner);
    for (int i = 0; i < VIEWERS; i++) {
        viewers[i] = (viewer){ .m = i ? shared : must_attach(&s), .random = seed * 31 + (uint64_t)i * 7919 + 1 };
        MUST(pthread_create(&viewers[i].thread, NULL, view, &viewers[i]) == 0, "pthread_create");
    }
    for (int i = 0; i < rounds; i++) reuse_one(cleaner, any_page(&random), (uint8_t)(2 + i % 200), &reused);
    atomic_store(&stop, true);
    for (int i = 0; i < VIEWERS; i++) {
        pthread_join(viewers[i].thread, NULL);
        views += viewers[i].views;
    }
    MUST(mm_view_count(shared) == 0 && mm_view_count(viewers[0].m) == 0 && reused > 0, "%u views out, %llu records reused", mm_view_count(shared), (unsigned long long)reused);
    for (uint32_t k = 0; k < MM_VIEWS; k++) MUST(at_load_relaxed(&shared->slot->views[k]) == 0, "word %u is left", k);
    uint32_t hold = MM_VIEW_NONE;
    mm_form form;
    MUST(mm_view_page(shared, pages[0], UINT64_MAX, &form, &hold, &r) == MM_OK, "mm_view_page");
    mm_close(shared);
    MUST(!mm_is_closed(shared) && form.data[0] == form.data[1], "unmapped under a view");
    MUST(mm_view_drop(shared, hold) == MM_VIEW_LAST && mm_is_closed(shared), "the last view left nothing behind");
    mm_destroy(shared);
    mm_destroy(viewers[0].m);
    mm_destroy(cleaner);
    remove_store(&s);
    printf("%llu views, %llu of %d records reused\n", (unsigned long long)views, (unsigned long long)reused, rounds);
}

int main(void)
{
    run(seed_of_run(), long_form() ? 2000 : 100);
    return 0;
}
