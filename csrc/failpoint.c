/* failpoint.c - what happens at a named place (failpoint.h).  The words are private to the process; threads share them. */
#define _GNU_SOURCE
#include "failpoint.h"

#include <signal.h>
#include <unistd.h>

#include "atomics.h"

static pv_word *word(uint64_t *w) { return (pv_word *)w; }

/* Takes one from a counter unless it is 0. */
static bool take(uint64_t *counter)
{
    uint64_t n = pv_load(word(counter));
    while (n && !pv_cas(word(counter), &n, n - 1)) { }
    return n != 0;
}

static int act(uint64_t action, int error)
{
    switch (action) {
    case MM_FAIL_KILL: kill(getpid(), SIGKILL); return 0;
    case MM_FAIL_STOP: kill(getpid(), SIGSTOP); return 0;
    case MM_FAIL_EXIT: _exit(error);
    default: return error;
    }
}

int mm_fail_at(mm_failpoints *f, uint32_t i)
{
    if (!f || !pv_load_relaxed(word(&f->armed)) || i >= sizeof f->at / sizeof *f->at) return 0;
    mm_failpoint *p = &f->at[i];
    pv_add(word(&p->visits), 1);
    uint64_t action = pv_load(word(&p->action));
    if (!action || take(&p->skip) || !take(&p->left)) return 0;
    pv_add(word(&p->hits), 1);
    return act(action, (int)pv_load(word(&p->error)));
}
