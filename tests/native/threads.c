/* threads.c - several threads on the same pages: each with an attachment of its own, or all sharing one.
 *
 * Pages are counters (Add).  Every verb runs; what each thread added is counted, and the sum of all counters is exact at the end.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "harness.h"

enum { THREADS = 4, PAGES = 8, MERGE_ADD = 2 };

typedef struct worker {
    pthread_t thread;
    mm *m;
    const store *store;
    uint64_t random, added, writes, verbs, conflicts;
} worker;

static uint64_t pages[PAGES];
static atomic_bool stop;

static uint64_t decode(const uint8_t *p)
{
    uint64_t v = 0;
    int n = *p < 0x80 ? 0 : *p == 0xCC ? 1 : *p == 0xCD ? 2 : *p == 0xCE ? 4 : *p == 0xCF ? 8 : -1;
    MUST(n >= 0, "not an unsigned integer: %02x", *p);
    if (n == 0) return *p;
    for (int i = 1; i <= n; i++) v = v << 8 | p[i];
    return v;
}

static uint64_t encode(uint64_t v, uint8_t out[9])
{
    if (v < 0x80) {
        out[0] = (uint8_t)v;
        return 1;
    }
    out[0] = 0xCF;
    for (int i = 0; i < 8; i++) out[8 - i] = (uint8_t)(v >> (8 * i));
    return 9;
}

static uint64_t value_of(mm *m, uint64_t pid, mm_result *r)
{
    uint8_t buffer[4096];
    int rc = mm_read(m, pid, 0, 1, buffer, sizeof buffer, r);
    MUST(rc == MM_OK && r->merged, "mm_read %llu: %d", (unsigned long long)pid, rc);
    return decode(buffer);
}

static const char consolidates[] = "mm_consolidate_native";

static bool won(worker *w, int rc, const char *verb)
{
    w->conflicts += rc == MM_CONFLICT;
    if (verb != consolidates) w->writes += rc == MM_OK;
    MUST(rc == MM_OK || rc == MM_CONFLICT, "%s: %d", verb, rc);
    return rc == MM_OK;
}

/* A page of this thread's own: made, read, freed; a freed id comes back. */
static void own_page(worker *w, mm_result *r)
{
    uint8_t five[9];
    int rc = mm_allocate(w->m, five, encode(5, five), r);
    MUST(rc == MM_OK, "mm_allocate: %d", rc);
    uint64_t pid = r->key.pid;
    for (int i = 0; i < PAGES; i++) MUST(pid != pages[i], "a live page id was handed out");
    MUST(mm_append(w->m, pid, "\x02", 1, r) == MM_OK, "append to an own page");
    MUST(value_of(w->m, pid, r) == 7, "an own page holds something else");
    mm_key key = r->key;
    MUST(mm_free(w->m, &key, r) == MM_OK, "free of an own page");
    rc = mm_append(w->m, pid, "\x02", 1, r); /* somebody may have it by now */
    MUST(rc != MM_NOPAGE, "a freed page was never there");
    w->writes += 3 + (rc == MM_OK);
}

static void pinned(worker *w, uint64_t pid, mm_result *r)
{
    uint32_t pin;
    uint64_t epoch, before = MM_ID_NONE, ts = MM_ID_NONE;
    MUST(mm_generate_id(w->m, &before, 0, r) == MM_OK, "mm_generate_id");
    MUST(mm_pin(w->m, &pin, &epoch) == MM_OK && mm_generate_id(w->m, &ts, 1, r) == MM_OK && ts > before, "mm_pin");
    value_of(w->m, pid, r);
    MUST(mm_bump_rts(w->m, pid, ts, r) == MM_OK && mm_get_rts(w->m, pid, &epoch, r) == MM_OK && epoch >= ts, "read timestamps");
    mm_unpin(w->m, pin);
}

/* Into a file without a name; it holds in every byte. */
static void snapshot(worker *w, mm_result *r)
{
    FILE *file = tmpfile();
    mm_config c = open_files(w->store, 0);
    mm_snapshot_info info;
    mm_snapshot_taken taken;
    MUST(file, "tmpfile");
    MUST(mm_snapshot_write(w->m, fileno(file), &taken, r) == MM_OK, "mm_snapshot_write");
    MUST(mm_snapshot_look(&c, fileno(file), &info, r) == MM_OK && info.b == taken.b, "mm_snapshot_look");
    MUST(mm_snapshot_check(&c, fileno(file), &info, r) == MM_OK, "mm_snapshot_check");
    close_files_of(&c);
    fclose(file);
}

