/* hot_ids.c - generate_id: one addition to a shared word, and now and then a call that writes and flushes. */
#include "hot.h"
#include "peek.h"

__attribute__((noinline)) static PyObject *generate_slowly(hot_verbs *self, uint64_t id)
{
    for (;;) {
        mm_result r = {0};
        mm *m = self->m;
        int status = MM_CLOSED;
        if (m) {
            Py_BEGIN_ALLOW_THREADS /* it may wait for a sync */
            status = mm_generate_id(m, &id, 0, &r);
            Py_END_ALLOW_THREADS
        }
        if (status == MM_OK) return PyLong_FromUnsignedLongLong(id);
        r.key.pid = 1;
        PyObject *counter = PyLong_FromLong(1);
        int mended = counter ? hot_mend(self, status, &r, counter, NULL) : -1;
        Py_XDECREF(counter);
        if (mended < 0) return NULL;
    }
}

/* The GIL keeps the mapping: who closes takes self->m away first. */
PyObject *hot_generate_id(hot_verbs *self, PyObject *unused)
{
    (void)unused;
    uint64_t id = MM_ID_NONE;
    if (mm_peek_safe(self->m) && mm_id_quick(self->m, &id) == MM_OK) return PyLong_FromUnsignedLongLong(id);
    return generate_slowly(self, id);
}
