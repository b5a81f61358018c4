/* points.c - counts the accesses to shared memory, and dies, stops or fails at the n-th (see points.h). */
#include "points.h"

#ifdef MMPC_POINTS
#include <signal.h>
#include <unistd.h>

static struct {
    uint64_t passed, at;
    int action, failing, full;
} points;

void mm_point_hit(void)
{
    points.passed++;
    if (points.at == 0 || points.passed != points.at) return;
    if (points.action == MM_POINT_KILL) kill(getpid(), SIGKILL);
    if (points.action == MM_POINT_STOP) kill(getpid(), SIGSTOP);
    if (points.action == MM_POINT_FAIL) points.failing = 1;
    if (points.action == MM_POINT_FULL) points.full = 1;
}

/* Growth and sync ask here: true when the armed point lies at or before this one and asked for a failure. */
int mm_point_fails(void)
{
    mm_point_hit();
    int f = points.failing;
    points.failing = 0;
    return f;
}

/* Growth asks: from the armed point on there is no room. */
int mm_point_full(void) { return points.full; }

int mm_points_arm(uint64_t n, int action)
{
    points.full = 0;
    points.passed = 0;
    points.at = n;
    points.action = action;
    points.failing = 0;
    return 0;
}

uint64_t mm_points_passed(void) { return points.passed; }
#else
int mm_points_arm(uint64_t n, int action)
{
    (void)n;
    (void)action;
    return -1;
}

uint64_t mm_points_passed(void) { return 0; }
#endif
