/* intent.pml - flushes with one sync (intent.c, promote.c): which intents a recovery may believe.
 *
 * Two writers, each with a lease, put records on one page; a record is committed by its author, by the other writer that finds it through the head, or,
 * when its author died between CAS and commit word, by the reaper.  Two leaders flush: an intent where its base allows one, else a mark.  A mark that
 * follows an intent is only noted: it may reach the disk, whole, or in sectors that tell its epoch and not its leases.  Power is lost at any time: of what
 * was not synced any part is on the disk.  A recovery promotes an intent; in the middle of that power is lost again.  Or nothing was lost but the volatile files: it reads
 * what memory holds, and then power is lost.  COPY: instead, the marks are copied, then one lease after the other, while all goes on.
 *
 * Property: what counts is closed (a record's author saw all that lie below it: they count), and, but for a copy, holds all that was committed when a flush
 * that returned began.
 *
 * Broken variants: LISTS_NOTHING (an intent lists nothing)  UNSEEN (it is believed without a look at what it lists)  NO_LATE (a record that is
 * committed and not yet counted in its lease is not listed)  REAP_BLIND (the reaper does not commit)  NOTE_OVER_BASE (a note goes over the newest synced mark)
 * PROMOTE_OVER_BASE (so may the promoted one: it goes over the neighbour of the newest mark)  PROMOTE_FIRST (the mark is promoted before the log is synced)
 * LIST_EARLY (the fills are loaded before the epoch steps)  FILL_FIRST (a fill is loaded before the announcement)
 * with COPY: BASE_ABOVE (an intent is believed though its base is above the newest mark)  BASE_KEPT (a base stays one though the epoch went on while it was loaded)
 * with OLD, where the head is a record of an earlier life without its commit word, in no slot's lease: HELP_OLD (who helps it does not ask for marks)
 */
#ifdef COPY
#define COARSE                  /* the fill of a slot, and what is late in it, are loaded in one step, and stored with the withdrawal */
#endif
#ifndef W0
#define W0 1                    /* records of the writers, flushes of the leaders */
#endif
#ifndef W1
#define W1 1
#endif
#ifndef F0
#define F0 2
#endif
#ifndef F1
#define F1 1
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#define PER 2                   /* records that fit a lease; the old one comes after them */
#define NR 4
#define NI 2                    /* intents of a leader */
#define BIT(r) (1 << (r))
#define FIRST(s, n) ((BIT(n) - 1) << (1 + (s) * PER))           /* the first n records of a lease */

byte head, epoch = 2, deaths, dead;
byte ver[NR + 2], col[NR + 2], fill[2];
bool ann[2], want;
byte ck, sk;                    /* records: committed; committed when the last sync began */
byte ic[2 * NI], ib[2 * NI], im[2 * NI], wi, si;                /* intents: colour, base, what they list; written; synced */
byte pE[4], mE[4]; bool mL[4];  /* marks: in memory; on the disk, and with the leases */
byte must;                      /* ghost: version that a flush that returned covers */

#define COMMITTED(r) ((ck & BIT(r)) != 0)

inline look() {                 /* loads the head and helps it */
    atomic {
        h = head;
        if
        :: h != 0 && !COMMITTED(h) ->
#ifndef HELP_OLD
            if :: h > NR -> want = 1 :: else fi;
#endif
            ck = ck | BIT(h)
        :: else
        fi
    }
}

proctype Writer(byte me)
{
    byte n, h, c, r;
    do
    :: n < (me == 0 -> W0 : W1) ->
        ann[me] = 1;
again:  look();
        c = epoch;
        atomic {
            if
            :: head != h -> goto again
            :: else -> r = me * PER + n + 1; col[r] = c; ver[r] = ver[h] + 1; head = r; h = 0; c = 0
            fi
        };
        if :: atomic { deaths < DEATHS && !COMMITTED(r) -> deaths++; dead = me + 1; goto out } :: skip fi;
        ck = ck | BIT(r);
#ifdef COARSE
        d_step { fill[me] = n + 1; ann[me] = 0; n++; r = 0 }
#else
        fill[me] = n + 1;
        d_step { ann[me] = 0; n++; r = 0 }
#endif
    :: else -> break
    od;
out: skip
}

