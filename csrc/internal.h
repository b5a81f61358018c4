/* internal.h - struct mm, the private side of an attachment, and what the C files of the core offer each other. */
#ifndef MMPC_INTERNAL_H
#define MMPC_INTERNAL_H

#include <pthread.h>

#include "crc32c.h"
#include "guard.h"
#include "layout.h"
#include "metrics.h"
#include "mmpc.h"

#define MM_ALIVE UINT64_C(0x657669614D504D4D)
#define MM_CLOSING (UINT64_C(1) << 63)
#define MM_PIN_SHARED (MM_PINS - 1) /* pin word that calls share when all others are taken */
#define MM_CANDIDATES 64u
#define MM_RECENT 64u

typedef struct mm_lease { /* the run of blocks this process writes to; guarded by mm.publish */
    uint64_t start, end;  /* addresses; start 0 = none */
    uint64_t bump;        /* next free byte: everything beyond is scratch */
    uint64_t next_size;   /* bytes to ask for next time */
    uint64_t previous, filled;
    int64_t live;         /* live bytes not yet added to the segment's counter */
    bool reserve, frees;  /* taken from the reserve: for what gives room back alone; for FREE records alone */
    uint32_t segment, generation, seed, previous_generation;
} mm_lease;

/* What views of this process hold, private side: entry k stands for word k of the slot, the last one for a pin (view.c). */
typedef struct mm_holding {
    pv_word word;  /* as in the slot; of the last one: the pin's index */
    pv_word count; /* views; all ones: it changes hands */
} mm_holding;
#define MM_VIEW_ONE (UINT64_C(1) << 32) /* a view in mm.busy */
#define MM_VERIFIED 4096u

typedef struct mm_victim { /* the segment that this process empties, or visits; guarded by mm.cleaning */
    uint64_t number, generation, at, live, since; /* since: epoch of the claim; at: address of the next lease; live: counted by a visit */
    bool held, visit, aged, done;
} mm_victim;

/* How far the leases of all slots were used at one time, by slot (intent.c). */
#define MM_FILLS_MOST 64u
typedef struct mm_fills {
    uint64_t epoch; /* of the flush that looked; 0: nothing that one can go by */
    uint64_t retirements, segments;
    uint32_t count;
    mm_lease_fill leases[MM_FILLS_MOST]; /* address 0: none */
    uint64_t durable[MM_FILLS_MOST];     /* `lease_durable` of each */
} mm_fills;

/* What a flush said in the log. */
typedef struct mm_intent {
    bool put, carries;   /* carries: what is not durable of other leases, so that no page but the author's own need be synced */
    mm_lease_fill lease; /* of the author, the intent at its end */
} mm_intent;

enum mm_purpose { MM_GROWS = 0, MM_FREES = 1, MM_MOVES = 2 }; /* what space is taken for: FREE records; copies that make a segment empty; anything else */

typedef struct mm_candidate { uint64_t pid, head, epoch; } mm_candidate;

