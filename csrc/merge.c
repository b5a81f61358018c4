#include "merge.h"
#include "merge_parts.h"

static uint8_t array_class(int kind, const mm_token *t)
{
    mm_array a;
    return mm_array_read(t, &a) == MM_MERGE_OK ? mm_array_class(kind, &a) : 0;
}

static uint8_t number_class(int kind, const mm_token *t)
{
    mm_number v;
    return mm_number_read(t, &v) == MM_MERGE_OK ? MM_CLASS_NUMBER : array_class(kind, t);
}

static uint8_t append_class(const mm_token *t, const uint8_t *next, const uint8_t *end)
{
    if (t->type == MM_ARRAY) {
        if (t->n > (uint64_t)(end - next))
            return 0;
        return mm_msgpack_skip(next, end, t->n, 1) == end ? MM_CLASS_LIST : 0;
    }
    if (next != end)
        return 0;
    switch (t->type) {
    case MM_BIN: return MM_CLASS_BIN;
    case MM_STR: return MM_CLASS_STR;
    default: return array_class(MM_MERGE_APPEND, t);
    }
}

uint8_t mm_merge_class(int kind, const uint8_t *p, uint64_t n)
{
    const uint8_t *next;
    mm_token t;
    if (kind == MM_MERGE_NONE || kind == MM_MERGE_LWW)
        return 1;
    if (n == 0 || (next = mm_msgpack_token(p, p + n, &t)) == NULL)
        return 0;
    switch (kind) {
    case MM_MERGE_APPEND:
        return append_class(&t, next, p + n);
    case MM_MERGE_ADD:
        return next == p + n ? number_class(kind, &t) : 0;
    case MM_MERGE_MAX:
        if (next != p + n)
            return 0;
        return t.type == MM_STR ? MM_CLASS_STR : t.type == MM_BIN ? MM_CLASS_BIN : number_class(kind, &t);
    case MM_MERGE_UNION:
        return t.type == MM_MAP && mm_map_fits(next, p + n, t.n) ? MM_CLASS_MAP : 0;
    default:
        return 0;
    }
}

uint64_t mm_merge_bound(int kind, const mm_span *f, uint32_t count)
{
    uint64_t sum = 0, most = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (f[i].n > most)
            most = f[i].n;
        if (__builtin_add_overflow(sum, f[i].n, &sum))
            return UINT64_MAX;
    }
    if (kind == MM_MERGE_LWW)
        return count ? f[count - 1].n : 0;
    if (kind == MM_MERGE_ADD || kind == MM_MERGE_MAX)
        sum = most;
    return sum > UINT64_MAX - MM_MERGE_SLACK ? UINT64_MAX : sum + MM_MERGE_SLACK;
}

/* The sum of the counts (bytes, elements) and of the bytes behind the headers; all headers must be of `type`. */
static int append_sizes(const mm_span *f, uint32_t count, int type, uint64_t *total, uint64_t *bytes)
{
    mm_token t;
    *total = *bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *end = f[i].p + f[i].n;
        const uint8_t *next = mm_msgpack_token(f[i].p, end, &t);
        if (next == NULL)
            return MM_MERGE_BAD;
        if (t.type != type)
            return mm_misfit(&f[i]);
        *total += t.n;
        *bytes += type == MM_ARRAY ? (uint64_t)(end - next) : t.n;
        if (*total > UINT32_MAX)
            return MM_MERGE_TYPE; /* msgpack has no header for it */
    }
    return MM_MERGE_OK;
}

/* memcpy for what is mostly 16 to 32 bytes: two moves that overlap, and no call. */
static void copy(uint8_t *to, const uint8_t *from, uint64_t n)
{
    if (n < 16 || n > 32) {
        memcpy(to, from, n);
        return;
    }
    memcpy(to, from, 16);
    memcpy(to + n - 16, from + n - 16, 16);
}

