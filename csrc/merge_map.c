/* Union: maps merge key by key, in the order of a Python dict. An index finds the entry of a key; it is keyed by
 * addresses of this call, so that nobody can prepare keys that collide. The result does not depend on it. */
#include "merge_parts.h"

#include <stdlib.h>

#define SMALL 48 /* entries that need no allocation */

typedef struct entry {
    const uint8_t *key;   /* encoded, from the first fragment that has it */
    const uint8_t *value; /* encoded, from the last; NULL: removed */
    const uint8_t *body;  /* of a str or bin key */
    uint64_t n;           /* its length, or the integer */
    uint64_t value_n;
    uint32_t key_n;
    uint32_t type_hash; /* type in the low 4 bits, hash above */
} entry;

typedef struct index_of_keys {
    entry *entries;
    uint32_t *slots; /* 0: empty, else an entry's number + 1 */
    uint64_t seed;
    uint32_t used;
    uint32_t mask;
} index_of_keys;

static int is_key(const mm_token *t)
{
    return t->type == MM_STR || t->type == MM_BIN || t->type == MM_UINT || t->type == MM_INT;
}

int mm_map_fits(const uint8_t *p, const uint8_t *end, uint64_t pairs)
{
    mm_token key;
    for (uint64_t i = 0; i < pairs; i++) {
        p = mm_msgpack_token(p, end, &key);
        if (p == NULL || !is_key(&key))
            return 0;
        p = mm_msgpack_skip(p, end, 1, 1);
        if (p == NULL)
            return 0;
    }
    return p == end;
}

static uint64_t mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_key(const mm_token *t, uint64_t seed)
{
    uint64_t h = seed ^ ((uint64_t)t->type << 56), word = 0;
    const uint8_t *p = t->body;
    uint64_t n = t->n;
    if (t->type == MM_UINT || t->type == MM_INT)
        return mix(h ^ t->n, seed | 1);
    for (; n > 8; n -= 8, p += 8) {
        memcpy(&word, p, 8);
        h = mix(h ^ word, seed | 1) + 0x9e3779b97f4a7c15u;
    }
    word = 0;
    memcpy(&word, p, n);
    return mix(h ^ word, (seed ^ t->n * 0xff51afd7ed558ccdu) | 1);
}

static int same_key(const entry *e, uint32_t type_hash, const mm_token *t)
{
    if (e->type_hash != type_hash || e->n != t->n)
        return 0;
    if (t->type == MM_UINT || t->type == MM_INT || t->n == 0)
        return 1;
    return memcmp(e->body, t->body, t->n) == 0;
}

/* The slot of this key: empty, or naming its newest entry. */
static uint32_t *find(const index_of_keys *x, uint32_t hash, uint32_t type_hash, const mm_token *t)
{
    uint32_t at = hash & x->mask;
    while (x->slots[at] && !same_key(&x->entries[x->slots[at] - 1], type_hash, t))
        at = (at + 1) & x->mask;
    return &x->slots[at];
}

static void put_entry(index_of_keys *x, const uint8_t *key, uint64_t key_n, const mm_token *t, const uint8_t *value,
                      uint64_t value_n)
{
    uint64_t hash = hash_key(t, x->seed);
    uint32_t type_hash = ((uint32_t)(hash >> 32) << 4) | (uint32_t)t->type;
    uint32_t *slot = find(x, (uint32_t)hash, type_hash, t);
    entry *e = *slot ? &x->entries[*slot - 1] : NULL;
    const int removes = *value == 0xc0;
    if (e != NULL && (removes || e->value != NULL)) {
        e->value = removes ? NULL : value;
        e->value_n = value_n;
        return;
    }
    if (removes)
        return;
    e = &x->entries[x->used++]; /* new, or added again after a removal: it goes last */
    *slot = x->used;
    *e = (entry){key, value, t->type == MM_STR || t->type == MM_BIN ? t->body : NULL, t->n, value_n, (uint32_t)key_n,
                 type_hash};
}

