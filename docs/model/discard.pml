/* discard.pml - several lives: discarded colours are recorded, snapshots only save time.
 *
 * One page, its versions written in order, each to one of the two leases of the current life (filled in order; a scan stops at the first
 * invalid record).  A colour is the epoch, or an older one that is still allowed (the author was slow).  The newest record may be
 * left without its commit word; whoever uses it helps.  A life ends by: a power loss (any subset of the unsynced records, and commit words, is
 * lost; of a mark that was written and not synced either version is found), the loss of the table alone (rebuild: all counts), or the loss of
 * `control` without a power loss (only what is durable counts, read from the page cache).  A recovery may be cut off between any two durable
 * steps, by a kill or by a power loss, and is then repeated.
 *
 * Rules: recovery syncs `log`; takes D, the newest mark; counts the committed records with colour <= D that no pair in `config` discards; writes
 * the pair (D, E0], E0 above every colour met, D and all pairs, durably, if it met a colour above D; epoch = E0 + 1; the volatile files are there (from
 * now on a kill means a rebuild); flushes, or at least syncs `marks`; writers enter.  Nothing is appended to segments of earlier lives.  A snapshot (a, b) helps the heads that it copies,
 * then flushes (b), then gets its name; any with b <= D may be used, or none: its heads count, and of the other records only those
 * with colour >= a are looked at, in segments that were opened in its life or later.
 *
 * Properties: *whatever snapshot is used or not*, recovery and rebuild find the same version of the same operation; it is one that users saw,
 * and at least what was flushed; a rebuild finds all that was committed; no version is missing below it (closure).
 *
 * Broken variants: NO_PAIR  PAIR_LATE (the pair is made durable by the first flush of the new life)  REPLACE (`config` keeps the newest pair only)
 * REBUILD_ALL (rebuild ignores the pairs)  E0_D (E0 = D + 1)  E0_MET (E0 above the colours met only)  EPOCH_E0 (epoch = E0)  E0_PAIRS (E0 is not
 * above earlier pairs)  NO_LOG_SYNC (recovery does not sync `log` first)  RESUME (leases of an earlier life are written on)  SNAP_UNCOMMITTED (a snapshot
 * does not help the heads that it copies)  SNAP_EARLY with SNAP_ABOVE (a snapshot has its name before its mark is durable, and is used with b > D)
 * NO_MARKS_SYNC (recovery neither flushes nor syncs `marks`)  SNAP_EARLY (the same: used
 * later, when D has passed b)  MERGE_GAP (one pair from the lowest to the highest)
 * Must hold: MERGE (a new pair swallows the earlier ones that it contains or touches)
 * SNAP_EARLY with SNAP_PAIRS (a snapshot whose b lies in a pair is never used)  DROP (a recovery that read the whole log forgets pairs of which it met no colour)
 */
#ifndef OPS
#define OPS 2
#endif
#ifndef LIVES
#define LIVES 2
#endif
#ifndef CUTS
#define CUTS 1
#endif
#ifndef FL
#define FL 1                    /* epoch steps in a life */
#endif
#ifndef SNAPS
#define SNAPS 1                 /* of them, by snapshots */
#endif
#define NP 2
#define NS (2 * LIVES)
#define NR (NP * NS)
#define NPAIR (LIVES + CUTS + 1)
#define NSN (LIVES * SNAPS + 1)
byte V[NR], C[NR], I[NR];       /* version, colour, operation (0: nothing valid here) */
bool cm[NR], sy[NR], dm[NR];    /* commit word; record on the disk; commit word on the disk */
byte end[NS];
byte lo[NPAIR], hi[NPAIR], np;  /* `config` */
byte dnp;                       /* PAIR_LATE: of them, durable */
byte sa[NSN], sb[NSN], sver[NSN], sid[NSN], slife[NSN], sn;
byte epoch = 1, mark, pmark;    /* newest durable mark; newest one in the page cache */
byte truth[12], tip, tiprec = 255, seen, must, era = 1, id = 1, life;
byte lastc;

