/* layout.h - every struct that is stored or shared, its offsets asserted, and the packers of packed words.
 *
 * docs/format.md describes the same bytes for readers; tests/test_format.py compares the two.  All integers are
 * little-endian.  Whoever changes a struct here changes MM_LAYOUT_VERSION (volatile files) or MM_FORMAT (lasting ones).
 */
#ifndef MMPC_LAYOUT_H
#define MMPC_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "atomics.h"

#define MM_FORMAT 1u            /* config, log, marks: lasting */
#define MM_LAYOUT_VERSION 1u    /* control, table, ids, rts: rebuilt when they differ */
#define MM_BLOCK 4096u          /* a lease is a run of these */

/* ---- head word: 0 = unallocated, else tag:22 | address/8:42 ------------------------------------------------ */
#define MM_ADDR_BITS 42
#define MM_ADDR_MASK ((UINT64_C(1) << MM_ADDR_BITS) - 1)
#define MM_MAX_ADDRESS (UINT64_C(1) << (MM_ADDR_BITS + 3))

static inline uint64_t mm_head_address(uint64_t head) { return (head & MM_ADDR_MASK) << 3; }
/* The successor of `head` that points to `address`: the tag counts the changes of this head (it wraps). */
static inline uint64_t mm_head_next(uint64_t head, uint64_t address)
{
    return (((head >> MM_ADDR_BITS) + 1) << MM_ADDR_BITS) | (address >> 3);
}

/* ---- record: 40 bytes of header, then the payload; 8-byte aligned ------------------------------------------- */
enum mm_kind { MM_KIND_BASE = 1, MM_KIND_DELTA = 2, MM_KIND_FREE = 3 };
enum mm_flag { MM_FLAG_INNER = 1, MM_FLAG_INDEX = 2, MM_FLAG_EXTENT = 4, MM_FLAG_TX = 8 };
#define MM_FLAGS_KNOWN (MM_FLAG_INNER)

typedef struct mm_record {
    at_word crc_commit;   /* crc32c:32 | commit:32 (high); one word, so a new checksum never meets an old commit word */
    uint64_t shape;       /* length:32 | depth:8 | kind:4 | flags:4 | tag:8 | inner:8 */
    uint64_t page_colour; /* page id:40 | colour low:24 */
    uint64_t version;     /* place:16 | wts:48 (high), so that versions compare as integers */
    uint64_t prev_colour; /* prev address/8:42 | colour high:22 */
} mm_record;

#define MM_RECORD_HEADER 40u
_Static_assert(sizeof(mm_record) == 40 && offsetof(mm_record, shape) == 8 && offsetof(mm_record, page_colour) == 16
               && offsetof(mm_record, version) == 24 && offsetof(mm_record, prev_colour) == 32, "record layout is stored");

#define MM_PID_BITS 40
#define MM_MAX_PID ((UINT64_C(1) << MM_PID_BITS) - 1)
#define MM_PLACE_BITS 16
#define MM_MAX_PLACE ((UINT64_C(1) << MM_PLACE_BITS) - 1)
#define MM_COLOUR_LOW 24

static inline uint64_t mm_shape(uint32_t length, uint8_t depth, uint8_t kind, uint8_t flags, uint8_t tag, uint8_t inner)
{
    return (uint64_t)length | (uint64_t)depth << 32 | (uint64_t)(kind & 15) << 40 | (uint64_t)(flags & 15) << 44
           | (uint64_t)tag << 48 | (uint64_t)inner << 56;
}
static inline uint32_t mm_shape_length(uint64_t s) { return (uint32_t)s; }
static inline uint8_t mm_shape_depth(uint64_t s) { return (uint8_t)(s >> 32); }
static inline uint8_t mm_shape_kind(uint64_t s) { return (uint8_t)(s >> 40 & 15); }
static inline uint8_t mm_shape_flags(uint64_t s) { return (uint8_t)(s >> 44 & 15); }
static inline uint8_t mm_shape_tag(uint64_t s) { return (uint8_t)(s >> 48); }
static inline uint8_t mm_shape_inner(uint64_t s) { return (uint8_t)(s >> 56); }

