/* intent.pml - flushes with one sync (intent.c, promote.c): which intents a recovery may believe, and what they carry.
 *
 * Two writers, each with a lease, put records on one page; a record is committed by its author, by the other writer that finds it through the head, or,
 * when its author died between CAS and commit word, by the reaper.  Two leaders flush: an intent where its base allows one, else a mark.  A mark that
 * follows an intent is only noted: it may reach the disk, whole, or in sectors that tell its epoch and not its leases, or tear the one that has them.  Power is
 * lost at any time: of what was not synced any part is on the disk.  A recovery promotes an intent; in the middle of that power is lost again.  Or nothing was lost
 * but the volatile files: it reads what memory holds, all of it or up to the newest witness, and then power is lost.  COPY: instead, the marks are copied, then one
 * lease after the other, while all goes on.
 *
 * An intent may carry: the part of what it lists that is neither below its base nor durable by the words.  Then its author syncs its own lease alone, where its
 * intents lie (OWN: and the records of a writer), writes a witness over the first sector of the block that its next mark goes over, and raises the words to what the intent
 * lists.  A sync of the log raises them too.  A recovery puts what the intents above the newest mark carry in its place, and believes afterwards.
 *
 * Property: what counts is closed (a record's author saw all that lie below it: they count), and, but for a copy, holds all that was committed when a flush
 * that returned began; and the epoch that is believed is not older than a witness, or what a flush said is durable.
 * Invariant (WORDS): what the words say is durable is in its place on the disk, or a recovery puts it there.  For an intent that carries is synced before the words rise,
 * and found until a newer mark is on the disk; the sync before that began when all that was carried was in memory, or the fills were void: the epoch had gone on.
 *
 * WHOLE: nobody carries.  ALWAYS: who can does.  BASED: both leaders begin with a base, of empty leases.  WANT: a mark may be made at any time.
 * TAKEOVER: when leader 0 is done another process gets its slot, and makes a mark.  BRISK, COARSE: fewer steps.
 * CHAIN is no mistake: it is an error that an intent is believed, and what it lists would not be there but for one of the other leader that carries it (2: for another
 * one of its own leader; 3: an intent that it lists would not).  So the rest is about such states.
 *
 * Broken variants: LISTS_NOTHING (an intent lists nothing)  UNSEEN (it is believed without a look at what it lists)  NO_LATE (a record that is
 * committed and not yet counted in its lease is not listed)  REAP_BLIND (the reaper does not commit)  NOTE_OVER_BASE (a note goes over the newest synced mark)
 * PROMOTE_OVER_BASE (so may the promoted one: it goes over the neighbour of the newest mark)  PROMOTE_FIRST (the mark is promoted before the log is synced)
 * LIST_EARLY (the fills are loaded before the epoch steps)  FILL_FIRST (a fill is loaded before the announcement)
 * CARRIES_NOTHING (own pages are synced alone, and nothing is carried)  NOTE_CARRIED (a mark is noted after such a sync)  MARK_RANGED (one is made)
 * DURABLE_EARLY (the words rise before the sync)  DURABLE_NOW (they rise to what the leases hold after it)  NOT_PUT (a recovery puts nothing in its place)
 * PUT_BELIEVED_ONLY (it puts there what the believed intent carries itself)  CARRY_VOID (an intent is put though the epoch went on while its fills were loaded)
 * WITNESS_EARLY (the witness is written before the sync)  WITNESS_OVER_BASE (it goes over the newest synced mark)
 * with FILES: MARKS_ALONE (no intent counts, since no power was lost)
 * with TAKEOVER: TAKE_SMALLER (the mark goes over the block of the smaller epoch, whichever has the witness)
 * with OWN: PUT_ONCE and OWN_WORDS (what comes to light in a piece is not looked at; of its own lease a leader syncs what the words do not say is durable); each alone holds
 * with COPY: BASE_ABOVE (an intent is believed though its base is above the newest mark)  BASE_KEPT (a base stays one though the epoch went on while it was loaded)
 * with OLD, where the head is a record of an earlier life without its commit word, in no slot's lease: HELP_OLD (who helps it does not ask for marks)
 */