static int put_fragment(index_of_keys *x, const mm_span *f)
{
    const uint8_t *end = f->p + f->n;
    mm_token map, key;
    const uint8_t *p = mm_msgpack_token(f->p, end, &map);
    for (uint64_t i = 0; i < map.n; i++) {
        const uint8_t *after_key = mm_msgpack_token(p, end, &key);
        const uint8_t *after_value;
        if (after_key == NULL || !is_key(&key) || (uint64_t)(after_key - p) > UINT32_MAX)
            return mm_misfit(f);
        after_value = mm_msgpack_skip(after_key, end, 1, 1);
        if (after_value == NULL)
            return MM_MERGE_BAD;
        put_entry(x, p, (uint64_t)(after_key - p), &key, after_key, (uint64_t)(after_value - after_key));
        p = after_value;
    }
    return p == end ? MM_MERGE_OK : MM_MERGE_BAD;
}

static int put_fragments(index_of_keys *x, const mm_span *f, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        int status = put_fragment(x, &f[i]);
        if (status != MM_MERGE_OK)
            return status;
    }
    return MM_MERGE_OK;
}

/* Writes the living entries; neighbours in the input are copied together. */
static int write_map(const index_of_keys *x, mm_output *out)
{
    uint64_t live = 0, bytes = 0, head_n;
    uint8_t head[MM_MSGPACK_HEAD], *at;
    for (uint32_t i = 0; i < x->used; i++) {
        const entry *e = &x->entries[i];
        live += e->value != NULL;
        bytes += e->value != NULL ? e->key_n + e->value_n : 0;
    }
    head_n = (uint64_t)(mm_put_head(head, MM_MAP, live) - head);
    if (out->cap < head_n || out->cap - head_n < bytes)
        return MM_MERGE_SPACE;
    memcpy(out->p, head, head_n);
    at = out->p + head_n;
    for (uint32_t i = 0; i < x->used;) {
        const entry *e = &x->entries[i++];
        const uint8_t *run = e->key;
        uint64_t run_n = e->key_n;
        if (e->value == NULL)
            continue;
        if (e->value == run + run_n) {
            run_n += e->value_n;
            for (; i < x->used && x->entries[i].key == run + run_n; i++) {
                const entry *next = &x->entries[i];
                if (next->value != next->key + next->key_n)
                    break;
                run_n += next->key_n + next->value_n;
            }
            memcpy(at, run, run_n);
        } else {
            memcpy(at, run, run_n);
            memcpy(at + run_n, e->value, e->value_n);
            run_n += e->value_n;
        }
        at += run_n;
    }
    out->len = (uint64_t)(at - out->p);
    return MM_MERGE_OK;
}

/* The number of pairs that all headers together announce. */
static int count_pairs(const mm_span *f, uint32_t count, uint64_t *pairs)
{
    mm_token t;
    *pairs = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *end = f[i].p + f[i].n, *next = mm_msgpack_token(f[i].p, end, &t);
        if (next == NULL)
            return MM_MERGE_BAD;
        if (t.type != MM_MAP)
            return mm_misfit(&f[i]);
        if (t.n > (uint64_t)(end - next) / 2)
            return MM_MERGE_BAD;
        *pairs += t.n;
    }
    return *pairs > UINT32_MAX / 4 ? MM_MERGE_TYPE : MM_MERGE_OK;
}

static uint32_t slots_for(uint64_t pairs)
{
    uint32_t slots = 16;
    while (slots < 2 * pairs)
        slots *= 2;
    return slots;
}

int mm_map_union(const mm_span *f, uint32_t count, mm_output *out)
{
    entry few[SMALL];
    uint32_t few_slots[4 * SMALL];
    index_of_keys x = {few, few_slots, 0, 0, 0};
    void *heap = NULL;
    uint64_t pairs;
    uint32_t slots;
    int status = count_pairs(f, count, &pairs);
    if (status != MM_MERGE_OK)
        return status;
    slots = slots_for(pairs);
    if (pairs > SMALL) {
        heap = malloc(pairs * sizeof(entry) + slots * sizeof(uint32_t));
        if (heap == NULL)
            return MM_MERGE_MEMORY;
        x.entries = heap;
        x.slots = (uint32_t *)(x.entries + pairs);
    }
    memset(x.slots, 0, slots * sizeof(uint32_t));
    x.mask = slots - 1;
    x.seed = mix((uintptr_t)x.entries ^ 0xa0761d6478bd642fu, (uintptr_t)out->p ^ 0xe7037ed1a0b428dbu) | 1;
    status = put_fragments(&x, f, count);
    if (status == MM_MERGE_OK)
        status = write_map(&x, out);
    free(heap);
    return status;
}
