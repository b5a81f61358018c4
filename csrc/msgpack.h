/* The part of msgpack that the native materializers need: read one token, step over one value, write one header.
 *
 * Input is hostile. Every reader takes the end of its input, reads nothing at or beyond it, and answers NULL for what is
 * not well-formed. A value may nest at most MM_MSGPACK_DEPTH containers. Writers use the shortest form, so their output
 * is what msgpack.Packer(use_bin_type=True) writes for the same value; the caller has made room for them. */
#ifndef MM_MSGPACK_H
#define MM_MSGPACK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "stores are little-endian"
#endif

#define MM_MSGPACK_DEPTH 64
#define MM_MSGPACK_HEAD 9 /* the longest header or number that a writer makes */

enum mm_token_type {
    MM_NIL = 1,
    MM_BOOL,  /* n: 0 or 1 */
    MM_UINT,  /* n: the value */
    MM_INT,   /* n: the bits of a negative int64 */
    MM_FLOAT, /* n: the bits of the float64 */
    MM_STR,   /* body[0..n) */
    MM_BIN,   /* body[0..n) */
    MM_EXT,   /* body[0..n), ext: its type */
    MM_ARRAY, /* n elements follow */
    MM_MAP    /* n pairs follow */
};

typedef struct mm_token {
    const uint8_t *body;
    uint64_t n;
    int type;
    int ext;
} mm_token;

/* 1 if p[0..n) is exactly one well-formed msgpack value (nesting <= 64), else 0. Text is not checked to be UTF-8. */
int mm_msgpack_valid(const uint8_t *p, uint64_t n);

/* The end of `count` values that begin at p inside `depth` open containers; NULL: not well-formed. */
const uint8_t *mm_msgpack_skip(const uint8_t *p, const uint8_t *end, uint64_t count, int depth);

/* Reads one token, of a form that mm_msgpack_token() does not read itself. */
const uint8_t *mm_msgpack_token_slow(const uint8_t *p, const uint8_t *end, mm_token *t);

static inline uint64_t mm_be16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return __builtin_bswap16(v);
}

static inline uint64_t mm_be32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return __builtin_bswap32(v);
}

static inline uint64_t mm_be64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return __builtin_bswap64(v);
}

/* The size of a small number, None, bool or short str by its lead byte; 0: another form. Computed, not looked up: the
 * next lead byte waits for it. */
static inline uint64_t mm_scalar_size(uint8_t lead)
{
    if (lead < 0x80 || lead >= 0xe0)
        return 1;
    if ((lead & 0xe0) == 0xa0)
        return 1u + (lead & 31);
    if (lead >= 0xca && lead <= 0xd3) /* float32, float64, then four sizes of uint and four of int */
        return 1u + (1u << (lead & 3));
    return lead == 0xc0 || lead == 0xc2 || lead == 0xc3;
}

/* Reads one token: a whole scalar, or the header of a container. Returns where the next token begins. */
static inline const uint8_t *mm_msgpack_token(const uint8_t *p, const uint8_t *end, mm_token *t)
{
    if (p < end && *p < 0x80) {
        t->type = MM_UINT;
        t->n = *p;
        return p + 1;
    }
    if (p < end && (*p & 0xe0) == 0x80) {
        t->type = *p < 0x90 ? MM_MAP : MM_ARRAY;
        t->n = *p & 15;
        return p + 1;
    }
    if (p < end && (*p & 0xe0) == 0xa0 && end - p > (*p & 31)) {
        t->type = MM_STR;
        t->n = *p & 31;
        t->body = p + 1;
        return p + 1 + (*p & 31);
    }
    if (end - p >= 9 && *p >= 0xcb && *p <= 0xcf) {
        t->type = *p == 0xcb ? MM_FLOAT : MM_UINT;
        t->n = mm_be64(p + 1) >> (64 - (8u << (*p & 3)));
        return p + 1 + (1u << (*p & 3));
    }
    if (end - p >= 2 && *p == 0xc4 && end - p - 2 >= p[1]) {
        t->type = MM_BIN;
        t->n = p[1];
        t->body = p + 2;
        return p + 2 + p[1];
    }
    return mm_msgpack_token_slow(p, end, t);
}

