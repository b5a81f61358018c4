/* crc32c.c - the checksum of everything stored; dispatch is a test of a flag that the compiler's runtime keeps. */
#include "crc32c.h"

#include <string.h>

#include "crc32c_table.h"

static uint32_t table_word(uint32_t crc, uint64_t word)
{
    uint64_t x = word ^ crc;
    return crc32c_table[7][x & 255] ^ crc32c_table[6][x >> 8 & 255] ^ crc32c_table[5][x >> 16 & 255]
           ^ crc32c_table[4][x >> 24 & 255] ^ crc32c_table[3][x >> 32 & 255] ^ crc32c_table[2][x >> 40 & 255]
           ^ crc32c_table[1][x >> 48 & 255] ^ crc32c_table[0][x >> 56];
}

uint32_t crc32c_portable(uint32_t crc, const void *p, uint64_t n)
{
    const uint8_t *b = p;
    for (; n >= 8; n -= 8, b += 8) {
        uint64_t w;
        memcpy(&w, b, 8);
        crc = table_word(crc, w);
    }
    for (; n; n--) crc = crc >> 8 ^ crc32c_table[0][(crc ^ *b++) & 255];
    return crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>
#define CRC_TARGET __attribute__((target("sse4.2")))
#define CRC_AVAILABLE() __builtin_cpu_supports("sse4.2")
#define CRC_U64(c, w) ((uint32_t)_mm_crc32_u64((c), (w)))
#define CRC_U32(c, w) _mm_crc32_u32((c), (w))
#define CRC_U8(c, b) _mm_crc32_u8((c), (b))
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define CRC_TARGET
#define CRC_AVAILABLE() 1
#define CRC_U64(c, w) __crc32cd((c), (w))
#define CRC_U32(c, w) __crc32cw((c), (w))
#define CRC_U8(c, b) __crc32cb((c), (b))
#endif

#ifdef CRC_TARGET
static inline uint64_t word_at(const uint8_t *b)
{
    uint64_t w;
    memcpy(&w, b, 8);
    return w;
}

#define STRIPE 1024u /* crc32c_stripe says how far it goes on */

static uint32_t behind_stripe(uint32_t crc)
{
    return crc32c_stripe[0][crc & 255] ^ crc32c_stripe[1][crc >> 8 & 255] ^ crc32c_stripe[2][crc >> 16 & 255] ^ crc32c_stripe[3][crc >> 24];
}

/* The instruction takes three cycles and one can begin in each, so three stripes go side by side.  A state is linear: what two bring is put together
 * behind the zeros that the second is long. */
CRC_TARGET __attribute__((noinline)) static uint32_t three_stripes(uint32_t crc, const uint8_t *b)
{
    uint32_t second = 0, third = 0;
    for (const uint8_t *end = b + STRIPE; b < end; b += 8) {
        crc = CRC_U64(crc, word_at(b));
        second = CRC_U64(second, word_at(b + STRIPE));
        third = CRC_U64(third, word_at(b + 2 * STRIPE));
    }
    return behind_stripe(behind_stripe(crc) ^ second) ^ third;
}

CRC_TARGET static uint32_t fast_extend(uint32_t crc, const uint8_t *b, uint64_t n)
{
    for (; __builtin_expect(n >= 3 * STRIPE, 0); n -= 3 * STRIPE, b += 3 * STRIPE) crc = three_stripes(crc, b);
    for (; n >= 8; n -= 8, b += 8) crc = CRC_U64(crc, word_at(b));
    if (n & 4) {
        uint32_t w;
        memcpy(&w, b, 4);
        crc = CRC_U32(crc, w);
        b += 4;
    }
    for (n &= 3; n; n--) crc = CRC_U8(crc, *b++);
    return crc;
}

CRC_TARGET static uint32_t fast_word(uint32_t crc, uint64_t word) { return CRC_U64(crc, word); }

uint32_t crc32c_extend(uint32_t crc, const void *p, uint64_t n)
{
    return CRC_AVAILABLE() ? fast_extend(crc, p, n) : crc32c_portable(crc, p, n);
}

uint32_t crc32c_word(uint32_t crc, uint64_t word) { return CRC_AVAILABLE() ? fast_word(crc, word) : table_word(crc, word); }
#else
uint32_t crc32c_extend(uint32_t crc, const void *p, uint64_t n) { return crc32c_portable(crc, p, n); }
uint32_t crc32c_word(uint32_t crc, uint64_t word) { return table_word(crc, word); }
#endif