struct mm {
    uint8_t *control, *log;
    mm_globals *g;
    mm_slot *slot, *slots;
    mm_segment *segments;
    uint8_t *table_map, *ids_map, *rts_map;
    at_word *table, *ids, *rts;
    uint64_t control_window, log_window, words_window; /* bytes mapped */
    uint64_t table_capacity;                           /* head words that fit the window */
    uint64_t *alive;                                   /* MADV_WIPEONFORK: reads 0 in a forked child */
    pv_word busy;         /* bit i: pin word i is in use; from MM_VIEW_ONE on: how many views are out; MM_CLOSING: nobody enters any more */
    pv_word finished;     /* unmapped */
    pv_word log_safe, table_safe, segments_safe, rts_safe; /* published sizes that this process has compared with the files */
    pthread_mutex_t publish;  /* one publish of this process at a time: lease, candidates, announce */
    pthread_mutex_t sharing;  /* pin word MM_PIN_SHARED */
    pthread_mutex_t flushing; /* one flush of a slot at a time */
    pthread_mutex_t cleaning; /* one victim at a time: only tried */
    uint32_t sharers, slot_index, segment_shift, merge_kind, threshold, tidy_depth, max_depth;
    uint32_t mark_ready, mark_block; /* the slot's marks are durable as they stand; the block that the next one goes over */
    uint64_t born;            /* epoch loaded after `log` was opened: syncs that began later tell us when they fail */
    mm_fills base;            /* as the newest mark of this process knows them; guarded by flushing */
    mm_lease_fill placed;     /* how far our newest lease of which we know is in its place on the disk; guarded by flushing */
    pv_word flush_turn;       /* how often threads of this process asked to lead a flush */
    uint32_t uuid_seed;       /* crc32c of the uuid: start of all checksums */
    uint32_t since_scan;      /* allocations since the pins were last looked at */
    uint64_t allocations;
    uint64_t oldest_pin;      /* result of that look: every pin was >= this */
    uint64_t segment_size, group_limit;
    uint64_t id_interval;     /* numbers between two COUNTER records */
    bool due;                 /* the log has grown enough for a snapshot; the next write that returns says so */
    pv_byte *granules;        /* enum mm_granule_bit of each granule of the log's window; NULL in a rebuild */
    uint64_t granule_count, hand; /* hand: of the clock; who has `sweeping` moves it */
    pv_word mapped, mapped_limit, sweeping; /* granules; limit 0: none */
    pv_word random_end;       /* the log below is mapped for random access */
    pv_word waits, recent[MM_RECENT]; /* for the device: how often, and where of late (mapped.c) */
    pv_word fault_file, fault_offset; /* of the last fault in a mapping */
    mm_holding views[MM_VIEWS + 1];
    pv_word verified[MM_VERIFIED]; /* records whose checksum a view has looked at */
    pv_word guards;           /* forks whose children have not adopted yet */
    mm *heir;                 /* in a forked child: the attachment that holds what views of this one held */
    mm_lease lease;
    pv_word debt;             /* bytes leased since the cleaner was last helped */
    pv_word left;             /* bytes that are live in the segment that is being emptied; a hint for the size of a lease */
    pv_word helping;          /* what is leased now is for copies */
    pv_word scarce;           /* the lease was taken from the reserve: the disk is full, as far as we know */
    mm_victim victim;
    uint64_t victims;         /* guarded by cleaning */
    mm_candidate candidates[MM_CANDIDATES];
    uint32_t candidate_first, candidate_count;
    mm_metrics_row *metrics;  /* of our slot; NULL: nothing is counted.  Set before a second thread knows of this attachment */
    uint8_t *metrics_map;
    uint64_t ticks_begun, time_begun; /* mm_os_ticks and mm_os_monotonic at one moment: what a tick is */
    pv_word tick;             /* ns of one, times 2^24, once known well */
    uint64_t attach_begun;
    bool claimed_dead;        /* the slot's owner before us had died: reaped */
    mm_slot *unshared;        /* of one that observes: in place of a slot */
    mm_config config;
};

/* Mutexes of this process, so that a fault gives them back (guard.c). */
static inline pthread_mutex_t *mm_mutex(mm *m, enum mm_hold which)
{
    return which == MM_HOLD_PUBLISH ? &m->publish : which == MM_HOLD_SHARING ? &m->sharing : which == MM_HOLD_CLEANING ? &m->cleaning : &m->flushing;
}
static inline void mm_lock(mm *m, enum mm_hold which)
{
    pthread_mutex_lock(mm_mutex(m, which));
    mm_note(which, 0);
}
static inline bool mm_trylock(mm *m, enum mm_hold which)
{
    if (pthread_mutex_trylock(mm_mutex(m, which))) return false;
    mm_note(which, 0);
    return true;
}
static inline void mm_unlock(mm *m, enum mm_hold which)
{
    mm_note(0, which);
    pthread_mutex_unlock(mm_mutex(m, which));
}

