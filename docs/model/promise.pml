/* promise.pml - what an intent lists stays as long as it is needed: retirement, reuse, a claim that goes back (reuse.c, intent.c).
 *
 * A writer has a lease in the segment that is cleaned; another one, and the cleaner for its copies, have leases in segments that stay.  Each record is a
 * page of its own; its author has seen all before it.  The cleaner claims, waits for who writes, copies what is left, retires; it may die
 * anywhere, and is reaped; then another one begins.  A retired segment is used again: its records are gone.  Two leaders make marks, and intents where they may.  Power is lost
 * at any time: of what was not synced any part is on the disk: records, intents, what the header says of the retirement, the next generation.
 *
 * Property: of the pages that a recovery finds none is missing that the author of another one had seen, nor one that a flush that returned covers.
 *
 * Broken variants: NO_COUNT (the number of retirements is not compared)  COUNT_LATE (it rises after the epoch that the segment waits for was loaded)
 * NO_WAIT (reuse waits for no flush)  UNCLAIM_SILENT (a claim that goes back does not want a mark)  UNCLAIM_FIRST (it wants one before what the
 * header said is cleared)  PUT_BLIND (the leader does not look at `mark_wanted`)  WANT_FIRST (or before the epoch step)
 * Must hold: REUSE_STABLE (reuse waits for `stable`, an intent will do)  RETIRE_SILENT (a retirement does not want a mark; whoever waits for one does)
 */
#ifndef F0
#define F0 2
#endif
#ifndef F1
#define F1 0
#endif
#ifndef WL
#define WL 1                    /* records of the writer whose lease is cleaned; the other one writes one */
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#define N 4                     /* versions 1..3 */
#define IN(g, v) (1 << ((g) * N + (v)))                         /* group 0: the lease that is cleaned; 1: the other writer's; 2: copies */
#define ALL(g) (15 << ((g) * N))
#define NI 2
#define SEALED 0
#define CLAIMED 1
#define RETIRED 2
#define USED 3                  /* again */

byte state, since, count, epoch = 2, marked, stable, wanted, top, deaths, busy;        /* busy: the writer has announced */
byte said, dsaid; bool dused;   /* what the header says of its retirement, in memory and on the disk; the next generation is on the disk */
byte col[N], copy[N];           /* colours of the records; of their copies, 0: none */
short ck, sk;                   /* committed; when the last sync began */
byte ic[2 * NI], ib[2 * NI], wi, si; short im[2 * NI]; bool ig[2 * NI];        /* intents; ig: lists the lease that is cleaned */
byte mark, noted, must;         /* newest synced; newest that may be on the disk; ghost: what a flush that returned covers */

proctype Writer(byte g; byte most)
{
    byte n, c, t;
    do
    :: n < most ->
        if
        :: atomic { g == 0 && state == SEALED -> busy = 1 }     /* announced, then looked */
        :: g == 0 && state != SEALED -> break
        :: g == 1
        fi;
again:  atomic { t = top; c = epoch };
        atomic {
            if
            :: top != t -> goto again
            :: else -> top++; col[top] = c; ck = ck | IN(g, top); t = 0; c = 0; n++; if :: g == 0 -> busy = 0 :: else fi
            fi
        }
    :: else -> break
    od
}

inline says(x) { said = x; if :: dsaid = x :: skip fi }         /* it may reach the disk at once */

proctype Cleaner()
{
    byte v, c, e;
begin:
    atomic { state == SEALED -> state = CLAIMED };
    (busy == 0);                /* who announces now sees the claim */
    do
    :: atomic {
        d_step { v = 1; do :: v < N && !((ck & IN(0, v)) && copy[v] == 0) -> v++ :: else -> break od };
        if :: v < N -> c = epoch :: else -> v = 0; break fi
       };
       atomic { copy[v] = c; ck = ck | IN(2, v); c = 0; v = 0 }
    od;
#ifndef COUNT_LATE
    count++;
#endif
    atomic { says(epoch) };
    if :: deaths < DEATHS -> deaths++; goto unclaim :: skip fi;
    since = epoch;
#ifdef COUNT_LATE
    count++;
#endif
#ifndef RETIRE_SILENT
    atomic { if :: wanted < since -> wanted = since :: else fi };
#endif
    state = RETIRED;
#ifdef NO_WAIT
    skip;
#elif defined(REUSE_STABLE)
    (stable >= since);
#else
    (marked >= since);
#endif
    atomic { state = USED; if :: dused = 1 :: skip fi };
    goto out;
unclaim:
#ifdef UNCLAIM_FIRST
    e = epoch;
    atomic { if :: wanted < e -> wanted = e :: else fi; e = 0 };
#endif
    atomic { says(0) };
#if !defined(UNCLAIM_SILENT) && !defined(UNCLAIM_FIRST)
    e = epoch;
    atomic { if :: wanted < e -> wanted = e :: else fi; e = 0 };
#endif
    state = SEALED;
    goto begin;
out: skip
}

