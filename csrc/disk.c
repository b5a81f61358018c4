/* disk.c - the trace of all stores, writes and syncs (see disk.h).
 *
 * The lock is a word of the trace's own memory, held for one store.  Who dies inside would stop everybody: mm_disk_die acts after the
 * release, and nothing else kills a process that records.
 */
#define _GNU_SOURCE
#include "atomics.h"

#ifdef MMPC_DISK
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAPS 256
#define HEADER 64u          /* lock and fill, each a word; the events begin behind them */
#define SMALL 256u          /* copies up to this are recorded word by word */
#define PIECE 128u          /* larger ones in pieces of this */
#define SECTOR 512u

typedef struct area { pv_word owner, used; } area;

static struct {
    area *area;
    uint64_t size;
    struct { uint8_t *p; uint64_t n, file; } maps[MAPS];
    uint32_t depth; /* of the owner */
    uint64_t die, die_file, random, jitter_file, last_file;
    uint32_t one_in, us, events;
} disk;

static void give_up(const char *what)
{
    fprintf(stderr, "disk trace: %s\n", what);
    abort();
}

/* ---- the lock ---------------------------------------------------------------------------------------------------------- */

void mm_disk_hold(void)
{
    if (!disk.area) return;
    uint64_t mine = (uint64_t)gettid(), free = 0;
    if (pv_load(&disk.area->owner) == mine) {
        disk.depth++;
        return;
    }
    for (uint32_t tries = 0; !pv_cas(&disk.area->owner, &free, mine); free = 0)
        if (++tries % 64 == 0) sched_yield();
    disk.depth = 1;
    disk.events = 0;
}

static uint64_t draw(void)
{
    disk.random ^= disk.random << 13;
    disk.random ^= disk.random >> 7;
    disk.random ^= disk.random << 17;
    return disk.random;
}

/* Outside the lock: the others get on meanwhile. */
static void linger(void)
{
    if (!disk.one_in) return;
    uint64_t odds = disk.jitter_file && disk.last_file == disk.jitter_file ? (disk.one_in + 7) / 8 : disk.one_in;
    if (draw() % odds == 0) usleep((useconds_t)(draw() % (disk.us + 1)));
}

void mm_disk_release(void)
{
    if (!disk.area || --disk.depth) return;
    uint32_t events = disk.events;
    bool dies = disk.die == UINT64_MAX;
    pv_store(&disk.area->owner, 0);
    if (dies) kill(getpid(), SIGKILL);
    if (events) linger();
}

/* A store that cannot be made is no part of any scenario. */
void mm_disk_faulted(void)
{
    if (!disk.area || pv_load(&disk.area->owner) != (uint64_t)gettid()) return;
    pv_store(&disk.area->owner, 0);
    give_up("a fault while a store was recorded");
}

/* ---- events -------------------------------------------------------------------------------------------------------------- */

/* The caller holds the lock. */
static uint64_t append(uint32_t kind, uint64_t file, uint64_t offset, const void *p, uint64_t n)
{
    uint64_t at = pv_load_relaxed(&disk.area->used) + HEADER, span = sizeof(mm_disk_event) + ((n + 7) & ~UINT64_C(7));
    if (at + span > disk.size) give_up("the memory for the trace is full");
    mm_disk_event e = { kind, (uint32_t)n, file, offset, (uint32_t)getpid(), 0 };
    memcpy((uint8_t *)disk.area + at, &e, sizeof e);
    if (n) memcpy((uint8_t *)disk.area + at + sizeof e, p, n);
    pv_store(&disk.area->used, at + span - HEADER);
    disk.events++;
    disk.last_file = file;
    if (disk.die && disk.die != UINT64_MAX && (!disk.die_file || disk.die_file == file) && --disk.die == 0) disk.die = UINT64_MAX;
    return at;
}

static uint64_t inode(int fd)
{
    struct stat s;
    if (fstat(fd, &s)) give_up("a descriptor is closed");
    return (uint64_t)s.st_ino;
}

/* Where `p` lies: in a mapping of a file, or the process stores to memory that it did not map through mm_os_map. */
void mm_disk_stored(const void *p, uint64_t n)
{
    const uint8_t *b = p;
    if (!disk.area || !p) return;
    for (uint32_t i = 0; i < MAPS; i++)
        if (disk.maps[i].p && b >= disk.maps[i].p && b < disk.maps[i].p + disk.maps[i].n) {
            append(MM_DISK_STORE, disk.maps[i].file, (uint64_t)(b - disk.maps[i].p), p, n);
            return;
        }
    give_up("a store outside of all mappings");
}

static uint64_t piece(uint64_t n, uint64_t left)
{
    uint64_t most = n <= SMALL ? 8 : PIECE;
    return left < most ? left : most;
}

