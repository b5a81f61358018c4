/* suspect.pml - a failed sync that only a process heard of that died, or was stopped, before it could say so.
 *
 * Pages of `log` that could not be written are called clean by the kernel.  It keeps an error of the file that it tells each open file
 * description once (errseq): to those opened before anybody was told, and not to those opened afterwards.  So a sync that succeeds
 * proves nothing for an attachment that was opened after somebody else had been told: it may have lost pages that it believes clean.
 *
 * One page stands for the log: `mem` records in memory, `disk` of them on the disk.  The kernel may write it back at any time, and fail.
 * Processes attach at any time, flush, and are killed or stopped between any two steps (a death matters only
 * while `syncing` stands; the third one only stops); the dead are reaped, one step after the other.
 *
 * Rules: `syncing` stands in the slot from before the sync until it is known that nobody was told, or `failed` is set; a reaper that finds
 * it raises `suspect` before it clears it.  A flush looks first at the slots (a sync that began before we were born), then at `suspect`
 * (any value); if either is there it makes the pages dirty again before its sync, and clears the `suspect` that it saw afterwards.
 * `suspect` never takes the same value twice (an epoch step makes it), so a cleared one is one that was seen.
 *
 * Property: a mark covers only what is on the disk.
 *
 * Broken variants: NO_SUSPECT (the reaper only clears `syncing`)  SUSPECT_FIRST (`suspect` is looked at before the slots)
 * MAX_BORN (`suspect` is the largest epoch of a reaped sync, and means something only to those born later)  SAME_VALUE (the epoch is not
 * stepped: two events look like one)  CLEAR_FIRST (the reaper clears `syncing`, then raises `suspect`)  CLEAR_BLIND (who clears
 * `suspect` has not made the pages dirty again)  TOLD_CLEAR (`syncing` is cleared when the sync returns, then `failed` is set)
 * BORN_FIRST (`born` is loaded before `log` is opened)  SYNCING_LATE (`syncing` is set after the sync)  EVICT (the kernel throws a
 * page away that it could not write: then nobody has the bytes any more; a limit, not a mistake)
 * Must hold: SYNC_ENDS (`syncing` is cleared when the sync has succeeded, before the mark)
 */
#ifdef FOUR
#define NP 4
#else
#define NP 3
#endif
#ifndef KILLS
#define KILLS 2
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef FLUSHES
#define FLUSHES 1              /* of each process */
#endif
#ifndef WRITES
#define WRITES 0
#endif
byte mem = 1, disk, all = 1; bool dirty = 1;     /* the page; all: ghost, records ever stored */
byte err; bool told = 0; byte faults;   /* the file's error, and whether anybody was told of it */
byte epoch = 1, suspect, kills;
bool failed, dead[NP];
byte syncing[NP];

inline lose() {
    faults++; dirty = 0;
    if :: told || err == 0 -> err++; told = 0 :: else fi        /* one that nobody was told of yet is the same to all */
#ifdef EVICT
    ; mem = disk
#endif
}
inline write_back() {                   /* both in an atomic */
    if
    :: dirty -> if :: disk = mem; dirty = 0 :: faults < FAULTS -> lose() fi
    :: else
    fi
}

#define DIE(x) if :: kills < KILLS && me < 2 -> atomic { kills++; dead[me] = 1; goto out } :: skip fi

proctype Process(byte me)
{
    byte born, since, E, need, s, i, n; bool again, bad;
    if
    :: me == 0 -> born = 1                                      /* attached before all that follows */
    :: me != 0 ->
#ifdef FOUR
        if :: me == 3 -> (kills == KILLS && syncing[0] == 0 && syncing[1] == 0) :: else fi;
#endif
#ifdef BORN_FIRST
        born = epoch;
#endif
        d_step { if :: told -> since = err :: else fi };        /* open: an error that nobody was told of is told to us as well */
#ifndef BORN_FIRST
        born = epoch
#endif
    fi;
next:
    if :: failed || n == FLUSHES -> goto out :: else -> n++ fi;
    d_step { need = all; E = epoch; epoch++ };
#ifndef SYNCING_LATE
    syncing[me] = E;
#ifdef MORE
    DIE(1);
#endif
#endif
#ifdef SUSPECT_FIRST
    s = suspect;
#endif
    i = 0;
    do
    :: i < (me == 0 -> 0 : NP) -> atomic { if :: i != me && syncing[i] != 0 && syncing[i] < born -> again = 1 :: else fi; i++ }
    :: else -> break
    od;
#ifndef SUSPECT_FIRST
    s = suspect;
#endif
    atomic {
        i = 0;
#ifdef MAX_BORN
        if :: again || (s != 0 && s < born) -> dirty = 1 :: else fi;
#elif defined(CLEAR_BLIND)
        if :: again || (s != 0 && me == 2) -> dirty = 1 :: else fi;
#else
        if :: again || s != 0 -> dirty = 1 :: else fi;
#endif
        again = 0
    };
    atomic { write_back() };
    d_step { if :: err != since -> told = 1; since = err; bad = 1 :: else fi };
#ifdef SYNCING_LATE
    DIE(2);
    syncing[me] = E;
#endif
#ifdef TOLD_CLEAR
    syncing[me] = 0;
#endif
    DIE(3);
    if :: bad -> failed = 1; goto out :: else fi;
    d_step { if :: s != 0 && suspect == s -> suspect = 0 :: else fi; s = 0 };
#ifdef SYNC_ENDS
    syncing[me] = 0;
#endif
    if :: failed -> goto out :: else fi;
    d_step { assert(disk >= need); need = 0; E = 0 };           /* the mark, and `stable` */
#ifdef MORE
    DIE(4);
#endif
    syncing[me] = 0;
    goto next;
out: skip
}
proctype Reaper()
{
    byte i, s; bool twice;
again:
    atomic { if :: dead[0] && syncing[0] != 0 -> i = 0 :: dead[1] && syncing[1] != 0 -> i = 1 fi };
#ifdef CLEAR_FIRST
    atomic { s = syncing[i]; syncing[i] = 0 };
#endif
#ifdef NO_SUSPECT
    skip;
#elif defined(MAX_BORN)
    d_step { if :: suspect < syncing[i] -> suspect = syncing[i] :: else fi };
#elif defined(SAME_VALUE)
    d_step { if :: suspect < epoch -> suspect = epoch :: else fi };
#else
    d_step { s = epoch; epoch++ };
    d_step { if :: suspect < s -> suspect = s :: else fi };
#endif
    if :: syncing[i] = 0 :: !twice -> twice = 1 fi;                          /* or the reaper dies, and another one does it again */
    s = 0; i = 0;
    goto again
}
proctype Kernel() { do :: atomic { dirty && faults < FAULTS -> lose() } od }     /* a write-back in the background; one that succeeds only helps */
proctype Writer() { byte n; do :: n < WRITES -> d_step { mem++; all++; dirty = 1; n++ } :: else -> break od }
init { atomic { run Process(0); run Process(1); run Process(2);
#ifdef FOUR
    run Process(3);
#else
    run Kernel();
#endif
    run Reaper(); run Writer() } }