/* bytes, str and lists: one new header, then what stood behind the old ones. */
static int append_plain(const mm_span *f, uint32_t count, int type, mm_output *out)
{
    uint8_t head[MM_MSGPACK_HEAD], *at;
    uint64_t total, bytes, head_n;
    int status = append_sizes(f, count, type, &total, &bytes);
    if (status != MM_MERGE_OK)
        return status;
    head_n = (uint64_t)(mm_put_head(head, type, total) - head);
    if (out->cap < head_n || out->cap - head_n < bytes)
        return MM_MERGE_SPACE;
    memcpy(out->p, head, head_n);
    at = out->p + head_n;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *end = f[i].p + f[i].n;
        mm_token t;
        const uint8_t *next = mm_msgpack_token(f[i].p, end, &t);
        const uint8_t *from = type == MM_ARRAY ? next : t.body;
        if ((type == MM_ARRAY ? mm_msgpack_skip(next, end, t.n, 1) : next) != end)
            return MM_MERGE_BAD;
        copy(at, from, (uint64_t)(end - from));
        at += end - from;
    }
    out->len = (uint64_t)(at - out->p);
    return MM_MERGE_OK;
}

static int max_plain(const mm_span *f, uint32_t count, int type, mm_output *out)
{
    mm_token best = {NULL, 0, type, 0}, t = best; /* the empty one: nothing is below it */
    uint64_t head_n;
    uint8_t head[MM_MSGPACK_HEAD];
    for (uint32_t i = 0; i < count; i++) {
        uint64_t common;
        int order;
        if (mm_scalar(&f[i], &t) == NULL)
            return mm_misfit(&f[i]);
        if (t.type != type)
            return MM_MERGE_TYPE;
        common = t.n < best.n ? t.n : best.n;
        order = common ? memcmp(t.body, best.body, common) : 0;
        if (order > 0 || (order == 0 && t.n > best.n))
            best = t;
    }
    head_n = (uint64_t)(mm_put_head(head, type, best.n) - head);
    if (out->cap < head_n || out->cap - head_n < best.n)
        return MM_MERGE_SPACE;
    memcpy(out->p, head, head_n);
    if (best.n)
        memcpy(out->p + head_n, best.body, best.n);
    out->len = head_n + best.n;
    return MM_MERGE_OK;
}

static int last_write(const mm_span *last, mm_output *out)
{
    if (out->cap < last->n)
        return MM_MERGE_SPACE;
    if (last->n)
        memcpy(out->p, last->p, last->n);
    out->len = last->n;
    return MM_MERGE_OK;
}

/* The oldest fragment says what is merged. */
static int merge_by_type(int kind, const mm_span *f, uint32_t count, mm_output *out)
{
    mm_token t;
    if (mm_msgpack_token(f->p, f->p + f->n, &t) == NULL)
        return MM_MERGE_BAD;
    if (kind == MM_MERGE_UNION)
        return mm_map_union(f, count, out);
    if (t.type == MM_EXT && t.ext == MM_EXT_ARRAY)
        return mm_array_merge(kind, f, count, out);
    if (kind == MM_MERGE_APPEND && (t.type == MM_BIN || t.type == MM_STR || t.type == MM_ARRAY))
        return append_plain(f, count, t.type, out);
    if (kind == MM_MERGE_MAX && (t.type == MM_BIN || t.type == MM_STR))
        return max_plain(f, count, t.type, out);
    if (kind == MM_MERGE_ADD || kind == MM_MERGE_MAX)
        return mm_number_merge(kind, f, count, out);
    return mm_misfit(f);
}

int mm_merge(int kind, const mm_span *f, uint32_t count, uint8_t *out, uint64_t cap, uint64_t *len)
{
    mm_output result = {out, cap, 0};
    int status;
    *len = 0;
    if (count == 0 || kind <= MM_MERGE_NONE || kind > MM_MERGE_UNION)
        return MM_MERGE_TYPE;
    if (kind == MM_MERGE_LWW)
        status = last_write(&f[count - 1], &result);
    else
        status = merge_by_type(kind, f, count, &result);
    if (status == MM_MERGE_OK)
        *len = result.len;
    return status;
}
