/* hostile.c - a closed store with random bytes changed in it: every call answers with a code, none crashes, hangs or writes wild.
 *
 * Each round forges the files of a small store, attaches, checks, reads, writes and rebuilds.  An alarm ends what hangs.
 */
#include <signal.h>
#include <sys/resource.h>

#include "harness.h"

enum { PAGES = 12, MERGE_APPEND = 1, KEPT = 6, PATIENCE = 20, LARGEST = 64 << 20 };

static struct { uint8_t *bytes; size_t size; } kept[KEPT]; /* the files as they were, `lock` has none */

static void read_file(const store *s, int i)
{
    char name[600];
    file_path(s, i, name);
    FILE *f = fopen(name, "rb");
    MUST(f && !fseek(f, 0, SEEK_END), "%s", name);
    kept[i].size = (size_t)ftell(f);
    rewind(f);
    kept[i].bytes = malloc(kept[i].size + 1);
    MUST(kept[i].bytes && fread(kept[i].bytes, 1, kept[i].size, f) == kept[i].size, "%s", name);
    fclose(f);
}

static void write_file(const store *s, int i, const uint8_t *bytes, size_t size)
{
    char name[600];
    file_path(s, i, name);
    FILE *f = fopen(name, "wb");
    MUST(f && fwrite(bytes, 1, size, f) == size && !fclose(f), "%s", name);
}

static void fill(store *s)
{
    mm_result r;
    uint8_t payload[64];
    make_store(s, MERGE_APPEND, 3, 16);
    mm *m = must_attach(s);
    for (int i = 0; i < PAGES; i++) {
        payload[0] = 0xC4; /* bin 8 */
        payload[1] = (uint8_t)(i * 4);
        memset(payload + 2, 'a' + i, sizeof payload - 2);
        MUST(mm_allocate(m, payload, 2 + payload[1], &r) == MM_OK, "mm_allocate");
        uint64_t pid = r.key.pid;
        for (int k = 0; k < i; k++) MUST(mm_append(m, pid, payload, 2 + payload[1], &r) == MM_OK, "mm_append");
        mm_key key = r.key;
        if (i % 5 == 4) MUST(mm_free(m, &key, &r) == MM_OK, "mm_free");
    }
    uint64_t advanced;
    mm *each[2] = { m, must_attach(s) };
    for (int k = 0; k < 6; k++) { /* intents that carry, and witnesses */
        for (int i = 0; i < 2; i++) MUST(mm_append(each[i], 2, "\xC4", 2, &r) == MM_OK, "mm_append");
        MUST(mm_flush(each[k % 2], 0, &advanced, &r) == MM_OK, "mm_flush");
    }
    mm_destroy(each[1]);
    mm_destroy(m);
}

/* Where a change hurts most: what is in use of a file, and the words that steer. */
static size_t target(int i, uint64_t *random)
{
    uint64_t x = next_random(random);
    if (i == 0 && x % 4) return 4096 + (x >> 8) % (18 * 64);             /* control: globals */
    if (i == 0 && x % 8 > 1) return 12288 + 1024 * 1024 + (x >> 8) % 256; /* control: segments */
    if (i == 2 && x % 4) return (x >> 8) % 16384;
    if (i == 1 && x % 4) return 4096 + (x >> 8) % (8 * 16);
    return (x >> 8) % kept[i].size;
}

static void change(uint8_t *bytes, size_t size, size_t at, uint64_t *random)
{
    uint64_t x = next_random(random), n = 1 + x % 8, word = next_random(random) >> (next_random(random) % 64);
    if (x >> 8 & 1) { /* a whole word, as somebody who knows the format would */
        at &= ~(size_t)7;
        n = 8;
    } else if (x >> 9 & 1) {
        word = 0xFFFFFFFFFFFFFFFF;
    }
    for (uint64_t k = 0; k < n && at + k < size; k++) bytes[at + k] = (uint8_t)(word >> (8 * k));
}

