/* mmpc.h - the C core as its two faces see it: one attachment (`mm`) of a process to a store, and the verbs.
 *
 * Nothing here calls Python, blocks on another process, or keeps an allocation beyond a call (but the attachment
 * itself).  Every function may be called from any thread.  Codes: 0 is success, see enum mm_status.
 */
#ifndef MMPC_H
#define MMPC_H

#include <stdint.h>

#include "disk.h"
#include "failpoint.h"
#include "merge.h"
#include "msgpack.h"
#include "points.h"

typedef struct mm mm;

enum mm_status {
    MM_OK = 0,
    MM_CONFLICT = 1,  /* somebody wrote since the key was taken; result.key is the current one */
    MM_NOPAGE = 2,    /* the page id was never allocated */
    MM_FREED = 3,     /* the page is free */
    MM_CHAIN = 4,     /* the chain must be consolidated before it can take another fragment */
    MM_CORRUPT = 5,   /* result.file and result.offset say where */
    MM_FULL = 6,      /* no room on the device (result.os_error); nothing was written */
    MM_TOOBIG = 7,    /* result.length is the limit in bytes */
    MM_FORKED = 8,    /* this attachment belongs to the parent process */
    MM_CLOSED = 9,
    MM_FAILED = 10,   /* a sync failed: the store must be reopened (result.os_error) */
    MM_TYPE = 11,     /* the fragment does not fit the native materializer, or the page's other fragments */
    MM_OS = 12,       /* a system call failed: result.os_error */
    MM_RESERVED = 13, /* pages 0 and 1 belong to the store */
    MM_SPACE = 14,    /* the buffer is too small: result.length bytes are needed */
    MM_BUSY = 15,     /* no free slot, or a lock is held by others */
    MM_MISMATCH = 16, /* not the files that belong together, or of another boot: result.file says which check */
    MM_LIMIT = 17,    /* page ids or address space are used up */
    MM_UNUSABLE = 18, /* the fragments of the page do not merge */
    MM_COMPRESSED = 19 /* a fragment is compressed, or is to be: what the core cannot do (mm_read, mm_view_page, mm_consolidate_native) */
};

/* Where damage was found. */
enum mm_file { MM_FILE_NONE = 0, MM_FILE_LOG = 1, MM_FILE_TABLE = 2, MM_FILE_CONTROL = 3, MM_FILE_IDS = 4, MM_FILE_RTS = 5, MM_FILE_MARKS = 6, MM_FILE_SNAPSHOT = 7, MM_FILE_CONFIG = 8 };

/* What a caller needs to go on with a page: valid until somebody writes to it. */
typedef struct mm_key {
    uint64_t pid;
    uint64_t head; /* head word */
    uint64_t wts;  /* content version */
    uint64_t lsn;  /* stable >= lsn: this state is durable */
} mm_key;

typedef struct mm_result {
    mm_key key;
    uint64_t generation; /* of the segment that key.head points into */
    uint64_t length;     /* bytes produced, needed, or allowed */
    uint64_t cost;       /* estimate of the private memory of what was read */
    uint64_t offset;
    uint32_t count;      /* fragments in the buffer */
    uint32_t depth;      /* of the chain */
    uint32_t kind;       /* enum mm_kind of the head's record */
    uint32_t whole;      /* read: nothing of a cached value is needed */
    uint32_t merged;     /* read: the buffer holds one value, not an array of fragments */
    uint32_t tidy;       /* the chain is long enough to be consolidated */
    uint32_t due;        /* the log has grown enough for a snapshot */
    uint32_t file;
    int32_t os_error;
} mm_result;

/* ---- attaching ------------------------------------------------------------------------------------------------- */

#define MM_ID_INTERVAL UINT64_C(1000000) /* unless chosen */
#define MM_MAX_ID (UINT64_C(1) << 62)
#define MM_ID_NONE UINT64_MAX