#ifdef BRISK                    /* a record is published, committed and counted in one step, so nothing is late; a flush has fewer steps */
#define COARSE
#define DEATHS 0
#define TOGETHER atomic {
#define APART }
#else
#define TOGETHER
#define APART
#endif
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
#ifndef NI
#define NI 2                    /* intents of a leader */
#endif
#define BIT(r) (1 << (r))
#define FIRST(s, n) ((BIT(n) - 1) << (1 + (s) * PER))           /* the first n records of a lease */
#define OF(f) ((BIT(NI) - 1) << ((f) * NI))                     /* the intents of a leader: a lease */

byte head, epoch = 2, deaths, dead;
byte ver[NR + 2], col[NR + 2], fill[2];
bool ann[2], want;
byte ck, sk;                    /* records: committed; committed when the last sync began */
byte ic[2 * NI], ib[2 * NI], im[2 * NI], wi, si;                /* intents: colour, base, what they list; written; synced */
byte il[2 * NI], ip[2 * NI], iq[2 * NI];                        /* intents of the other leader that it lists; records, and intents, that it carries */
#ifdef OWN
byte io[2 * NI];                /* records before it in its lease */
#endif
byte dk, di, told;              /* records, intents that are durable by the words; newest epoch that a flush or a witness said is */
byte pE[4], mE[4]; bool mL[4];  /* marks: in memory; on the disk, and with the leases */
#ifdef TAKEOVER
bool pL[4], pW[2];              /* with the leases in memory; the block that the leader's next mark goes over has a witness in it */
#endif
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
#ifdef BRISK
again:  atomic { h = head; c = epoch };
        atomic {
            if
            :: head != h -> goto again
            :: else -> r = me * PER + n + 1; col[r] = c; ver[r] = ver[h] + 1; head = r; ck = ck | BIT(r); n++; fill[me] = n; h = 0; c = 0; r = 0
            fi
        }
#else
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
#ifdef WHOLE
#define WORDS_OF(s) skip
#else
#define WORDS_OF(s) d = d | (dk & FIRST(s, PER)); if :: (s) != me -> g = g | (wi & OF(s)); gd = gd | (di & OF(s)) :: else fi
#endif
inline load(s, f) {             /* the leases of writer s and of leader s, if that is another one; then the words */
#ifdef COARSE
#ifdef OWN
    atomic { (s) != me || !ann[s] -> skip };
#endif
    d_step { f = fill[s]; if :: ann[s] && LATE(s, f) -> f++ :: else fi; WORDS_OF(s) }
#else
#ifdef FILL_FIRST
    f = fill[s]; a = ann[s];
#else
    a = ann[s]; f = fill[s];
#endif
#ifdef NO_LATE
    d_step { a = 0; WORDS_OF(s) }
#else
    d_step { if :: a && LATE(s, f) -> f++ :: else fi; a = 0; WORDS_OF(s) }
#endif
#endif
}

/* What becomes of a block that is written and not synced. */
inline reaches(k, e) {
    pE[k] = e;
#ifdef TAKEOVER
    pL[k] = 1; pW[me] = 0;
#endif
#ifndef COPY
    if :: skip :: mL[k] = 0 :: mE[k] = e; mL[k] = 0 :: mE[k] = e; mL[k] = 1 fi
#endif
}
inline tell(e) {
#ifndef COPY
    if :: told < e -> told = e :: else fi
#else
    skip
#endif
}
/* It goes over the first sector, which has the leases. */
inline witness(k, e) {
    tell(e);
#ifdef TAKEOVER
    pL[k] = 0; pW[me] = 1;
#endif
#ifndef COPY
    if :: skip :: mL[k] -> mL[k] = 0 fi
#endif
}
inline raise() {
#ifndef WHOLE
    d_step {
        if
        :: a
        :: else ->
#ifdef DURABLE_NOW
            f0 = fill[0]; f1 = fill[1];
#endif
            dk = dk | FIRST(0, f0);
            dk = dk | FIRST(1, f1);
            di = di | g | (wi & OF(me))
        fi
    }
#else
    skip
#endif
}
inline write_witness() {
#ifdef WITNESS_OVER_BASE
    witness(cur ^ 1, D)
#else
    witness(cur, D)
#endif
}

