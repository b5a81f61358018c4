/* turn.pml - the word of a slot that says how far its lease is durable (lease.c, intent.c, slot.c): what is said of one lease is not taken for the next one.
 *
 * An owner begins one lease after another and writes to it.  It may give up, or die, anywhere in between: then the former lease stands in the slot again (by itself, or by
 * who reaps it).  Two flushes load the word, the lease and its fill, make that much of it durable, and raise the word, however late.
 *
 * Property: where a flush believes what it loaded, so much of that lease was made durable before.
 *
 * Broken variants: NO_TURN (the turn stays)  TURN_FIRST (it rises before the fill is 0)  TURN_LATE (after the first record)  TURN_ONCE (it is not compared with that of
 * before the lease was loaded)  RAISE_BLIND (the word is raised whatever its turn)
 */
#define LEASES 3
#define MOST 2                  /* records of a lease */
#define FLUSHES 2

byte lease = 1, fill = 1, last, last_fill, turn, bytes;         /* the slot */
byte made[LEASES + 1];          /* ghost: how far each lease is durable */

inline new_turn() { d_step { turn++; bytes = 0 } }              /* one word */
inline give_up() { if :: goto back :: skip fi }

proctype Owner()
{
    byte next = 1;
again:
    do
    :: fill < MOST -> fill++                                    /* a record */
    :: next < LEASES ->
        d_step { last = lease; last_fill = fill; next++ };
#ifdef TURN_FIRST
        new_turn();
#endif
        fill = 0;
        give_up();
#if !defined(NO_TURN) && !defined(TURN_FIRST) && !defined(TURN_LATE)
        new_turn();
        give_up();
#endif
        lease = next;
        give_up();
#ifdef TURN_LATE
        fill = 1;
        new_turn()
#else
        fill = 1
#endif
    :: break
    od;
    goto out;
back:
    lease = last; fill = last_fill;
    goto again;
out: skip
}

proctype Flush()
{
    byte n, t, l, f, d;
    do
    :: n < FLUSHES ->
        t = turn; l = lease; f = fill;
        if
        :: lease != l || f == 0 -> skip
        :: else ->
            atomic {
                if
#ifndef TURN_ONCE
                :: turn != t -> f = 0
#endif
                :: else -> d = bytes; t = turn; assert(d <= made[l])
                fi
            };
            if
            :: f != 0 ->
                d_step { if :: made[l] < f -> made[l] = f :: else fi };
#ifdef RAISE_BLIND
                d_step { if :: bytes < f -> bytes = f :: else fi }
#else
                d_step { if :: turn == t && bytes < f -> bytes = f :: else fi }
#endif
            :: else
            fi
        fi;
        d_step { n++; t = 0; l = 0; f = 0; d = 0 }
    :: else -> break
    od
}

init { atomic { run Owner(); run Flush(); run Flush() } }