proctype Reaper()
{
    byte s, r;
    atomic { dead != 0 -> s = dead - 1; r = s * PER + fill[s] + 1 };
#ifndef REAP_BLIND
    ck = ck | BIT(r);           /* it is the head, or was helped by who came after it */
    fill[s] = fill[s] + 1;
#endif
    ann[s] = 0
}

#define LATE(s, f) (f < PER && COMMITTED((s) * PER + f + 1))
inline load(s, f) {
#ifdef COARSE
    d_step { f = fill[s]; if :: ann[s] && LATE(s, f) -> f++ :: else fi }
#else
#ifdef FILL_FIRST
    f = fill[s]; a = ann[s];
#else
    a = ann[s]; f = fill[s];
#endif
#ifdef NO_LATE
    a = 0
#else
    d_step { if :: a && LATE(s, f) -> f++ :: else fi; a = 0 }
#endif
#endif
}

/* What becomes of a block that is written and not synced. */
inline reaches(k, e) {
    pE[k] = e;
#ifndef COPY
    if :: skip :: mE[k] = e; mL[k] = 0 :: mE[k] = e; mL[k] = 1 fi
#endif
}

proctype Leader(byte f; byte most)
{
    byte n, D, K, f0, f1, be, b0, b1, m, k, cur = f * 2;
    bool a, intent;
    do
    :: n < most ->
#ifdef LIST_EARLY
        load(0, f0); load(1, f1);
#endif
        d_step {
#ifndef COPY
            K = (head == 0 -> 0 : (COMMITTED(head) -> ver[head] : ver[head] - 1));
#endif
            D = epoch; epoch++
        };
        if
        :: be == 0 && n + 1 == most -> skip                     /* a mark, and nobody will go by it */
        :: else ->
#ifndef LIST_EARLY
            load(0, f0); load(1, f1);
#endif
            d_step {
#ifndef BASE_KEPT
                if :: epoch != D + 1 -> a = 1 :: else fi;       /* void */
#endif
                intent = (be != 0 && !a)
            }
        fi;
        d_step {
            if :: want -> intent = 0 :: else fi;
            if
            :: intent ->
                if :: f0 > b0 -> m = m | FIRST(0, f0) :: else fi;
                if :: f1 > b1 -> m = m | FIRST(1, f1) :: else fi;
#ifdef LISTS_NOTHING
                m = 0;
#endif
                k = f * NI; do :: wi & BIT(k) -> k++ :: else -> break od;
                ic[k] = D; ib[k] = be; im[k] = m; wi = wi | BIT(k); m = 0; k = 0
            :: else
            fi
        };
        d_step { sk = sk | ck; si = si | wi };                  /* the sync of the log */
#ifdef NOTE_OVER_BASE
        atomic { if :: intent -> cur = cur ^ 1 :: else fi; reaches(cur, D); if :: intent -> cur = cur ^ 1 :: else fi };
#else
        atomic { reaches(cur, D) };
#endif
        d_step {
            if
            :: intent
            :: else ->                                          /* the sync of the marks */
#ifndef COPY
                mE[cur] = pE[cur]; mL[cur] = 1;
#endif
                cur = cur ^ 1;
                be = (a -> 0 : D); b0 = (a -> 0 : f0); b1 = (a -> 0 : f1)
            fi;
            if :: must < K -> must = K :: else fi;
            n++; K = 0; D = 0; f0 = 0; f1 = 0; a = 0; intent = 0
        }
    :: else -> break
    od
}

/* ---- recovery: of marks vE and vL, records vk, intents vi ------------------------------------------------------------------- */

#ifdef COPY
#define LISTED(f) 1             /* by some mark */
#else
#define LISTED(f) (vL[2*(f)] || vL[2*(f)+1])                    /* by its author's own marks, for sure */
#endif
#ifdef UNSEEN
#define HOLDS(j) 1
#else
#define HOLDS(j) ((vk & im[j]) == im[j])
#endif
#ifdef BASE_ABOVE
#define BASED(j) 1
#else
#define BASED(j) (ib[j] <= newest)
#endif