static inline uint8_t *mm_put(uint8_t *out, uint8_t lead, uint64_t v, int bytes)
{
    uint64_t be = __builtin_bswap64(bytes ? v << (64 - 8 * bytes) : 0);
    out[0] = lead;
    memcpy(out + 1, &be, (size_t)bytes);
    return out + 1 + bytes;
}

static inline uint8_t *mm_put_uint(uint8_t *out, uint64_t v)
{
    if (v < 0x80)
        return mm_put(out, (uint8_t)v, 0, 0);
    if (v <= UINT8_MAX)
        return mm_put(out, 0xcc, v, 1);
    if (v <= UINT16_MAX)
        return mm_put(out, 0xcd, v, 2);
    if (v <= UINT32_MAX)
        return mm_put(out, 0xce, v, 4);
    return mm_put(out, 0xcf, v, 8);
}

static inline uint8_t *mm_put_int(uint8_t *out, int64_t v)
{
    if (v >= 0)
        return mm_put_uint(out, (uint64_t)v);
    if (v >= -32)
        return mm_put(out, (uint8_t)v, 0, 0);
    if (v >= INT8_MIN)
        return mm_put(out, 0xd0, (uint64_t)v, 1);
    if (v >= INT16_MIN)
        return mm_put(out, 0xd1, (uint64_t)v, 2);
    if (v >= INT32_MIN)
        return mm_put(out, 0xd2, (uint64_t)v, 4);
    return mm_put(out, 0xd3, (uint64_t)v, 8);
}

static inline uint8_t *mm_put_float(uint8_t *out, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, 8);
    return mm_put(out, 0xcb, bits, 8);
}

/* The header of a str, bin, array or map of n <= UINT32_MAX bytes, elements or pairs. */
static inline uint8_t *mm_put_head(uint8_t *out, int type, uint64_t n)
{
    switch (type) {
    case MM_STR:
        if (n < 32)
            return mm_put(out, (uint8_t)(0xa0 | n), 0, 0);
        return n <= UINT8_MAX    ? mm_put(out, 0xd9, n, 1)
               : n <= UINT16_MAX ? mm_put(out, 0xda, n, 2)
                                 : mm_put(out, 0xdb, n, 4);
    case MM_BIN:
        return n <= UINT8_MAX    ? mm_put(out, 0xc4, n, 1)
               : n <= UINT16_MAX ? mm_put(out, 0xc5, n, 2)
                                 : mm_put(out, 0xc6, n, 4);
    case MM_ARRAY:
        if (n < 16)
            return mm_put(out, (uint8_t)(0x90 | n), 0, 0);
        return n <= UINT16_MAX ? mm_put(out, 0xdc, n, 2) : mm_put(out, 0xdd, n, 4);
    default: /* MM_MAP */
        if (n < 16)
            return mm_put(out, (uint8_t)(0x80 | n), 0, 0);
        return n <= UINT16_MAX ? mm_put(out, 0xde, n, 2) : mm_put(out, 0xdf, n, 4);
    }
}

/* Bytes of the header of an ext with n bytes of body. */
static inline uint64_t mm_ext_head(uint64_t n)
{
    if (n == 1 || n == 2 || n == 4 || n == 8 || n == 16)
        return 2;
    return n <= UINT8_MAX ? 3 : n <= UINT16_MAX ? 4 : 6;
}

static inline uint8_t *mm_put_ext(uint8_t *out, int ext, uint64_t n)
{
    switch (mm_ext_head(n)) {
    case 2:
        out = mm_put(out, (uint8_t)(0xd4 + __builtin_ctzll(n)), 0, 0);
        break;
    case 3:
        out = mm_put(out, 0xc7, n, 1);
        break;
    case 4:
        out = mm_put(out, 0xc8, n, 2);
        break;
    default:
        out = mm_put(out, 0xc9, n, 4);
    }
    *out = (uint8_t)ext;
    return out + 1;
}

#endif
