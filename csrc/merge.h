/* The native materializers: pure functions from encoded fragments to one encoded value.
 *
 * A fragment is one msgpack value (msgpack.h). Nothing here allocates beyond a call, calls back, keeps state or
 * trusts a byte of its input: fragments come from a mapped file. */
#ifndef MM_MERGE_H
#define MM_MERGE_H

#include <stdint.h>

typedef struct mm_span {
    const uint8_t *p;
    uint64_t n;
} mm_span; /* one encoded fragment */

enum mm_merge_kind {
    MM_MERGE_NONE = 0,
    MM_MERGE_APPEND = 1,
    MM_MERGE_ADD = 2,
    MM_MERGE_MAX = 3,
    MM_MERGE_LWW = 4,
    MM_MERGE_UNION = 5
};

enum mm_merge_status {
    MM_MERGE_OK = 0,
    MM_MERGE_SPACE = 1,
    MM_MERGE_TYPE = 2,
    MM_MERGE_BAD = 3,
    MM_MERGE_MEMORY = 4
};

/* The class of one fragment under a kind: 1..255, or 0 if it does not fit the kind at all (or is not exactly one
 * well-formed msgpack value, nesting <= 64). Fragments of different classes never merge; equal classes nearly always
 * do (the class of an array hashes dtype and shape into 7 bits, the top bit set). NONE and LWW: always 1, unparsed. */
uint8_t mm_merge_class(int kind, const uint8_t *p, uint64_t n);

/* Upper bound for the size of the merge of these fragments. */
uint64_t mm_merge_bound(int kind, const mm_span *f, uint32_t count);

/* Merges count >= 1 fragments, oldest first, to one encoded value in out[0..cap); *len = its length. SPACE: cap is too
 * small (nothing is written outside it); TYPE: they do not mix; BAD: one is not well-formed; MEMORY: no room for an
 * index. A single fragment is normalised too (Union drops None). out never overlaps the inputs. */
int mm_merge(int kind, const mm_span *f, uint32_t count, uint8_t *out, uint64_t cap, uint64_t *len);

/* An estimate, in bytes, of the private memory that the decoded Python object needs; what is not well-formed ends
 * quickly with a conservative number. */
uint64_t mm_merge_cost(const uint8_t *p, uint64_t n);

/* An encoded value as bytes that lie together: what a view shows.  OTHER: dtype holds the name of its Python type, and there is nothing to show. */
enum mm_form_kind { MM_FORM_OTHER = 0, MM_FORM_BYTES = 1, MM_FORM_ARRAY = 2 };
typedef struct mm_form {
    const uint8_t *data;
    uint64_t bytes, item;
    uint64_t shape[32], strides[32]; /* of an array, in C order */
    uint32_t ndim, kind;
    char dtype[256];                 /* numpy's dtype.str */
    char format[24];                 /* of the buffer protocol; empty where it has none */
} mm_form;
/* MM_MERGE_OK, or MM_MERGE_BAD: not well-formed. */
int mm_form_read(const uint8_t *p, uint64_t n, mm_form *form);

#endif