typedef struct mm_carried mm_carried;
typedef struct mm_config {
    int32_t control, table, log, ids, rts, marks, lock; /* descriptors; mm_attach takes them over, also when it fails */
    uint32_t merge_kind;   /* enum mm_merge_kind of the store's materializer */
    uint32_t threshold;    /* page_consolidation_threshold */
    uint32_t segment_shift;
    uint32_t clean_threshold, clean_skew; /* percent: segment_cleanup_threshold, segment_cleanup_skew */
    uint32_t observes;     /* enum mm_observe */
    uint32_t compress_from; /* bytes from which on the faces compress a payload; 0: none */
    uint64_t id_interval;  /* idgen_persist_interval; 0: MM_ID_INTERVAL */
    uint64_t discarded;    /* newest colour that `config` says is discarded, or 0 */
    mm_failpoints *failpoints; /* lives as long as the attachment; NULL: none */
    const mm_carried *carried; /* of one that observes: bytes of the log that stand in private memory instead; for the call alone; NULL: none */
    uint8_t uuid[16];
    uint8_t boot_id[64];
} mm_config;

/* An attachment that writes nothing: `LIVE` has every file mapped for reading and no slot, so no pin of it holds anything (observe.c).  `ALONE` is for
 * mm_rebuild: the log is not changed either, what is stored to it goes to private memory. */
enum mm_observe { MM_OBSERVE_NOT = 0, MM_OBSERVE_LIVE = 1, MM_OBSERVE_ALONE = 2 };

enum mm_mismatch { MM_MISMATCH_ABSENT = 1, MM_MISMATCH_CHECKSUM = 2, MM_MISMATCH_LAYOUT = 3, MM_MISMATCH_BOOT = 4, MM_MISMATCH_FILES = 5, MM_MISMATCH_UUID = 6, MM_MISMATCH_FAILED = 7,
                   MM_MISMATCH_CONTROL = 8 };

/* Writes fresh volatile files (all but the identity) into descriptors of empty files.  Exclusive callers only. */
int mm_format(const mm_config *c, mm_result *r);
/* The identity block: makes the volatile files valid for this boot (ready), or says of which boot and files they are while somebody
 * replaces them, so that a recovery that was cut off is done again knowing what it knew. */
int mm_identity_write(const mm_config *c, int ready, mm_result *r);
int mm_identity_clear(const mm_config *c, mm_result *r);
/* MM_OK, or MM_MISMATCH with r->file = enum mm_mismatch. */
int mm_identity_check(const mm_config *c, mm_result *r);

/* Maps the files and claims a slot.  NULL on failure: *status says why. */
mm *mm_attach(const mm_config *c, int *status, mm_result *r);
/* Releases the slot; unmaps now, or when the last call and Tx that is inside has left.  Idempotent. */
void mm_close(mm *m);
/* In a forked child: gives up the inherited attachment (the parent's is untouched). */
void mm_orphan(mm *m);
/* Frees the attachment: nobody may use it any more. */
void mm_destroy(mm *m);
/* 1 when the mapping is gone. */
int mm_is_closed(const mm *m);
/* Bounds what this process keeps mapped of the log; 0: no bound.  At once where it is used next. */
void mm_mapped_bound(mm *m, uint64_t bytes);
uint64_t mm_mapped(const mm *m); /* bytes, about */
/* Where the last fault in a mapping was, for MM_CORRUPT from a call that takes no result: r->file, r->offset. */
void mm_last_fault(const mm *m, mm_result *r);
/* The signal handler of guard.c, on top of whoever is there: at each attach, and before leaving, since others install theirs. */
void mm_guard_install(void);

/* ---- verbs -------------------------------------------------------------------------------------------------------- */

int mm_allocate(mm *m, const void *payload, uint64_t length, mm_result *r);
int mm_install(mm *m, uint64_t pid, const void *payload, uint64_t length, mm_result *r); /* pages 0 and 1, at creation */
int mm_append(mm *m, uint64_t pid, const void *payload, uint64_t length, mm_result *r);
int mm_link(mm *m, const mm_key *key, const void *payload, uint64_t length, mm_result *r);
int mm_replace(mm *m, const mm_key *key, const void *payload, uint64_t length, mm_result *r);
int mm_free(mm *m, const mm_key *key, mm_result *r);
/* As mm_replace, of pages 0 and 1 alone, which only the store itself writes.  `frees`: from the reserve, if need be. */
int mm_replace_reserved(mm *m, const mm_key *key, const void *payload, uint64_t length, int frees, mm_result *r);