proctype Leader(byte f; byte most)
{
    byte n, D, K, be, r, br, k; short now, b; bool a, intent;
    do
    :: n < most ->
#ifdef WANT_FIRST
        a = (wanted > marked);
#endif
        d_step { K = top; D = epoch; epoch++ };
        if
        :: be == 0 && n + 1 == most -> skip                     /* a mark, and nobody will go by it */
        :: else ->
            r = count;
            d_step {
                now = ck;
                if :: epoch != D + 1 -> r = 255 :: else fi;
#ifdef NO_COUNT
                intent = (be != 0 && r != 255)
#else
                intent = (be != 0 && r != 255 && r == br)
#endif
            };
            d_step {
#ifdef WANT_FIRST
                if :: a -> intent = 0 :: else fi; a = 0;
#elif !defined(PUT_BLIND)
                if :: wanted > marked -> intent = 0 :: else fi;
#endif
                if
                :: intent ->
                    k = f * NI; do :: wi & (1 << k) -> k++ :: else -> break od;
                    ic[k] = D; ib[k] = be; wi = wi | (1 << k);
                    if :: (now & ALL(0)) != (b & ALL(0)) -> im[k] = im[k] | (now & ALL(0)); ig[k] = 1 :: else fi;
                    if :: (now & ALL(1)) != (b & ALL(1)) -> im[k] = im[k] | (now & ALL(1)) :: else fi;
                    if :: (now & ALL(2)) != (b & ALL(2)) -> im[k] = im[k] | (now & ALL(2)) :: else fi;
                    k = 0
                :: else
                fi
            }
        fi;
        d_step { sk = sk | ck; si = si | wi; dsaid = said; if :: state == USED -> dused = 1 :: else fi };
        d_step {
            if
            :: intent -> if :: noted < D -> noted = D :: else fi
            :: else ->
                if :: mark < D -> mark = D :: else fi;
                if :: r == 255 -> be = 0; br = 0; b = 0 :: else -> be = D; br = r; b = now fi;
                if :: marked < D -> marked = D :: else fi
            fi;
            if :: stable < D -> stable = D :: else fi;
            if :: must < K -> must = K :: else fi;
            n++; K = 0; D = 0; r = 0; now = 0; intent = 0
        }
    :: else -> break
    od
}

/* Comes back to the state that it found: the others go on as if it had not been. */
active proctype Loss()
{
    byte D, j, found, high, newest; short vk; byte vi; bool gone;
    do
    :: atomic {
        vk = sk; vi = si; j = 1;
        do
        :: j < 12 -> if :: vk = vk | (ck & (1 << j)) :: (ck & (1 << j)) && !(sk & (1 << j)) -> skip fi; j++
        :: else -> break
        od;
        j = 0;
        do :: j < 2 * NI -> if :: vi = vi | (wi & (1 << j)) :: (wi & (1 << j)) && !(si & (1 << j)) -> skip fi; j++ :: else -> break od;
        D = mark;
        if :: noted > mark -> D = noted :: skip fi;
        d_step {
            j = 0; newest = D;
            do
            :: j < 2 * NI ->
                if :: (vi & (1 << j)) && ic[j] > D && ib[j] <= newest && (vk & im[j]) == im[j] && !(ig[j] && dused) -> D = ic[j] :: else fi;
                j++
            :: else -> break
            od;
            gone = dused || (dsaid != 0 && dsaid <= D);
            j = 1;
            do
            :: j < N ->
                if
                :: ((vk & IN(0, j)) && col[j] <= D && !gone) || ((vk & IN(1, j)) && col[j] <= D) || ((vk & IN(2, j)) && copy[j] <= D) ->
                    found = found | (1 << j); high = j
                :: else
                fi;
                j++
            :: else -> break
            od;
            j = 1;
            do :: j < high || j <= must -> assert(found & (1 << j)); j++ :: else -> break od;
            D = 0; j = 0; found = 0; high = 0; vk = 0; vi = 0; gone = 0; newest = 0
        }
       }
    od
}

init { atomic { run Writer(0, WL); run Writer(1, 1); run Cleaner(); run Leader(0, F0); run Leader(1, F1) } }