/* os.c */
enum mm_map { MM_MAP_SHARED = 0, MM_MAP_READ = 1, MM_MAP_PRIVATE = 2 }; /* PRIVATE: stores go to memory of this process */
int mm_os_map(int fd, uint64_t window, enum mm_map how, uint8_t **out);
void mm_os_unmap(uint8_t *p, uint64_t window);
int mm_os_grow(int fd, uint64_t from, uint64_t to);   /* 0, or errno; idempotent */
int mm_os_sync(int fd);                               /* 0, or errno */
int mm_os_sync_range(int fd, const uint8_t *mapped, uint64_t from, uint64_t to); /* these bytes at least of a file that is mapped from its beginning */
void mm_os_wait(at_word *w, uint64_t seen, uint64_t ns); /* returns when the low half of *w is not that of `seen`, or after ns */
void mm_os_wake(at_word *w);                          /* everybody who waits for it */
uint64_t mm_os_monotonic(void);                       /* ns */
/* A clock that costs next to nothing and only steers: that much of it is more than any work in memory and less than any device takes, about 10 us. */
#ifdef __x86_64__
#define MM_TICKS_SLOW 25000u /* of the time stamp counter, which runs at 1 to 4 GHz */
static inline uint64_t mm_os_ticks(void) { return __builtin_ia32_rdtsc(); }
#else
#define MM_TICKS_SLOW 10000u
static inline uint64_t mm_os_ticks(void) { return mm_os_monotonic(); }
#endif
void mm_os_yield(void);
void mm_os_nap(uint64_t ns);
uint64_t mm_os_size(int fd);
int mm_os_punch(int fd, uint64_t from, uint64_t to);  /* 0, or errno; the size stays */
uint64_t mm_os_data(int fd, uint64_t from);           /* where bytes that are no hole begin; all ones: nowhere */
uint64_t mm_os_hole(int fd, uint64_t from);           /* where they end */
int mm_os_write_direct(int fd, const void *p, uint64_t n, uint64_t offset);
int mm_os_sync_filesystem(int fd);
void mm_os_look_here_and_there(void *p, uint64_t n, int fd, uint64_t step);
void mm_os_look_through(void *p, uint64_t n);
void mm_os_write_out(int fd);
int mm_os_truncate(int fd, uint64_t size);            /* 0, or errno */
void mm_os_touch(void *p, uint64_t n);
uint64_t mm_os_now(void);
int mm_os_random(void *p, uint64_t n);
int mm_os_write_at(int fd, const void *p, uint64_t n, uint64_t offset);
int mm_os_read_at(int fd, void *p, uint64_t n, uint64_t offset);
int mm_os_identity(int fd, mm_file_identity *id);
uint64_t *mm_os_wiped_page(void);

/* metrics.c */
static inline mm_metrics_row *mm_row(const mm *m) { return MM_METRICS_BUILT ? m->metrics : NULL; } /* where we count; NULL: nowhere */
static inline void mm_count(mm *m, enum mm_counter c, uint64_t n)
{
    if (mm_row(m)) (void)mm_row_count(mm_row(m), c, n);
}
static inline uint64_t mm_time_begin(const mm *m) { return mm_row(m) ? mm_os_ticks() : 0; }
void mm_time_end(mm *m, enum mm_histogram h, uint64_t begun, uint64_t n); /* the time since then, n times; begun 0: not at all */
void mm_time_end_alone(mm *m, enum mm_histogram h, uint64_t begun, uint64_t n); /* the caller holds the mutex of publishing, as all who add to it do */
void mm_note_value_alone(mm *m, enum mm_histogram h, uint64_t value, uint64_t n);
static inline void mm_count_alone(mm *m, enum mm_counter c, uint64_t n)
{
    if (mm_row(m)) (void)mm_row_count_alone(mm_row(m), c, n);
}
void mm_note_value(mm *m, enum mm_histogram h, uint64_t value, uint64_t n);
bool mm_metrics_fault(mm *m, const void *p); /* in the handler: true, if the fault is in the metrics, which go on in memory */
void mm_metrics_unmap(mm *m);

/* times.c */
void mm_epoch_time(mm *m, uint64_t epoch);

/* attach.c */
int mm_os_map_files(mm *m);
void mm_os_unmap_files(mm *m);
void mm_set_limits(mm *m);

/* control.c */
bool mm_control_holds(const mm_config *c); /* the volatile files are of this boot: can what they say be? */

/* result.c */
int mm_corrupt(mm_result *r, uint32_t file, uint64_t offset);
int mm_os_failed(mm_result *r, int error); /* MM_FULL or MM_OS */

/* guard.c */
int mm_measure(mm *m, mm_result *r);        /* `control` and `table` are as long as they should be; the caller keeps the mapping */
int mm_blame(mm *m, int rc, mm_result *r);  /* rc; if it is MM_NOPAGE or MM_CORRUPT and a file was cut, that */

