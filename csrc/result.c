/* result.c - how the core reports what went wrong. */
#include <errno.h>

#include "internal.h"

int mm_corrupt(mm_result *r, uint32_t file, uint64_t offset)
{
    r->file = file;
    r->offset = offset;
    return MM_CORRUPT;
}

int mm_os_failed(mm_result *r, int error)
{
    r->os_error = error;
    return error == ENOSPC || error == EDQUOT || error == EFBIG ? MM_FULL : MM_OS;
}
