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

#define MM_FORMAT 5u            /* config, log, marks, snapshots: lasting */
#define MM_LAYOUT_VERSION 5u    /* control, table, ids, rts: rebuilt when they differ */
#define MM_BLOCK 4096u          /* a lease is a run of these */

/* ---- head word: 0 = unallocated, else parity:1 | tag:21 | address/8:42 -------------------------------------- */
#define MM_ADDR_BITS 42
#define MM_ADDR_MASK ((UINT64_C(1) << MM_ADDR_BITS) - 1)
#define MM_TAG_BITS 21
#define MM_MAX_ADDRESS (UINT64_C(1) << (MM_ADDR_BITS + 3))

static inline uint64_t mm_head_address(uint64_t head) { return (head & MM_ADDR_MASK) << 3; }
/* The number of set bits is even: a flipped bit never names an older record of the page, which would read well. */
static inline bool mm_head_sound(uint64_t head) { return __builtin_parityll(head) == 0; }
/* The successor of `head` that points to `address`: the tag counts the changes of this head (it wraps). */
static inline uint64_t mm_head_next(uint64_t head, uint64_t address)
{
    uint64_t tag = ((head >> MM_ADDR_BITS) + 1) & ((UINT64_C(1) << MM_TAG_BITS) - 1), h = tag << MM_ADDR_BITS | address >> 3;
    return h | (uint64_t)__builtin_parityll(h) << 63;
}

/* ---- record: 40 bytes of header, the payload, the index; 8-byte aligned ------------------------------------------- */
enum mm_kind { MM_KIND_BASE = 1, MM_KIND_DELTA = 2, MM_KIND_FREE = 3, MM_KIND_INTENT = 4 }; /* INTENT: of no page; its payload begins with mm_intent_header (intent.c) */
enum mm_flag { MM_FLAG_COMPRESSED = 1, MM_FLAG_INNER = 2, MM_FLAG_INDEX = 4, MM_FLAG_EXTENT = 8, MM_FLAG_TX = 16 };
#define MM_FLAGS_KNOWN (MM_FLAG_COMPRESSED | MM_FLAG_INNER | MM_FLAG_INDEX | MM_FLAG_EXTENT)
#define MM_FLAGS_OF_PAYLOAD (MM_FLAG_COMPRESSED | MM_FLAG_EXTENT) /* a record that is moved keeps them: its payload is not looked into */

typedef struct mm_record {
    at_word crc_commit;   /* crc32c:32 | commit:32 (high); one word, so a new checksum never meets an old commit word */
    uint64_t shape;       /* length:32 | depth:8 | kind:3 | flags:5 | tag:8 | inner, or bytes of the index:8 */
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
    return (uint64_t)length | (uint64_t)depth << 32 | (uint64_t)(kind & 7) << 40 | (uint64_t)(flags & 31) << 43
           | (uint64_t)tag << 48 | (uint64_t)inner << 56;
}
static inline uint32_t mm_shape_length(uint64_t s) { return (uint32_t)s; }
static inline uint8_t mm_shape_depth(uint64_t s) { return (uint8_t)(s >> 32); }
static inline uint8_t mm_shape_kind(uint64_t s) { return (uint8_t)(s >> 40 & 7); }
static inline uint8_t mm_shape_flags(uint64_t s) { return (uint8_t)(s >> 43 & 31); }
static inline uint8_t mm_shape_tag(uint64_t s) { return (uint8_t)(s >> 48); }
static inline uint8_t mm_shape_inner(uint64_t s) { return mm_shape_flags(s) & MM_FLAG_INDEX ? 0 : (uint8_t)(s >> 56); }
/* Bytes of the index, which follows the payload and is under the checksum too (index.c). */
static inline uint8_t mm_shape_index(uint64_t s) { return mm_shape_flags(s) & MM_FLAG_INDEX ? (uint8_t)(s >> 56) : 0; }
static inline uint64_t mm_shape_body(uint64_t s) { return (uint64_t)mm_shape_length(s) + mm_shape_index(s); }

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
static inline uint64_t mm_span_of(uint64_t body) { return (MM_RECORD_HEADER + body + 7) & ~UINT64_C(7); }
/* Bytes that a record takes in the log: a function of its shape alone. */
static inline uint64_t mm_shape_span(uint64_t shape) { return mm_span_of(mm_shape_body(shape)); }

