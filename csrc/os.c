/* os.c - the operating system: mapping, growth, sync, locks, identity.  Growth and sync have one function each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include "internal.h"

/* Maps a file far past its end: growth needs no remapping.  Nothing of it goes into a core dump. */
int mm_os_map(int fd, uint64_t window, enum mm_map how, uint8_t **out)
{
    int access = how == MM_MAP_READ ? PROT_READ : PROT_READ | PROT_WRITE, kind = how == MM_MAP_PRIVATE ? MAP_PRIVATE : MAP_SHARED;
    void *p = mmap(NULL, window, access, kind | MAP_NORESERVE, fd, 0);
    if (p == MAP_FAILED) return errno;
#ifdef MADV_DONTDUMP
    madvise(p, window, MADV_DONTDUMP);
#endif
    MM_DISK(mm_disk_map(fd, p, window));
    *out = p;
    return 0;
}

void mm_os_unmap(uint8_t *p, uint64_t window)
{
    if (!p) return;
    MM_DISK(mm_disk_unmap(p));
    munmap(p, window);
}

/* Allocates the bytes [from, to) of a file.  May be done twice and by several at once; never shrinks, never zero-fills by writes. */
int mm_os_grow(int fd, uint64_t from, uint64_t to)
{
    if (MM_POINT_FAILS() || MM_POINT_IS_FULL()) return ENOSPC;
    if (to <= from) return 0;
    for (;;) {
        MM_DISK(mm_disk_hold());
        int e = posix_fallocate(fd, (off_t)from, (off_t)(to - from));
        if (!e) MM_DISK(mm_disk_grew(fd, to));
        MM_DISK(mm_disk_release());
        if (e != EINTR) return e;
    }
}

/* Gives the bytes [from, to) of a file back to the file system; they read as zeros, the size stays. */
int mm_os_punch(int fd, uint64_t from, uint64_t to)
{
    if (MM_POINT_FAILS()) return EIO;
#ifdef FALLOC_FL_PUNCH_HOLE
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from)) ? errno : 0;
#else
    (void)fd, (void)from, (void)to;
    return ENOSYS;
#endif
}

/* Where the next byte at or behind `from` is that is no hole; all ones: none. */
uint64_t mm_os_data(int fd, uint64_t from)
{
#ifdef SEEK_DATA
    off_t at = lseek(fd, (off_t)from, SEEK_DATA); /* nobody reads this descriptor by position */
    return at < 0 ? (errno == ENXIO ? UINT64_MAX : from) : (uint64_t)at;
#else
    (void)fd;
    return from;
#endif
}

/* Where the next hole begins at or behind `from`, which is in the file; its end counts as one. */
uint64_t mm_os_hole(int fd, uint64_t from)
{
#ifdef SEEK_HOLE
    off_t at = lseek(fd, (off_t)from, SEEK_HOLE);
    if (at >= 0) return (uint64_t)at;
#else
    (void)from;
#endif
    return mm_os_size(fd);
}

int mm_os_truncate(int fd, uint64_t size)
{
    MM_DISK(mm_disk_hold());
    int e = ftruncate(fd, (off_t)size) ? errno : 0;
    if (!e) MM_DISK(mm_disk_cut(fd, size));
    MM_DISK(mm_disk_release());
    return e;
}

/* Maps pages for writing ahead of the first store; only saves faults. */
void mm_os_touch(void *p, uint64_t n)
{
#ifdef MADV_POPULATE_WRITE
    madvise(p, n, MADV_POPULATE_WRITE);
#else
    (void)p;
    (void)n;
#endif
}

/* Bypasses the page cache, and drops what it holds of these bytes, where the file system can; p, n and offset are whole blocks. */
int mm_os_write_direct(int fd, const void *p, uint64_t n, uint64_t offset)
{
    int flags = fcntl(fd, F_GETFL);
    bool direct = flags >= 0 && fcntl(fd, F_SETFL, flags | O_DIRECT) == 0;
    int e = mm_os_write_at(fd, p, n, offset);
    if (direct) fcntl(fd, F_SETFL, flags);
    return direct && e == EINVAL ? mm_os_write_at(fd, p, n, offset) : e;
}