#ifdef SNAP_ABOVE
#define USABLE(S, LIM) (true)
#else
#define USABLE(S, LIM) (sb[S] <= LIM && !IN_PAIR(S))
#endif
#ifdef SNAP_PAIRS
#define IN(S, K) (sb[S] > lo[K] && sb[S] <= hi[K])
#define IN_PAIR(S) ((np > 0 && IN(S, 0)) || (np > 1 && IN(S, 1)) || (np > 2 && IN(S, 2)))
#else
#define IN_PAIR(S) false
#endif
inline counts(col, lim) {       /* -> ok */
    ok = (col <= lim); k = 0;
    do :: k < np -> if :: col > lo[k] && col <= hi[k] -> ok = 0 :: else fi; k++ :: else -> break od; k = 0
}
/* With snapshot S (NSN: none), and all committed records with colour <= LIM: highest version bv, its operation bi, largest colour met mx. */
inline pick(S, LIM, PAIRS) {
    bv = 0; bi = 0; mx = 0; met = 0; sg = 0; from = 0;
    if :: S < NSN -> bv = sver[S]; bi = sid[S]; from = sa[S]; sg = 2 * slife[S] :: else fi;
    cv = bv;
    do
    :: sg < NS ->
        i = 0;
        do
        :: i < NP && I[sg*NP+i] != 0 ->
            p = sg*NP+i;
            if :: C[p] > mx -> mx = C[p] :: else fi;
            if :: PAIRS -> counts(C[p], LIM) :: else -> ok = 1 fi;
            if
            :: ok && cm[p] && C[p] >= from -> met = met | (1 << V[p]); if :: V[p] > bv -> bv = V[p]; bi = I[p] :: else fi
            :: else
            fi;
            i++
        :: else -> break
        od;
        sg++
    :: else -> break
    od;
    do :: cv < bv -> cv++; assert(met & (1 << cv)) :: else -> break od;                 /* closure */
    i = 0; sg = 0; p = 0; met = 0; cv = 0; ok = 0; from = 0
}
inline all_same(LIM) {          /* every snapshot that may be used gives what none gives */
    pick(NSN, LIM, 1); v0 = bv; i0 = bi; s = 0;
    do :: s < sn -> if :: USABLE(s, LIM) -> pick(s, LIM, 1); assert(bv == v0 && bi == i0) :: else fi; s++ :: else -> break od;
    s = 0; v0 = 0; i0 = 0
}
inline help() { if :: tiprec < NR && !cm[tiprec] -> cm[tiprec] = 1; lastc = epoch :: else fi; seen = tip }     /* who looks later loads its colour later */
inline sync_log() { i = 0; do :: i < NR -> if :: I[i] != 0 -> sy[i] = 1; dm[i] = cm[i] :: else fi; i++ :: else -> break od; i = 0 }
inline power_loss() {           /* in an atomic */
    if :: mark = pmark :: pmark = mark fi;
    i = 0;
    do
    :: i < NR ->
        if
        :: I[i] != 0 && !sy[i] -> if :: I[i] = 0; C[i] = 0; V[i] = 0; cm[i] = 0; sy[i] = 0; dm[i] = 0 :: sy[i] = 1; dm[i] = cm[i] :: cm[i] -> sy[i] = 1; cm[i] = 0 fi
        :: I[i] != 0 && sy[i] && cm[i] && !dm[i] -> if :: cm[i] = 0 :: dm[i] = 1 fi
        :: else
        fi;
        i++
    :: else -> break
    od;
    i = 0;
    np = dnp
}
inline flush() {                /* the mark is made durable by sync_marks, or by the next flush */
    sync_log(); pmark = epoch; epoch++
}
inline sync_marks() { mark = pmark; must = seen; dnp = np }

