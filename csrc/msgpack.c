#include "msgpack.h"

/* Sets *t to a scalar with `n` bytes of body after a header of `head` bytes; NULL if that does not fit. */
static inline const uint8_t *body(const uint8_t *p, const uint8_t *end, mm_token *t, int type, uint64_t head, uint64_t n)
{
    if ((uint64_t)(end - p) < head || (uint64_t)(end - p) - head < n)
        return NULL;
    t->type = type;
    t->n = n;
    t->body = p + head;
    t->ext = type == MM_EXT ? (int8_t)p[head - 1] : 0;
    return p + head + n;
}

static inline const uint8_t *number(const uint8_t *next, mm_token *t, int type, uint64_t n)
{
    t->type = type;
    t->n = n;
    return next;
}

static inline const uint8_t *signed_number(const uint8_t *next, mm_token *t, int64_t v)
{
    return number(next, t, v < 0 ? MM_INT : MM_UINT, (uint64_t)v);
}

static inline const uint8_t *container(const uint8_t *next, mm_token *t, int type, uint64_t n)
{
    return number(next, t, type, n);
}

static uint64_t float32_bits(uint32_t bits)
{
    float narrow;
    double wide;
    uint64_t out;
    memcpy(&narrow, &bits, 4);
    wide = narrow;
    memcpy(&out, &wide, 8);
    return out;
}

/* Bytes that must be there before the switch may look behind the lead byte: the fixed part of each form. */
static uint64_t fixed_part(uint8_t lead)
{
    static const uint8_t part[32] = {
        /* c0 */ 1, 0, 1, 1, 2, 3, 5, 3, 4, 6, 5, 9, 2, 3, 5, 9,
        /* d0 */ 2, 3, 5, 9, 2, 2, 2, 2, 2, 2, 3, 5, 3, 5, 3, 5,
    };
    return lead < 0xc0 || lead >= 0xe0 ? 1 : part[lead - 0xc0];
}

const uint8_t *mm_msgpack_token_slow(const uint8_t *p, const uint8_t *end, mm_token *t)
{
    uint8_t lead;
    if (p >= end)
        return NULL;
    lead = *p;
    if (lead < 0x80)
        return number(p + 1, t, MM_UINT, lead);
    if (lead >= 0xe0)
        return number(p + 1, t, MM_INT, (uint64_t)(int64_t)(int8_t)lead);
    if ((uint64_t)(end - p) < fixed_part(lead))
        return NULL;
    switch (lead) {
    case 0x80 ... 0x8f: return container(p + 1, t, MM_MAP, lead & 15);
    case 0x90 ... 0x9f: return container(p + 1, t, MM_ARRAY, lead & 15);
    case 0xa0 ... 0xbf: return body(p, end, t, MM_STR, 1, lead & 31);
    case 0xc0: return number(p + 1, t, MM_NIL, 0);
    case 0xc2: return number(p + 1, t, MM_BOOL, 0);
    case 0xc3: return number(p + 1, t, MM_BOOL, 1);
    case 0xc4: return body(p, end, t, MM_BIN, 2, p[1]);
    case 0xc5: return body(p, end, t, MM_BIN, 3, mm_be16(p + 1));
    case 0xc6: return body(p, end, t, MM_BIN, 5, mm_be32(p + 1));
    case 0xc7: return body(p, end, t, MM_EXT, 3, p[1]);
    case 0xc8: return body(p, end, t, MM_EXT, 4, mm_be16(p + 1));
    case 0xc9: return body(p, end, t, MM_EXT, 6, mm_be32(p + 1));
    case 0xca: return number(p + 5, t, MM_FLOAT, float32_bits((uint32_t)mm_be32(p + 1)));
    case 0xcb: return number(p + 9, t, MM_FLOAT, mm_be64(p + 1));
    case 0xcc: return number(p + 2, t, MM_UINT, p[1]);
    case 0xcd: return number(p + 3, t, MM_UINT, mm_be16(p + 1));
    case 0xce: return number(p + 5, t, MM_UINT, mm_be32(p + 1));
    case 0xcf: return number(p + 9, t, MM_UINT, mm_be64(p + 1));
    case 0xd0: return signed_number(p + 2, t, (int8_t)p[1]);
    case 0xd1: return signed_number(p + 3, t, (int16_t)mm_be16(p + 1));
    case 0xd2: return signed_number(p + 5, t, (int32_t)mm_be32(p + 1));
    case 0xd3: return signed_number(p + 9, t, (int64_t)mm_be64(p + 1));
    case 0xd4 ... 0xd8: return body(p, end, t, MM_EXT, 2, 1u << (lead - 0xd4));
    case 0xd9: return body(p, end, t, MM_STR, 2, p[1]);
    case 0xda: return body(p, end, t, MM_STR, 3, mm_be16(p + 1));
    case 0xdb: return body(p, end, t, MM_STR, 5, mm_be32(p + 1));
    case 0xdc: return container(p + 3, t, MM_ARRAY, mm_be16(p + 1));
    case 0xdd: return container(p + 5, t, MM_ARRAY, mm_be32(p + 1));
    case 0xde: return container(p + 3, t, MM_MAP, mm_be16(p + 1));
    case 0xdf: return container(p + 5, t, MM_MAP, mm_be32(p + 1));
    default: return NULL; /* 0xc1 was never assigned */
    }
}

/* Iterative: `left` values remain in the innermost open container, outer[] says how many in those around it. */
const uint8_t *mm_msgpack_skip(const uint8_t *p, const uint8_t *end, uint64_t count, int depth)
{
    uint64_t outer[MM_MSGPACK_DEPTH];
    uint64_t left = count, size;
    int open = 0;
    const int room = MM_MSGPACK_DEPTH - depth;
    mm_token t;

    for (;;) {
        while (left == 0) {
            if (open == 0)
                return p;
            left = outer[--open];
        }
        if (p >= end)
            return NULL;
        left--;
        size = mm_scalar_size(*p);
        if (size) {
            if ((uint64_t)(end - p) < size)
                return NULL;
            p += size;
            continue;
        }
        p = mm_msgpack_token(p, end, &t);
        if (p == NULL)
            return NULL;
        if (t.type < MM_ARRAY)
            continue;
        if (t.type == MM_MAP)
            t.n *= 2;
        if (open >= room || t.n > (uint64_t)(end - p))
            return NULL;
        outer[open++] = left;
        left = t.n;
    }
}

int mm_msgpack_valid(const uint8_t *p, uint64_t n)
{
    return n != 0 && mm_msgpack_skip(p, p + n, 1, 0) == p + n;
}