/* Of [0, n) of a file that is mapped at p a block each `step` bytes will be looked at, and little else.  A hint: without it each look may wait for the next one, and
 * bring in as much as the device reads ahead (8 MiB on some), which is all of the file. */
void mm_os_look_here_and_there(void *p, uint64_t n, int fd, uint64_t step)
{
    madvise(p, n, MADV_RANDOM);
#ifdef __linux__
    for (uint64_t at = 0; at < n; at += step) (void)posix_fadvise(fd, (off_t)at, 4096, POSIX_FADV_WILLNEED);
#else
    (void)fd, (void)step;
#endif
}

/* All of [p, p + n) will be read, from its beginning. */
void mm_os_look_through(void *p, uint64_t n) { madvise(p, n, MADV_NORMAL); }

/* Begins to write out what is dirty, and waits for none of it; a hint.  What fails is told to who syncs, as with what the kernel writes by itself. */
void mm_os_write_out(int fd)
{
#ifdef __linux__
    sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
#else
    (void)fd;
#endif
}

/* The whole file system: also tells of pages that could not be written and whose file's own error somebody else was told. */
int mm_os_sync_filesystem(int fd)
{
#ifdef __linux__
    return syncfs(fd) ? errno : 0;
#else
    return mm_os_sync(fd);
#endif
}

int mm_os_sync(int fd)
{
    if (MM_POINT_FAILS()) return EIO;
#ifdef MMPC_DISK
    uint64_t begun = mm_disk_sync(fd, 0);
    int e = fdatasync(fd) ? errno : 0;
    if (!e && begun) mm_disk_sync(fd, begun);
    return e;
#else
    return fdatasync(fd) ? errno : 0;
#endif
}

/* Linux writes back, and waits for, the pages of the range alone, and then makes durable what the file system must know to read them (vfs_fsync_range with
 * datasync).  It tells of errors as a sync of the descriptor that was mapped does.  Elsewhere all of the file. */
int mm_os_sync_range(int fd, const uint8_t *mapped, uint64_t from, uint64_t to)
{
#ifdef __linux__
    if (MM_POINT_FAILS()) return EIO;
    (void)fd;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), begin = from / page * page;
    uint8_t *p = (uint8_t *)(uintptr_t)mapped + begin;
#ifdef MMPC_DISK
    uint64_t begun = mm_disk_sync(fd, 0);
    int e = msync(p, to - begin, MS_SYNC) ? errno : 0;
    if (!e && begun) mm_disk_synced(fd, begun, from, to);
    return e;
#else
    return msync(p, to - begin, MS_SYNC) ? errno : 0;
#endif
#else
    (void)mapped, (void)from, (void)to;
    return mm_os_sync(fd);
#endif
}

uint64_t mm_os_monotonic(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void mm_os_yield(void) { sched_yield(); }

void mm_os_nap(uint64_t ns)
{
    struct timespec t = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };
    nanosleep(&t, NULL);
}

/* Waits are bounded, so a lost wake-up, or none at all where there is no futex, costs time and nothing else.  A futex is a 32-bit word;
 * the low half of a little-endian 64-bit one is its first. */
void mm_os_wait(at_word *w, uint64_t seen, uint64_t ns)
{
    struct timespec t = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };
#ifdef __linux__
    syscall(SYS_futex, w, FUTEX_WAIT, (uint32_t)seen, &t, NULL, 0);
#else
    if (ns > 200000) t = (struct timespec){ 0, 200000 };
    if ((uint32_t)at_load_acquire(w) == (uint32_t)seen) nanosleep(&t, NULL);
#endif
}

