/* written.pml - which segments may hold bytes that no sync covers (flush.c, written_since: what has to be made dirty again).
 *
 * Two segments.  P writes under a lease in segment 0, then takes one in segment 1; it may die or stop between any two steps.  It may die
 * between CAS and commit word: somebody else stores that word, much later.  Its slot goes to a new owner, who reaps it first.
 * Syncs (of all of the log) succeed, and raise `stable` (`marked`, in the core), or fail: then the pages are clean and what they held is not on the disk.
 * A looker leaves out segments; it must not leave out one that holds bytes, stored before it looked, that no sync covers.
 *
 * Rules: `written` of a segment is raised to the epoch before another lease is announced in its place, and by the next owner of the slot
 * for the lease that it finds there.  The reaper of a slot that announces a publish helps the record that this left without a commit word, before it
 * withdraws the announcement: so whoever else helps it does so while the lease still stands in the slot.  The looker loads `stable`, then
 * the leases, then `written`, and takes a segment that has a lease, or written >= stable.
 *
 * Broken variants: RAISE_LATE (`written` is raised when the new lease begins, after it was announced)  WRITTEN_FIRST (the looker: `written`
 * before the leases)  OWNER_SILENT (the next owner does not raise it)  REAP_BLIND (the reaper does not help)  HELP_AFTER (nor does
 * it, but a helper raises `written` after it has stored the commit word: it may die between)
 * Must hold: HELP_STICKY (the reaper does not help; a helper raises `written` for good, before it stores the commit word)
 */
#if defined(HELP_AFTER) || defined(HELP_STICKY)
#define REAP_BLIND
#endif
byte epoch = 1, stable;
byte lease = 1;                 /* of the slot: segment + 1 */
byte written[2];
byte stored[2], covered[2];     /* ghosts: stores; how many of them the last sync that succeeded covers */
bool half, dead;                /* half: published without a commit word, in segment 0 */

inline raise(s) { w = epoch; d_step { if :: written[s] < w -> written[s] = w :: else fi; w = 0 } }

proctype P()
{
    byte w;
    stored[0]++;
    if
    :: half = 1; goto out                                       /* dies between CAS and commit word */
    :: skip
    fi;
#ifndef RAISE_LATE
    raise(0);
#endif
    lease = 2;                                                  /* announced */
    if :: goto out :: skip fi;
#ifdef RAISE_LATE
    raise(0);
#endif
    stored[1]++;
out: dead = 1
}
proctype NextOwner()
{
    byte w, l;
    (dead);
#ifndef REAP_BLIND
    atomic { if :: half -> half = 0; stored[0]++ :: else fi };
#endif
#ifndef OWNER_SILENT
    l = lease;
    raise(l - 1);
#endif
    lease = 0
}
proctype Helper()
{
    byte w;
    (half);
#ifdef HELP_STICKY
    written[0] = 255;
#endif
    atomic { if :: half -> half = 0; stored[0]++ :: else fi };
#ifdef HELP_AFTER
    raise(0)
#endif
}
proctype Flusher()
{
    byte n, E, f0, f1;
    do
    :: n < 3 ->
        d_step { E = epoch; epoch++ };
        d_step { f0 = stored[0]; f1 = stored[1] };
        if
        :: d_step { if :: covered[0] < f0 -> covered[0] = f0 :: else fi; if :: covered[1] < f1 -> covered[1] = f1 :: else fi };
           d_step { if :: stable < E -> stable = E :: else fi }
        :: skip                                                 /* failed */
        fi;
        d_step { n++; f0 = 0; f1 = 0; E = 0 }
    :: break
    od
}
proctype Looker()
{
    byte s, l, w0, w1, must0, must1;
    d_step { must0 = stored[0]; must1 = stored[1] };
    s = stable;
#ifdef WRITTEN_FIRST
    w0 = written[0]; w1 = written[1]; l = lease;
#else
    l = lease; w0 = written[0]; w1 = written[1];
#endif
    assert(l == 1 || w0 >= s || covered[0] >= must0);
    assert(l == 2 || w1 >= s || covered[1] >= must1)
}
init { atomic { run P(); run NextOwner(); run Helper(); run Flusher(); run Looker() } }
