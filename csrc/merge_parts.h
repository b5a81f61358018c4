/* What the files of the native materializers share; nothing outside merge*.c includes this. */
#ifndef MM_MERGE_PARTS_H
#define MM_MERGE_PARTS_H

#include "merge.h"
#include "msgpack.h"

#define MM_EXT_ARRAY 78  /* 'N': a numpy array */
#define MM_EXT_INT128 73 /* 'I': 16 bytes, two's complement */

/* Fragment classes below 0x80; an array's is 0x80 | hash. */
enum { MM_CLASS_BIN = 1, MM_CLASS_STR = 2, MM_CLASS_LIST = 3, MM_CLASS_NUMBER = 4, MM_CLASS_MAP = 5 };

/* Room that a merged header may need beyond the input's own. */
#define MM_MERGE_SLACK 64

typedef struct mm_number {
    __int128 i;
    double f;
    int is_float;
} mm_number;

/* An ext 'N' body, checked: the data is exactly the product of the shape times the item. */
typedef struct mm_array {
    const uint8_t *dtype;
    const uint8_t *shape; /* ndim little-endian u64, unaligned */
    const uint8_t *data;
    uint64_t data_n;
    uint64_t item;
    uint8_t dtype_n;
    uint8_t ndim;
} mm_array;

typedef struct mm_output {
    uint8_t *p;
    uint64_t cap;
    uint64_t len;
} mm_output;

/* MM_MERGE_OK and *v; TYPE: the token is no number; BAD: a broken int128. */
int mm_number_read(const mm_token *t, mm_number *v);
int mm_number_merge(int kind, const mm_span *f, uint32_t count, mm_output *out);

/* MM_MERGE_OK and *a; TYPE: no ext 'N'; BAD: a broken one. */
int mm_array_read(const mm_token *t, mm_array *a);
/* The class of an array under APPEND, ADD or MAX, 0 if it does not fit. */
uint8_t mm_array_class(int kind, const mm_array *a);
int mm_array_merge(int kind, const mm_span *f, uint32_t count, mm_output *out);

/* 1 if p[0..end) are `pairs` pairs that Union takes. */
int mm_map_fits(const uint8_t *p, const uint8_t *end, uint64_t pairs);
int mm_map_union(const mm_span *f, uint32_t count, mm_output *out);

/* Reads the token of a fragment that must be one scalar; NULL: not well-formed or something follows. */
static inline const uint8_t *mm_scalar(const mm_span *f, mm_token *t)
{
    const uint8_t *next = mm_msgpack_token(f->p, f->p + f->n, t);
    return next != f->p + f->n ? NULL : next;
}

/* A token that is no container of its own: the status when it does not have the type that the merge needs. */
static inline int mm_misfit(const mm_span *f)
{
    return mm_msgpack_valid(f->p, f->n) ? MM_MERGE_TYPE : MM_MERGE_BAD;
}

#endif
