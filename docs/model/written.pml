/* written.pml - which segments may hold bytes that no sync covers (flush.c, written_since: what has to be made dirty again).
 *
 * Two segments.  Process P writes under a lease in segment 0, then takes one in segment 1; it may die or stop between any two steps, its slot
 * then goes to a new owner.  A record of P may be published and left without a commit word; a helper stores that word much later.
 * A looker decides, at any time, which segments it leaves out; it must not leave out one with bytes that the last sync did not cover.
 *
 * Rules: a lease stands in its slot, `written` of its segment is raised to the epoch *before* another one is announced there; the next
 * owner of a slot raises it for the lease that it finds there; a helper raises it after the commit word.  The looker reads
 * the leases first, then `written`, and takes a segment that has a lease, or with written >= stable.
 *
 * Broken variants: RAISE_LATE (`written` is raised when the new lease begins, after it was announced)  WRITTEN_FIRST (`written` before the
 * leases)  HELP_SILENT (the helper does not raise it)  OWNER_SILENT (the next owner does not)
 */
byte epoch = 1, stable;
byte lease = 1;                 /* of the slot: segment + 1 */
byte written[2];
bool unsynced[2];               /* ghost: stored since the last sync began that has ended well */
bool half, dead, gone;          /* half: published without a commit word, in segment 0 */

inline raise(s) { w = epoch; d_step { if :: written[s] < w -> written[s] = w :: else fi; w = 0 } }

proctype P()
{
    byte w;
    unsynced[0] = 1;                                            /* a record */
    if
    :: half = 1; goto out                                       /* dies between CAS and commit word */
    :: half = 1; unsynced[0] = 1; half = 0
    :: skip
    fi;
    if :: goto out :: skip fi;
#ifndef RAISE_LATE
    raise(0);
#endif
    lease = 2;                                                  /* announced */
    if :: goto out :: skip fi;
#ifdef RAISE_LATE
    raise(0);
#endif
    unsynced[1] = 1;
out: dead = 1
}
proctype NextOwner()
{
    byte w, l;
    (dead);
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
    atomic { half = 0; unsynced[0] = 1 };
#ifndef HELP_SILENT
    raise(0)
#endif
}
proctype Flusher()
{
    byte n, E; bool a, b;
    do
    :: n < 3 ->
        d_step { E = epoch; epoch++ };
        d_step { unsynced[0] = 0; unsynced[1] = 0 };            /* all that was stored before; `stable` may come late, or never */
        if :: d_step { if :: stable < E -> stable = E :: else fi } :: skip fi;
        n++
    :: break
    od
}
proctype Looker()
{
    byte s, l, w0, w1; bool must0, must1, in0, in1;
    s = stable;
    /* What was stored before the look, is covered by no sync yet, and whose writer has had the time to say so.  Later
     * stores make their pages dirty themselves. */
    d_step { must0 = unsynced[0]; must1 = unsynced[1] };
#ifdef WRITTEN_FIRST
    w0 = written[0]; w1 = written[1]; l = lease;
#else
    l = lease; w0 = written[0]; w1 = written[1];
#endif
    atomic { in0 = (l == 1 || w0 >= s); in1 = (l == 2 || w1 >= s) };
    assert(!(must0 && unsynced[0]) || in0);
    assert(!(must1 && unsynced[1]) || in1)
}
init { atomic { run P(); run NextOwner(); run Helper(); run Flusher(); run Looker() } }
