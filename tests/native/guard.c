/* guard.c - files that are cut under readers, writers and flushers: each verb answers, nobody dies, and the attachment can be closed.
 *
 * Threads of two attachments of one process work on one store; one thread cuts a file.  Then each verb is called once more by each
 * thread, which finds every mutex free, and all is closed.  A pin that a fault left behind would keep the mapping.
 *
 * The thread sanitizer makes atomic stores inside itself, under locks of its own, which a fault there would leave locked; of an acquiring load it
 * makes two, the second under a lock.  Under it only `log` is cut and only verbs that read run, and no thread is inside of one while it is cut: then what
 * they fault at is the first load of the two, or a plain one.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include "harness.h"

#ifdef __SANITIZE_THREAD__
#define READERS_ONLY true
#else
#define READERS_ONLY false
#endif

enum { THREADS = 4, PAGES = 8, MERGE_APPEND = 3, PATIENCE = 60 };

typedef struct worker {
    pthread_t thread;
    mm *m;
    uint64_t random, faults;
} worker;

static uint64_t pages[PAGES], seed_now;
static atomic_bool cut;
static atomic_uint warm, resting;
static atomic_bool rest;

static bool damaged(worker *w, int rc, const mm_result *r, const char *verb)
{
    MUST(rc >= MM_OK && rc <= MM_UNUSABLE, "%s answers %d", verb, rc);
    MUST(rc != MM_CORRUPT || (r->file >= MM_FILE_LOG && r->file <= MM_FILE_RTS), "%s: damage in no file: %u", verb, r->file);
    MUST(rc != MM_CORRUPT || atomic_load(&cut), "%s: damage before the cut: file %u, offset %llu", verb, r->file, (unsigned long long)r->offset);
    w->faults += rc == MM_CORRUPT;
    return rc != MM_OK;
}

/* Verbs that have no result tell by the last fault. */
static void told(worker *w, int rc, const char *verb)
{
    mm_result r;
    memset(&r, 0, sizeof r);
    if (rc == MM_CORRUPT) mm_last_fault(w->m, &r);
    damaged(w, rc, &r, verb);
}

static void each_reader(worker *w)
{
    uint8_t buffer[8192];
    mm_result r;
    mm_stats stats;
    uint32_t pin;
    uint64_t pid = pages[next_random(&w->random) % PAGES], epoch, stable, found, triples[3 * 16];
    damaged(w, mm_read(w->m, pid, 0, 1, buffer, sizeof buffer, &r), &r, "mm_read");
    damaged(w, mm_chain(w->m, pid, triples, 16, &r), &r, "mm_chain");
    int rc = mm_pin(w->m, &pin, &epoch);
    told(w, rc, "mm_pin");
    if (!rc) mm_unpin(w->m, pin);
    told(w, mm_clock(w->m, &epoch, &stable), "mm_clock");
    mm_form form;
    uint32_t hold = MM_VIEW_NONE;
    rc = mm_view_page(w->m, pid, UINT64_MAX, &form, &hold, &r);
    if (rc != MM_CHAIN) damaged(w, rc, &r, "mm_view_page");
    mm_view_drop(w->m, hold);
    told(w, mm_get_stats(w->m, &stats), "mm_get_stats");
    if (next_random(&w->random) % 16 == 0) damaged(w, mm_check(w->m, &found, &r), &r, "mm_check");
}

static void each_writer(worker *w)
{
    uint8_t buffer[8192];
    mm_result r;
    uint64_t pid = pages[next_random(&w->random) % PAGES], advanced, ts;
    int rc;
    if (!damaged(w, mm_read(w->m, pid, 0, 1, buffer, sizeof buffer, &r), &r, "mm_read")) {
        mm_key key = r.key;
        damaged(w, mm_replace(w->m, &key, "\xC4\x01r", 3, &r), &r, "mm_replace");
    }
    damaged(w, mm_append(w->m, pid, "\xC4\x01x", 3, &r), &r, "mm_append");
    damaged(w, mm_consolidate_native(w->m, pid, &r), &r, "mm_consolidate_native");
    damaged(w, mm_bump_rts(w->m, pid, 3, &r), &r, "mm_bump_rts");
    damaged(w, mm_get_rts(w->m, pid, &ts, &r), &r, "mm_get_rts");
    if (!damaged(w, mm_allocate(w->m, "\xC4\x01n", 3, &r), &r, "mm_allocate")) {
        mm_key key = r.key;
        damaged(w, mm_free(w->m, &key, &r), &r, "mm_free");
    }
    damaged(w, mm_flush(w->m, 0, &advanced, &r), &r, "mm_flush");
    uint64_t quick, id = MM_ID_NONE;
    rc = mm_id_quick(w->m, &quick);
    if (rc != MM_BUSY) told(w, rc, "mm_id_quick");
    damaged(w, mm_generate_id(w->m, &id, 0, &r), &r, "mm_generate_id");
}