/* The same verbs with a payload that the caller has compressed: a frame, which is stored as it is.  tag: mm_merge_class of what it was, 0 where the
 * store's materializer is not native, and of page 0.  Of `key` what the verb needs; MM_WRITE_CONSOLIDATE: mm_consolidate, key->wts is its base_wts. */
enum mm_write { MM_WRITE_ALLOCATE = 0, MM_WRITE_APPEND = 1, MM_WRITE_LINK = 2, MM_WRITE_REPLACE = 3, MM_WRITE_META = 4, MM_WRITE_CONSOLIDATE = 5 };
int mm_write_compressed(mm *m, uint32_t verb, const mm_key *key, uint32_t tag, const void *frame, uint64_t length, mm_result *r);

/* Reads what is newer than known_wts (0: everything), oldest first, as one msgpack array, or as one merged value when
 * `how` is MM_READ_MERGED, the store's materializer is native and everything is read.  MM_SPACE: call again with more room.
 * MM_COMPRESSED: a fragment is compressed.  The buffer holds r->count fragments as they are stored, oldest first: of each two words (the address of its
 * record; its length << 1 | whether it is compressed), then its bytes.  r->merged: what is wanted of them is one merged value. */
enum mm_read_how { MM_READ_ARRAY = 0, MM_READ_MERGED = 1, MM_READ_FRAGMENTS = 2, MM_READ_TO_MERGE = 3 }; /* FRAGMENTS, TO_MERGE: no get (metrics.h) */
int mm_read(mm *m, uint64_t pid, uint64_t known_wts, int how, uint8_t *buffer, uint64_t capacity, mm_result *r);

/* Publishes `payload`, the merge of everything up to version base_wts, as the page's base; what came since is copied on top.
 * Never changes the content; MM_CONFLICT: somebody else consolidated or replaced (nothing to do). */
int mm_consolidate(mm *m, uint64_t pid, uint64_t base_wts, const void *payload, uint64_t length, mm_result *r);
/* The same with the merge made here; native materializers only. */
int mm_consolidate_native(mm *m, uint64_t pid, mm_result *r); /* MM_COMPRESSED: by mm_read, and mm_consolidate or mm_write_compressed */

/* A pin for a Tx.  mm_pin gives the index to hand to mm_unpin; releasing twice is harmless to others. */
int mm_pin(mm *m, uint32_t *index, uint64_t *epoch);
void mm_unpin(mm *m, uint32_t index);

/* The next number of generate_id: rising over all processes and lives, never twice.  *id: MM_ID_NONE, or one that mm_id_quick has drawn.  `frees`: what it
 * writes now and then may take the reserve of a full disk.  May flush.  MM_CORRUPT: page 1 is damaged; MM_LIMIT. */
int mm_generate_id(mm *m, uint64_t *id, int frees, mm_result *r);
/* The same without a pin, for who keeps the mapping: MM_OK, or MM_BUSY: *id was drawn, and mm_generate_id must see to it. */
int mm_id_quick(mm *m, uint64_t *id);
/* A life begins: the numbers go on above what page 1 says.  While nobody else is attached. */
int mm_ids_begin(mm *m, mm_result *r);

int mm_bump_rts(mm *m, uint64_t pid, uint64_t ts, mm_result *r);
int mm_get_rts(mm *m, uint64_t pid, uint64_t *ts, mm_result *r);

/* ---- views ------------------------------------------------------------------------------------------------------------- */

#define MM_VIEW_NONE UINT32_MAX
enum mm_view_drop { MM_VIEW_LAST = 1, MM_VIEW_GUARDED = 2 };