static inline uint64_t mm_record_pid(const mm_record *r) { return r->page_colour & MM_MAX_PID; }
static inline uint64_t mm_record_prev(const mm_record *r) { return (r->prev_colour & MM_ADDR_MASK) << 3; }
static inline uint64_t mm_record_colour(const mm_record *r)
{
    return r->page_colour >> MM_PID_BITS | (r->prev_colour >> MM_ADDR_BITS) << MM_COLOUR_LOW;
}
static inline uint64_t mm_page_colour(uint64_t pid, uint64_t colour) { return pid | colour << MM_PID_BITS; }
static inline uint64_t mm_prev_colour(uint64_t prev, uint64_t colour) { return prev >> 3 | (colour >> MM_COLOUR_LOW) << MM_ADDR_BITS; }

static inline uint64_t mm_version(uint64_t wts, uint64_t place) { return wts << MM_PLACE_BITS | place; }
static inline uint64_t mm_version_wts(uint64_t v) { return v >> MM_PLACE_BITS; }
static inline uint64_t mm_version_place(uint64_t v) { return v & MM_MAX_PLACE; }
/* The version of a record that only moves: place + 1; a move at the last place raises wts instead (it never goes back). */
static inline uint64_t mm_version_moved(uint64_t v) { return v + 1; }
#define MM_MAX_WTS ((UINT64_C(1) << 48) - 2)

/* The commit word: never 0, and a pure function of the checksum, so every helper stores the same bytes. */
static inline uint32_t mm_commit_of(uint32_t crc)
{
    uint32_t c = crc ^ 0x9E3779B9u;
    return c ? c : 0xFFFFFFFFu;
}
static inline uint64_t mm_committed(uint32_t crc) { return (uint64_t)crc | (uint64_t)mm_commit_of(crc) << 32; }
static inline uint64_t mm_span_of(uint64_t payload) { return (MM_RECORD_HEADER + payload + 7) & ~UINT64_C(7); }

/* ---- segment and lease headers in the log --------------------------------------------------------------------- */
#define MM_SEGMENT_MAGIC UINT64_C(0x67657343504D4D00) /* "\0MMPCseg" */
#define MM_LEASE_MAGIC 0x4C455345u

typedef struct mm_segment_header { /* at the start of each segment; the rest of its first block is zero */
    uint64_t magic;
    uint32_t crc;        /* crc32c of the bytes behind it */
    uint32_t generation;
    uint64_t number;
    uint64_t salt;       /* random; seeds the checksums of this generation */
    uint64_t epoch;      /* when it was opened */
    uint64_t stable;     /* newest durable epoch known then */
    uint8_t uuid[16];
} mm_segment_header;
_Static_assert(sizeof(mm_segment_header) == 64 && offsetof(mm_segment_header, uuid) == 48, "segment header is stored");

typedef struct mm_lease_header {
    uint32_t crc;        /* crc32c of the bytes behind it, seeded as records are */
    uint32_t magic;
    uint64_t address;    /* its own */
    uint32_t blocks;
    uint32_t generation; /* of the segment */
    uint64_t previous;   /* address of the slot's previous lease, or 0 */
    uint64_t filled;     /* bytes used in that one, its header included */
    uint64_t stable;     /* newest durable epoch known when it was taken */
} mm_lease_header;
_Static_assert(sizeof(mm_lease_header) == 48 && offsetof(mm_lease_header, previous) == 24, "lease header is stored");

