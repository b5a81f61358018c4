/* metrics.h - what is counted and timed, of all processes, in a file of its own that nothing depends on (metrics.c).
 *
 * Each slot has a row of the file `metrics`, which its owner alone adds to, and which the next owner of the slot goes on with: the numbers of a
 * process that left or died stay where they are, so the sum over all rows is that of all processes that ever were, and nothing has to be moved
 * when one dies.  Died at any addition: it was done or not.
 *
 * The names are the ones that users see, and are listed here alone.  A counter "of those" is a part of the one before it, which here counts the others
 * alone (each word has one kind of writer); who reads adds the two (mmpc/_metrics.py).
 */
#ifndef MMPC_METRICS_H
#define MMPC_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "atomics.h"
#include "layout.h"
#include "mmpc.h"

#define MM_COUNTER_LIST(X) \
    X(cache_hits, "gets answered by the cache of decoded values") \
    X(cache_hits_asked, "of those: the core was asked, and nothing was newer") \
    X(cache_misses, "gets that had to read the page") \
    X(cache_misses_slow, "of those: longer than any work in memory takes, about 10 us") \
    X(cache_evictions, "decoded values that left the cache to make room") \
    X(fragment_reads, "reads of a page's fragments") \
    X(pulls, "records that were waited for, since they were not in memory") \
    X(merges, "reads that merged several fragments (native materializers)") \
    X(views, "zero-copy views opened") \
    X(appends, "fragments appended") \
    X(links, "fragments linked") \
    X(replaces, "pages replaced") \
    X(frees, "pages freed") \
    X(allocates, "pages allocated") \
    X(payload_bytes, "bytes of fragments written, as they are stored") \
    X(retries, "writes that lost a compare-and-swap and went on") \
    X(conflicts, "writes refused, since somebody had written since the key was taken") \
    X(helps, "commit words stored for others") \
    X(consolidations, "chains merged to one record") \
    X(consolidations_lost, "merges of chains that others were faster with") \
    X(rewrites, "pages moved as they are") \
    X(leases, "runs of blocks taken from the log") \
    X(leased_bytes, "bytes of them") \
    X(flushes, "calls that asked for durability and found something to do") \
    X(syncs, "syncs of the log, with their marks where they need one") \
    X(snapshots, "snapshots written") \
    X(recoveries, "recoveries made") \
    X(attaches, "times that a process came") \
    X(reaps, "dead processes cleaned up after") \
    X(cleanings, "rounds of cleaning") \
    X(cleaned_segments, "segments emptied") \
    X(cleaned_bytes, "bytes read through for that") \
    X(moved_bytes, "bytes copied for that") \
    X(compress_in, "bytes of fragments that were worth compressing, as encoded") \
    X(compress_out, "bytes of the frames that they became, which are stored in their place") \
    X(compress_kept, "bytes of fragments that compressing did not make smaller, stored as they are") \
    X(decompress_in, "bytes of frames that were decompressed") \
    X(decompress_out, "bytes of fragments that came of it")

/* X(name, unit, sampled, what): one in `sampled` is looked at and counts for as many. */
#define MM_HISTOGRAM_LIST(X) \
    X(get_hit, "ns", 256, "get of a value that is cached") \
    X(page_in, "ns", 256, "reading a page from the log, for a get; each that takes longer than 10 us is looked at") \
    X(pull, "ns", 1, "waiting for a record that was not in memory") \
    X(merge, "ns", 32, "merging fragments for a read (native materializers)") \
    X(append, "ns", 256, "publishing an appended fragment") \
    X(link, "ns", 256, "publishing a linked fragment") \
    X(replace, "ns", 256, "publishing a page's new value") \
    X(free, "ns", 256, "publishing that a page is free") \
    X(allocate, "ns", 256, "publishing a new page") \
    X(payload, "bytes", 256, "sizes of the fragments written, as they are stored") \
    X(serialize, "ns", 256, "encoding a fragment") \
    X(deserialize, "ns", 256, "decoding, and merging in Python, what was read") \
    X(consolidate, "ns", 16, "merging a chain and publishing it") \
    X(rewrite, "ns", 1, "moving a page as it is") \
    X(lease, "ns", 1, "taking a run of blocks of the log") \
    X(flush, "ns", 1, "a call that asked for durability and found something to do") \
    X(sync, "ns", 1, "one sync of the log, with its mark where it needs one") \
    X(flush_batch, "calls", 1, "how many calls one sync answered") \
    X(snapshot, "ns", 1, "writing a snapshot") \
    X(clean, "ns", 1, "a round of cleaning") \
    X(recover, "ns", 1, "recovering the store") \
    X(attach, "ns", 1, "mapping the files and claiming a slot") \
    X(compress, "ns", 1, "compressing a fragment") \
    X(decompress, "ns", 1, "decompressing a fragment")

enum mm_counter {
#define X(name, what) MM_COUNT_##name,
    MM_COUNTER_LIST(X)
#undef X
    MM_COUNTERS_USED
};
enum mm_histogram {
#define X(name, unit, sampled, what) MM_TIME_##name,
    MM_HISTOGRAM_LIST(X)
#undef X
    MM_HISTOGRAMS_USED
};
enum mm_sampled {
#define X(name, unit, sampled, what) MM_EVERY_##name = sampled,
    MM_HISTOGRAM_LIST(X)
#undef X
};

_Static_assert(MM_COUNTERS_USED <= MM_COUNTERS && MM_HISTOGRAMS_USED <= MM_HISTOGRAMS, "there is room for all of them");

/* A build with MMPC_NO_METRICS counts and times nothing: mm_row (internal.h) is then a constant NULL, and all that asks it is compiled away.  Layout
 * and faces stay as they are, so it works beside others on one store; the others read zeros of it.  It is there to tell what the metrics cost. */
#ifdef MMPC_NO_METRICS
#define MM_METRICS_BUILT 0
#else
#define MM_METRICS_BUILT 1
#endif

static inline uint32_t mm_bucket_of(uint64_t v)
{
    if (v < 16) return (uint32_t)v;
    uint32_t e = 63 - (uint32_t)__builtin_clzll(v);
    return e > 42 ? MM_BUCKETS - 1 : (e - 3) * 8 + (uint32_t)(v >> (e - 3));
}

/* ---- adding: the caller keeps the mapping (a pin, or the mutex of publishing); mm_row(m) is NULL where nothing is counted --------------- */

/* Threads of this process add to the same word. */
static inline uint64_t mm_row_count(mm_metrics_row *row, enum mm_counter c, uint64_t n) { return at_count(&row->counters[c], n); }
/* The caller holds the mutex of publishing, and nobody adds to this word without it. */
static inline uint64_t mm_row_count_alone(mm_metrics_row *row, enum mm_counter c, uint64_t n)
{
    uint64_t old = at_noted(&row->counters[c]);
    at_count_set(&row->counters[c], old + n);
    return old;
}

/* Of the n-th operation: for how many its time stands; 0: it is not looked at.  The first ones are, all of them; then the last of each `every`, which
 * stands for those before it too.  So a histogram never counts more than there were, and lacks fewer than `every`. */
static inline uint64_t mm_sample(uint64_t n, uint64_t every) { return n < every ? 1 : n % every == every - 1 ? every : 0; }

#endif
