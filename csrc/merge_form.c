/* What an encoded fragment is, for who wants its bytes as they are: where the data lies, its dtype and shape, and their names in the buffer
 * protocol. */
#include <stdbool.h>
#include <stdio.h>

#include "merge_parts.h"

static const char *const names[] = { "?", "None", "bool", "int", "int", "float", "str", "bytes", "int", "list", "dict" }; /* by enum mm_token_type */

/* Python's struct character of a number of this kind and size; NULL: there is none.  Of the two for 64 bits in the machine's order that one which
 * numpy calls int64. */
static const char *number_format(uint8_t order, uint8_t kind, uint64_t item)
{
    switch (kind) {
    case 'b': return "?";
    case 'i': return item == 1 ? "b" : item == 2 ? "h" : item == 4 ? "i" : order == '>' ? "q" : "l";
    case 'u': return item == 1 ? "B" : item == 2 ? "H" : item == 4 ? "I" : order == '>' ? "Q" : "L";
    case 'f': return item == 2 ? "e" : item == 4 ? "f" : "d";
    case 'c': return item == 8 ? "Zf" : "Zd";
    default: return NULL;
    }
}

/* Times have no format (nor has numpy one for them); what is in the machine's order is written without a prefix, as memoryview wants it. */
static void set_format(mm_form *f, const mm_array *a)
{
    const char *order = a->dtype[0] == '>' ? ">" : "", *number = number_format(a->dtype[0], a->dtype[1], a->item);
    uint64_t length = a->dtype[1] == 'U' ? a->item / 4 : a->item;
    f->format[0] = 0;
    if (number) snprintf(f->format, sizeof f->format, "%s%s", order, number);
    else if (a->dtype[1] == 'S') snprintf(f->format, sizeof f->format, "%llus", (unsigned long long)length);
    else if (a->dtype[1] == 'U') snprintf(f->format, sizeof f->format, "%s%lluw", order, (unsigned long long)length);
}

/* In C order.  The product of the dimensions that are not 0, times the item, is bounded (mm_array_read). */
static void set_shape(mm_form *f, const mm_array *a)
{
    uint64_t stride = a->item;
    f->ndim = a->ndim;
    for (uint32_t i = a->ndim; i-- > 0;) {
        memcpy(&f->shape[i], a->shape + 8 * i, 8);
        f->strides[i] = stride;
        stride *= f->shape[i] ? f->shape[i] : 1;
    }
}

static void set_array(mm_form *f, const mm_array *a)
{
    f->kind = MM_FORM_ARRAY;
    f->data = a->data;
    f->bytes = a->data_n;
    f->item = a->item;
    memcpy(f->dtype, a->dtype, a->dtype_n);
    f->dtype[a->dtype_n] = 0;
    set_shape(f, a);
    set_format(f, a);
}

static void set_bytes(mm_form *f, const mm_token *t)
{
    f->kind = MM_FORM_BYTES;
    f->data = t->body;
    f->bytes = f->shape[0] = t->n;
    f->item = f->strides[0] = 1;
    f->ndim = 1;
    memcpy(f->dtype, "|u1", 4);
    memcpy(f->format, "B", 2);
}

int mm_form_read(const uint8_t *p, uint64_t n, mm_form *f)
{
    mm_token t;
    mm_array a;
    const uint8_t *end = p + n, *next = mm_msgpack_token(p, end, &t);
    if (!next) return MM_MERGE_BAD;
    f->kind = MM_FORM_OTHER;
    f->bytes = 0;
    snprintf(f->dtype, sizeof f->dtype, "%s", names[t.type]);
    bool array = t.type == MM_EXT && t.ext == MM_EXT_ARRAY;
    if (t.type != MM_BIN && !array) return MM_MERGE_OK;
    if (next != end || (array && mm_array_read(&t, &a))) return MM_MERGE_BAD;
    if (array) set_array(f, &a);
    else set_bytes(f, &t);
    return MM_MERGE_OK;
}