proctype Leader(byte me; byte most)
{
#ifdef BASED
    byte be = 2 + me, cur = me * 2 + 1;
#else
    byte be, cur = me * 2;
#endif
    byte n, D, K, f0, f1, d, g, gd, b0, b1, bg, m, k;           /* d, gd: what the words said; g: intents of the other; b0, b1, bg: as the base knows them */
    bool a, intent, carries;
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
        :: be == 0 && n + 1 == most -> a = 1                    /* a mark, and nobody will go by it */
        :: else ->
#ifndef LIST_EARLY
            load(0, f0);
            TOGETHER
            load(1, f1);
#endif
            d_step {
#ifdef CARRY_VOID
                if :: epoch != D + 1 && be == 0 -> a = 1 :: else fi;
#else
#ifndef BASE_KEPT
                if :: epoch != D + 1 -> a = 1 :: else fi;       /* void */
#endif
#endif
                intent = (be != 0 && !a)
            }
#ifndef LIST_EARLY
            APART
#endif
        fi;
        atomic {
            if :: want -> intent = 0 :: else fi;
#ifdef WANT
            if :: intent -> intent = 0 :: skip fi;
#endif
            if
#ifndef WHOLE
            :: intent -> carries = 1
#endif
#ifndef ALWAYS
            :: intent
#endif
            :: !intent
            fi;
#ifdef OWN
            !ann[me] || !intent;
#endif
            d_step {
                if
                :: intent ->
                    k = me * NI; do :: wi & BIT(k) -> k++ :: else -> break od;
                    if :: f0 > b0 -> m = m | FIRST(0, f0); ip[k] = ip[k] | (FIRST(0, f0) & ~FIRST(0, b0)) :: else fi;
                    if :: f1 > b1 -> m = m | FIRST(1, f1); ip[k] = ip[k] | (FIRST(1, f1) & ~FIRST(1, b1)) :: else fi;
                    ip[k] = ip[k] & ~d;
                    if :: g & ~bg -> il[k] = g; iq[k] = g & ~bg & ~gd :: else fi;
#ifdef OWN
                    ip[k] = ip[k] & ~FIRST(me, PER); io[k] = FIRST(me, fill[me]);
#endif
#ifdef CARRIES_NOTHING
                    ip[k] = 0; iq[k] = 0;
#endif
                    if :: !carries -> ip[k] = 0; iq[k] = 0 :: else fi;
#ifdef LISTS_NOTHING
                    m = 0; il[k] = 0; ip[k] = 0; iq[k] = 0;
#endif
                    ic[k] = D; ib[k] = be; im[k] = m; wi = wi | BIT(k); m = 0
                :: else
                fi;
                d = 0; gd = 0
            }
        };
#ifdef WITNESS_EARLY
        atomic { if :: carries -> write_witness() :: else fi };
#endif
#ifdef DURABLE_EARLY
        raise();
#endif
#ifdef MARK_RANGED
#define RANGED (carries || !intent)
#else
#define RANGED carries
#endif
        TOGETHER
        d_step {                                                /* the sync: of the author's lease, or of the log */
            if
            :: RANGED ->
#ifdef OWN_WORDS
                si = si | (wi & OF(me) & ~di);
                sk = sk | (io[k] & ~dk);
#else
                si = si | (wi & OF(me));
#ifdef OWN
                sk = sk | io[k];
#endif
#endif
            :: else -> sk = sk | ck; si = si | wi
            fi;
            k = 0
        };
        atomic {
#ifdef NOTE_OVER_BASE
            if :: intent -> cur = cur ^ 1 :: else fi;
#endif
            if
#ifndef NOTE_CARRIED
            :: carries -> write_witness()
            :: !carries -> reaches(cur, D)
#else
            :: reaches(cur, D)
#endif
            fi;
#ifdef NOTE_OVER_BASE
            if :: intent -> cur = cur ^ 1 :: else fi;
#endif
            skip
        }
        APART;
#ifdef WHOLE
        atomic {
#endif
        TOGETHER
        d_step {
            if
            :: intent
            :: else ->                                          /* the sync of the marks */
#ifndef COPY
                mE[cur] = pE[cur]; mL[cur] = 1;
#endif
                cur = cur ^ 1;
                be = (a -> 0 : D); b0 = (a -> 0 : f0); b1 = (a -> 0 : f1); bg = (a -> 0 : g)
            fi;
            tell(D)
        };
        raise();
        d_step {
            if :: must < K -> must = K :: else fi;
            n++; K = 0; D = 0; f0 = 0; f1 = 0; g = 0; a = 0; intent = 0; carries = 0
        }
        APART
#ifdef WHOLE
        }
#endif
    :: else -> break
    od;
#ifdef TAKEOVER
    if
    :: me == 0 ->
        be = 0; b0 = 0; b1 = 0; bg = 0;
        d_step {                                                /* what the other wrote is made durable as it is */
            m = 0; do :: m < 2 -> mE[m] = pE[m]; mL[m] = pL[m]; m++ :: else -> break od; m = 0;
#ifdef TAKE_SMALLER
            cur = (pE[0] > pE[1] -> 1 : 0);
#else
            if :: !pW[0] -> cur = (pE[0] > pE[1] -> 1 : 0) :: else fi;
#endif
            D = epoch; epoch++
        };
        d_step { sk = sk | ck; si = si | wi };
        atomic {                                                /* it lists another lease */
            if :: skip :: mL[cur] = 0 :: mE[cur] = D; mL[cur] = 0 fi
        };
        d_step { mE[cur] = D; mL[cur] = 0; tell(D); D = 0 }
    :: else
    fi
#endif
}

