/* hot_cache.c - the object cache of a handle, with references: it owns one to each result it holds. */
#include "hot.h"

hot_known hot_recall(hot_verbs *self, uint64_t pid)
{
    mm_object *e = mm_objects_find(&self->objects, pid);
    if (!e) return (hot_known){0};
    Py_INCREF((PyObject *)e->object);
    return (hot_known){.page = e->object, .wts = e->wts, .size = e->size};
}

/* Destructors of victims may use the handle, so nothing is remembered across one: room is made first, one victim at a time,
 * and between the last look and the insertion nobody else runs. */
void hot_remember(hot_verbs *self, const mm_result *r, PyObject *page, uint64_t size)
{
    mm_object entry = {.pid = r->key.pid, .head = r->key.head, .generation = r->generation, .wts = r->key.wts, .size = size,
                       .object = page};
    void *previous, *victim;
    if (!self->m) return; /* closed by a callback: nobody would ever let go of it */
    while ((victim = mm_objects_make_room(&self->objects, entry.pid, size))) {
        if (self->m) mm_count_eviction(self->m);
        Py_DECREF((PyObject *)victim);
    }
    if (!self->m) return;
    Py_INCREF(page);
    bool stored = mm_objects_put(&self->objects, &entry, &previous);
    if (!stored) previous = page;
    Py_XDECREF((PyObject *)previous);
    if (mm_objects_too_large(&self->objects, size)) hot_forget(self, entry.pid); /* nor what is older */
}

void hot_moved(hot_verbs *self, const mm_result *r)
{
    mm_object *e = mm_objects_find(&self->objects, r->key.pid);
    if (!e || e->wts != r->key.wts) return;
    e->head = r->key.head;
    e->generation = r->generation;
    e->visited = 1;
}

void hot_forget(hot_verbs *self, uint64_t pid)
{
    PyObject *page = mm_objects_remove(&self->objects, pid);
    Py_XDECREF(page);
}

void hot_forget_all(hot_verbs *self)
{
    mm_objects old;
    void *page;
    mm_objects_detach(&self->objects, &old);
    while ((page = mm_objects_pop(&old))) Py_DECREF((PyObject *)page);
}

void hot_resize(hot_verbs *self, uint64_t capacity)
{
    if (capacity < self->objects.capacity) hot_forget_all(self);
    self->objects.capacity = capacity;
}
