/* times.c - when epochs were, so that people can be told for how long somebody has held one.
 *
 * A pin is an epoch, and costs a store and a fence; it must not cost a look at a clock.  So who steps the epoch notes the time, at most once a
 * second, in rows of samples: row k keeps the last 16 of its periods of 2^k seconds.  Together they reach back twelve days, and the time of any
 * epoch is known to about an eighth of its age.
 *
 * Only people read this, and nothing is decided by it.  Two who write to one sample at a time leave the epoch of one beside the time of the
 * other, of the same second.  Died in between: a sample whose time is 0 is none.
 */
#include "internal.h"

#define SECOND UINT64_C(1000000000)

/* The epoch was stepped to `epoch` just now. */
void mm_epoch_time(mm *m, uint64_t epoch)
{
    mm_epoch_sample *samples = (mm_epoch_sample *)(m->control + MM_CONTROL_TIMES);
    uint64_t now = mm_os_now(), second = now / SECOND;
    for (uint32_t row = 0; row < MM_TIME_ROWS; row++) {
        uint64_t period = second >> row;
        mm_epoch_sample *s = &samples[row * MM_TIME_SAMPLES + period % MM_TIME_SAMPLES];
        if (at_noted(&s->time) / SECOND >> row == period) {
            if (row == 0) return; /* all of them were looked at in this second */
            continue;
        }
        at_note(&s->time, 0);
        at_note(&s->epoch, epoch);
        at_note(&s->time, now);
    }
}