active proctype Life()
{
    short met;
    byte D, lim, cv, cuts, n, sg, i, k, p, c, s, bv, bi, mx, E0, from, v0, i0, snaps, ver; bool ok, boot, whole;
    do
    :: life == LIVES -> break
    :: life < LIVES ->
        n = 0; snaps = 0;
        do
        :: n < OPS ->
            atomic {
#ifdef RESUME
                if :: sg = 0 :: sg = 1 fi;
#else
                if :: sg = 2 * life :: end[2*life] > 0 -> sg = 2 * life + 1 fi;
#endif
                if
                :: end[sg] < NP ->
                    help();                                     /* looks at the head, helps, then loads its colour */
                    if :: c = epoch :: epoch > era && epoch - 1 >= lastc -> c = epoch - 1 fi;
                    p = sg * NP + end[sg]; tip++;
                    V[p] = tip; C[p] = c; I[p] = id; sy[p] = 0; dm[p] = 0; cm[p] = 0; end[sg] = end[sg] + 1;
                    truth[tip] = id; id++; tiprec = p;
                    if :: help() :: skip fi                     /* it returns; or its author dies before the commit word */
                :: else
                fi;
                n++; c = 0; p = 0; sg = 0
            }
        :: epoch < era + FL ->
            d_step { flush() };
            if :: d_step { sync_marks() } :: skip fi            /* killed before the sync of the marks */
        :: snaps < SNAPS && epoch < era + FL && sn < NSN ->
            atomic {
                snaps++;
#ifndef SNAP_UNCOMMITTED
                help();
#endif
                sa[sn] = epoch; if :: epoch > era -> sa[sn] = epoch - 1 :: true fi;
                sver[sn] = tip; sid[sn] = truth[tip]; slife[sn] = life; sb[sn] = epoch;
                flush();
#ifdef SNAP_EARLY
                sn++; if :: sync_marks() :: true fi
#else
                if :: sync_marks(); sn++ :: sa[sn] = 0; sb[sn] = 0; sver[sn] = 0; sid[sn] = 0; slife[sn] = 0 fi
#endif
            }
        :: break
        od;
        atomic { if :: power_loss(); boot = 0 :: boot = 1 :: boot = 0 fi };             /* boot: all counts */
recovery:
        skip;
        atomic {
            D = pmark; lim = (boot -> 255 : D);
            all_same(lim);
            s = NSN; i = 0;
            do :: i < sn -> if :: USABLE(i, lim) -> s = i :: true fi; i++ :: else -> break od;      /* the one that is used */
            i = 0; whole = (s == NSN)
        };
        d_step {
#ifndef NO_LOG_SYNC
            sync_log();
#endif
#ifdef REBUILD_ALL
            if :: boot -> pick(NSN, 255, 0) :: else -> pick(s, lim, 1) fi;
#else
            pick(s, lim, 1);
#endif
            assert(bv >= must && bv <= tip && bi == truth[bv]);
            assert(!boot || bv >= seen);
            ver = bv; E0 = mx;
#ifndef E0_MET
            if :: D > E0 -> E0 = D :: else fi;
#endif
#ifndef E0_PAIRS
            i = 0; do :: i < np -> if :: hi[i] > E0 -> E0 = hi[i] :: else fi; i++ :: else -> break od;
#endif
#ifndef E0_SNAPS
            i = 0; do :: i < sn -> if :: sb[i] > E0 -> E0 = sb[i] :: else fi; i++ :: else -> break od;
#endif
            i = 0; E0++;
#ifdef E0_D
            E0 = D + 1;
#endif
            bv = 0; bi = 0; s = 0
        };
        if :: cuts < CUTS -> cuts++; if :: atomic { power_loss(); boot = 0 } :: skip fi; goto recovery :: skip fi;
        d_step {
#ifdef DROP
            if                                                  /* pairs of which the whole log holds no colour */
            :: whole ->
                k = 0;
                do
                :: k < np ->
                    ok = 0; i = 0;
                    do :: i < NR -> if :: I[i] != 0 && C[i] > lo[k] && C[i] <= hi[k] -> ok = 1 :: else fi; i++ :: else -> break od;
                    if
                    :: ok -> k++
                    :: else -> np--; lo[k] = lo[np]; hi[k] = hi[np]; lo[np] = 0; hi[np] = 0; dnp = np
                    fi
                :: else -> break
                od;
                i = 0; k = 0; ok = 0
            :: else
            fi;
#endif
            if
            :: !boot && mx > D ->
#ifndef NO_PAIR
                p = D;                                          /* the low end of the new pair; E0 is above all earlier ones */
#ifdef REPLACE
                np = 0;
#endif
#if defined(MERGE) || defined(MERGE_GAP)
                k = 0;
                do
                :: k < np ->
                    if
#ifdef MERGE
                    :: hi[k] >= p ->
#else
                    :: true ->
#endif
                        if :: lo[k] < p -> p = lo[k] :: else fi;
                        np--; lo[k] = lo[np]; hi[k] = hi[np]; lo[np] = 0; hi[np] = 0; k = 0
#ifdef MERGE
                    :: else -> k++
#endif
                    fi
                :: else -> break
                od;
                k = 0;
#endif
                lo[np] = p; hi[np] = E0; np++; p = 0;
#ifndef PAIR_LATE
                dnp = np;
#endif
#endif
#ifdef EPOCH_E0
                epoch = E0
#else
                epoch = E0 + 1
#endif
            :: else -> epoch = E0
            fi;
            E0 = 0; mx = 0
        };
        if :: cuts < CUTS -> cuts++; if :: atomic { power_loss(); boot = 0 } :: skip fi; goto recovery :: skip fi;
        d_step { boot = 1; seen = ver };                        /* the identity says: of this boot, being replaced; the rest was decided */
        if :: cuts < CUTS -> cuts++; if :: atomic { power_loss(); boot = 0 } :: skip fi; goto recovery :: skip fi;
        if
        :: d_step { flush() };
           if :: cuts < CUTS -> cuts++; if :: atomic { power_loss(); boot = 0 } :: skip fi; goto recovery :: skip fi;
           d_step { mark = pmark; must = ver }
        :: d_step {                                             /* nothing to flush: but the mark that was believed is made durable */
#ifndef NO_MARKS_SYNC
               mark = pmark;
#endif
               if :: lim == D -> must = ver :: else fi }
        fi;
        d_step {                                                /* writers enter */
            tip = ver; seen = ver; ver = 0; tiprec = 255; lastc = 0; life++; era = epoch; D = 0; lim = 0;
            i = tip + 1; do :: i < 12 -> truth[i] = 0; i++ :: else -> break od; i = 0;
#ifdef RESUME
            sg = 0;
            do :: sg < 2 -> i = 0; do :: i < NP && I[sg*NP+i] != 0 -> i++ :: else -> break od; end[sg] = i; sg++ :: else -> break od;
            i = 0; sg = 0;
#endif
            boot = 0; n = 0; whole = 0
        }
    od
}