#define MM_INDEX_MAX 32u /* bytes of an index, at most */

/* ---- segment and lease headers in the log --------------------------------------------------------------------- */
#define MM_SEGMENT_MAGIC UINT64_C(0x67657343504D4D00) /* "\0MMPCseg" */
#define MM_LEASE_MAGIC 0x4C455345u

typedef struct mm_segment_header { /* at the start of each segment; the rest of its first block is zero, but for mm_segment_retired */
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

/* In a sector of its own behind the header, one for even generations and one for odd ones: nothing in this generation of the segment is needed any
 * more once `epoch` is durable.  Durable before the segment is used again, so what overwrites it later is never taken for damage; also not the header itself, which may be torn then, or be on
 * the disk later than what the next generation says of its own retirement. */
typedef struct mm_segment_retired {
    uint64_t magic;
    uint32_t crc;        /* crc32c of the bytes behind it, seeded with the uuid */
    uint32_t generation;
    uint64_t number;
    uint64_t epoch;      /* loaded when the last of its pages had left */
} mm_segment_retired;
#define MM_RETIRED_MAGIC UINT64_C(0x6472747243504D4D) /* "MMPCrtrd" */
/* Even and odd ones take turns; 0 is none (peek.h). */
static inline uint64_t mm_generation_after(uint64_t generation) { return generation + 1; }
#define MM_GENERATION_LAST 0xFFFFFFu /* a segment of it is not used again: which of two is the later is told by their size, and none comes twice */
static inline uint64_t mm_retired_offset(uint64_t generation) { return 512 * (1 + generation % 2); }
_Static_assert(sizeof(mm_segment_retired) == 32 && offsetof(mm_segment_retired, epoch) == 24, "retirement is stored");

/* A word behind the header of the first segment: how many segments were ever retired.  It rises before a retirement is written, and marks know it.  Who copies
 * the files of a store in use, `log` before `marks`, finds that the mark knows of a retirement that the beginning of his log does not. */
#define MM_RETIREMENTS_OFFSET 256u

/* At the end of a segment that is used again, or was punched, beyond all leases; written before anything of the generation before is gone.  Who copies the log from its
 * beginning has either all that the generation before held, or this, which knows of the mark that let the segment be used again. */
typedef struct mm_segment_stamp {
    uint64_t magic;
    uint32_t crc;        /* crc32c of the bytes behind it, seeded with the uuid */
    uint32_t generation; /* that begins, or was punched */
    uint64_t number;
    uint64_t stable;     /* newest durable epoch known then */
    uint8_t zero[32];
} mm_segment_stamp;
#define MM_STAMP_MAGIC UINT64_C(0x706D747343504D4D) /* "MMPCstmp" */
_Static_assert(sizeof(mm_segment_stamp) == 64 && offsetof(mm_segment_stamp, stable) == 24, "stamp is stored");

typedef struct mm_lease_header {
    uint32_t crc;        /* crc32c of the bytes behind it up to `end`, seeded as records are */
    uint32_t magic;
    uint64_t address;    /* its own */
    uint32_t blocks;
    uint32_t generation; /* of the segment */
    uint64_t previous;   /* address of the slot's previous lease, or 0 */
    uint32_t filled;     /* bytes used in that one, its header included */
    uint32_t previous_generation; /* of its segment */
    uint64_t stable;     /* newest durable epoch known when it was taken */
    at_word end;         /* crc32c:32 | bytes used:32, or 0 while it is in use; stored once, after end_epoch */
    at_word end_epoch;   /* loaded after the last commit word: where a mark says as much, all that was used must be whole */
} mm_lease_header;
#define MM_LEASE_SUMMED 48u
_Static_assert(sizeof(mm_lease_header) == 64 && offsetof(mm_lease_header, previous) == 24 && offsetof(mm_lease_header, end) == MM_LEASE_SUMMED, "lease header is stored");

/* ---- extents: a large payload in a run of whole segments, contiguous, named by a small record ----------------------- */
#define MM_EXTENT_PIECE (UINT64_C(1) << 20) /* bytes of a payload under one checksum */
#define MM_EXTENT_MOST ((UINT64_C(1) << 30) + MM_BLOCK) /* bytes of a payload: 1 GiB and its encoding */
typedef struct mm_extent { /* payload of a record with MM_FLAG_EXTENT */
    uint64_t address;    /* of the run; the payload begins a block behind it */
    uint64_t length;     /* of the payload; behind it, 8-byte aligned, the crc32c of each piece */
    uint64_t salt;       /* of the run; seeds these checksums, with the address of each piece */
    uint32_t generation; /* of the run */
    uint32_t crc;        /* crc32c of the checksums of the pieces, seeded with salt and their address */
} mm_extent;
_Static_assert(sizeof(mm_extent) == 32 && offsetof(mm_extent, generation) == 24, "an extent is stored");

/* At the start of a run, in the place of a segment header, and, once the run is free again, of each of its segments.  It says of which generation all
 * of them are: nothing that names an earlier one is needed any more. */
typedef struct mm_run_header {
    uint64_t magic;
    uint32_t crc;        /* crc32c of the bytes behind it */
    uint32_t generation;
    uint64_t number;     /* of the first segment */
    uint64_t salt;
    uint64_t epoch;      /* when it was taken */
    uint64_t stable;     /* newest durable epoch known then */
    uint8_t uuid[16];
    uint64_t page;       /* whose payload it is (G16), or MM_MAX_PID: not known yet, or none any more */
    uint64_t segments;   /* this one and those behind it */
} mm_run_header;
#define MM_RUN_MAGIC UINT64_C(0x6E75722D43504D4D) /* "MMPC-run" */
_Static_assert(sizeof(mm_run_header) == 80 && offsetof(mm_run_header, page) == 64, "the header of a run is stored");

static inline uint64_t mm_extent_pieces(uint64_t length) { return (length + MM_EXTENT_PIECE - 1) / MM_EXTENT_PIECE; }
/* Bytes from the start of a run to where its checksums begin, and to where they end. */
static inline uint64_t mm_extent_table(uint64_t length) { return MM_BLOCK + ((length + 7) & ~UINT64_C(7)); }
static inline uint64_t mm_extent_span(uint64_t length) { return mm_extent_table(length) + 4 * mm_extent_pieces(length); }

/* ---- marks: two blocks a slot, eight sectors a block; the newest whole sector anywhere is the durable epoch ----- */
#define MM_MARK_MAGIC UINT64_C(0x6B72616D43504D4D) /* "MMPCmark" */
#define MM_SECTOR 512u
#define MM_MARK_SECTORS (MM_BLOCK / MM_SECTOR)
#define MM_SECTOR_LEASES 29u
#define MM_MARK_LEASES (MM_MARK_SECTORS * MM_SECTOR_LEASES)
typedef struct mm_lease_fill { uint64_t address; uint32_t fill, generation; } mm_lease_fill; /* in marks and intents */
_Static_assert(sizeof(mm_lease_fill) == 16, "entries of marks and intents are stored");
/* A mark fills all sectors of a block, each checksummed alone.  It is written after the log was synced, so one whole sector is enough:
 * torn by a crash or damaged in part, a mark still says its epoch.  A block without a whole and without a zero sector was damaged. */
typedef struct mm_mark_sector {
    uint64_t magic;
    uint32_t crc;        /* crc32c of the sector behind it, seeded with the uuid */
    uint32_t count;      /* leases listed in this sector */
    uint64_t epoch;
    uint32_t slot;
    uint32_t place;      /* block * 8 + sector */
    uint32_t segments;   /* of the log that were in use: a shorter log was cut */
    uint32_t retirements; /* low half of the word at MM_RETIREMENTS_OFFSET: a log that knows of fewer is older */
    uint64_t discarded;  /* newest colour that `config` says is discarded: one that says less is older */
    mm_lease_fill leases[MM_SECTOR_LEASES];
} mm_mark_sector;
_Static_assert(sizeof(mm_mark_sector) == 512 && offsetof(mm_mark_sector, leases) == 48, "a mark is eight sectors");
/* In the place of a block's first sector: `epoch` was durable, by an intent that carries what is not in its place in the log. */
#define MM_WITNESS_MAGIC UINT64_C(0x736E747743504D4D) /* "MMPCwtns" */
#define MM_MARKS_SIZE (MM_SLOTS * 2u * MM_BLOCK) /* of the file, from its creation on: a shorter one was cut */

/* ---- intents: the payload of a record of MM_KIND_INTENT (intent.c) -------------------------------------------------- */
typedef struct mm_intent_header { /* then `listed` mm_lease_fill, then `carried` times an mm_piece and the bytes of that lease from `from` to its fill */
    uint64_t stable;          /* newest durable epoch known */
    uint32_t listed, carried;
} mm_intent_header;
typedef struct mm_piece { uint32_t entry, from; } mm_piece; /* of the list; offset in the lease */
_Static_assert(sizeof(mm_intent_header) == 16 && sizeof(mm_piece) == 8, "an intent is stored");

/* ---- snapshot-<b>: the page table as it was; makes a recovery shorter, and nothing true or false ---------------- */
#define MM_SNAPSHOT_MAGIC UINT64_C(0x70616E7343504D4D) /* "MMPCsnap" */
#define MM_SNAPSHOT_CHUNK 65536u
typedef struct mm_snapshot_header { /* the rest of its block is zero; written last */
    uint64_t magic;
    uint32_t crc;        /* crc32c of the block behind it, seeded with the uuid */
    uint32_t format;
    uint64_t a;          /* a record that the heads do not know of has a colour >= a, or lies above b */
    uint64_t b;          /* the flush that made the heads durable: used for D >= b */
    uint64_t salt;       /* random; seeds the checksums of the chunks */
    uint64_t segments;   /* entries */
    uint64_t pages;      /* head words */
    uint64_t log_size;   /* published bytes of `log` */
    uint64_t log_taken;  /* bytes leased since the store was made */
    uint32_t segment_shift;
    uint32_t chunks_crc; /* crc32c of the checksums of the chunks */
    uint64_t created;    /* ns since 1970, for people */
} mm_snapshot_header;
_Static_assert(sizeof(mm_snapshot_header) == 88 && offsetof(mm_snapshot_header, segments) == 40, "snapshot header is stored");
enum mm_snapshot_segment { MM_SNAPSHOT_SCAN = 1, MM_SNAPSHOT_RUN = 2 }; /* open, or under a lease: records may have come after the copy; the first of a run */
typedef struct mm_snapshot_entry {
    uint64_t word;       /* generation:32 | enum mm_snapshot_segment:32; 0 = nothing there */
    uint64_t live;       /* bytes in reachable records, about; of a run: the page */
} mm_snapshot_entry;
_Static_assert(sizeof(mm_snapshot_entry) == 16, "snapshot entry is stored");

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
    MM_LINE(id_limit);     /* numbers below are handed out; CAS-max, never above a ceiling that is durable (ids.c) */
    MM_LINE(next_id);      /* generate_id, Tx: fetch_add */
    MM_LINE(reaped);       /* dead slots reaped so far */
    MM_LINE(helped);       /* commit words stored for others */
    MM_LINE(dirty);        /* newest LSN returned: CAS-max, so mostly only read */
    MM_LINE(leader);       /* who flushes for all: turn:48 | slot + 1:16; 0 = nobody.  A hint */
    MM_LINE(flushed);      /* futex (its low half): rises when a flush has ended */
    MM_LINE(waiting);      /* hint: how many came to wait since the last flush ended */
    MM_LINE(crowd);        /* hint: how many the last flush served, and came during it */
    MM_LINE(flush_time);   /* ns that a flush takes, about */
    MM_LINE(flush_begun);  /* CLOCK_MONOTONIC, ns: when the last flush began; periodic ones are elected by it */
    MM_LINE(suspect);      /* epoch of a sync that a dead process may have seen fail; 0 = none */
    MM_LINE(flushes);      /* syncs of the log */
    MM_LINE(shared);       /* flushes that another one's sync answered */
    MM_LINE(log_taken);    /* bytes ever leased: add */
    MM_LINE(log_snapshot); /* log_taken when the newest snapshot was begun */
    MM_LINE(snapshot_due); /* CLOCK_MONOTONIC, ns: until then somebody is taken to write one */
    MM_LINE(snapshots);    /* written in this life */
    MM_LINE(snapshot_epoch); /* epoch when the copy of the newest one began: what has an LSN below is in it */
    MM_LINE(cleaned);      /* segments emptied in this life */
    MM_LINE(moved);        /* bytes copied for that */
    MM_LINE(marked);       /* newest mark that was synced itself: CAS-max; stable may be newer (intent.c) */
    MM_LINE(mark_wanted);  /* epoch that only a mark will do for: CAS-max; all ones: for good */
    MM_LINE(life);         /* epoch that this life began with: segments that were opened before are of an earlier one */
    MM_LINE(id_ceiling);   /* of the newest COUNTER record that is committed, as far as somebody told: CAS-max, after id_lsn */
    MM_LINE(id_lsn);       /* stable >= this: it is durable.  CAS-max */
    MM_LINE(mover);        /* who may take of the reserve for copies: 2^20 ns when it last did:48 | slot + 1:16; 0 = nobody.  A hint */
} mm_globals;
_Static_assert(sizeof(mm_globals) == 41 * 64, "globals layout is shared");
#define MM_SWEEP_DONE UINT64_MAX