/* ---- recovery: of marks vE and vL, records vk, intents vi ------------------------------------------------------------------- */

#ifdef COPY
#define LISTED(f) 1             /* by some mark */
#else
#define LISTED(f) (vL[2*(f)] || vL[2*(f)+1])                    /* by its author's own marks, for sure */
#endif
#define BELOW(j) ((BIT(j) - 1) & OF((j) / NI))                  /* a lease is read from its beginning */
#ifdef OWN
#define FOUND(j) ((vi & BIT(j)) && (vi & BELOW(j)) == BELOW(j) && LISTED((j) / NI) && (vk & io[j]) == io[j])
#else
#define FOUND(j) ((vi & BIT(j)) && (vi & BELOW(j)) == BELOW(j) && LISTED((j) / NI))
#endif
#ifdef UNSEEN
#define HOLDS(j) 1
#else
#ifdef PUT_BELIEVED_ONLY
#define HOLDS(j) (((vk | ip[j]) & im[j]) == im[j] && ((vi | iq[j]) & il[j]) == il[j])
#else
#define HOLDS(j) ((vk & im[j]) == im[j] && (vi & il[j]) == il[j])
#endif
#endif
#ifdef BASE_ABOVE
#define BASED_ON(j) 1
#else
#define BASED_ON(j) (ib[j] <= newest)
#endif