void mm_os_wake(at_word *w)
{
#ifdef __linux__
    syscall(SYS_futex, w, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
#else
    (void)w;
#endif
}

/* Not by fstat: since Linux 6.13 who has been told a file's times makes the next store to it change them, and the sync after that write the inode
 * too (half as long again for a flush). */
uint64_t mm_os_size(int fd)
{
    off_t end = lseek(fd, 0, SEEK_END); /* nobody reads or writes these descriptors by position */
    return end < 0 ? 0 : (uint64_t)end;
}

uint64_t mm_os_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int mm_os_random(void *p, uint64_t n) { return getrandom(p, n, 0) == (ssize_t)n ? 0 : (errno ? errno : EIO); }

int mm_os_write_at(int fd, const void *p, uint64_t n, uint64_t offset)
{
    const uint8_t *b = p;
    while (n) {
        MM_DISK(mm_disk_hold());
        ssize_t k = pwrite(fd, b, n, (off_t)offset);
        if (k > 0) MM_DISK(mm_disk_wrote(fd, b, (uint64_t)k, offset));
        MM_DISK(mm_disk_release());
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return k ? errno : EIO;
        b += k;
        n -= (uint64_t)k;
        offset += (uint64_t)k;
    }
    return 0;
}

/* 0, an errno, or -1 when the file ends before. */
int mm_os_read_at(int fd, void *p, uint64_t n, uint64_t offset)
{
    uint8_t *b = p;
    while (n) {
        ssize_t k = pread(fd, b, n, (off_t)offset);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return errno;
        if (k == 0) return -1;
        b += k;
        n -= (uint64_t)k;
        offset += (uint64_t)k;
    }
    return 0;
}

/* Device, inode and birth time: an inode number alone is given to the next new file at once. */
int mm_os_identity(int fd, mm_file_identity *id)
{
    struct stat s;
    *id = (mm_file_identity){ 0, 0, 0 };
    if (fd < 0) return 0; /* an absent file is none that was recorded */
    if (fstat(fd, &s)) return errno;
    id->device = (uint64_t)s.st_dev;
    id->inode = (uint64_t)s.st_ino;
    id->birth = 0;
#ifdef STATX_BTIME
    struct statx x;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &x) == 0 && (x.stx_mask & STATX_BTIME))
        id->birth = (uint64_t)x.stx_btime.tv_sec * 1000000000u + x.stx_btime.tv_nsec;
#endif
    return 0;
}

/* A private page that a forked child finds zeroed, however it was forked. */
uint64_t *mm_os_wiped_page(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#ifdef MADV_WIPEONFORK
    madvise(p, 4096, MADV_WIPEONFORK);
#endif
    *(uint64_t *)p = MM_ALIVE;
    return p;
}

int mm_filesystem(int fd, uint64_t *type)
{
    struct statfs s;
    if (fstatfs(fd, &s)) return errno;
    *type = (uint64_t)(unsigned long)s.f_type & 0xFFFFFFFFu;
    return 0;
}

/* Open-file-description locks: released by the kernel at death, not lost when the process closes another descriptor of the file. */
static int range(int fd, uint64_t start, uint64_t length, short kind)
{
    struct flock l = { .l_type = kind, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)length };
    for (;;) {
        if (fcntl(fd, F_OFD_SETLK, &l) == 0) return MM_OK;
        if (errno != EINTR) return errno == EAGAIN || errno == EACCES ? MM_BUSY : MM_OS;
    }
}

int mm_lock_range(int fd, uint64_t start, uint64_t length) { return range(fd, start, length, F_WRLCK); }
int mm_unlock_range(int fd, uint64_t start, uint64_t length) { return range(fd, start, length, F_UNLCK); }

int mm_range_held(int fd, uint64_t start, uint64_t length)
{
    struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)length };
    return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

int mm_sync_fd(int fd) { return mm_os_sync(fd); }