/* The bytes of a page in the mapping, held from here on: *hold is to be dropped, once, also where an error is returned, unless it still is
 * MM_VIEW_NONE (as the caller has set it, in memory that is somebody's already).  MM_CHAIN: several fragments, to be consolidated first.  form->kind
 * may be MM_FORM_OTHER: nothing is held then.  Bytes are verified once in a generation of their segment; MM_SPACE: more than `quick` bytes would have to
 * be, call again with more. */
int mm_view_page(mm *m, uint64_t pid, uint64_t quick, mm_form *form, uint32_t *hold, mm_result *r);
/* From any thread, also after mm_close, and in a forked child.  MM_VIEW_LAST: the last one out of a closed attachment, which is unmapped now;
 * MM_VIEW_GUARDED: guards are out (mm_views_guard). */
int mm_view_drop(mm *m, uint32_t hold);
int mm_view_usable(const mm *m, uint32_t hold); /* 0: it was opened before a fork, and this process does not hold its bytes */
uint32_t mm_view_count(const mm *m);            /* views that are out */

/* Forks.  Before one the parent holds once more what its views hold (a bit in held[2] for each hold; returns whether there is any), until the child has
 * adopted it, or has died.  In the child `old` is the inherited attachment and `m` its own; 1: all is held, 0: not what an epoch pin holds.  mm_views_unguard
 * returns what mm_view_drop does; in the child it forgets the parent's guard. */
int mm_views_guard(mm *m, uint64_t *held);
int mm_views_unguard(mm *m, const uint64_t *held);
int mm_views_adopt(mm *m, mm *old);

/* ---- durability ---------------------------------------------------------------------------------------------------- */

int mm_flush(mm *m, uint64_t lsn, uint64_t *advanced, mm_result *r); /* lsn 0: everything so far; MM_LIMIT: an LSN never given */
int mm_flush_to_marks(mm *m, mm_result *r); /* what is durable, a mark says on return; an intent alone may have said it before */
int mm_control_dirty(int control); /* 1: something was written since the newest flush; for who has left */
int mm_flush_due(mm *m, uint64_t period, uint64_t *wait, mm_result *r); /* the periodic flush, if it is due and ours; ns */
int mm_clock(mm *m, uint64_t *epoch, uint64_t *stable);

/* ---- rebuilding ------------------------------------------------------------------------------------------------------ */

typedef struct mm_scan_report {
    uint64_t segments, leases, records, committed, applied, discarded, pages, max_colour, max_epoch, bytes;
    uint64_t scanned; /* segments that had to be read */
} mm_scan_report;
typedef struct mm_snapshot_info {
    uint64_t a, b, salt, segments, pages, log_size, log_taken;
    uint32_t chunks_crc;
} mm_snapshot_info;
/* The newest durable epoch in `marks`; MM_CORRUPT when blocks are there and none is whole. */
int mm_marks_newest(const mm_config *c, uint64_t *epoch, mm_result *r);
/* The newest durable epoch, as marks and intents say (pairs: those of `config`, lo and hi); a mark that says it too, durable on return, with all that
 * intents carry in its place in the log.  `this_boot`: no power was lost, so no intent counts that is newer than the newest witness: its sync had not ended.
 * *carried, unless that is NULL: what is not in its place, for who must not put it there (NULL where there is nothing). */
int mm_durable(const mm_config *c, const uint64_t *discards, uint32_t pairs, int this_boot, uint64_t *epoch, mm_carried **carried, mm_result *r);
int mm_promote(const mm_config *c, const uint64_t *discards, uint32_t pairs, int this_boot, mm_result *r);
void mm_carried_free(mm_carried *carried);
/* Sectors of marks that a loss of power has torn are written again; for a recovery, while nobody is attached. */
int mm_marks_mend(const mm_config *c, mm_result *r);
/* What `config` says is gone: `discards` are pairs lo < colour <= hi; `cuts` are pairs epoch, segments: when the log was durable up to that epoch, all
 * behind so many segments was free, and was cut off. */