/* slot.c */
int mm_slot_claim(mm *m, mm_result *r);
void mm_slot_release(mm *m);
int mm_enter(mm *m, uint32_t *pin, uint64_t *epoch); /* pins; MM_OK, MM_CLOSED, MM_FORKED, MM_FAILED */
int mm_enter_failed(mm *m, uint32_t *pin, uint64_t *epoch); /* the same in a store where a sync has failed */
void mm_leave(mm *m, uint32_t pin);
void mm_pin_give_up(mm *m, uint32_t pin, bool sharing); /* after a fault; sharing: in the middle of entering or leaving by the shared word */
int mm_publish_begin(mm *m, mm_result *r);  /* takes the mutex; MM_OK, MM_CLOSED, MM_FORKED, MM_FAILED */
void mm_announce(mm *m);                    /* epoch into the slot, full fence */
void mm_publish_end(mm *m);
uint64_t mm_oldest_pin(mm *m);              /* scans all slots, reaps dead ones; the caller holds the mutex */
uint64_t mm_oldest_holder(mm *m);           /* the same, the caller's own announcement too */
uint64_t mm_oldest_publish(mm *m);          /* of announcements alone */
bool mm_somebody_announces(const mm *m);    /* acquire, slot by slot: a publish is under way, or died */
void mm_reap_announcing(mm *m);             /* those of them that died; the caller holds the mutex */
uint64_t mm_reap_dead(mm *m);               /* the caller holds the mutex */
void mm_finish(mm *m);
bool mm_reap_if_dead(mm *m, uint32_t i);    /* true: it was dead, and now is free; the caller holds the mutex */
uint64_t mm_slots_used(const mm *m);

/* view.c */
bool mm_viewed(mm *m, uint64_t segment, uint64_t generation); /* a zero-copy view holds it; to be asked after the pins (C13); the caller holds the mutex */

/* table.c */
int mm_head(mm *m, uint64_t pid, at_word **head, mm_result *r); /* MM_OK, MM_NOPAGE, MM_CORRUPT */
int mm_table_cover(mm *m, uint64_t pid, mm_result *r);
void mm_id_freed(mm *m, uint64_t pid, uint64_t head);
int mm_id_take(mm *m, uint64_t *pid, uint64_t *head, mm_result *r);
void mm_id_return(mm *m, uint64_t pid);
void mm_ids_give_back(mm *m);

/* segment.c */
static inline uint64_t mm_fill_word(uint64_t generation, uint64_t blocks) { return generation << 32 | blocks; }
static inline uint64_t mm_blocks_of(const mm *m) { return m->segment_size / MM_BLOCK; }
bool mm_segment_step(mm *m, uint64_t n, uint64_t *w, enum mm_segment_state to, uint64_t owner); /* this and the next: the only ways to change a segment's state */
bool mm_segment_join(mm *m, uint64_t n, uint64_t generation, uint64_t rest);
bool mm_segment_usable(mm *m, uint64_t n, uint64_t w);
int mm_segment_open(mm *m, uint64_t old, mm_result *r);    /* replaces the open segment */
uint64_t mm_segments_used(mm *m); /* up to the last one that holds anything */
bool mm_segment_is_stamped(const mm *m, uint64_t n, uint64_t generation); /* the log reaches its end */
bool mm_segment_stamp_end(mm *m, uint64_t n, uint64_t generation, uint64_t stable); /* before its bytes are overwritten or punched */
void mm_segment_clear_unused(mm *m, uint64_t n);
void mm_segment_seal(mm *m, mm_segment *s, uint64_t generation);
mm_segment *mm_segment_of(mm *m, uint64_t address, mm_result *r); /* NULL: outside the published sizes */
uint32_t mm_segment_seed(const mm *m, const mm_segment *s);
int mm_log_whole(mm *m, mm_result *r);                     /* the file holds what is published */
int mm_log_cover(mm *m, uint64_t end, mm_result *r);
bool mm_log_reaches(mm *m, uint64_t end);
void mm_segment_abandon(mm *m, uint32_t slot, bool dead);  /* what its owner was preparing; dead: cleaning or punching, too */
void mm_account(mm *m, uint64_t address, int64_t bytes);
void mm_account_flush(mm *m);

