/* What a decoded value will cost in private memory, estimated from its encoding (CPython's object sizes). */
#include "merge_parts.h"

/* With what the allocator rounds up to, and the words of the garbage collector. */
enum { COST_INT = 32, COST_FLOAT = 32, COST_STR = 64, COST_WIDE = 88, COST_BYTES = 48, COST_LIST = 88, COST_DICT = 150, COST_ENTRY = 100 };
enum { COST_SLOT = 8, COST_EXT = 112 };

/* The densest value that msgpack can write is a run of empty maps in a list. */
enum { COST_WORST_BYTE = COST_DICT + COST_SLOT };

/* One character outside ASCII makes all of a string one, two or four bytes wide: the widest decides. */
static uint64_t wide_cost(const uint8_t *p, uint64_t n)
{
    uint8_t top = 0;
    uint64_t characters = 1;
    for (uint64_t i = 0; i < n; i++) {
        if (p[i] > top) top = p[i];
        characters += (p[i] & 0xC0) != 0x80;
    }
    return COST_WIDE + characters * (top >= 0xF0 ? 4 : top >= 0xC4 ? 2 : 1);
}

static uint64_t str_cost(const uint8_t *p, uint64_t n)
{
    uint64_t i = 0, all = 0, word;
    for (; i + 8 <= n; i += 8) {
        memcpy(&word, p + i, 8);
        all |= word;
    }
    for (; i < n; i++) all |= p[i];
    return all & UINT64_C(0x8080808080808080) ? wide_cost(p, n) : COST_STR + n;
}

/* What mm_scalar_size() knows, by its lead byte: small integers, None and bools exist once for all. */
static uint64_t scalar_cost(const uint8_t *p)
{
    uint8_t lead = *p;
    if (lead < 0x80)
        return 0;
    if ((lead & 0xe0) == 0xa0)
        return str_cost(p + 1, lead & 31u);
    if (lead == 0xca || lead == 0xcb)
        return COST_FLOAT;
    return lead > 0xcc && lead < 0xfb ? COST_INT : 0;
}

static uint64_t token_cost(const mm_token *t)
{
    switch (t->type) {
    case MM_STR: return str_cost(t->body, t->n);
    case MM_BIN: return COST_BYTES + t->n;
    case MM_EXT: return COST_EXT + t->n;
    case MM_ARRAY: return COST_LIST + COST_SLOT * t->n;
    default: return COST_DICT + COST_ENTRY * t->n;
    }
}

/* Adds the cost of the value at p[0..n) to *cost; 0: it is not well-formed. */
static int walk(const uint8_t *p, const uint8_t *end, uint64_t *cost)
{
    uint64_t outer[MM_MSGPACK_DEPTH], left = 1, sum = 0, size;
    int open = 0;
    mm_token t;
    for (;;) {
        while (left == 0) {
            if (open == 0) {
                *cost = sum;
                return p == end;
            }
            left = outer[--open];
        }
        left--;
        if (p >= end)
            return 0;
        size = mm_scalar_size(*p);
        if (size != 0) {
            if ((uint64_t)(end - p) < size)
                return 0;
            sum += scalar_cost(p);
            p += size;
            continue;
        }
        p = mm_msgpack_token(p, end, &t);
        if (p == NULL)
            return 0;
        if (t.type >= MM_ARRAY) {
            uint64_t values = t.type == MM_MAP ? 2 * t.n : t.n;
            if (open == MM_MSGPACK_DEPTH || values > (uint64_t)(end - p))
                return 0;
            outer[open++] = left;
            left = values;
        }
        sum += token_cost(&t);
    }
}

uint64_t mm_merge_cost(const uint8_t *p, uint64_t n)
{
    uint64_t cost;
    if (n != 0 && walk(p, p + n, &cost))
        return cost;
    return n > (UINT64_MAX >> 8) ? UINT64_MAX : COST_EXT + COST_WORST_BYTE * n;
}