static void step(worker *w)
{
    mm_result r;
    mm_stats stats;
    mm_clean_report report;
    uint64_t pid = pages[next_random(&w->random) % PAGES], advanced, triples[3 * 64], reaped;
    uint64_t add = next_random(&w->random) % 100;
    uint8_t payload[9];
    mm_key key;
    w->verbs++;
    switch (next_random(&w->random) % 16) {
    default:
        MUST(mm_append(w->m, pid, payload, encode(add, payload), &r) == MM_OK, "mm_append");
        w->added += add;
        w->writes++;
        return;
    case 0:
    case 1:
        value_of(w->m, pid, &r);
        key = r.key;
        if (won(w, mm_link(w->m, &key, payload, encode(add, payload), &r), "mm_link")) w->added += add;
        return;
    case 2: {
        uint64_t now = value_of(w->m, pid, &r);
        key = r.key;
        if (won(w, mm_replace(w->m, &key, payload, encode(now + add, payload), &r), "mm_replace")) w->added += add;
        return;
    }
    case 3: won(w, mm_consolidate_native(w->m, pid, &r), consolidates); return;
    case 4: own_page(w, &r); return;
    case 5: pinned(w, pid, &r); return;
    case 6: MUST(mm_chain(w->m, pid, triples, 64, &r) == MM_OK && r.count, "mm_chain"); return;
    case 8:
        if (add < 50) MUST(mm_clean(w->m, MM_EFFORT_ALL, 1 << 16, &report, &r) == MM_OK, "mm_clean");
        else MUST(mm_rewrite_page(w->m, pid, &r) == MM_OK, "mm_rewrite_page");
        return;
    case 7:
        if (add < 10) MUST(mm_flush(w->m, 0, &advanced, &r) == MM_OK, "mm_flush");
        else if (add == 10) snapshot(w, &r);
        else if (add < 20) MUST(mm_get_stats(w->m, &stats) == MM_OK && mm_reap_all(w->m, &reaped) == MM_OK && !reaped, "stats, reap");
        return;
    }
}

/* What all who ever were attached have written, as the store counts it. */
static uint64_t counted(const store *s)
{
    static const char *const verbs[] = { "appends", "links", "replaces", "frees", "allocates" };
    static uint64_t row[MM_ROW_WORDS];
    uint64_t sum = 0;
    int fd = open_metrics(s, 0);
    memset(row, 0, sizeof row);
    MUST(fd >= 0 && mm_metrics_read(fd, 0, 1024, row) == 0, "mm_metrics_read");
    close(fd);
    for (unsigned i = 0; i < sizeof verbs / sizeof *verbs; i++) sum += row[mm_metric_named(MM_METRIC_COUNTER, verbs[i])];
    return sum;
}

static void *work(void *arg)
{
    worker *w = arg;
    while (!atomic_load(&stop)) step(w);
    return NULL;
}

/* `shared`: one attachment for all.  Short chains and small segments make edges common. */
static void run(bool shared, uint64_t seed, uint64_t ms)
{
    store s;
    mm_result r;
    worker workers[THREADS];
    uint64_t added = 0, writes = PAGES, verbs = 0, conflicts = 0, sum = 0, checked;
    make_store(&s, MERGE_ADD, 3, 16);
    mm *m = must_attach(&s);
    for (int i = 0; i < PAGES; i++) {
        MUST(mm_allocate(m, "\0", 1, &r) == MM_OK, "mm_allocate");
        pages[i] = r.key.pid;
    }
    atomic_store(&stop, false);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){ .m = shared ? m : must_attach(&s), .store = &s, .random = seed * 2654435761u + (uint64_t)i * 7919 + 1 };
        MUST(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0, "pthread_create");
    }
    struct timespec nap = { (time_t)(ms / 1000), (long)(ms % 1000) * 1000000 };
    nanosleep(&nap, NULL);
    atomic_store(&stop, true);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        added += workers[i].added;
        verbs += workers[i].verbs;
        writes += workers[i].writes;
        conflicts += workers[i].conflicts;
        if (!shared) mm_destroy(workers[i].m);
    }
    for (int i = 0; i < PAGES; i++) sum += value_of(m, pages[i], &r);
    MUST(sum == added, "the counters say %llu, %llu was added", (unsigned long long)sum, (unsigned long long)added);
    MUST(mm_check(m, &checked, &r) == MM_OK, "mm_check");
    MUST(counted(&s) == writes, "%llu writes were counted, %llu were made", (unsigned long long)counted(&s), (unsigned long long)writes);
    mm_destroy(m);
    remove_store(&s);
    printf("%s: %llu verbs, %llu conflicts, exact\n", shared ? "one attachment" : "one each", (unsigned long long)verbs, (unsigned long long)conflicts);
}