/* lease.c */
int mm_segment_lease(mm *m, uint64_t bytes, enum mm_purpose purpose, mm_result *r); /* fills m->lease */
static inline bool mm_is_full(int rc) { return rc == MM_FULL || rc == MM_LIMIT; }
int mm_segment_refill(mm *m, uint64_t copies, mm_result *r); /* MM_OK: the reserve is whole, or was made whole; copies: that is room enough for so many bytes */
void mm_lease_ended(mm *m);                                /* m->lease becomes the previous one */
void mm_lease_give_up(mm *m);                              /* after a fault in the middle of writing to it */
uint64_t mm_lease_blocks(const mm *m, uint64_t at, uint32_t seed, uint64_t generation);
uint32_t mm_lease_end_crc(uint32_t seed, uint64_t address, uint64_t filled, uint64_t epoch);
uint64_t mm_lease_ended_at(uint32_t seed, const mm_lease_header *h, uint64_t *epoch);
void mm_lease_close(mm *m, uint64_t address, uint64_t generation, uint64_t filled); /* says in its header how far it was used, if nobody did */

/* reuse.c */
static inline at_word *mm_retirements(const mm *m) { return (at_word *)(m->log + MM_RETIREMENTS_OFFSET); } /* the first block is published */
void mm_reclaim(mm *m);                                    /* RETIRED segments that nobody can need any more become FREE */
int mm_segment_retire(mm *m, uint64_t n, mm_result *r);    /* a CLAIMED one of ours that no chain passes through */
bool mm_segment_unclaim(mm *m, uint64_t n, uint64_t *w, uint64_t owner); /* CLAIMED -> SEALED */
bool mm_punch_segment(mm *m, uint64_t n);                  /* FREE -> HOLE */
uint64_t mm_punch(mm *m, uint64_t most);                   /* FREE segments beyond a few become holes of the file */

/* room.c */
#define MM_NO_SEGMENT UINT64_MAX
int mm_room_behind(mm *m, uint64_t n, uint64_t at, uint64_t end, enum mm_purpose purpose, mm_result *r);
int mm_room_copies(mm *m, uint64_t n, uint64_t at, uint64_t bytes, mm_result *r);
uint64_t mm_room_pieces(const mm *m);
uint64_t mm_room_fits(const mm *m); /* bytes in a segment up to which the reserve is kept for its copies */
uint64_t mm_room_of(uint64_t live);  /* bytes of the log that copies take */
bool mm_room_mover(mm *m);  /* we may take of the reserve for copies, and nobody else does */
void mm_room_moved(mm *m);
int mm_room_next(mm *m, uint64_t but, uint64_t blocks, enum mm_purpose purpose, mm_result *r);
int mm_room_candidate(mm *m, uint64_t but, uint64_t *n, mm_result *r); /* the segment that will be opened next, as far as one can know */
int mm_log_round(mm *m, uint64_t *size, mm_result *r);

/* rewrite.c */
int mm_log_rewrite(const mm *m, uint64_t begin, uint64_t stop); /* 0, or errno */
void mm_dirty_again(mm *m);

/* log.c */
typedef struct mm_view { /* a record that was looked at */
    const mm_record *record;
    const uint8_t *payload;
    uint64_t address, shape, version, prev, colour;
    uint32_t seed, generation;
    const uint8_t *body; /* what the record stands for, and its length: the payload, or, once mm_extent_open has found it, what lies in a run */
    uint64_t length;
} mm_view;
int mm_look(mm *m, uint64_t pid, uint64_t address, mm_view *v, mm_result *r);    /* bounds, page, kind: not the checksum */
int mm_verify(mm *m, const mm_view *v, mm_result *r);                           /* the checksum */
int mm_look_head(mm *m, uint64_t pid, uint64_t head, mm_view *v, bool *helped, mm_result *r); /* and helps */
int mm_reserve(mm *m, uint64_t bytes, enum mm_purpose purpose, mm_result *r);   /* that many bytes at lease.bump */
uint32_t mm_checksum_payload(uint32_t seed, uint64_t address, const void *p, uint64_t n);
uint32_t mm_checksum_header(uint32_t crc, const mm_record *rec);
uint64_t mm_record_late(mm *m, uint64_t lease, uint64_t shape, uint64_t fill);
uint64_t mm_record_whole(const mm *m, uint64_t at, uint64_t end, uint32_t seed, uint64_t *word);
void mm_seal_record(mm_record *rec, uint32_t payload_crc);                      /* checksum, commit word 0 */
void mm_retire_chain(mm *m, uint64_t pid, const mm_view *head, uint64_t wts);    /* its bytes are live no more, nor the runs of records up to wts */
uint64_t mm_inline_limit(const mm *m, enum mm_kind kind);                       /* a larger payload lies in a run */

