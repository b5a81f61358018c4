/* leader.pml - group commit: one flushes for all who wait (flush.c, flush_to and lead).
 *
 * NF processes call flush() once each while records are committed.  Who wins the CAS of the leader word flushes; the others wait for the word
 * `flushed` to change, a bounded time (the end of it may come at any moment), then try to take the leader's turn.  Everybody may stop anywhere;
 * the leader may die anywhere; a sync may fail.  `waiting` and `crowd` only decide whether somebody is woken.
 *
 * Properties: a flush that returns well has stable >= its target, and what was committed before it began is on the disk; nobody is left
 * waiting (no invalid end state); the loop is gone through at most TURNS times.
 *
 * NO_TIMEOUT: waits have no end.  Must hold as long as nobody dies (-DDEATHS=0): nothing depends on the bound, a wake-up is never lost.
 *
 * Broken variants: WOKEN (who is woken returns without looking at `stable`)  LATE_TARGET (the flush under way is enough: the target is the
 * epoch that it stepped from)  STABLE_EARLY (`stable` is raised before the sync)  SYNC_EARLY (the sync begins before the epoch step)
 * FAILED_UNSEEN (who is woken by a flush that failed, and finds `stable` short, returns)  NO_STEAL (who has waited long enough waits
 * again)  NO_TIMEOUT with a death  NO_TIMEOUT with LATE_SEEN (`flushed` is loaded after the CAS failed)  NO_TIMEOUT with NO_WAKE
 * Must hold: RELEASE_FIRST (the leader lets go and wakes before it raises `stable`: more syncs, nothing else)
 */
#ifndef NF
#define NF 3
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef COMMITS
#define COMMITS 1
#endif
#ifdef RELEASE_FIRST
#define TURNS 9                 /* not the point there */
#else
#define TURNS 4
#endif
byte epoch = 1, stable, leader, flushed, waiting;
byte com, disk;                         /* records committed; covered by a mark */
byte deaths, faults; bool failed, asleep[NF];

#define DIE if :: deaths < DEATHS -> atomic { deaths++; goto out } :: skip fi
inline wake() { d_step { asleep[0] = 0; asleep[1] = 0;
#if NF > 2
    asleep[2] = 0
#endif
} }
inline let_go() {
    atomic { if :: leader == mine -> leader = 0 :: else fi };
    flushed++;
#ifndef NO_WAKE
    if :: c > 1 || waiting > 0 -> wake() :: else fi
#endif
}

proctype Flush(byte me)
{
    byte must, target, mine, l, seen, E, img, c, n; bool bad;
    must = com;
#ifdef LATE_TARGET
    target = (leader != 0 -> epoch - 1 : epoch);
#else
    target = epoch;
#endif
again:
    atomic { l = 0; seen = 0; E = 0; img = 0; c = 0; mine = 0 };
    if :: stable >= target -> goto done :: else fi;
#if FAULTS
    if :: failed -> goto out :: else fi;
#endif
    d_step { n++; assert(n <= TURNS); mine = n * 4 + me + 1 };
#ifndef LATE_SEEN
    seen = flushed;
#endif
    atomic { l = leader; if :: l == 0 -> leader = mine :: else fi };
    if
    :: l != 0 ->
#ifdef LATE_SEEN
        seen = flushed;
#endif
        waiting++;
wait:
        if
        :: flushed != seen -> goto woken
        :: atomic { flushed == seen -> asleep[me] = 1 };
           if
           :: !asleep[me] -> goto woken
#ifndef NO_TIMEOUT
           :: asleep[me] -> asleep[me] = 0
#endif
           fi
        fi;
#ifdef NO_STEAL
        goto again;
#endif
        atomic { if :: leader == l -> leader = mine :: else -> goto again fi }
    :: else
    fi;
    DIE;
    d_step { c = waiting + 1; waiting = 0 };
#if FAULTS
    if :: failed -> bad = 1; goto end :: else fi;
#endif
#ifdef SYNC_EARLY
    img = com;
#endif
    d_step { E = epoch; epoch++ };
#ifdef STABLE_EARLY
    d_step { if :: stable < E -> stable = E :: else fi };
#endif
#if !defined(SYNC_EARLY) && COMMITS
    img = com;
#endif
    DIE;
#if FAULTS
    if
    :: faults < FAULTS -> faults++; failed = 1; bad = 1; goto end
    :: skip
    fi;
    if :: failed -> bad = 1; goto end :: else fi;
#endif
#if COMMITS
    d_step { if :: disk < img -> disk = img :: else fi };
    DIE;
#endif
#ifdef RELEASE_FIRST
    let_go();
#endif
    d_step { if :: stable < E -> stable = E :: else fi };
end:
#ifdef RELEASE_FIRST
    if :: bad -> let_go() :: else fi;
#else
    DIE;
    let_go();
#endif
    if :: bad -> goto out :: else -> goto again fi;
woken:
#ifdef WOKEN
    goto done;
#elif defined(FAILED_UNSEEN)
    if :: failed -> goto done :: else fi;
#endif
    goto again;
done:
#ifndef WOKEN
    assert(stable >= target || failed);
#endif
    assert(disk >= must);
out: atomic { l = 0; seen = 0; E = 0; img = 0; c = 0; mine = 0; must = 0; target = 0; n = 0; bad = 0 }
}
proctype Committer() { do :: com < COMMITS -> com++ :: break od }
init { atomic { run Flush(0); run Flush(1);
#if NF > 2
    run Flush(2);
#endif
    run Committer() } }
