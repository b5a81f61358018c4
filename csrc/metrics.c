/* metrics.c - counters and histograms of all processes (metrics.h says where they are, and why nothing is ever lost or counted twice).
 *
 * Nothing depends on the file.  It is not judged and not recovered; where it is missing, of another version or cannot grow, nothing is counted
 * by that process; where somebody cuts it, the process goes on counting in memory of its own.  A wrong number in it is a wrong number.
 *
 * Times are taken in ticks (mm_os_ticks) and kept in ns: a tick is what it was, on the average, since the attachment began.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

static const mm_metric counters[] = {
#define X(name, what) { #name, what, "", 1 },
    MM_COUNTER_LIST(X)
#undef X
};
static const mm_metric histograms[] = {
#define X(name, unit, sampled, what) { #name, what, unit, sampled },
    MM_HISTOGRAM_LIST(X)
#undef X
};

int mm_metric_at(uint32_t kind, uint32_t i, mm_metric *out)
{
    if (i >= (kind == MM_METRIC_COUNTER ? MM_COUNTERS_USED : MM_HISTOGRAMS_USED)) return 0;
    *out = kind == MM_METRIC_COUNTER ? counters[i] : histograms[i];
    return 1;
}

int mm_metric_named(uint32_t kind, const char *name)
{
    mm_metric found;
    for (uint32_t i = 0; mm_metric_at(kind, i, &found); i++)
        if (!strcmp(found.name, name)) return (int)i;
    return -1;
}

uint64_t mm_bucket_least(uint32_t bucket)
{
    return bucket < 16 ? bucket : (uint64_t)(8 + bucket % 8) << (bucket / 8 - 1);
}

/* ---- the file ------------------------------------------------------------------------------------------------------------------ */

static uint64_t names_folded(void)
{
    uint32_t low = crc32c_extend(0, &(uint64_t[]){ MM_BUCKETS, MM_COUNTERS, MM_HISTOGRAMS, MM_SLOTS, MM_METRICS_FORM }, 40), high = low ^ 1;
    for (uint32_t i = 0; i < MM_COUNTERS_USED; i++) low = crc32c_extend(low, counters[i].name, strlen(counters[i].name) + 1);
    for (uint32_t i = 0; i < MM_HISTOGRAMS_USED; i++) high = crc32c_extend(high, histograms[i].name, strlen(histograms[i].name) + 1);
    return (uint64_t)high << 32 | low;
}

static int open_id_of(int control, uint64_t *open_id) { return mm_os_read_at(control, open_id, 16, offsetof(mm_identity, open_id)); }

/* Not through the functions that tests make fail: who comes does without, and no test is about that. */
static int write_all(int fd, const void *p, size_t n)
{
    ssize_t written;
    do written = pwrite(fd, p, n, 0);
    while (written < 0 && errno == EINTR);
    return written == (ssize_t)n ? 0 : written < 0 ? errno : EIO;
}

int mm_metrics_format(int fd, int control)
{
    mm_metrics_header h = { .magic = MM_METRICS_MAGIC, .fingerprint = names_folded(), .created = mm_os_now() };
    int e = open_id_of(control, h.open_id);
    if (!e) e = posix_fallocate(fd, 0, MM_METRICS_ROWS);
    return e ? (e < 0 ? EIO : e) : write_all(fd, &h, sizeof h);
}

int mm_metrics_belongs(int fd, int control, uint64_t *created)
{
    mm_metrics_header h;
    uint64_t open_id[2];
    if (mm_os_read_at(fd, &h, sizeof h, 0) || open_id_of(control, open_id)) return 0;
    if (created) *created = h.created;
    return h.magic == MM_METRICS_MAGIC && h.fingerprint == names_folded() && memcmp(h.open_id, open_id, sizeof open_id) == 0;
}

/* ---- coming and going ------------------------------------------------------------------------------------------------------------ */

/* Died in here: the row says of which owner its base is, and nobody believes it before. */
static void begin_row(mm *m, mm_metrics_row *row)
{
    for (uint32_t i = 0; i < MM_COUNTERS; i++) at_count_set(&row->base[i], at_noted(&row->counters[i]));
    at_count_release(&row->incarnation, at_noted(&m->slot->state) >> 8); /* who reads it finds the base */
    mm_count(m, MM_COUNT_attaches, 1);
    if (m->claimed_dead) mm_count(m, MM_COUNT_reaps, 1);
    mm_time_end(m, MM_TIME_attach, m->attach_begun, 1);
}