inline find() {                 /* D; by which intent (255: by a mark); the block of the newest mark */
    D = 0; j = 0; block = 0; best = 255;
    do :: j < 4 -> if :: vE[j] > D -> D = vE[j]; block = j :: else fi; j++ :: else -> break od;
    newest = D; j = 0;
    do
    :: j < 2 * NI -> if :: (vi & BIT(j)) && ic[j] > D && BASED(j) && LISTED(j / NI) && HOLDS(j) -> D = ic[j]; best = j :: else fi; j++
    :: else -> break
    od;
    j = 0
}
inline check(least) {
    met = 0; j = 1; top = 0;
    do
    :: j <= NR + 1 -> if :: (vk & BIT(j)) && col[j] <= D -> met = met | BIT(ver[j]); if :: ver[j] > top -> top = ver[j] :: else fi :: else fi; j++
    :: else -> break
    od;
    assert(top >= least);
    j = 1;
    do :: j < top -> assert(met & BIT(j)); j++ :: else -> break od;
    j = 0; met = 0; top = 0
}
inline reset() {
    d_step { D = 0; j = 0; best = 0; newest = 0; met = 0; top = 0; vk = 0; vi = 0; block = 0; j = 0;
             do :: j < 4 -> vE[j] = 0; vL[j] = 0; j++ :: else -> break od; j = 0 }
}
inline disk() {                 /* what is left of the log */
    vk = sk; vi = si; j = 1;
    do :: j <= NR + 1 -> if :: vk = vk | (ck & BIT(j)) :: COMMITTED(j) && !(sk & BIT(j)) -> skip fi; j++ :: else -> break od;
    j = 0;
    do :: j < 2 * NI -> if :: vi = vi | (wi & BIT(j)) :: (wi & BIT(j)) && !(si & BIT(j)) -> skip fi; j++ :: else -> break od;
    j = 0
}

#ifdef COPY
active proctype Copier()
{
    byte D, j, best, newest, met, top, vk, vi, block, vE[4]; bool vL[4];
    d_step { do :: j < 4 -> if :: pE[j] > vE[0] -> vE[0] = pE[j] :: else fi; j++ :: else -> break od; j = 0 }  /* the newest will do */
    vk = ck & FIRST(0, PER);    /* the writers are alike */
    vk = vk | (ck & FIRST(1, PER));
    d_step { vi = wi; find(); check(0); reset() }
}
#else
/* Comes back to the state that it found: the others go on as if it had not been. */
active proctype Loss()
{
    byte D, j, best, newest, met, top, vk, vi, block, vE[4], t; bool vL[4];
    do
#ifndef FILES
    :: atomic {                 /* power is lost, and again while the mark is promoted */
        disk();
        d_step { do :: j < 4 -> vE[j] = mE[j]; vL[j] = mL[j]; j++ :: else -> break od; j = 0; find(); check(must) };
        if
        :: best == 255 -> skip
        :: best != 255 ->
            d_step {
                t = block ^ 1;
#ifndef PROMOTE_OVER_BASE
                do :: j < 4 -> if :: vE[j] == ib[best] -> t = j ^ 1 :: else fi; j++ :: else -> break od; j = 0     /* as its author would */
#endif
            };
            if :: vE[t] = D :: vE[t] = D; vL[t] = 1 :: skip fi;
            if :: vL[t] = 0 :: skip fi;
            t = 0;
            d_step { find(); check(must) }
        fi;
        reset()
       }
#else
    :: atomic {                 /* the volatile files are lost; then power */
        d_step {
            vk = ck; vi = wi;
            do :: j < 4 -> vE[j] = pE[j]; vL[j] = pE[j] != 0; j++ :: else -> break od; j = 0;
            find(); check(must)
        };
        if
        :: best == 255 -> skip                                  /* the newest mark is made durable: it says what it said */
        :: best != 255 ->
            d_step { vE[0] = D; vL[0] = 1; best = im[best] };
            disk();
#ifndef PROMOTE_FIRST
            vk = vk | best;     /* what it lists was written again, and synced; its base was synced before */
#endif
            d_step { find(); check(must) }
        fi;
        reset()
       }
#endif
    od
}
#endif

init {
    atomic {
#ifdef OLD
        head = NR + 1; ver[NR + 1] = 1; col[NR + 1] = 1;
#endif
        run Writer(0); run Writer(1); run Leader(0, F0); run Leader(1, F1);
#if DEATHS
        run Reaper();
#endif
        skip
    }
}
