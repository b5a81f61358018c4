/* harness.h - what the programs of tests/native share: a store of their own in a temporary directory, and a verdict. */
#ifndef MMPC_HARNESS_H
#define MMPC_HARNESS_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "mmpc.h"

#define DIE(...) (fprintf(stderr, "%s:%d: ", __FILE__, __LINE__), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))
#define MUST(condition, ...) do { if (!(condition)) DIE(__VA_ARGS__); } while (0)

enum { FILES = 7 };
static const char *const file_names[FILES] = { "control", "table", "log", "ids", "rts", "marks", "lock" };

typedef struct store {
    char path[512];
    uint32_t merge_kind, threshold, segment_shift;
    uint8_t uuid[16];
} store;

static inline bool long_form(void)
{
    const char *s = getenv("MMPC_LONG");
    return s && *s == '1';
}

static inline uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* The seed of this run: MMPC_SEED repeats one; printed. */
static inline uint64_t seed_of_run(void)
{
    const char *s = getenv("MMPC_SEED");
    uint64_t seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL) * 1000003u ^ (uint64_t)getpid();
    printf("MMPC_SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    return seed;
}

static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline void file_path(const store *s, int i, char *out) { snprintf(out, 600, "%s/%s", s->path, file_names[i]); }

static inline mm_config open_files(const store *s, int flags)
{
    mm_config c;
    int32_t fds[FILES];
    memset(&c, 0, sizeof c);
    for (int i = 0; i < FILES; i++) {
        char name[600];
        file_path(s, i, name);
        fds[i] = open(name, O_RDWR | O_CLOEXEC | flags, 0600);
        MUST(fds[i] >= 0, "%s: %s", name, strerror(errno));
    }
    c.control = fds[0], c.table = fds[1], c.log = fds[2], c.ids = fds[3], c.rts = fds[4], c.marks = fds[5], c.lock = fds[6];
    c.merge_kind = s->merge_kind;
    c.threshold = s->threshold;
    c.segment_shift = s->segment_shift;
    c.id_interval = 64; /* so that threads meet at its ends */
    memcpy(c.uuid, s->uuid, 16);
    memset(c.boot_id, 'b', sizeof c.boot_id);
    return c;
}

static inline void close_files_of(const mm_config *c)
{
    const int32_t fds[FILES] = { c->control, c->table, c->log, c->ids, c->rts, c->marks, c->lock };
    for (int i = 0; i < FILES; i++) close(fds[i]);
}

/* The file that is counted in, which no descriptor of mm_config is of. */
static inline int open_metrics(const store *s, int flags)
{
    char name[600];
    snprintf(name, sizeof name, "%s/metrics", s->path);
    return open(name, O_RDWR | O_CLOEXEC | flags, 0600);
}

static inline mm *attach_to(const store *s, int *status, mm_result *r)
{
    mm_config c = open_files(s, 0);
    memset(r, 0, sizeof *r);
    mm *m = mm_attach(&c, status, r);
    if (m) mm_metrics_attach(m, open_metrics(s, 0));
    return m;
}

static inline mm *must_attach(const store *s)
{
    int status;
    mm_result r;
    mm *m = attach_to(s, &status, &r);
    MUST(m, "mm_attach: %d, file %u, offset %llu, errno %d", status, r.file, (unsigned long long)r.offset, r.os_error);
    return m;
}

/* A new store, as mmpc/_store.py makes it: formatted, pages 0 and 1, identity. */
static inline void make_store(store *s, uint32_t merge_kind, uint32_t threshold, uint32_t segment_shift)
{
    const char *base = getenv("TMPDIR");
    memset(s, 0, sizeof *s);
    snprintf(s->path, sizeof s->path, "%s/mmpc-native-XXXXXX", base ? base : "/tmp");
    MUST(mkdtemp(s->path), "mkdtemp %s", s->path);
    s->merge_kind = merge_kind;
    s->threshold = threshold;
    s->segment_shift = segment_shift;
    memcpy(s->uuid, "0123456789abcdef", 16);
    mm_config c = open_files(s, O_CREAT);
    mm_result r;
    MUST(mm_format(&c, &r) == MM_OK, "mm_format");
    int metrics = open_metrics(s, O_CREAT);
    MUST(metrics >= 0 && mm_metrics_format(metrics, c.control) == 0, "mm_metrics_format");
    close(metrics);
    close_files_of(&c);
    mm *m = must_attach(s);
    MUST(mm_install(m, 0, "\x80", 1, &r) == MM_OK && mm_install(m, 1, "\0", 1, &r) == MM_OK && mm_ids_begin(m, &r) == MM_OK, "mm_install");
    mm_destroy(m);
    c = open_files(s, 0);
    MUST(mm_identity_write(&c, 1, &r) == MM_OK && mm_identity_check(&c, &r) == MM_OK, "identity");
    close_files_of(&c);
}

static inline void remove_store(const store *s)
{
    char name[600];
    for (int i = 0; i < FILES; i++) {
        file_path(s, i, name);
        unlink(name);
    }
    snprintf(name, sizeof name, "%s/metrics", s->path);
    unlink(name);
    rmdir(s->path);
}

#endif