static void forge(const store *s, uint64_t *random)
{
    for (int i = 0; i < KEPT; i++) {
        size_t size = kept[i].size;
        uint8_t *bytes = malloc(size + 1);
        MUST(bytes, "malloc");
        memcpy(bytes, kept[i].bytes, size);
        uint64_t times = next_random(random) % (i < 3 ? 4 : 2);
        for (uint64_t k = 0; k < times && size; k++) change(bytes, size, target(i, random), random);
        if (next_random(random) % 40 == 0) size = next_random(random) % (size + 1);
        write_file(s, i, bytes, size);
        free(bytes);
    }
}

static uint64_t seed_now;

static void known(int rc, const char *verb) { MUST(rc >= MM_OK && rc <= MM_UNUSABLE, "%s answers %d", verb, rc); }

static void use(mm *m)
{
    static uint8_t buffer[1 << 20];
    mm_result r;
    mm_stats stats;
    uint64_t pages, advanced, reaped, triples[3 * 300], ts;
    known(mm_check(m, &pages, &r), "mm_check");
    for (uint64_t pid = 0; pid < PAGES + 6; pid++) {
        for (int merge = 0; merge < 2; merge++) known(mm_read(m, pid, 0, merge, buffer, sizeof buffer, &r), "mm_read");
        known(mm_read(m, pid, 2, 0, buffer, 100, &r), "mm_read");
        known(mm_chain(m, pid, triples, 300, &r), "mm_chain");
        known(mm_append(m, pid, "\xC4\x01x", 3, &r), "mm_append");
        known(mm_read(m, pid, 0, 0, buffer, sizeof buffer, &r), "mm_read");
        mm_key key = r.key;
        known(mm_consolidate_native(m, pid, &r), "mm_consolidate_native");
        known(mm_consolidate(m, pid, key.wts, "\xC4\x01y", 3, &r), "mm_consolidate");
        known(mm_link(m, &key, "\xC4\x01z", 3, &r), "mm_link");
        known(mm_bump_rts(m, pid, 5, &r), "mm_bump_rts");
        known(mm_get_rts(m, pid, &ts, &r), "mm_get_rts");
        if (pid % 4 == 3) {
            key = r.key;
            known(mm_free(m, &key, &r), "mm_free");
        }
    }
    for (int i = 0; i < 40; i++) known(mm_allocate(m, "\xC4\x01n", 3, &r), "mm_allocate");
    memset(buffer, 'x', 30000);
    memcpy(buffer, "\xC5\x75\x2D", 3); /* bin 16, 29997 bytes */
    for (int i = 0; i < 4; i++) known(mm_allocate(m, buffer, 30000, &r), "mm_allocate");
    known(mm_reap_all(m, &reaped), "mm_reap_all");
    known(mm_get_stats(m, &stats), "mm_get_stats");
    known(mm_flush(m, 0, &advanced, &r), "mm_flush");
    known(mm_check(m, &pages, &r), "mm_check");
}

static void no_fault(mm *m)
{
    mm_result r;
    mm_last_fault(m, &r);
    MUST(!r.file, "MMPC_SEED=%llu: a bound was not checked: the guard met a fault in file %u at %llu", (unsigned long long)seed_now, r.file,
         (unsigned long long)r.offset);
}

/* By one that writes nothing: its mapping is for reading, so a store would end the process. */
static void observe(const store *s)
{
    static uint8_t buffer[1 << 20];
    mm_result r;
    mm_stats stats;
    int status;
    uint64_t pages, triples[3 * 300], ts, stable;
    mm_config c = open_files(s, 0);
    c.observes = MM_OBSERVE_LIVE;
    mm *m = mm_attach(&c, &status, &r);
    known(status, "mm_attach");
    if (!m) return;
    known(mm_check(m, &pages, &r), "mm_check");
    for (uint64_t pid = 0; pid < PAGES + 6; pid++) {
        known(mm_read(m, pid, 0, 1, buffer, sizeof buffer, &r), "mm_read");
        known(mm_read(m, pid, 2, 0, buffer, 100, &r), "mm_read");
        known(mm_chain(m, pid, triples, 300, &r), "mm_chain");
        known(mm_get_rts(m, pid, &ts, &r), "mm_get_rts");
    }
    known(mm_get_stats(m, &stats), "mm_get_stats");
    known(mm_clock(m, &ts, &stable), "mm_clock");
    no_fault(m);
    mm_close(m);
    mm_destroy(m);
}