void mm_disk_copied(void *to, const void *from, uint64_t n)
{
    for (uint64_t done = 0, k; done < n; done += k) {
        k = piece(n, n - done);
        mm_disk_hold();
        memcpy((uint8_t *)to + done, (const uint8_t *)from + done, k);
        mm_disk_stored((uint8_t *)to + done, k);
        mm_disk_release();
    }
}

/* At once, because the bytes are there already: a death in between would leave some that the trace does not tell of. */
void mm_disk_written(const void *p, uint64_t n)
{
    mm_disk_hold();
    for (uint64_t done = 0, k; done < n; done += k) {
        k = piece(n, n - done);
        mm_disk_stored((const uint8_t *)p + done, k);
    }
    mm_disk_release();
}

/* ---- files: the caller holds the lock over the system call and this --------------------------------------------------------- */

void mm_disk_map(int fd, void *p, uint64_t n)
{
    for (uint32_t i = 0; i < MAPS; i++)
        if (!disk.maps[i].p) {
            disk.maps[i].p = p;
            disk.maps[i].n = n;
            disk.maps[i].file = inode(fd);
            return;
        }
    give_up("too many mappings");
}

void mm_disk_unmap(void *p)
{
    for (uint32_t i = 0; i < MAPS; i++)
        if (disk.maps[i].p == p) disk.maps[i].p = NULL;
}

/* Sector by sector: each reaches the disk by itself.  The page may be on its way there while the kernel copies into it, so one sector of
 * a write can be torn inside. */
void mm_disk_wrote(int fd, const void *p, uint64_t n, uint64_t offset)
{
    const uint8_t *b = p;
    if (!disk.area) return;
    uint64_t torn = draw() % (n / SECTOR + 1), file = inode(fd);
    for (uint64_t k, i = 0; n; b += k, offset += k, n -= k, i++) {
        k = SECTOR - offset % SECTOR < n ? SECTOR - offset % SECTOR : n;
        uint64_t words = draw() % 2 ? k / 8 : k / 64 + 1; /* most of what changes stands at the beginning */
        uint64_t half = i == torn && k > 8 ? draw() % words * 8 : 0;
        if (half) append(MM_DISK_STORE, file, offset, b, half);
        append(MM_DISK_STORE, file, offset + half, b + half, k - half);
    }
}

void mm_disk_grew(int fd, uint64_t to)
{
    if (disk.area) append(MM_DISK_GROW, inode(fd), to, NULL, 0);
}

void mm_disk_cut(int fd, uint64_t size)
{
    if (disk.area) append(MM_DISK_CUT, inode(fd), size, NULL, 0);
}

/* A sync guarantees what memory held when it began. */
uint64_t mm_disk_sync(int fd, uint64_t begun)
{
    if (!disk.area) return 0;
    return mm_disk_note(begun ? MM_DISK_SYNC_END : MM_DISK_SYNC_BEGIN, inode(fd), begun, NULL, 0);
}

uint64_t mm_disk_synced(int fd, uint64_t begun, uint64_t from, uint64_t to)
{
    return mm_disk_note(MM_DISK_SYNC_END, inode(fd), begun, (uint64_t[]){ from, to }, 2 * sizeof from);
}

/* ---- the driver's side ---------------------------------------------------------------------------------------------------------- */

int mm_disk_start(void *p, uint64_t size)
{
    disk.area = p;
    disk.size = size;
    disk.depth = 0;
    if (!disk.random) disk.random = 1;
    return 0;
}

uint64_t mm_disk_position(void) { return disk.area ? pv_load(&disk.area->used) + HEADER : 0; }

uint64_t mm_disk_note(uint32_t kind, uint64_t file, uint64_t offset, const void *p, uint64_t n)
{
    if (!disk.area) return 0;
    mm_disk_hold();
    uint64_t at = append(kind, file, offset, p, n);
    mm_disk_release();
    return at;
}

void mm_disk_die(uint64_t n, uint64_t file)
{
    disk.die = n;
    disk.die_file = file;
}

void mm_disk_jitter(uint64_t seed, uint32_t one_in, uint32_t us, uint64_t file)
{
    disk.random = seed ? seed : 1;
    disk.one_in = one_in;
    disk.us = us;
    disk.jitter_file = file;
}
#else
int mm_disk_start(void *area, uint64_t size)
{
    (void)area;
    (void)size;
    return -1;
}

uint64_t mm_disk_position(void) { return 0; }
void mm_disk_hold(void) { }
void mm_disk_release(void) { }

uint64_t mm_disk_note(uint32_t kind, uint64_t file, uint64_t offset, const void *p, uint64_t n)
{
    (void)kind;
    (void)file;
    (void)offset;
    (void)p;
    (void)n;
    return 0;
}

void mm_disk_die(uint64_t n, uint64_t file)
{
    (void)n;
    (void)file;
}

void mm_disk_jitter(uint64_t seed, uint32_t one_in, uint32_t us, uint64_t file)
{
    (void)seed;
    (void)one_in;
    (void)us;
    (void)file;
}
#endif