typedef struct mm_gone {
    const uint64_t *discards, *cuts;
    uint32_t pairs, cut_count;
} mm_gone;
/* Fills the fresh volatile files from the log: of all committed records with a colour not in one of the discards, and
 * <= limit, the highest version of each page wins.  `snapshot`: a descriptor, and what mm_snapshot_look said of it, after mm_snapshot_check; or -1.
 * Exclusive callers only, after mm_format. */
int mm_rebuild(const mm_config *c, uint64_t limit, const mm_gone *gone, int snapshot, const mm_snapshot_info *info, mm_scan_report *report,
               mm_result *r);
/* Before mm_rebuild's sync: what a failed sync of this boot may have left clean and not on the disk is written again.  c->control is the old one. */
int mm_rewrite(const mm_config *c, mm_result *r);
int mm_settle(const mm_config *c, mm_result *r); /* the same, durably, for a store that goes on; MM_FAILED: it failed again.  All slot bytes held */
int mm_suspected(const mm_config *c);            /* 1: a process may have died in a sync that failed */
/* The free end of the log goes back to the file system, when nobody is attached: the caller holds all slot bytes and `open.lock`, and the newest
 * snapshot is of the state as it stands.  First what would be cut off is asked, and said in `config`, durably: *segments stay, all in use when the log was
 * durable up to *epoch; 0: none of it would.  *cut: bytes. */
int mm_log_free_end(const mm_config *c, uint64_t *segments, uint64_t *epoch, mm_result *r);
int mm_log_truncate(const mm_config *c, uint64_t *cut, mm_result *r);
int mm_log_trim(const mm_config *c, mm_result *r); /* zeros at the end of the log go back to the device */
int mm_set_epoch(const mm_config *c, uint64_t epoch, uint64_t stable, mm_result *r);

/* Puts a record of `kind` (enum mm_kind) on any page of a store that was just made: MM_OK, MM_CONFLICT (somebody else is here), MM_NOPAGE, MM_FREED,
 * MM_CHAIN (a DELTA on nothing, on a FREE record, on a chain that is full), MM_TYPE, MM_TOOBIG, MM_LIMIT, MM_FULL. */
int mm_restore(mm *m, uint64_t pid, uint32_t kind, const void *payload, uint64_t length, mm_result *r);
int mm_restore_compressed(mm *m, uint64_t pid, uint32_t kind, uint32_t tag, const void *frame, uint64_t length, mm_result *r);

/* ---- space ------------------------------------------------------------------------------------------------------------- */

/* How eagerly: while the log is larger than it should be; also segments whose live share is below the threshold; all that gain anything. */
enum mm_effort { MM_EFFORT_WRITER = 0, MM_EFFORT_BACKGROUND = 1, MM_EFFORT_ALL = 2 };
typedef struct mm_clean_report {
    uint64_t scanned, moved, retired; /* bytes read through, bytes copied, segments emptied */
    uint32_t more;                    /* a segment is emptied in part */
    uint32_t busy;                    /* the disk is full, and another process makes room */
} mm_clean_report;
/* Cleans until `gain` bytes more were read through than copied, or nothing is left to do, or a publish under way must be waited for (report->scanned
 * is 0).  MM_CORRUPT: a segment cannot be emptied, and is left as it is. */
int mm_clean(mm *m, uint32_t effort, uint64_t gain, mm_clean_report *report, mm_result *r);
void mm_clean_help(mm *m); /* by a writer that was told `due`: pays for what this process took of the log */
int mm_rewrite_page(mm *m, uint64_t pid, mm_result *r); /* moves the page as it is; r->length: bytes written */

/* ---- snapshots --------------------------------------------------------------------------------------------------------- */

typedef struct mm_snapshot_taken { uint64_t b, begun, log_taken; } mm_snapshot_taken; /* b: what its name must say; begun: epoch when the copy began */
int mm_snapshot_write(mm *m, int fd, mm_snapshot_taken *t, mm_result *r); /* into an empty file; whole and durable on return */
/* It is durable under its name: what is in it need not be written again, and the log may be made shorter than an older one knows. */
void mm_snapshot_named(mm *m, const mm_snapshot_taken *t);
int mm_snapshot_claim(mm *m);  /* 1: one is worth it, and the caller is to write it */
int mm_snapshot_stale(mm *m);  /* 1: something was written since the newest one */
int mm_snapshot_look(const mm_config *c, int fd, mm_snapshot_info *info, mm_result *r);
int mm_snapshot_check(const mm_config *c, int fd, const mm_snapshot_info *info, mm_result *r);