#define MM_SLOTS 1024u
#define MM_SLOTS_READY 16u /* their blocks of `control` and `marks` are allocated at creation: attaching and flushing need no room */
#define MM_PINS 32u
#define MM_VIEWS 64u
enum mm_slot_state { MM_SLOT_FREE = 0, MM_SLOT_LIVE = 1 };

typedef struct mm_slot { /* written by its owner while its lock byte is held, and by a reaper that holds the byte */
    at_word state;        /* incarnation:56 | state:8 */
    at_word pid;          /* process id in its own namespace: for people */
    at_word opened;       /* CLOCK_REALTIME, ns: for people */
    at_word syncing;      /* epoch of a sync in progress, or 0 (a death in between is noticed by who reaps) */
    at_word helping;      /* calls that store a commit word for somebody else just now */
    at_word last_shape;   /* of last_lease: generation:32 | blocks:32 */
    at_word lease_durable; /* turn:32 | bytes of the lease that a flush made durable:32; the turn rises with each lease (intent.c) */
    at_word spare0;
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

/* Segment entry.  word = state:4 | generation:24 | owner slot:36; changed only by CAS (the table of transitions: segment.c). */
enum mm_segment_state {
    MM_SEG_FREE = 0, MM_SEG_PREPARING = 1, MM_SEG_OPEN = 2, MM_SEG_SEALED = 3, MM_SEG_CLAIMED = 4, MM_SEG_RETIRED = 5,
    MM_SEG_PUNCHING = 6, MM_SEG_HOLE = 7, MM_SEG_EXTENT = 8, MM_SEG_STATES
};
typedef struct mm_segment {
    at_word word;
    at_word fill;         /* generation:32 | blocks taken:32.  First of a run: segments instead of blocks */
    at_word live;         /* signed bytes in reachable records; only steers.  First of a run: its page */
    at_word salt;         /* of this generation */
    at_word opened;       /* epoch */
    at_word written;      /* epoch when its last lease ended that is no slot's any more, or MM_WRITTEN_ALWAYS: CAS-max */
    at_word since;        /* RETIRED: epoch when its last page had left and it had said so.  Written by its cleaner before the CAS.  HOLE, once the first of a run: not to be used before this is durable */
    at_word looked;       /* hint: epoch when a cleaner last read it through.  First of a run: bytes allocated */
} mm_segment;
_Static_assert(sizeof(mm_segment) == 64, "segment entry is shared");
#define MM_WRITTEN_ALWAYS UINT64_MAX /* somebody helped a record in it: no epoch bounds when that commit word was stored */

typedef struct mm_epoch_sample { /* for people: the epoch was stepped to this at that time */
    at_word epoch;
    at_word time;         /* CLOCK_REALTIME, ns; 0 = none */
} mm_epoch_sample;
_Static_assert(sizeof(mm_epoch_sample) == 16, "a row of samples is shared");

static inline uint64_t mm_segword(uint64_t state, uint64_t generation, uint64_t rest)
{
    return state | (generation & 0xFFFFFF) << 4 | rest << 28;
}
static inline uint64_t mm_segword_state(uint64_t w) { return w & 15; }
static inline uint64_t mm_segword_generation(uint64_t w) { return w >> 4 & 0xFFFFFF; }
static inline uint64_t mm_segword_rest(uint64_t w) { return w >> 28; }
/* What the rest of the word says of a run.  Its first segment: MM_REST_RUN and the slot that is at it, or MM_SLOTS; the others, once they are EXTENT:
 * MM_REST_MEMBER and the number of the first. */
#define MM_REST_RUN (UINT64_C(1) << 34)
#define MM_REST_MEMBER (UINT64_C(1) << 35)

#define MM_CONTROL_GLOBALS 4096u
#define MM_CONTROL_TIMES 8192u     /* MM_TIME_ROWS rows of MM_TIME_SAMPLES samples (times.c) */
#define MM_TIME_ROWS 16u
#define MM_TIME_SAMPLES 16u
#define MM_CONTROL_SLOTS 12288u
#define MM_CONTROL_SEGMENTS (MM_CONTROL_SLOTS + MM_SLOTS * 1024u)
_Static_assert(MM_TIME_ROWS * MM_TIME_SAMPLES * sizeof(mm_epoch_sample) == MM_BLOCK, "samples fill their block");
#define MM_MAX_SEGMENTS (UINT64_C(1) << 22)
#define MM_CONTROL_FRESH (MM_CONTROL_SEGMENTS + MM_BLOCK) /* bytes of the file, at least */

/* ---- table, ids, rts: a block of header, then 64-bit words ------------------------------------------------------- */
#define MM_WORDS_MAGIC UINT64_C(0x7364726F43504D4D) /* "MMPCords" */
typedef struct mm_words_header {
    uint64_t magic;
    uint32_t layout_version, role; /* role: 1 table, 2 ids, 3 rts */
    uint64_t open_id[2];
} mm_words_header;
_Static_assert(sizeof(mm_words_header) == 32, "header of the word files");
#define MM_WORDS_OFFSET 4096u

/* ---- metrics: a block of header, then a row for each slot (metrics.h); nothing depends on it ---------------------- */
#define MM_COUNTERS 62u
#define MM_HISTOGRAMS 24u
#define MM_METRICS_FORM 2u /* what the numbers mean: another one is counted apart */
#define MM_BUCKETS 332u /* below 16 one value each, then eight to a doubling, up to 2^43; larger values are in the last one */

typedef struct mm_histogram_row {
    at_word sum;
    at_word greatest;
    at_word least;        /* all ones minus it; 0: no value yet */
    at_word spare;
    at_word buckets[MM_BUCKETS];
} mm_histogram_row;
typedef struct mm_metrics_row { /* of a slot */
    at_word counters[MM_COUNTERS];
    at_word incarnation;  /* of the slot, that `base` is of; written after it */
    at_word spare;
    at_word base[MM_COUNTERS + 2]; /* the counters as this owner of the slot found them */
    mm_histogram_row histograms[MM_HISTOGRAMS];
} mm_metrics_row;
_Static_assert(sizeof(mm_histogram_row) == 2688 && sizeof(mm_metrics_row) == 65536, "rows are shared");

typedef struct mm_metrics_header { /* the rest of its block is zero */
    uint64_t magic;
    uint64_t fingerprint; /* of the names and their order */
    uint64_t open_id[2];  /* of `control` */
    uint64_t created;     /* CLOCK_REALTIME, ns */
} mm_metrics_header;
#define MM_METRICS_MAGIC UINT64_C(0x7274656D43504D4D) /* "MMPCmetr" */
#define MM_METRICS_ROWS 4096u
#define MM_METRICS_WINDOW (MM_METRICS_ROWS + MM_SLOTS * sizeof(mm_metrics_row))
_Static_assert(sizeof(mm_metrics_header) == 40, "header of metrics");

/* Sizes and offsets folded to one number: two builds that differ refuse each other. */
uint64_t mm_layout_fingerprint(void);

#endif