/* extent.c */
static inline bool mm_is_large(uint64_t shape) { return mm_shape_flags(shape) & MM_FLAG_EXTENT; }
static inline bool mm_is_compressed(uint64_t shape) { return mm_shape_flags(shape) & MM_FLAG_COMPRESSED; } /* the payload; where that is in a run, what lies there */
int mm_extent_open(mm *m, mm_view *v, mm_result *r);                            /* body and length; the checksum of the record was looked at */
int mm_extent_verify(mm *m, const mm_view *v, mm_result *r);                    /* every piece */
int mm_extent_copy(mm *m, const mm_view *v, uint8_t *to, mm_result *r);         /* the same, of a copy that is made */
typedef struct mm_run { /* a run of segments that this process has taken, and no record names yet */
    uint64_t number, segments, page, room; /* room: bytes of payload, at most */
    uint32_t generation;
    bool held;
    uint8_t *body;
    mm_extent extent;                      /* once it is sealed: what the record says */
} mm_run;
int mm_run_write(mm *m, uint64_t page, const void *payload, uint64_t length, mm_run *run, mm_result *r); /* taken and sealed */
int mm_run_take(mm *m, uint64_t page, uint64_t room, mm_run *run, mm_result *r); /* not with a lock of the caller's held */
int mm_run_seal(mm *m, mm_run *run, uint64_t length, mm_result *r);
void mm_run_name(mm *m, mm_run *run, uint64_t page);                            /* in an announced publish, before the colour: whose it will be */
void mm_run_done(mm *m, mm_run *run, int status);                               /* the record was published (MM_OK), or not, or who knows */

/* run.c */
int mm_run_find(mm *m, uint64_t page, uint64_t room, mm_run *run, bool *used, mm_result *r); /* taken, allocated, with a header; *used: others may look for what was there before */
bool mm_run_deceives(const mm *m, const mm_run *run);                           /* at a border of segments its payload looks like what may stand there */
bool mm_run_look(const mm *m, uint64_t n, mm_run_header *h);
void mm_run_retire(mm *m, uint64_t n, uint64_t generation, uint64_t page);      /* no chain names it any more */
void mm_run_release(mm *m, uint64_t n, uint64_t word);                          /* a RETIRED one that nobody needs becomes holes */
void mm_run_shorten(mm *m, uint64_t n, const mm_run_header *h, uint64_t segments); /* of one that is free: it speaks of no more */
void mm_run_tombstone(mm *m, uint64_t n, uint64_t generation, uint64_t salt);   /* a header for one of its segments, when it is free */
void mm_runs_abandon(mm *m, uint32_t slot);                                     /* what its owner had in its hands; the caller has announced */
void mm_runs_sweep(mm *m);                                                      /* those that nobody names; the caller has a pin */
uint64_t mm_runs_pending(mm *m, uint64_t *since);                               /* bytes of RETIRED ones that wait for a flush up to *since */
int mm_chain_names(mm *m, uint64_t pid, uint64_t address, uint64_t generation, mm_result *r); /* 1: the page's chain names the run; 0; or -status */

/* group.c */
int mm_consolidate_payload(mm *m, uint64_t pid, uint64_t base_wts, const void *payload, uint64_t length, uint8_t tag, uint8_t flags, mm_result *r);
uint64_t mm_group_record(mm *m, uint64_t pid, uint64_t at, uint64_t prev, uint64_t shape, uint64_t version, uint64_t colour, const void *payload);
void mm_group_committed(mm *m, const mm_view *old, uint64_t last, uint64_t bytes, uint64_t merged, mm_result *r);

/* clean.c */
bool mm_clean_owed(const mm *m);            /* this process has taken so much of the log that it is to help */