static int begin_counting(mm *m, void *args, mm_result *r)
{
    (void)args, (void)r;
    m->metrics = (mm_metrics_row *)(m->metrics_map + MM_METRICS_ROWS) + m->slot_index;
    begin_row(m, m->metrics);
    return MM_OK;
}

/* The row is allocated before it is stored to: a hole without room would be a SIGBUS. */
int mm_metrics_attach(mm *m, int fd)
{
    uint64_t from = MM_METRICS_ROWS + (uint64_t)m->slot_index * sizeof(mm_metrics_row);
    void *p = MAP_FAILED;
    if (MM_METRICS_BUILT && *m->alive == MM_ALIVE && !m->metrics_map && mm_metrics_belongs(fd, m->config.control, NULL)
        && !posix_fallocate(fd, (off_t)from, sizeof(mm_metrics_row)))
        p = mmap(NULL, MM_METRICS_WINDOW, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (fd >= 0) close(fd);
    if (p == MAP_FAILED) return 0;
#ifdef MADV_DONTDUMP
    madvise(p, MM_METRICS_WINDOW, MADV_DONTDUMP);
#endif
    m->metrics_map = p;
    mm_guarded(m, NULL, begin_counting, NULL);
    return m->metrics != NULL;
}

void mm_metrics_unmap(mm *m)
{
    if (m->metrics_map) munmap(m->metrics_map, MM_METRICS_WINDOW);
    m->metrics = NULL;
    m->metrics_map = NULL;
}

/* Somebody cut the file.  What is counted from here on is seen by nobody; that is all.  mmap is a system call and no more. */
bool mm_metrics_fault(mm *m, const void *p)
{
    uint64_t distance = (uint64_t)((uintptr_t)p - (uintptr_t)m->metrics_map);
    if (!m->metrics_map || distance >= MM_METRICS_WINDOW) return false;
    return mmap(m->metrics_map, MM_METRICS_WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
           != MAP_FAILED;
}

/* ---- values ------------------------------------------------------------------------------------------------------------------------ */

static void extremes(mm_histogram_row *row, uint64_t value)
{
    at_count_max(&row->greatest, value);
    at_count_max(&row->least, ~value);
}

void mm_note_value(mm *m, enum mm_histogram h, uint64_t value, uint64_t n)
{
    if (!mm_row(m) || !n) return;
    mm_histogram_row *row = &mm_row(m)->histograms[h];
    at_count(&row->buckets[mm_bucket_of(value)], n);
    at_count(&row->sum, value * n);
    extremes(row, value);
}

void mm_note_value_alone(mm *m, enum mm_histogram h, uint64_t value, uint64_t n)
{
    if (!mm_row(m) || !n) return;
    mm_histogram_row *row = &mm_row(m)->histograms[h];
    at_word *bucket = &row->buckets[mm_bucket_of(value)];
    at_count_set(bucket, at_noted(bucket) + n);
    at_count_set(&row->sum, at_noted(&row->sum) + value * n);
    extremes(row, value);
}

#define TICK_BITS 24
#define WELL_KNOWN UINT64_C(1000000000) /* ns of looking at both clocks */

/* Ticks as ns.  What a tick is is known the better the longer this attachment lasts, and not asked for any more after a second. */
static uint64_t nanoseconds(mm *m, uint64_t ticks)
{
    uint64_t tick = pv_load_relaxed(&m->tick);
    if (tick && ticks < UINT64_C(1) << 36) return (uint64_t)((double)ticks * (double)tick / (1 << TICK_BITS));
    uint64_t now = mm_os_ticks(), past = mm_os_monotonic() - m->time_begun;
    if (now <= m->ticks_begun) return 0;
    double rate = (double)past / (double)(now - m->ticks_begun);
    if (past >= WELL_KNOWN) pv_store_relaxed(&m->tick, (uint64_t)(rate * (1 << TICK_BITS)));
    return (uint64_t)((double)ticks * rate);
}

static uint64_t time_since(mm *m, uint64_t begun)
{
    uint64_t now = mm_os_ticks();
    return now > begun ? nanoseconds(m, now - begun) : 0; /* the clocks of two processors may differ a little */
}

void mm_time_end(mm *m, enum mm_histogram h, uint64_t begun, uint64_t n)
{
    if (begun && mm_row(m)) mm_note_value(m, h, time_since(m, begun), n);
}

void mm_time_end_alone(mm *m, enum mm_histogram h, uint64_t begun, uint64_t n)
{
    if (begun && mm_row(m)) mm_note_value_alone(m, h, time_since(m, begun), n);
}

/* ---- for the faces ------------------------------------------------------------------------------------------------------------------- */

typedef struct noted { uint32_t which; uint64_t value, n, begun; } noted;

static int with_pin(mm *m, mm_body *body, void *args)
{
    uint32_t pin;
    if (!mm_row(m) || mm_enter_failed(m, &pin, NULL)) return 0;
    body(m, args, NULL);
    mm_leave(m, pin);
    return 0;
}

static int add(mm *m, void *args, mm_result *r)
{
    (void)r;
    const noted *a = args;
    mm_count(m, (enum mm_counter)a->which, a->n);
    return 0;
}
static int record(mm *m, void *args, mm_result *r)
{
    (void)r;
    const noted *a = args;
    if (a->begun) mm_time_end(m, (enum mm_histogram)a->which, a->begun, a->n);
    else mm_note_value(m, (enum mm_histogram)a->which, a->value, a->n);
    return 0;
}
static int add_pinned(mm *m, void *args, mm_result *r)
{
    (void)r;
    return with_pin(m, add, args);
}
static int record_pinned(mm *m, void *args, mm_result *r)
{
    (void)r;
    return with_pin(m, record, args);
}

uint64_t mm_ticks(const mm *m) { return mm_time_begin(m); }

void mm_metrics_add(mm *m, uint32_t counter, uint64_t n)
{
    if (counter < MM_COUNTERS_USED) mm_guarded(m, NULL, add_pinned, &(noted){ .which = counter, .n = n });
}

void mm_metrics_time(mm *m, uint32_t histogram, uint64_t begun, uint64_t n)
{
    if (histogram < MM_HISTOGRAMS_USED && begun) mm_guarded(m, NULL, record_pinned, &(noted){ .which = histogram, .begun = begun, .n = n });
}

void mm_metrics_record(mm *m, uint32_t histogram, uint64_t value, uint64_t n)
{
    if (histogram < MM_HISTOGRAMS_USED) mm_guarded(m, NULL, record_pinned, &(noted){ .which = histogram, .value = value, .n = n });
}

/* ---- reading -------------------------------------------------------------------------------------------------------------------------- */

static void add_row(uint64_t *sum, const uint64_t *row)
{
    const uint64_t head = 128, words = sizeof(mm_histogram_row) / 8;
    for (uint64_t i = 0; i < head; i++) sum[i] += row[i];
    for (uint64_t h = 0; h < MM_HISTOGRAMS; h++) {
        const uint64_t *from = row + head + h * words;
        uint64_t *to = sum + head + h * words;
        to[0] += from[0];
        for (uint64_t k = 1; k < 3; k++)
            if (from[k] > to[k]) to[k] = from[k];
        for (uint64_t k = 4; k < words; k++) to[k] += from[k];
    }
}

/* By the file, so that whoever reads needs no slot and no room in his memory.  Others add meanwhile: each word is right by itself. */
int mm_metrics_read(int fd, uint32_t first, uint32_t slots, uint64_t *sum)
{
    _Static_assert(sizeof(mm_metrics_row) == 8 * MM_ROW_WORDS, "as the faces see it");
    uint64_t *row = malloc(sizeof(mm_metrics_row)), size = mm_os_size(fd);
    int e = row ? 0 : ENOMEM;
    for (uint64_t i = first; !e && i < (uint64_t)first + slots && i < MM_SLOTS; i++) {
        uint64_t at = MM_METRICS_ROWS + i * sizeof(mm_metrics_row);
        if (at + sizeof(mm_metrics_row) > size) break;
        e = mm_os_read_at(fd, row, sizeof(mm_metrics_row), at);
        if (!e) add_row(sum, row);
    }
    free(row);
    return e < 0 ? EIO : e;
}
