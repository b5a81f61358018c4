/* hot.c - the module mmpc._hot, exported from the same shared object as mmpc._native (multi-phase init, PEP 489). */
#include "hot.h"

static int hot_exec(PyObject *module)
{
    hot_state *state = PyModule_GetState(module);
    state->check = PyUnicode_InternFromString("_check");
    if (!state->check || hot_add_results(module, state) < 0 || hot_add_views(module, state) < 0) return -1;
    return hot_add_verbs(module, state);
}

static int hot_traverse(PyObject *module, visitproc visit, void *arg)
{
    hot_state *s = PyModule_GetState(module);
    if (!s) return 0;
    Py_VISIT(s->key);
    Py_VISIT(s->materialized);
    Py_VISIT(s->free);
    Py_VISIT(s->unallocated);
    Py_VISIT(s->counter);
    Py_VISIT(s->meta);
    Py_VISIT(s->verbs);
    Py_VISIT(s->held);
    Py_VISIT(s->view);
    Py_VISIT(s->encode);
    Py_VISIT(s->decode);
    return 0;
}

static int hot_clear(PyObject *module)
{
    hot_state *s = PyModule_GetState(module);
    if (!s) return 0;
    Py_CLEAR(s->key);
    Py_CLEAR(s->materialized);
    Py_CLEAR(s->free);
    Py_CLEAR(s->unallocated);
    Py_CLEAR(s->counter);
    Py_CLEAR(s->meta);
    Py_CLEAR(s->verbs);
    Py_CLEAR(s->held);
    Py_CLEAR(s->view);
    Py_CLEAR(s->check);
    Py_CLEAR(s->encode);
    Py_CLEAR(s->decode);
    return 0;
}

static void hot_release(void *module) { (void)hot_clear(module); }

static PyModuleDef_Slot hot_slots[] = {{Py_mod_exec, hot_exec}, {0, NULL}};

static PyModuleDef hot_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mmpc._hot",
    .m_doc = "The hot verbs and the object cache, with the GIL kept in short calls.",
    .m_size = sizeof(hot_state),
    .m_slots = hot_slots,
    .m_traverse = hot_traverse,
    .m_clear = hot_clear,
    .m_free = hot_release,
};

PyMODINIT_FUNC PyInit__hot(void) { return PyModuleDef_Init(&hot_module); }
