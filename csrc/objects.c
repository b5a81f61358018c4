/* objects.c - see objects.h. */
#include "objects.h"

#include <stdlib.h>
#include <string.h>

#define MM_OBJECTS_FIRST_SHIFT (64 - 6) /* 64 slots */
#define MM_OBJECTS_LAST_SHIFT (64 - 31) /* slot numbers are 32 bits */

static uint64_t slots_of(const mm_objects *o) { return o->slots ? UINT64_C(1) << (64 - o->shift) : 0; }
static uint64_t charge_of(uint64_t size) { return size + MM_OBJECT_OVERHEAD; }

void mm_objects_init(mm_objects *o, uint64_t capacity)
{
    memset(o, 0, sizeof *o);
    o->capacity = capacity;
    o->shift = MM_OBJECTS_FIRST_SHIFT;
    o->newest = o->oldest = o->hand = MM_OBJECT_NONE;
}

/* ---- the queue ---------------------------------------------------------------------------------------------------- */

static void enqueue(mm_objects *o, uint32_t i)
{
    o->slots[i].newer = MM_OBJECT_NONE;
    o->slots[i].older = o->newest;
    if (o->newest != MM_OBJECT_NONE) o->slots[o->newest].newer = i;
    else o->oldest = i;
    o->newest = i;
}

static void dequeue(mm_objects *o, uint32_t i)
{
    mm_object *e = &o->slots[i];
    if (o->hand == i) o->hand = e->newer;
    if (e->newer != MM_OBJECT_NONE) o->slots[e->newer].older = e->older;
    else o->newest = e->older;
    if (e->older != MM_OBJECT_NONE) o->slots[e->older].newer = e->newer;
    else o->oldest = e->newer;
}

/* The entry of slot `from` lies in slot `to` now: its neighbours, the ends and the hand follow. */
static void relink(mm_objects *o, uint32_t from, uint32_t to)
{
    mm_object *e = &o->slots[to];
    if (e->newer != MM_OBJECT_NONE) o->slots[e->newer].older = to;
    else o->newest = to;
    if (e->older != MM_OBJECT_NONE) o->slots[e->older].newer = to;
    else o->oldest = to;
    if (o->hand == from) o->hand = to;
}

/* ---- the table ---------------------------------------------------------------------------------------------------- */

static uint32_t empty_slot(const mm_objects *o, uint64_t pid)
{
    uint32_t mask = mm_objects_mask(o), i = mm_objects_home(o, pid);
    while (o->slots[i].object) i = (i + 1) & mask;
    return i;
}

/* Takes an entry out and closes the gap: what was pushed past it moves back, so no tombstones are needed. */
static void *take(mm_objects *o, uint32_t hole)
{
    uint32_t mask = mm_objects_mask(o);
    void *object = o->slots[hole].object;
    dequeue(o, hole);
    o->bytes -= charge_of(o->slots[hole].size);
    o->count--;
    for (uint32_t i = (hole + 1) & mask; o->slots[i].object; i = (i + 1) & mask) {
        uint32_t home = mm_objects_home(o, o->slots[i].pid);
        if (((i - home) & mask) < ((i - hole) & mask)) continue; /* at home beyond the hole */
        o->slots[hole] = o->slots[i];
        relink(o, i, hole);
        hole = i;
    }
    o->slots[hole].object = NULL;
    return object;
}

/* Copies everything, in the order of the queue, to a table of 2^(64 - shift) slots. */
static bool resize(mm_objects *o, uint32_t shift)
{
    mm_objects next = *o;
    void *memory = NULL;
    size_t bytes = ((size_t)1 << (64 - shift)) * sizeof(mm_object);
    if (posix_memalign(&memory, sizeof(mm_object), bytes)) return false;
    memset(memory, 0, bytes);
    next.slots = memory;
    next.shift = shift;
    next.newest = next.oldest = next.hand = MM_OBJECT_NONE;
    for (uint32_t i = o->oldest; o->slots && i != MM_OBJECT_NONE; i = o->slots[i].newer) {
        uint32_t to = empty_slot(&next, o->slots[i].pid);
        next.slots[to] = o->slots[i];
        enqueue(&next, to);
        if (o->hand == i) next.hand = to;
    }
    free(o->slots);
    *o = next;
    return true;
}

/* Room for one more entry at a load of at most 3/4; a table that has become far too large shrinks. */
static bool adapt(mm_objects *o)
{
    uint64_t slots = slots_of(o), after = (uint64_t)o->count + 1;
    if (!slots) return resize(o, MM_OBJECTS_FIRST_SHIFT);
    if (after * 4 > slots * 3) return o->shift > MM_OBJECTS_LAST_SHIFT && resize(o, o->shift - 1);
    if (after * 16 < slots && o->shift < MM_OBJECTS_FIRST_SHIFT) (void)resize(o, o->shift + 1);
    return true;
}

/* ---- entries ------------------------------------------------------------------------------------------------------ */

static bool fits(const mm_objects *o, uint64_t pid, uint64_t size)
{
    const mm_object *e = mm_objects_find(o, pid);
    uint64_t others = o->bytes - (e ? charge_of(e->size) : 0);
    return others + charge_of(size) <= o->capacity;
}

static void *evict(mm_objects *o)
{
    uint32_t i = o->hand != MM_OBJECT_NONE ? o->hand : o->oldest;
    while (o->slots[i].visited) {
        o->slots[i].visited = 0;
        i = o->slots[i].newer != MM_OBJECT_NONE ? o->slots[i].newer : o->oldest;
    }
    o->hand = i;
    o->evictions++;
    return take(o, i);
}

void *mm_objects_make_room(mm_objects *o, uint64_t pid, uint64_t size)
{
    if (!o->count || mm_objects_too_large(o, size) || fits(o, pid, size)) return NULL;
    return evict(o);
}

/* A page that is read again after a change was used: the bit is set, its place in the queue stays. */
static void *update(mm_objects *o, mm_object *e, const mm_object *entry)
{
    void *previous = e->object;
    o->bytes += entry->size - e->size;
    e->head = entry->head;
    e->generation = entry->generation;
    e->wts = entry->wts;
    e->size = entry->size;
    e->object = entry->object;
    e->visited = 1;
    return previous;
}

bool mm_objects_put(mm_objects *o, const mm_object *entry, void **previous)
{
    mm_object *e = mm_objects_find(o, entry->pid);
    *previous = NULL;
    if ((e && e->wts > entry->wts) || mm_objects_too_large(o, entry->size) || !fits(o, entry->pid, entry->size)) return false;
    if (e) {
        *previous = update(o, e, entry);
        return true;
    }
    if (!adapt(o)) return false;
    uint32_t i = empty_slot(o, entry->pid);
    o->slots[i] = *entry;
    o->slots[i].visited = 0;
    enqueue(o, i);
    o->count++;
    o->bytes += charge_of(entry->size);
    return true;
}

void *mm_objects_remove(mm_objects *o, uint64_t pid)
{
    mm_object *e = mm_objects_find(o, pid);
    return e ? take(o, (uint32_t)(e - o->slots)) : NULL;
}

void mm_objects_detach(mm_objects *o, mm_objects *out)
{
    uint64_t misses = o->misses, evictions = o->evictions;
    *out = *o;
    mm_objects_init(o, out->capacity);
    o->misses = misses;
    o->evictions = evictions;
}

void *mm_objects_pop(mm_objects *o)
{
    if (o->count) return take(o, o->newest);
    free(o->slots);
    mm_objects_init(o, o->capacity);
    return NULL;
}