inline put() {                  /* what intents carry, until nothing new comes of it */
#ifdef PUT_ONCE
    do :: j < 2 * NI -> if :: FOUND(j) && ic[j] > newest -> met = met | BIT(j) :: else fi; j++ :: else -> break od;
    j = 0;
    do :: j < 2 * NI -> if :: met & BIT(j) -> vk = vk | ip[j]; vi = vi | iq[j] :: else fi; j++ :: else -> break od;
    met = 0;
#else
    do
    :: j < 2 * NI ->
        if
        :: FOUND(j) && ic[j] > newest && ((ip[j] & ~vk) || (iq[j] & ~vi)) -> vk = vk | ip[j]; vi = vi | iq[j]; j = 0
        :: else -> j++
        fi
    :: else -> break
    od;
#endif
    j = 0
}
inline find() {                 /* D; by which intent (255: by a mark); the block of the newest mark */
    D = 0; j = 0; block = 0; best = 255;
    do :: j < 4 -> if :: vE[j] > D -> D = vE[j]; block = j :: else fi; j++ :: else -> break od;
    newest = D; j = 0;
#if !defined(NOT_PUT) && !defined(PUT_BELIEVED_ONLY)
    put();
#endif
    do
    :: j < 2 * NI -> if :: FOUND(j) && ic[j] > D && ic[j] <= limit && BASED_ON(j) && HOLDS(j) -> D = ic[j]; best = j :: else fi; j++
    :: else -> break
    od;
#ifdef PUT_BELIEVED_ONLY
    if :: best != 255 -> vk = vk | ip[best]; vi = vi | iq[best] :: else fi;
#endif
    j = 0
}
inline check(least) {
    met = 0; j = 1; top = 0;
    do
    :: j <= NR + 1 -> if :: (vk & BIT(j)) && col[j] <= D -> met = met | BIT(ver[j]); if :: ver[j] > top -> top = ver[j] :: else fi :: else fi; j++
    :: else -> break
    od;
    assert(top >= least);
#ifndef COPY
    assert(D >= told);
#endif
    j = 1;
    do :: j < top -> assert(met & BIT(j)); j++ :: else -> break od;
    j = 0; met = 0; top = 0
}
inline reset() {
    d_step { D = 0; j = 0; best = 0; newest = 0; met = 0; top = 0; vk = 0; vi = 0; block = 0; limit = 0;
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
    byte D, j, best, newest, met, top, vk, vi, block, limit = 255, vE[4]; bool vL[4];
    d_step { do :: j < 4 -> if :: pE[j] > vE[0] -> vE[0] = pE[j] :: else fi; j++ :: else -> break od; j = 0 }  /* the newest will do */
    vk = ck & FIRST(0, PER);    /* the writers are alike */
    vk = vk | (ck & FIRST(1, PER));
#ifdef WHOLE
    d_step { vi = wi; find(); check(0); reset() }
#else
    vi = wi & OF(0);
    d_step { vi = vi | (wi & OF(1)); find(); check(0); reset() }
#endif
}
#else
#ifdef CHAIN
inline chained() {              /* t: what the believed one lists, and only another one carries */
    do
    :: j < 2 * NI ->
        if
        :: j != best && FOUND(j) && ic[j] > newest && (CHAIN == 3 || (CHAIN == 1) == (j / NI != best / NI)) ->
            t = t | (CHAIN == 3 -> iq[j] & il[best] & ~(v2 | iq[best]) : ip[j] & im[best] & ~(v1 | ip[best]))
        :: else
        fi;
        j++
    :: else -> break
    od;
    assert(t == 0); j = 0
}
#endif
/* Comes back to the state that it found: the others go on as if it had not been. */
active proctype Loss()
{
    byte D, j, best, newest, met, top, vk, vi, v1, v2, block, limit, vE[4], t; bool vL[4];
    do
#ifndef FILES
    :: atomic {                 /* power is lost, and again while the mark is promoted: all that the intent lists is in its place (any part: a smaller loss) */
        disk();
        d_step {
            v1 = vk; v2 = vi; limit = 255;
            do :: j < 4 -> vE[j] = mE[j]; vL[j] = mL[j]; j++ :: else -> break od; j = 0; find(); check(must);
#ifdef WORDS
            assert((vk & dk) == dk && (vi & di) == di);
#endif
#ifdef CHAIN
            if :: best != 255 -> chained() :: else fi;
#endif
        };
        if
        :: best == 255 -> skip
        :: best != 255 ->
            d_step {
                vk = v1 | im[best]; vi = v2 | il[best] | BELOW(best) | BIT(best);
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
        d_step { v1 = 0; v2 = 0 };
        reset()
       }
#else
    :: atomic {                 /* the volatile files are lost; then power */
#ifdef MARKS_ALONE
        limit = 0;
#else
        if :: limit = 255 :: limit = told fi;
#endif
        d_step {
            vk = ck; vi = wi;
            do :: j < 4 -> vE[j] = pE[j]; vL[j] = pE[j] != 0; j++ :: else -> break od; j = 0;
            find(); check(must)
        };
        if
        :: best == 255 -> skip                                  /* the newest mark is made durable: it says what it said */
        :: best != 255 ->
            d_step { vE[0] = D; vL[0] = 1; t = best; limit = 255 };
            disk();
#ifndef PROMOTE_FIRST
            d_step { vk = vk | im[t]; vi = vi | il[t] | BELOW(t) | BIT(t) };    /* what it lists was written again, and synced; its base was synced before */
#endif
            t = 0;
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
#ifdef BASED
        pE[0] = 2; pE[2] = 3; mE[0] = 2; mE[2] = 3; mL[0] = 1; mL[2] = 1; epoch = 4; told = 3;
#ifdef TAKEOVER
        pL[0] = 1; pL[2] = 1;
#endif
#endif
        run Writer(0); run Writer(1); run Leader(0, F0); run Leader(1, F1);
#if DEATHS
        run Reaper();
#endif
        skip
    }
}
