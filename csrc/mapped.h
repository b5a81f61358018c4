/* mapped.h - what this process keeps mapped of the log, and what it asks the kernel to read ahead (mapped.c, index.c). */
#ifndef MMPC_MAPPED_H
#define MMPC_MAPPED_H

#include "internal.h"

#define MM_GRANULE_SHIFT 21 /* 2 MiB: what one page of page table maps */
enum mm_granule_bit { MM_GRANULE_USED = 1, MM_GRANULE_MAPPED = 2 }; /* USED: since the clock's hand was here; MAPPED: counted */

int mm_mapped_begin(mm *m);  /* 0, or errno; before the first use of the log */
void mm_mapped_end(mm *m);
void mm_mapped_note(mm *m, uint64_t granule); /* it was not USED and MAPPED */

/* Bytes [address, address + n) of the log are about to be read or written.  One private load where they were before. */
static inline void mm_mapped_use(mm *m, uint64_t address, uint64_t n)
{
    if (!m->granules) return; /* a rebuild */
    for (uint64_t g = address >> MM_GRANULE_SHIFT, last = (address + n - 1) >> MM_GRANULE_SHIFT; g <= last; g++)
        if ((pv_load_byte(&m->granules[g]) & 3) != 3) mm_mapped_note(m, g);
}

/* Asks for bytes of the log, as far as there are any, and does not wait for them. */
void mm_fetch(const mm *m, uint64_t address, uint64_t n);
/* A record was waited for: more of what lies around it is asked for if that happened nearby just now. */
void mm_fetch_around(mm *m, uint64_t address);

/* index.c */
typedef struct mm_index {
    uint8_t bytes[MM_INDEX_MAX];
    uint32_t n;
} mm_index;
/* The index of a record on top of `prev`, of at most `room` bytes. */
void mm_index_make(const mm_view *prev, uint64_t room, mm_index *out);
/* Asks for what the chain needs below a record; how many blocks that are, so at least so many records. */
uint32_t mm_fetch_older(const mm *m, const mm_view *v);

#endif