/* relocate.c */
int mm_chain_passes(mm *m, uint64_t pid, uint64_t address, uint64_t version, mm_result *r); /* 1: the record is in the page's chain; 0; or -status */
int mm_relocate(mm *m, uint64_t pid, uint64_t segment, uint64_t *moved, mm_result *r);

/* snapshot.c */
bool mm_snapshot_wanted(mm *m);
int mm_snapshot_entries(int fd, const mm_snapshot_info *i, mm_snapshot_entry *out);                     /* 0, errno or -1 */
int mm_snapshot_heads(int fd, const mm_snapshot_info *i, uint64_t from, uint64_t n, void *out);

/* read.c */
#define MM_CHAIN_MAX 256u
typedef struct mm_chain_view {
    mm_view at[MM_CHAIN_MAX]; /* newest first */
    uint32_t count;
    bool whole;               /* ends with a BASE */
    bool compressed;          /* one of them is, or several; once it was opened */
    uint64_t payload;         /* bytes in all, as they are stored; once it was opened */
} mm_chain_view;
int mm_walk(mm *m, uint64_t pid, const mm_view *head, uint64_t known_wts, mm_chain_view *c, mm_result *r);
bool mm_chain_follows(const mm_view *newer, const mm_view *older);
int mm_emit_array(mm *m, const mm_chain_view *c, uint8_t *buffer, uint64_t capacity, mm_result *r);
int mm_emit_stored(mm *m, const mm_chain_view *c, uint8_t *buffer, uint64_t capacity, mm_result *r); /* MM_COMPRESSED, or why not */
int mm_chain_open(mm *m, mm_chain_view *c, bool verify, mm_result *r); /* finds the bodies of its records, and looks at every byte of them */

/* observe.c */
int mm_observe(mm *m, uint64_t pid, uint8_t *buffer, uint64_t capacity, mm_result *r); /* mm_read without a pin */

/* marks.c */
typedef struct mm_mark { /* as it is thought of: the eight sectors of a block */
    uint64_t epoch;
    uint64_t segments, discarded; /* in use; newest colour that config says is discarded */
    uint64_t witness;             /* newest epoch that a witness tells of, or 0; not said of the mark */
    uint32_t retirements;         /* of segments, ever */
    uint32_t count;
    mm_lease_fill leases[MM_MARK_LEASES];
} mm_mark;
int mm_mark_newest(const mm_config *c, mm_mark *newest, mm_result *r);
int mm_mark_prepare(mm *m);              /* 0, or errno; before the first mark of this owner of the slot */
int mm_mark_write(mm *m, const mm_mark *k); /* durable on return; 0, or errno */
int mm_mark_note(mm *m, const mm_mark *k);  /* in the file on return, durable when somebody syncs it; 0, or errno */
int mm_mark_witness(mm *m, uint64_t epoch); /* the same of a witness */
int mm_mark_promote(const mm_config *c, const mm_mark *k, uint32_t block); /* over the other block of the slot of `block`; durable on return; 0, or errno */
int mm_mark_settle(const mm_config *c, uint32_t block); /* what the file says there is durable on return; 0, or errno */
/* Every block that is not a hole: body(ctx, number of the block, its mark, true if it hides what it said). */
typedef int mm_mark_body(void *ctx, uint32_t block, const mm_mark *k, bool hidden);
int mm_marks_each(const mm_config *c, mm_mark_body *body, void *ctx, mm_result *r);

/* flush.c */
int mm_flush_marked(mm *m, uint64_t epoch, mm_result *r); /* a mark covers it, and is durable, on return */
static inline void mm_want_mark(mm *m, uint64_t epoch) { at_max_release(&m->g->mark_wanted, epoch); }

/* intent.c */
void mm_fills_now(mm *m, uint64_t epoch, mm_fills *f);
uint64_t mm_fill_with_late(mm *m, uint64_t lease, uint64_t shape, uint64_t fill);
void mm_intent_put(mm *m, const mm_fills *now, mm_intent *said);
void mm_fills_durable(mm *m, const mm_fills *now, const mm_intent *said);
uint64_t mm_intent_placed(const mm *m, const mm_lease_fill *l);

/* promote.c */
void mm_carried_put(mm *m); /* what `config.carried` says, into the private log of one that observes */

#endif
