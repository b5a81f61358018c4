/* Numbers under Add and Max. Integers are exact (up to int128); a float makes the sum a float from there on; a
 * comparison between the two is exact, as Python's is. */
#include "merge_parts.h"

int mm_number_read(const mm_token *t, mm_number *v)
{
    v->is_float = 0;
    switch (t->type) {
    case MM_UINT:
        v->i = (__int128)t->n;
        return MM_MERGE_OK;
    case MM_INT:
        v->i = (int64_t)t->n;
        return MM_MERGE_OK;
    case MM_FLOAT:
        v->is_float = 1;
        memcpy(&v->f, &t->n, 8);
        return MM_MERGE_OK;
    case MM_EXT:
        if (t->ext != MM_EXT_INT128)
            return MM_MERGE_TYPE;
        if (t->n != 16)
            return MM_MERGE_BAD;
        memcpy(&v->i, t->body, 16);
        return MM_MERGE_OK;
    default:
        return MM_MERGE_TYPE;
    }
}

/* sum += v; an integer sum beyond int128 does not mix. */
static int add(mm_number *sum, const mm_number *v)
{
    if (!sum->is_float && !v->is_float)
        return __builtin_add_overflow(sum->i, v->i, &sum->i) ? MM_MERGE_TYPE : MM_MERGE_OK;
    sum->f = (sum->is_float ? sum->f : (double)sum->i) + (v->is_float ? v->f : (double)v->i);
    sum->is_float = 1;
    return MM_MERGE_OK;
}

/* i < f, exactly; f is not NaN. */
static int int_below_float(__int128 i, double f)
{
    __int128 whole;
    if (f >= 0x1p127)
        return 1;
    if (f < -0x1p127)
        return 0;
    whole = (__int128)f;
    return i != whole ? i < whole : (double)whole < f;
}

/* f < i, exactly; f is not NaN. */
static int float_below_int(double f, __int128 i)
{
    __int128 whole;
    if (f >= 0x1p127)
        return 0;
    if (f < -0x1p127)
        return 1;
    whole = (__int128)f;
    return i != whole ? whole < i : f < (double)whole;
}

static int below(const mm_number *a, const mm_number *b)
{
    if (a->is_float)
        return b->is_float ? a->f < b->f : float_below_int(a->f, b->i);
    return b->is_float ? int_below_float(a->i, b->f) : a->i < b->i;
}

static int is_nan(const mm_number *v)
{
    return v->is_float && v->f != v->f;
}

/* The first of equals stays, and so does the first NaN. */
static int max(mm_number *best, const mm_number *v)
{
    if (!is_nan(best) && (is_nan(v) || below(best, v)))
        *best = *v;
    return MM_MERGE_OK;
}

static uint8_t *put_number(uint8_t *out, const mm_number *v)
{
    if (v->is_float)
        return mm_put_float(out, v->f);
    if (v->i >= 0 && v->i <= (__int128)UINT64_MAX)
        return mm_put_uint(out, (uint64_t)v->i);
    if (v->i < 0 && v->i >= INT64_MIN)
        return mm_put_int(out, (int64_t)v->i);
    out = mm_put_ext(out, MM_EXT_INT128, 16);
    memcpy(out, &v->i, 16);
    return out + 16;
}

int mm_number_merge(int kind, const mm_span *f, uint32_t count, mm_output *out)
{
    mm_number merged = {0, 0, 0}, v;
    uint8_t encoded[18];
    uint64_t n;
    for (uint32_t i = 0; i < count; i++) {
        mm_token t;
        int status;
        if (mm_scalar(&f[i], &t) == NULL)
            return mm_misfit(&f[i]);
        status = mm_number_read(&t, &v);
        if (status == MM_MERGE_OK && i == 0)
            merged = v;
        else if (status == MM_MERGE_OK)
            status = kind == MM_MERGE_ADD ? add(&merged, &v) : max(&merged, &v);
        if (status != MM_MERGE_OK)
            return status;
    }
    n = (uint64_t)(put_number(encoded, &merged) - encoded);
    if (out->cap < n)
        return MM_MERGE_SPACE;
    memcpy(out->p, encoded, n);
    out->len = n;
    return MM_MERGE_OK;
}