static void *work(void *of)
{
    worker *w = of;
    bool counted = false;
    for (int after = 0; after < 3;) {
        if (READERS_ONLY && atomic_load(&rest)) {
            atomic_fetch_add(&resting, 1);
            while (atomic_load(&rest)) sched_yield();
        }
        after += atomic_load(&cut);
        each_reader(w);
        if (!READERS_ONLY) each_writer(w);
        if (!counted) atomic_fetch_add(&warm, 1);
        counted = true;
    }
    return NULL;
}

/* Cuts a file that each verb needs some byte of, at any place below what is in use. */
static void cut_one(const store *s, uint64_t *random)
{
    static const struct { int file; off_t used; } targets[] = { { 0, 4096 + 18 * 64 }, { 1, 4096 + PAGES * 8 }, { 2, 8192 }, { 4, 4096 } };
    uint64_t x = READERS_ONLY ? 2 : next_random(random);
    char name[600];
    file_path(s, targets[x % 4].file, name);
    atomic_store(&rest, true);
    while (READERS_ONLY && atomic_load(&resting) < THREADS) sched_yield();
    atomic_store(&cut, true);
    MUST(truncate(name, (off_t)(next_random(random) % (uint64_t)targets[x % 4].used)) == 0, "truncate %s", name);
    atomic_store(&rest, false);
}

static uint64_t one_round(uint64_t seed)
{
    store s;
    mm_result r;
    worker workers[THREADS];
    uint64_t random = seed * 0x9E3779B97F4A7C15u | 1, faults = 0;
    make_store(&s, MERGE_APPEND, 3, 16);
    mm *both[2] = { must_attach(&s), must_attach(&s) };
    for (int i = 0; i < PAGES; i++) {
        MUST(mm_allocate(both[0], "\xC4\x01p", 3, &r) == MM_OK && mm_bump_rts(both[0], r.key.pid, 1, &r) == MM_OK, "mm_allocate");
        pages[i] = 2 + (uint64_t)i;
    }
    atomic_store(&cut, false);
    atomic_store(&warm, 0);
    atomic_store(&resting, 0);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){ .m = both[i % 2], .random = next_random(&random) | 1 };
        MUST(!pthread_create(&workers[i].thread, NULL, work, &workers[i]), "pthread_create");
    }
    while (atomic_load(&warm) < THREADS) usleep(100);
    cut_one(&s, &random);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        faults += workers[i].faults;
    }
    for (int i = 0; i < 2; i++) {
        mm_close(both[i]);
        MUST(mm_is_closed(both[i]), "somebody's pin was lost");
        mm_destroy(both[i]);
    }
    remove_store(&s);
    return faults;
}

static void hung(int number)
{
    (void)number;
    char text[80];
    int n = snprintf(text, sizeof text, "hangs: MMPC_SEED=%llu\n", (unsigned long long)seed_now);
    if (write(2, text, (size_t)n) < 0) _exit(3);
    abort();
}

int main(void)
{
    uint64_t first = seed_of_run(), rounds = long_form() ? 2000 : 60, faults = 0;
    signal(SIGALRM, hung);
    for (uint64_t k = 0; k < rounds; k++) { /* round k alone: MMPC_SEED = seed + k */
        alarm(PATIENCE);
        seed_now = first + k;
        faults += one_round(seed_now);
    }
    MUST(faults > rounds, "the cuts were hardly met: %llu times in %llu rounds", (unsigned long long)faults, (unsigned long long)rounds);
    printf("%llu rounds, %llu verbs met damage\n", (unsigned long long)rounds, (unsigned long long)faults);
    return 0;
}