/* ---- marks: two blocks a slot; the newest valid one anywhere is the durable epoch ------------------------------ */
#define MM_MARK_MAGIC UINT64_C(0x6B72616D43504D4D) /* "MMPCmark" */
#define MM_MARK_LEASES 250
typedef struct mm_mark {
    uint64_t magic;
    uint32_t crc;        /* crc32c of the block behind it, seeded with the uuid */
    uint32_t count;      /* leases listed */
    uint64_t epoch;
    uint32_t slot, block;
    struct { uint64_t address, fill; } leases[MM_MARK_LEASES];
    uint8_t zero[4096 - 32 - 16 * MM_MARK_LEASES];
} mm_mark;
_Static_assert(sizeof(mm_mark) == 4096 && offsetof(mm_mark, leases) == 32, "a mark is one block");

/* ---- control ---------------------------------------------------------------------------------------------------- */
#define MM_CONTROL_MAGIC UINT64_C(0x6C72746343504D4D)    /* "MMPCctrl" */
#define MM_CONTROL_REPLACED UINT64_C(0x656E6F6743504D4D) /* "MMPCgone": being replaced; the rest still says of which boot and files */

typedef struct mm_file_identity { uint64_t device, inode, birth; } mm_file_identity; /* birth in ns; 0 = unknown */

/* Frozen for all versions of the layout.  Written last by who made the volatile files, cleared first by who replaces them. */
typedef struct mm_identity {
    uint64_t magic;
    uint32_t crc;             /* crc32c of the bytes behind it */
    uint32_t layout_version;
    uint64_t fingerprint;     /* of sizes and offsets */
    uint8_t uuid[16];
    uint8_t boot_id[64];
    uint64_t open_id[2];      /* random, drawn by who made the files; `table`, `ids`, `rts` carry it too */
    mm_file_identity control, table, log, ids, rts;
    uint8_t zero[512 - 24 - 16 - 64 - 16 - 5 * 24];
} mm_identity;
_Static_assert(sizeof(mm_identity) == 512 && offsetof(mm_identity, boot_id) == 40 && offsetof(mm_identity, control) == 120, "frozen");

#define MM_LINE(name) union { at_word name; uint8_t name##_line[64]; }
typedef struct mm_globals { /* one word a cache line: each is changed by other processes at its own pace */
    MM_LINE(epoch);        /* fetch_add by flush and reclaim; the clock of pins, colours, stamps and marks */
    MM_LINE(stable);       /* CAS-max after a mark is durable */
    MM_LINE(failed);       /* set once, by who met a failed sync: errno */
    MM_LINE(log_size);     /* published bytes of `log`; CAS-max after fallocate */
    MM_LINE(table_pages);  /* published head words of `table` */
    MM_LINE(rts_pages);    /* published words of `rts` */
    MM_LINE(segments);     /* entries of the segment table ever used: CAS-max */
    MM_LINE(open_segment); /* generation:32 | number:32 of the segment that leases are taken from; 0 = none.  A hint */
    MM_LINE(free_segments);/* hint: entries that went back to FREE */
    MM_LINE(max_pid);      /* next page id never used; fetch_add */
    MM_LINE(free_ids);     /* hint: about how many bits of `ids` are set */
    MM_LINE(id_cursor);    /* hint: where the search in `ids` goes on */
    MM_LINE(sweep);        /* next id that the sweep looks at; SWEEP_DONE = nothing to do */
    MM_LINE(slots_used);   /* slots ever claimed: CAS-max */
    MM_LINE(clock);        /* transaction timestamps; fetch_add */
    MM_LINE(next_id);      /* generate_id */
    MM_LINE(reaped);       /* dead slots reaped so far */
    MM_LINE(helped);       /* commit words stored for others */
    MM_LINE(dirty);        /* newest LSN returned: CAS-max, so mostly only read */
} mm_globals;
_Static_assert(sizeof(mm_globals) == 19 * 64, "globals layout is shared");
#define MM_SWEEP_DONE UINT64_MAX

#define MM_SLOTS 1024u
#define MM_PINS 32u
#define MM_VIEWS 64u
enum mm_slot_state { MM_SLOT_FREE = 0, MM_SLOT_LIVE = 1 };

