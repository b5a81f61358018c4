/* failpoint.h - named places at steps of I/O where a test makes this process fail, die or stop.
 *
 * In every build, and nothing in the path of a verb that needs no I/O: where nothing is armed a place is one load of a private word.  The state
 * is the caller's, private memory of the process (mmpc/failpoints.py), so the core has none of its own; a forked child has a copy.
 */
#ifndef MMPC_FAILPOINT_H
#define MMPC_FAILPOINT_H

#include <stdint.h>

/* The names and what each is for stand in mmpc/failpoints.py, in this order; a test compares them. */
enum mm_failpoint_place {
    MM_FAIL_INITIAL_ALLOCATION = 0,
    MM_FAIL_INITIAL_ALLOCATION_POST = 1,
    MM_FAIL_BUFFER_WRITE = 2,
    MM_FAIL_BUFFER_WRITE_POST = 3,
    MM_FAIL_TRAILER_WRITE = 4,
    MM_FAIL_TRAILER_WRITE_POST = 5,
    MM_FAIL_SNAP_WRITE = 6,
    MM_FAIL_SNAP_WRITE_LEN = 7,
    MM_FAIL_SNAP_WRITE_CRC = 8,
    MM_FAIL_SNAP_WRITE_POST = 9,
    MM_FAIL_SEGMENT_OPEN = 10,
    MM_FAIL_LOG_GROWTH = 11,
    MM_FAIL_TABLE_GROWTH = 12,
    MM_FAIL_LOG_PUNCH = 13,
    MM_FAIL_LOG_TRUNCATE = 14,
    MM_FAIL_SLOT_CLAIM = 15,
    MM_FAIL_MARK_PREPARE = 16
};

enum mm_failpoint_action { MM_FAIL_OFF = 0, MM_FAIL_ERROR = 1, MM_FAIL_KILL = 2, MM_FAIL_STOP = 3, MM_FAIL_EXIT = 4 };

typedef struct mm_failpoint { /* words that several threads change: failpoint.c */
    uint64_t action;          /* enum mm_failpoint_action; set last, cleared first */
    uint64_t error;           /* errno, or the exit status */
    uint64_t skip, left;      /* visits that pass first; visits after those that do not */
    uint64_t visits, hits;    /* while anything is armed */
} mm_failpoint;

typedef struct mm_failpoints {
    uint64_t armed; /* how many are */
    mm_failpoint at[64];
} mm_failpoints;

/* A visit of place `i`: 0, or an errno; or this process has ended, or was stopped and goes on. */
int mm_fail_at(mm_failpoints *f, uint32_t i);

#endif
