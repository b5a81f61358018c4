/* disk.h - the seam for losses of power: every store to shared memory, every write and every sync of a file is written down.
 *
 * In a release build it is nothing.  Built with -DMMPC_DISK each store takes a lock that all processes share, is done, and is appended
 * to a trace as (file, offset, bytes): the trace is the total order of all stores of all processes.  tests/support/disk_model.py computes
 * from it what a power loss can leave on the disk.  The state of disk.c is the only mutable global of that build.
 */
#ifndef MMPC_DISK_H
#define MMPC_DISK_H

#include <stdint.h>

enum mm_disk_kind {
    MM_DISK_STORE = 1,      /* the bytes that follow stand at `offset` of `file` (an inode number) */
    MM_DISK_GROW = 2,       /* the file reaches `offset` at least */
    MM_DISK_CUT = 3,        /* the file ends at `offset` now, and may have been shorter */
    MM_DISK_SYNC_BEGIN = 4, /* of a file, or of the directory; `offset` is 0 */
    MM_DISK_SYNC_END = 5,   /* `offset` is where in the trace its beginning stands; two words may follow: from, to: it was of these bytes alone */
    MM_DISK_CREATE = 6,     /* the directory has the name that follows, for `file` */
    MM_DISK_RENAME = 7,     /* two names follow, each with a zero byte behind it */
    MM_DISK_UNLINK = 8,     /* the name that follows is gone */
    MM_DISK_NOTE = 9        /* what the driver has to say */
};

typedef struct mm_disk_event { /* then `length` bytes, then zeros up to a multiple of 8 */
    uint32_t kind, length;
    uint64_t file, offset;
    uint32_t process, zero;
} mm_disk_event;

#ifdef MMPC_DISK
void mm_disk_copied(void *to, const void *from, uint64_t n); /* a copy in pieces, so that it can be torn */
void mm_disk_written(const void *p, uint64_t n);             /* the same for bytes that plain stores wrote */
void mm_disk_stored(const void *p, uint64_t n);              /* one store, inside hold and release */
void mm_disk_faulted(void);                                  /* a fault of this thread: inside, nobody else would ever get on */
void mm_disk_map(int fd, void *p, uint64_t n);
void mm_disk_unmap(void *p);
void mm_disk_wrote(int fd, const void *p, uint64_t n, uint64_t offset);
void mm_disk_grew(int fd, uint64_t to);
void mm_disk_cut(int fd, uint64_t size);
uint64_t mm_disk_sync(int fd, uint64_t begun); /* begun 0: it begins; returns what its end is to be told */
uint64_t mm_disk_synced(int fd, uint64_t begun, uint64_t from, uint64_t to); /* the end of one of these bytes alone */
#define MM_DISK(call) call
#else
#define MM_DISK(call) ((void)0)
#endif

/* The trace goes to [area, area + size): zeroed shared memory, made before the processes fork.  NULL: nothing is recorded any more, by
 * this process.  Returns 0, or -1 in a build without. */
int mm_disk_start(void *area, uint64_t size);
/* Where the next event will stand; 0: nothing is recorded. */
uint64_t mm_disk_position(void);
/* Between these two nobody else stores; the same thread may hold it again. */
void mm_disk_hold(void);
void mm_disk_release(void);
/* An event of the caller's; returns its position. */
uint64_t mm_disk_note(uint32_t kind, uint64_t file, uint64_t offset, const void *p, uint64_t n);
/* This process dies right after its n-th event from now on (in `file`, unless that is 0), by SIGKILL; n = 0: it lives. */
void mm_disk_die(uint64_t n, uint64_t file);
/* This process sleeps up to `us` after one event in `one_in`, and eight times as often after one in `file`. */
void mm_disk_jitter(uint64_t seed, uint32_t one_in, uint32_t us, uint64_t file);

#endif