/* ---- metrics ------------------------------------------------------------------------------------------------------------ */

enum mm_metric_kind { MM_METRIC_COUNTER = 0, MM_METRIC_HISTOGRAM = 1 };
typedef struct mm_metric { const char *name, *what, *unit; uint32_t every; } mm_metric;
#define MM_ROW_WORDS 8192 /* of a slot's row: 64 for counters, 64 as its owner found them, then 24 histograms of 336: sum, greatest, least, spare, buckets */

int mm_metric_at(uint32_t kind, uint32_t i, mm_metric *out); /* 1; 0: there are no more */
int mm_metric_named(uint32_t kind, const char *name);        /* its number; -1: there is none */
uint64_t mm_bucket_least(uint32_t bucket);                   /* of the values that are in it */
int mm_metrics_format(int fd, int control);                  /* an empty file; 0, or errno */
int mm_metrics_belongs(int fd, int control, uint64_t *created); /* 1: it is of the files of this `control`, and of this version */
/* Counts from here on, in the row of our slot; takes the descriptor over.  0: it cannot, and nothing is counted.  Before a second thread knows of m. */
int mm_metrics_attach(mm *m, int fd);
/* Adds the rows of `slots` slots from `first` on to `row` (MM_ROW_WORDS words).  0, or errno. */
int mm_metrics_read(int fd, uint32_t first, uint32_t slots, uint64_t *row);
/* For the faces, at any time.  mm_ticks: 0 where nothing is counted. */
uint64_t mm_ticks(const mm *m);
void mm_metrics_add(mm *m, uint32_t counter, uint64_t n);
void mm_metrics_time(mm *m, uint32_t histogram, uint64_t begun, uint64_t n); /* since mm_ticks */
void mm_metrics_record(mm *m, uint32_t histogram, uint64_t value, uint64_t n);

/* ---- looking ----------------------------------------------------------------------------------------------------------- */

typedef struct mm_stats {
    uint64_t epoch, stable, pages, free_hints, segments, log_bytes, table_bytes, slots, operations, conflicts, reaped, helped, oldest_pin, slot;
    uint64_t views; /* segments that views hold, over all slots */
    uint64_t log_used, log_live, segments_free, segments_retired, written, cleaned, moved; /* bytes; segments; bytes leased, ever; segments emptied; bytes copied for that */
} mm_stats;
int mm_get_stats(mm *m, mm_stats *s);
/* Chain of a page as it stands, newest first: fills up to `capacity` triples (address, version, shape). */
int mm_chain(mm *m, uint64_t pid, uint64_t *triples, uint32_t capacity, mm_result *r);
/* Verifies every page reachable from the table; r->key.pid and r->offset say where the first damage is. */
int mm_check(mm *m, uint64_t *pages, mm_result *r);

uint32_t mm_crc32c(uint32_t crc, const void *p, uint64_t n);
uint64_t mm_layout_fingerprint(void);
int mm_lock_range(int fd, uint64_t start, uint64_t length);   /* tried, exclusive, OFD: MM_OK or MM_BUSY */
int mm_unlock_range(int fd, uint64_t start, uint64_t length);
int mm_range_held(int fd, uint64_t start, uint64_t length);   /* 1: somebody has a lock in it; asked without a lock, so also of a file opened for reading */
int mm_filesystem(int fd, uint64_t *type);
int mm_sync_fd(int fd);                                       /* fdatasync, through the seam: MM_OK or MM_OS via errno */
int mm_reap_all(mm *m, uint64_t *reaped);                     /* reaps every dead slot */
uint32_t mm_slot_number(const mm *m);                         /* of this attachment */
uint64_t mm_limit(const mm *m);                               /* largest payload in bytes */

#endif