/* mm_close while others are inside: they finish or hear MM_CLOSED. */
static void *until_closed(void *arg)
{
    worker *w = arg;
    mm_result r;
    uint8_t buffer[4096];
    int rc = MM_OK;
    for (w->verbs = 0; rc == MM_OK; w->verbs++) {
        rc = mm_append(w->m, pages[0], "\x01", 1, &r);
        w->added += rc == MM_OK;
        if (rc == MM_OK) rc = mm_read(w->m, pages[0], 0, 1, buffer, sizeof buffer, &r);
    }
    MUST(rc == MM_CLOSED, "a verb during mm_close: %d", rc);
    return NULL;
}

static void run_close(int rounds)
{
    store s;
    mm_result r;
    uint64_t added = 0;
    make_store(&s, MERGE_ADD, 3, 16);
    mm *looker = must_attach(&s);
    MUST(mm_allocate(looker, "\0", 1, &r) == MM_OK, "mm_allocate");
    pages[0] = r.key.pid;
    for (int k = 0; k < rounds; k++) {
        mm *m = must_attach(&s);
        worker workers[THREADS];
        for (int i = 0; i < THREADS; i++) {
            workers[i] = (worker){ .m = m };
            MUST(pthread_create(&workers[i].thread, NULL, until_closed, &workers[i]) == 0, "pthread_create");
        }
        struct timespec nap = { 0, 2000000 };
        nanosleep(&nap, NULL);
        mm_close(m);
        for (int i = 0; i < THREADS; i++) {
            pthread_join(workers[i].thread, NULL);
            added += workers[i].added;
        }
        MUST(mm_is_closed(m), "the last one out did not unmap");
        mm_destroy(m);
    }
    MUST(value_of(looker, pages[0], &r) == added, "an append that returned is not there");
    MUST(counted(&s) == added + 1, "an append that returned was not counted");
    mm_destroy(looker);
    remove_store(&s);
    printf("closed %d times under %d threads\n", rounds, THREADS);
}

/* Each appends to a page of its own and flushes: intents carry what the others are just writing. */
static void *flushes(void *arg)
{
    worker *w = arg;
    mm_result r;
    uint64_t advanced;
    uint8_t one[9];
    MUST(mm_allocate(w->m, one, encode(0, one), &r) == MM_OK, "mm_allocate");
    uint64_t pid = r.key.pid;
    while (!atomic_load(&stop)) {
        for (uint64_t n = next_random(&w->random) % 3; n--; w->added++) MUST(mm_append(w->m, pid, one, encode(1, one), &r) == MM_OK, "mm_append");
        MUST(mm_flush(w->m, 0, &advanced, &r) == MM_OK, "mm_flush");
        w->verbs++;
    }
    MUST(value_of(w->m, pid, &r) == w->added, "an own page holds something else");
    return NULL;
}

static void run_flushes(uint64_t seed, uint64_t ms)
{
    store s;
    worker workers[THREADS];
    uint64_t verbs = 0;
    make_store(&s, MERGE_ADD, 3, 16);
    atomic_store(&stop, false);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){ .m = must_attach(&s), .random = seed * 2654435761u + (uint64_t)i * 7919 + 1 };
        MUST(pthread_create(&workers[i].thread, NULL, flushes, &workers[i]) == 0, "pthread_create");
    }
    struct timespec nap = { (time_t)(ms / 1000), (long)(ms % 1000) * 1000000 };
    nanosleep(&nap, NULL);
    atomic_store(&stop, true);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        verbs += workers[i].verbs;
    }
    for (int i = 0; i < THREADS; i++) mm_destroy(workers[i].m);
    remove_store(&s);
    printf("flushes: %llu, exact\n", (unsigned long long)verbs);
}

int main(void)
{
    uint64_t seed = seed_of_run(), ms = long_form() ? 30000 : 2000;
    run(false, seed, ms);
    run(true, seed + 1, ms);
    run_flushes(seed + 2, ms);
    run_close(long_form() ? 500 : 40);
    return 0;
}