static bool attach_and_use(const store *s)
{
    mm_result r;
    int status;
    mm_config c = open_files(s, 0);
    known(mm_identity_check(&c, &r), "mm_identity_check");
    close_files_of(&c);
    mm *m = attach_to(s, &status, &r);
    known(status, "mm_attach");
    MUST(m || status, "mm_attach: no reason");
    if (!m) return false;
    use(m);
    no_fault(m);
    mm_close(m);
    mm_destroy(m);
    return true;
}

/* The log and the marks are hostile, the rest is made anew from them. */
static void rebuild_and_use(const store *s, uint32_t observes)
{
    mm_result r;
    mm_scan_report report;
    uint64_t epoch;
    for (int i = 0; i < KEPT; i++)
        if (i != 2 && i != 5) write_file(s, i, (const uint8_t *)"", 0);
    mm_config c = open_files(s, 0);
    c.observes = observes;
    known(mm_marks_newest(&c, &epoch, &r), "mm_marks_newest");
    mm_carried *carried = NULL;
    known(mm_durable(&c, NULL, 0, 0, &epoch, &carried, &r), "mm_durable");
    if (observes) c.carried = carried;
    else known(mm_promote(&c, NULL, 0, epoch % 2, &r), "mm_promote");
    MUST(mm_format(&c, &r) == MM_OK, "mm_format");
    if (!observes) known(mm_marks_mend(&c, &r), "mm_marks_mend");
    int rc = mm_rebuild(&c, UINT64_MAX, &(mm_gone){ 0 }, -1, NULL, &report, &r);
    known(rc, "mm_rebuild");
    mm_carried_free(carried);
    if (!rc) known(mm_set_epoch(&c, report.max_colour + 1, epoch, &r), "mm_set_epoch");
    close_files_of(&c);
    if (rc) return;
    if (observes) observe(s);
    else attach_and_use(s);
}

static void hung(int number)
{
    (void)number;
    char text[80];
    int n = snprintf(text, sizeof text, "hangs: MMPC_SEED=%llu\n", (unsigned long long)seed_now);
    if (write(2, text, (size_t)n) < 0) _exit(3);
    abort();
}

static void crashed(int number)
{
    char text[80];
    int n = snprintf(text, sizeof text, "signal %d: MMPC_SEED=%llu\n", number, (unsigned long long)seed_now);
    if (write(2, text, (size_t)n) < 0) _exit(3);
    signal(number, SIG_DFL);
    raise(number);
}

int main(void)
{
    store s;
    const char *given = getenv("MMPC_ROUNDS");
    uint64_t first = seed_of_run(), rounds = given ? strtoull(given, NULL, 0) : long_form() ? 20000 : 300, attached = 0;
    signal(SIGALRM, hung);
    signal(SIGBUS, crashed);
    signal(SIGXFSZ, crashed); /* a forged word made a file grow without bound */
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){ LARGEST, LARGEST });
    fill(&s);
    for (int i = 0; i < KEPT; i++) read_file(&s, i);
    uint64_t begun = now_ms();
    for (uint64_t k = 0; k < rounds; k++) { /* round k alone: MMPC_SEED = seed + k */
        uint64_t random = seed_now = first + k;
        random = random * 0x9E3779B97F4A7C15u | 1;
        alarm(PATIENCE);
        forge(&s, &random);
        observe(&s);
        attached += attach_and_use(&s);
        rebuild_and_use(&s, MM_OBSERVE_ALONE);
        rebuild_and_use(&s, MM_OBSERVE_NOT);
    }
    alarm(0);
    for (int i = 0; i < KEPT; i++) free(kept[i].bytes);
    remove_store(&s);
    printf("%llu rounds, attached in %llu, %llu ms\n", (unsigned long long)rounds, (unsigned long long)attached,
           (unsigned long long)(now_ms() - begun));
    return 0;
}
