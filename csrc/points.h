/* points.h - the seam for fault injection: every access to shared memory passes through MM_POINT().
 *
 * In a release build it is nothing.  Built with -DMMPC_POINTS each visit is counted, and the n-th one can kill
 * the process, stop it, (at growth and sync only) make the step fail, or make the disk full from then on.  Beside the signal's
 * disposition (guard.c) the counter is the only mutable global of the C core, and exists in that build alone.
 */
#ifndef MMPC_POINTS_H
#define MMPC_POINTS_H

#include <stdint.h>

enum mm_point_action { MM_POINT_COUNT = 0, MM_POINT_KILL = 1, MM_POINT_STOP = 2, MM_POINT_FAIL = 3, MM_POINT_FULL = 4 };

#ifdef MMPC_POINTS
void mm_point_hit(void);
int mm_point_fails(void);
int mm_point_full(void);
#define MM_POINT() mm_point_hit()
#define MM_POINT_FAILS() mm_point_fails()
#define MM_POINT_IS_FULL() mm_point_full()
#else
#define MM_POINT() ((void)0)
#define MM_POINT_FAILS() 0
#define MM_POINT_IS_FULL() 0
#endif

/* Arms the n-th point from now (n >= 1) with an action; n = 0 disarms.  Returns 0, or -1 in a build without points. */
int mm_points_arm(uint64_t n, int action);

/* Points passed since the last arming; 0 in a build without points. */
uint64_t mm_points_passed(void);

#endif
