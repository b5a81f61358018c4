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
#define CRC_U8(c, b) _mm_crc32_u8((c), (b))
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define CRC_TARGET
#define CRC_AVAILABLE() 1
#define CRC_U64(c, w) __crc32cd((c), (w))
#define CRC_U8(c, b) __crc32cb((c), (b))
#endif

#ifdef CRC_TARGET
CRC_TARGET static uint32_t fast_extend(uint32_t crc, const uint8_t *b, uint64_t n)
{
    for (; n >= 8; n -= 8, b += 8) {
        uint64_t w;
        memcpy(&w, b, 8);
        crc = CRC_U64(crc, w);
    }
    for (; n; n--) crc = CRC_U8(crc, *b++);
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
