/* clean.pml - "nothing is dirty": a flush() without a number that skips both syncs (flush.c, clean).
 *
 * One record.  Its author announces, publishes (CAS), stores the commit word, loads the LSN, raises `dirty`, withdraws the announcement, and
 * may die or stop between any two.  A helper found it through the head: it stores the commit word and raises `dirty`, and may die between.  The reaper of
 * the author: helps what is published without a commit word, raises `dirty`, withdraws the announcement; may die and be done again.
 * A caller has seen the record, committed by whom it may be, and flushes: it skips if it finds no announcement, and then dirty <= stable.
 *
 * Property: what it skips over is on the disk.
 *
 * Broken variants: REAP_BLIND (the reaper does not help: a helper may come later, and die before it raises `dirty`)  HELP_SILENT (the same, and
 * the helper does not raise it)  HELP_BEFORE (the same, it raises it before the commit word)  REAP_SILENT (the reaper does not raise it)
 * REAP_FIRST (it withdraws the announcement first)  NO_ANNOUNCE (announcements are not looked at)  DIRTY_FIRST (they are looked at after `dirty`)
 * WITHDRAW_FIRST (the author withdraws before it raises `dirty`)  LSN_EARLY (it loads the LSN before the commit word)
 * Must hold:
 * HELP_COUNT (the reaper does not help; a helper is counted in its slot from before the commit word to after `dirty`, `clean` looks at the
 * count, and its reaper raises `dirty` for it)  HELPER_QUIET (the reaper helps; then a helper need not raise `dirty` at all)
 * STABLE_FIRST (`stable` is loaded before `dirty`: C leaves the order open)
 */
#if defined(HELP_SILENT) || defined(HELP_BEFORE) || defined(HELP_COUNT)
#define REAP_BLIND
#endif
byte epoch = 1, dirty, stable;
byte ann; bool pub, com;                /* the author's announcement; published; commit word */
bool disk;                              /* ghost: the last mark covers the commit word */
bool dead, hdead, helping;

inline raise() { l = epoch; d_step { if :: dirty < l -> dirty = l :: else fi; l = 0 } }

proctype Author()
{
    byte l;
    ann = epoch;
    if :: goto die :: skip fi;
    pub = 1;
    if :: goto die :: skip fi;
#ifdef LSN_EARLY
    l = epoch;
#endif
    com = 1;
    if :: goto die :: skip fi;
#ifdef WITHDRAW_FIRST
    ann = 0;
#endif
#ifdef LSN_EARLY
    d_step { if :: dirty < l -> dirty = l :: else fi };
#else
    raise();
#endif
    if :: goto die :: skip fi;
    ann = 0;
    goto out;
die: dead = 1;
out: skip
}
proctype Helper()
{
    byte l;
    (pub && !com);                      /* looks; the store may come much later */
#ifdef HELP_COUNT
    helping = 1;
#endif
#ifdef HELP_BEFORE
    raise();
#endif
    com = 1;
    if :: hdead = 1; goto out :: skip fi;
#if !defined(HELP_SILENT) && !defined(HELP_BEFORE) && !defined(HELPER_QUIET)
    raise();
#endif
#ifdef HELP_COUNT
    if :: hdead = 1; goto out :: skip fi;
    helping = 0;
#endif
out: skip
}
proctype Reaper()
{
    byte l; bool twice;
    (dead);
again:
    if
    :: ann != 0 ->
#ifndef REAP_BLIND
        if :: pub && !com -> com = 1 :: else fi;
#endif
#ifdef REAP_FIRST
        ann = 0;
#endif
#ifndef REAP_SILENT
        raise();
#endif
        if :: !twice -> twice = 1; goto again :: ann = 0 fi
    :: else
    fi
}
#ifdef HELP_COUNT
proctype HelpersReaper() { byte l; (hdead && helping); raise(); helping = 0 }
#endif
proctype Flusher()
{
    byte n, E; bool img;
    do
    :: n < 3 ->
        d_step { E = epoch; epoch++ };
        img = com;
        d_step { if :: img -> disk = 1 :: else fi; img = 0 };
        d_step { if :: stable < E -> stable = E :: else fi; n++; E = 0 }
    :: break
    od
}
proctype Caller()
{
    byte d, s; bool a, h;
    (com);                              /* read: committed.  (One that it had to help itself: Helper, then Caller.) */
#ifdef DIRTY_FIRST
    d = dirty; s = stable; a = (ann != 0);
#else
    a = (ann != 0);
#ifdef HELP_COUNT
    h = helping;
#endif
#ifdef STABLE_FIRST
    s = stable; d = dirty;
#else
    d = dirty; s = stable;
#endif
#endif
#ifdef NO_ANNOUNCE
    a = 0;
#endif
    assert(a || h || d > s || disk)
}
init { atomic { run Author(); run Helper(); run Reaper(); run Flusher(); run Caller();
#ifdef HELP_COUNT
    run HelpersReaper()
#endif
} }