typedef struct mm_slot { /* written by its owner while its lock byte is held, and by a reaper that holds the byte */
    at_word state;        /* incarnation:56 | state:8 */
    at_word pid;          /* process id in its own namespace: for people */
    at_word opened;       /* CLOCK_REALTIME, ns: for people */
    at_word syncing;      /* epoch of a sync in progress, or 0 (a death in between is noticed by who reaps) */
    at_word spare0[4];
    at_word announce;     /* epoch loaded at the start of the publish in progress, or 0; counts as a pin */
    at_word lease;        /* address of the lease announced (before it is taken), or 0 */
    at_word lease_shape;  /* generation:32 | blocks:32 */
    at_word lease_fill;   /* bytes of it in use, header included */
    at_word operations;   /* publishes that succeeded */
    at_word conflicts;    /* lost CASes, retried or returned */
    at_word last_lease;   /* the one before, while the announced one is not begun (lease_fill 0) */
    at_word last_fill;
    at_word pins[MM_PINS];   /* epochs of running reads and of Tx; 0 = none */
    at_word views[MM_VIEWS]; /* segments that a zero-copy view holds: generation:32 | number + 1:32 */
    at_word spare2[16];
} mm_slot;
_Static_assert(sizeof(mm_slot) == 1024 && offsetof(mm_slot, announce) == 64 && offsetof(mm_slot, pins) == 128, "slot layout is shared");

/* Segment entry.  word = state:4 | generation:24 | owner slot, or epoch of retirement:36; changed only by CAS. */
enum mm_segment_state {
    MM_SEG_FREE = 0, MM_SEG_PREPARING = 1, MM_SEG_OPEN = 2, MM_SEG_SEALED = 3, MM_SEG_CLAIMED = 4, MM_SEG_RETIRED = 5,
    MM_SEG_PUNCHING = 6, MM_SEG_HOLE = 7, MM_SEG_EXTENT = 8
};
typedef struct mm_segment {
    at_word word;
    at_word fill;         /* generation:32 | blocks taken:32 */
    at_word live;         /* signed bytes in reachable records; only steers */
    at_word salt;         /* of this generation */
    at_word opened;       /* epoch */
    at_word spare[3];
} mm_segment;
_Static_assert(sizeof(mm_segment) == 64, "segment entry is shared");

static inline uint64_t mm_segword(uint64_t state, uint64_t generation, uint64_t rest)
{
    return state | (generation & 0xFFFFFF) << 4 | rest << 28;
}
static inline uint64_t mm_segword_state(uint64_t w) { return w & 15; }
static inline uint64_t mm_segword_generation(uint64_t w) { return w >> 4 & 0xFFFFFF; }
static inline uint64_t mm_segword_rest(uint64_t w) { return w >> 28; }

#define MM_CONTROL_GLOBALS 4096u
#define MM_CONTROL_WAITERS 8192u   /* reserved: futex words */
#define MM_CONTROL_SLOTS 12288u
#define MM_CONTROL_SEGMENTS (MM_CONTROL_SLOTS + MM_SLOTS * 1024u)
#define MM_MAX_SEGMENTS (UINT64_C(1) << 22)

/* ---- table, ids, rts: a block of header, then 64-bit words ------------------------------------------------------- */
#define MM_WORDS_MAGIC UINT64_C(0x7364726F43504D4D) /* "MMPCords" */
typedef struct mm_words_header {
    uint64_t magic;
    uint32_t layout_version, role; /* role: 1 table, 2 ids, 3 rts */
    uint64_t open_id[2];
} mm_words_header;
_Static_assert(sizeof(mm_words_header) == 32, "header of the word files");
#define MM_WORDS_OFFSET 4096u

/* Sizes and offsets folded to one number: two builds that differ refuse each other. */
uint64_t mm_layout_fingerprint(void);

#endif
