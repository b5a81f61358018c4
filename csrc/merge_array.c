/* numpy arrays (ext 'N', docs/format.md) under Append, Add and Max.
 *
 * Body: version 1 | dtype length | ndim | pad length | dtype.str | ndim x u64 shape | pad | data in C order. The pad is
 * the shortest that puts the data of an array that is the whole fragment on a multiple of 8 bytes. */
#include "merge_parts.h"

#define ARRAY_HEAD 4
#define MAX_NDIM 32
#define MAX_DATA ((uint64_t)1 << 62)

/* Reads a size of 1 to 9 digits without a leading zero; returns the digits used, 0: none. */
static uint32_t digits(const uint8_t *s, uint32_t n, uint64_t *value)
{
    uint32_t used = 0;
    *value = 0;
    while (used < n && used < 10 && s[used] >= '0' && s[used] <= '9')
        *value = *value * 10 + (uint64_t)(s[used++] - '0');
    return used == 10 || (used && s[0] == '0') ? 0 : used;
}

/* "[ns]", "[25s]" or nothing. */
static int is_time_unit(const uint8_t *s, uint32_t n)
{
    if (n == 0)
        return 1;
    if (n < 3 || s[0] != '[' || s[n - 1] != ']')
        return 0;
    for (uint32_t i = 1; i < n - 1; i++)
        if (!((s[i] >= '0' && s[i] <= '9') || (s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z')))
            return 0;
    return 1;
}

/* The size of one item of dtype.str, 0: not a plain dtype. */
static uint64_t item_size(const uint8_t *s, uint32_t n)
{
    uint64_t size;
    uint32_t used;
    if (n < 3 || (s[0] != '<' && s[0] != '>' && s[0] != '|'))
        return 0;
    used = digits(s + 2, n - 2, &size);
    if (used == 0)
        return 0;
    if (s[1] == 'm' || s[1] == 'M')
        return size == 8 && is_time_unit(s + 2 + used, n - 2 - used) ? 8 : 0;
    if (used != n - 2)
        return 0;
    switch (s[1]) {
    case 'b': return size == 1 ? 1 : 0;
    case 'i':
    case 'u': return size == 1 || size == 2 || size == 4 || size == 8 ? size : 0;
    case 'f': return size == 2 || size == 4 || size == 8 ? size : 0;
    case 'c': return size == 8 || size == 16 ? size : 0;
    case 'S': return size;
    case 'U': return size * 4;
    default: return 0;
    }
}

static uint64_t dimension(const mm_array *a, uint32_t i)
{
    uint64_t n;
    memcpy(&n, a->shape + 8 * i, 8);
    return n;
}

/* 1 if the data of this shape is data_n bytes; an empty array must still have a shape that numpy can hold. */
static int shape_fits(const mm_array *a, uint64_t first, uint64_t data_n)
{
    uint64_t most = a->item, bytes = a->item;
    for (uint32_t i = 0; i < a->ndim; i++) {
        uint64_t n = i ? dimension(a, i) : first;
        if (__builtin_mul_overflow(most, n ? n : 1, &most) || most > MAX_DATA)
            return 0;
        bytes = n ? bytes * n : 0;
    }
    return bytes == data_n;
}

int mm_array_read(const mm_token *t, mm_array *a)
{
    const uint8_t *p = t->body;
    uint64_t head;
    if (t->type != MM_EXT || t->ext != MM_EXT_ARRAY)
        return MM_MERGE_TYPE;
    if (t->n < ARRAY_HEAD || p[0] != 1 || p[2] > MAX_NDIM)
        return MM_MERGE_BAD;
    head = ARRAY_HEAD + (uint64_t)p[1] + 8u * p[2] + p[3];
    if (t->n < head)
        return MM_MERGE_BAD;
    a->dtype = p + ARRAY_HEAD;
    a->dtype_n = p[1];
    a->ndim = p[2];
    a->shape = a->dtype + p[1];
    a->data = p + head;
    a->data_n = t->n - head;
    a->item = item_size(a->dtype, a->dtype_n);
    if (a->item == 0 || !shape_fits(a, a->ndim ? dimension(a, 0) : 0, a->data_n))
        return MM_MERGE_BAD;
    return MM_MERGE_OK;
}

/* How Add and Max treat a dtype: the kind and the size of one lane, 0: they refuse it. */
static int lane(int kind, const mm_array *a)
{
    const uint8_t *s = a->dtype;
    if (a->dtype_n != 3 && !(a->dtype_n == 4 && s[1] == 'c'))
        return 0;
    if (s[0] == '>')
        return 0;
    switch (s[1]) {
    case 'i':
    case 'u': return (kind == MM_MERGE_ADD ? 'u' : s[1]) << 8 | (int)a->item;
    case 'f': return a->item >= 4 ? 'f' << 8 | (int)a->item : 0;
    case 'c': return kind == MM_MERGE_ADD ? 'f' << 8 | (int)(a->item / 2) : 0;
    default: return 0;
    }
}

static int fits(int kind, const mm_array *a)
{
    return kind == MM_MERGE_APPEND ? a->ndim > 0 : lane(kind, a) != 0;
}

static uint64_t stir(uint64_t h, uint64_t word)
{
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 32);
}

uint8_t mm_array_class(int kind, const mm_array *a)
{
    uint64_t h = a->ndim;
    if (!fits(kind, a))
        return 0;
    for (uint32_t i = 0; i < a->dtype_n; i++)
        h = stir(h, a->dtype[i]);
    for (uint32_t i = kind == MM_MERGE_APPEND; i < a->ndim; i++)
        h = stir(h, dimension(a, i));
    return (uint8_t)(0x80 | (stir(h, 1) >> 57));
}

/* Same dtype and shape; Append does not compare the first dimension. */
static int alike(int kind, const mm_array *a, const mm_array *b)
{
    uint32_t from = kind == MM_MERGE_APPEND ? 8 : 0;
    return a->dtype_n == b->dtype_n && a->ndim == b->ndim && memcmp(a->dtype, b->dtype, a->dtype_n) == 0 &&
           memcmp(a->shape + from, b->shape + from, 8u * a->ndim - from) == 0;
}

/* Writes the header of an array like `a` with another first dimension; *data = where data_n bytes belong. */
static int put_header(mm_output *out, const mm_array *a, uint64_t first, uint64_t data_n, uint8_t **data)
{
    uint64_t head = ARRAY_HEAD + (uint64_t)a->dtype_n + 8u * a->ndim, pad = 0, body;
    uint8_t *p;
    while ((mm_ext_head(head + pad + data_n) + head + pad) % 8)
        pad++;
    body = head + pad + data_n;
    if (body > UINT32_MAX)
        return MM_MERGE_TYPE; /* msgpack has no header for it */
    if (out->cap < mm_ext_head(body) || out->cap - mm_ext_head(body) < body)
        return MM_MERGE_SPACE;
    p = mm_put_ext(out->p, MM_EXT_ARRAY, body);
    p[0] = 1;
    p[1] = a->dtype_n;
    p[2] = a->ndim;
    p[3] = (uint8_t)pad;
    memcpy(p + ARRAY_HEAD, a->dtype, a->dtype_n);
    memcpy(p + ARRAY_HEAD + a->dtype_n, a->shape, 8u * a->ndim);
    if (a->ndim)
        memcpy(p + ARRAY_HEAD + a->dtype_n, &first, 8);
    memset(p + head, 0, pad);
    *data = p + head + pad;
    out->len = mm_ext_head(body) + body;
    return MM_MERGE_OK;
}

static int read_array(int kind, const mm_span *f, mm_array *a)
{
    mm_token t;
    int status;
    if (mm_scalar(f, &t) == NULL)
        return mm_misfit(f);
    status = mm_array_read(&t, a);
    if (status == MM_MERGE_OK && !fits(kind, a))
        return MM_MERGE_TYPE;
    return status;
}

static int append(const mm_span *f, uint32_t count, mm_output *out)
{
    mm_array first, a;
    uint64_t rows, data_n;
    uint8_t *data;
    int status = read_array(MM_MERGE_APPEND, f, &first);
    if (status != MM_MERGE_OK)
        return status;
    rows = dimension(&first, 0);
    data_n = first.data_n;
    for (uint32_t i = 1; i < count; i++) {
        status = read_array(MM_MERGE_APPEND, &f[i], &a);
        if (status != MM_MERGE_OK)
            return status;
        if (!alike(MM_MERGE_APPEND, &first, &a))
            return MM_MERGE_TYPE;
        rows += dimension(&a, 0);
        data_n += a.data_n;
        if (!shape_fits(&first, rows, data_n))
            return MM_MERGE_TYPE; /* more than numpy can hold */
    }
    status = put_header(out, &first, rows, data_n, &data);
    for (uint32_t i = 0; status == MM_MERGE_OK && i < count; i++) {
        status = read_array(MM_MERGE_APPEND, &f[i], &a);
        memcpy(data, a.data, a.data_n);
        data += a.data_n;
    }
    return status;
}

/* Lanes of data lie in the log at any address. */
#define LANE(name, type) typedef type name __attribute__((aligned(1), may_alias))
LANE(lane_u1, uint8_t);
LANE(lane_u2, uint16_t);
LANE(lane_u4, uint32_t);
LANE(lane_u8, uint64_t);
LANE(lane_i1, int8_t);
LANE(lane_i2, int16_t);
LANE(lane_i4, int32_t);
LANE(lane_i8, int64_t);
LANE(lane_f4, float);
LANE(lane_f8, double);

/* Unsigned lanes wrap, and so serve signed integers too. */
#define ADD(name)                                                          \
    static void add_##name(void *sum, const void *data, uint64_t n)        \
    {                                                                      \
        lane_##name *s = sum;                                              \
        const lane_##name *v = data;                                       \
        for (uint64_t i = 0; i < n; i++)                                   \
            s[i] = (lane_##name)(s[i] + v[i]);                             \
    }

/* The first of equals stays; a NaN (the one value that differs from itself) stays too, and wins. */
#define MAX(name)                                                          \
    static void max_##name(void *best, const void *data, uint64_t n)       \
    {                                                                      \
        lane_##name *b = best;                                             \
        const lane_##name *v = data;                                       \
        for (uint64_t i = 0; i < n; i++)                                   \
            b[i] = b[i] >= v[i] || b[i] != b[i] ? b[i] : v[i];             \
    }

ADD(u1)
ADD(u2)
ADD(u4)
ADD(u8)
ADD(f4)
ADD(f8)
MAX(u1)
MAX(u2)
MAX(u4)
MAX(u8)
MAX(i1)
MAX(i2)
MAX(i4)
MAX(i8)
MAX(f4)
MAX(f8)

typedef void combine(void *into, const void *data, uint64_t n);

static combine *combiner(int kind, int lanes)
{
    static const struct {
        int lane;
        combine *add, *max;
    } table[] = {
        {'u' << 8 | 1, add_u1, max_u1}, {'u' << 8 | 2, add_u2, max_u2}, {'u' << 8 | 4, add_u4, max_u4},
        {'u' << 8 | 8, add_u8, max_u8}, {'i' << 8 | 1, NULL, max_i1},   {'i' << 8 | 2, NULL, max_i2},
        {'i' << 8 | 4, NULL, max_i4},   {'i' << 8 | 8, NULL, max_i8},   {'f' << 8 | 4, add_f4, max_f4},
        {'f' << 8 | 8, add_f8, max_f8},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].lane == lanes)
            return kind == MM_MERGE_ADD ? table[i].add : table[i].max;
    return NULL;
}

static int combine_all(int kind, const mm_span *f, uint32_t count, mm_output *out)
{
    mm_array first, a;
    uint8_t *data;
    combine *into;
    int lanes, status = read_array(kind, f, &first);
    if (status != MM_MERGE_OK)
        return status;
    status = put_header(out, &first, first.ndim ? dimension(&first, 0) : 0, first.data_n, &data);
    if (status != MM_MERGE_OK)
        return status;
    memcpy(data, first.data, first.data_n);
    lanes = lane(kind, &first);
    into = combiner(kind, lanes);
    for (uint32_t i = 1; i < count; i++) {
        status = read_array(kind, &f[i], &a);
        if (status != MM_MERGE_OK)
            return status;
        if (!alike(kind, &first, &a) || into == NULL)
            return MM_MERGE_TYPE;
        into(data, a.data, a.data_n / (uint64_t)(lanes & 0xff));
    }
    return MM_MERGE_OK;
}

int mm_array_merge(int kind, const mm_span *f, uint32_t count, mm_output *out)
{
    return kind == MM_MERGE_APPEND ? append(f, count, out) : combine_all(kind, f, count, out);
}
