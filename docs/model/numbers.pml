/* numbers.pml - generate_id: no number is handed out twice, by no process, life, death or loss of power; and they rise.
 *
 * Processes draw from `next`; what they draw is handed out below `limit`.  Page 1 is a list of records, each a ceiling with a colour; `head` is
 * the newest.  A commit word is stored after the CAS of the head, by the author or by who finds the record through the head.  A flush steps the epoch, syncs
 * what memory held, makes the mark.  Processes are killed between any two steps.  A loss of power keeps of the records those that were synced, and of the others
 * with a commit word any; the newest with colour <= the mark counts, and what lies above it is discarded.  A rebuild in the same boot counts all that
 * are committed.  After either the numbers go on at the ceiling of what counts.
 *
 * Property: a number that is handed out never was before, and is larger than all that had been handed out when it was drawn.
 *
 * Broken variants: NO_FLUSH (the limit is raised before the ceiling is durable)  CEILING_ALONE (a ceiling that somebody told of counts as
 * durable)  LIMIT_WANT (the limit is raised to the ceiling that was just written, while the one before is durable)  TELL_FIRST (the ceiling is told of
 * before its LSN)  LSN_COLOUR (the LSN is the colour of the record)  NO_HELP (a record without its commit word is flushed as it is)
 * GO_ON_LOW (a life goes on one interval below the ceiling)  LOWER (who overtakes writes a smaller ceiling over a larger one)
 */
#define I 2                     /* the interval of process 0; that of process 1 is ONE */
#ifndef ONE
#define ONE 1
#endif
#define R 6                     /* records, and numbers that fit */
#define N 12
#ifndef DRAWS
#define DRAWS 2                 /* of each process */
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef LOSSES
#define LOSSES 1
#endif
byte next = 2 * I, limit, ceiling, lsn;         /* `control` */
byte epoch = 1, stable, mark;
byte head, used = 1, value[R], colour[R];       /* page 1; record 0 is the zero of a new store */
bool committed[R], synced[R], gone[R];
bool given[N]; byte most;                       /* ghosts: handed out; the largest + 1 */
byte kills, losses, drawn[2];
bool down; byte running;

inline tell() {
#ifdef TELL_FIRST
    atomic { if :: ceiling < v -> ceiling = v :: else fi };
    atomic { if :: lsn < e -> lsn = e :: else fi }
#else
    atomic { if :: lsn < e -> lsn = e :: else fi };
    atomic { if :: ceiling < v -> ceiling = v :: else fi }
#endif
}

inline flush() {                /* one at a time is no rule: marks and `stable` only rise */
    atomic { f = epoch; epoch++ };
    d_step { k = 0; do :: k < used -> synced[k] = synced[k] || committed[k]; k++ :: else -> break od; k = 0 };
    atomic { if :: mark < f -> mark = f :: else fi };
    atomic { if :: stable < f -> stable = f :: else fi }
}

#define DIE if :: kills < KILLS -> atomic { kills++; goto ended } :: skip fi

proctype Process(byte me)
{
    byte id, before, c, s, st, need, want, h, v, e, f, k, i;
    {
again:
    do
    :: drawn[me] < DRAWS ->
        atomic { drawn[me]++; before = most };
        atomic { id = next; next++; if :: id >= N - 2 * I -> goto ended :: else fi };   /* the model's room is used up */
        DIE;
        do
        :: id < limit -> break
        :: else ->
            c = ceiling; s = lsn; st = stable;
            i = (me == 0 -> I : ONE); need = (id / i) * i + i; want = need + i;
look:       h = head;
#ifndef NO_HELP
            committed[h] = 1;
#endif
            atomic { v = value[h]; e = epoch };
            tell();
            if
#ifdef LOWER
            :: v != want ->
#else
            :: v < want ->
#endif
                atomic {
                    if
                    :: head != h -> goto look
                    :: head == h && used < R -> value[used] = want; colour[used] = epoch; committed[used] = 0; h = used; used++; head = h
                    :: else -> goto ended
                    fi
                };
                DIE;
#ifdef LSN_COLOUR
                committed[h] = 1; v = want; e = colour[h];
#else
                committed[h] = 1; v = want; e = epoch;
#endif
                DIE;
                tell()
            :: else
            fi;
            DIE;
            if
#ifdef NO_FLUSH
            :: 1
#elif defined(CEILING_ALONE)
            :: c >= need
#else
            :: c >= need && st >= s
#endif
            :: else ->
                do :: stable < e -> flush() :: else -> break od
            fi;
            DIE;
#ifdef LIMIT_WANT
            need = want;
#endif
            atomic { if :: limit < need -> limit = need :: else fi }
        od;
        atomic {
            assert(!given[id]);
            assert(id + 1 > before);
            given[id] = 1;
            if :: most < id + 1 -> most = id + 1 :: else fi
        }
    :: else -> break
    od;
ended:
    skip
    } unless { down };
    atomic { id = 0; before = 0; c = 0; s = 0; st = 0; need = 0; want = 0; h = 0; v = 0; e = 0; f = 0; k = 0; i = 0; running-- }
}

/* Nobody is attached; the numbers go on above what counts. */
inline go_on() {
    next = value[head];
    if :: next == 0 -> next = 2 * I :: else fi;
#ifdef GO_ON_LOW
    if :: value[head] > 2 * I -> next = value[head] - I :: else fi;
#endif
    limit = 0; ceiling = value[head]; lsn = epoch;
    drawn[0] = 0; drawn[1] = 0;
    down = 0; running = 2;
    run Process(0); run Process(1)
}

active proctype Machine()
{
    byte i;
    atomic { committed[0] = 1; synced[0] = 1; running = 2; run Process(0); run Process(1) };
    do
    :: losses < LOSSES ->
        atomic { losses++; down = 1 };
        running == 0;
        atomic {
            i = used - 1;
            do                                          /* the newest record that counts: what is not on the disk, or above the mark, never does */
            :: !gone[i] && colour[i] <= mark && synced[i] -> break
            :: !gone[i] && colour[i] <= mark && committed[i] && !synced[i] -> break
            :: !synced[i] || colour[i] > mark || gone[i] -> gone[i] = 1; i--
            od;
            head = i; synced[i] = 1; committed[i] = 1;
            epoch++;
            stable = mark;
            go_on()
        }
    :: losses < LOSSES ->                               /* the same boot: a table that is lost */
        atomic { losses++; down = 1 };
        running == 0;
        atomic {
            i = used - 1;
            do :: gone[i] || !committed[i] -> gone[i] = 1; i-- :: else -> break od;
            head = i;
            epoch++;
            go_on()
        }
    :: running == 0 && losses == LOSSES -> break
    od
}
