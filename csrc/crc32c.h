/* crc32c.h - CRC-32C (Castagnoli), by SSE4.2 or ARM instructions where the processor has them, else by table. */
#ifndef MMPC_CRC32C_H
#define MMPC_CRC32C_H

#include <stdint.h>

/* Continues `crc` (0 to start, or an earlier result) over n bytes.  Plain state: no inversion at either end. */
uint32_t crc32c_extend(uint32_t crc, const void *p, uint64_t n);
uint32_t crc32c_word(uint32_t crc, uint64_t word);
/* The same without special instructions; a test compares the two. */
uint32_t crc32c_portable(uint32_t crc, const void *p, uint64_t n);

#endif
