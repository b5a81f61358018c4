#!/bin/bash
# Runs every model (must pass) and every broken variant (must be rejected), each within 2 GB and 5 minutes.
# usage: ./check.sh [full]     default: some minutes of processor time; full: adds the longest passes
command -v spin >/dev/null || { echo "spin is missing (Debian: apt-get install spin)" >&2; exit 2; }
cd "$(dirname "$0")" && here=$PWD && tmp=$(mktemp -d) && bad=0
trap 'rm -rf "$tmp"' EXIT
one() {  # want model [-wait] variant...   -wait: a process that never goes on is an error too
    want=$1 m=$2 end=-E; shift 2
    [ "${1:-}" != -wait ] || { end=""; shift; }
    d=$tmp/$m; rm -rf "$d"; mkdir -p "$d"; cp "$here/$m.pml" "$d"; cd "$d" || exit 1
    [ "$want" = 0 ] && opt=-O2 || opt=-O1                        # a rejected one is soon done: compiling takes longer
    { spin -a "$@" "$m.pml" && nice -n 19 cc -w $opt -DSAFETY -DCOLLAPSE -DMEMLIM=2000 -o pan pan.c; } > out 2>&1 || { bad=1; echo "UNEXPECTED  $m $*: does not compile"; return; }
    timeout 300 nice -n 19 ./pan $end -m200000 > out 2>&1
    got=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' out)
    states=$(awk '/states, stored/{print $1}' out)
    [ "$got" = 0 ] && grep -q 'Search not completed\|max search depth' out && got=incomplete
    [ "$got" = "$want" ] && r=ok || { r=UNEXPECTED; bad=1; }
    echo "$r  $m $*: errors ${got:-timeout} (expected $want), ${states:-?} states"
}
full=${1:-}

for v in NO_PAIR PAIR_LATE REPLACE REBUILD_ALL E0_D E0_MET EPOCH_E0 E0_PAIRS NO_LOG_SYNC NO_MARKS_SYNC RESUME SNAP_UNCOMMITTED SNAP_EARLY MERGE_GAP; do
    one 1 discard -D$v
done
one 1 discard -DSNAP_EARLY -DSNAP_ABOVE
one 0 discard
[ "$full" ] && for v in "-DMERGE" "-DDROP" "-DSNAP_EARLY -DSNAP_PAIRS"; do one 0 discard $v; done

for v in WOKEN LATE_TARGET STABLE_EARLY FAILED_UNSEEN NO_STEAL; do one 1 leader -D$v; done
one 1 leader -DNF=2 -DSYNC_EARLY
one 1 leader -wait -DNO_TIMEOUT                                # somebody waits for a dead leader
for v in LATE_SEEN NO_WAKE; do one 1 leader -wait -DNO_TIMEOUT -DDEATHS=0 -D$v; done
one 0 leader -wait -DNF=2 -DCOMMITS=2
one 0 leader -wait -DNF=2 -DRELEASE_FIRST
one 0 leader -wait -DNF=2 -DNO_TIMEOUT -DDEATHS=0
[ "$full" ] && { one 0 leader -wait -DFAULTS=0 -DCOMMITS=0; one 0 leader -wait -DFAULTS=0 -DCOMMITS=0 -DNO_TIMEOUT -DDEATHS=0; }

for v in NO_SUSPECT SUSPECT_FIRST MAX_BORN CLEAR_FIRST CLEAR_BLIND TOLD_CLEAR BORN_FIRST SYNCING_LATE EVICT; do one 1 suspect -D$v; done
one 0 suspect
[ "$full" ] && { one 1 suspect -DFOUR -DFAULTS=2 -DWRITES=1 -DSAME_VALUE; one 0 suspect -DSYNC_ENDS; }

for v in RAISE_LATE WRITTEN_FIRST OWNER_SILENT REAP_BLIND HELP_AFTER; do one 1 written -D$v; done
one 0 written; one 0 written -DHELP_STICKY

for v in REAP_BLIND HELP_SILENT HELP_BEFORE REAP_SILENT REAP_FIRST NO_ANNOUNCE DIRTY_FIRST WITHDRAW_FIRST LSN_EARLY; do one 1 clean -D$v; done
one 0 clean; one 0 clean -DHELP_COUNT; one 0 clean -DHELPER_QUIET; one 0 clean -DSTABLE_FIRST

for v in NO_FLUSH GO_ON_LOW LIMIT_WANT; do one 1 numbers -D$v; done
for v in NO_HELP CEILING_ALONE; do one 1 numbers -DONE=2 -D$v; done
for v in TELL_FIRST LSN_COLOUR LOWER; do one 1 numbers -DKILLS=0 -DDRAWS=3 -D$v; done
one 0 numbers -DONE=2

o="-DF1=0 -DF0=3"                                               # one leader: every step of a load by itself, a death
for v in LISTS_NOTHING UNSEEN NO_LATE REAP_BLIND NOTE_OVER_BASE PROMOTE_OVER_BASE LIST_EARLY FILL_FIRST; do one 1 intent $o -D$v; done
one 1 intent -DFILES -DF1=0 -DPROMOTE_FIRST
one 1 intent -DFILES -DF1=0 -DMARKS_ALONE
one 1 intent -DOLD -DDEATHS=0 -DF1=0 -DHELP_OLD
one 1 intent -DCOPY -DDEATHS=0 -DF1=0 -DBASE_ABOVE
one 1 intent -DCOPY -DDEATHS=0 -DWHOLE -DBASE_KEPT
one 0 intent $o -DWORDS; one 0 intent $o -DFILES; one 0 intent -DF1=0 -DDEATHS=0 -DOLD
one 0 intent -DCOARSE -DWHOLE                                    # two leaders, a death
one 0 intent -DDEATHS=0 -DWHOLE -DCOPY
t="-DBRISK -DBASED"                                             # two leaders that carry
for v in CARRIES_NOTHING NOTE_CARRIED DURABLE_EARLY DURABLE_NOW NOT_PUT PUT_BELIEVED_ONLY WITNESS_EARLY WITNESS_OVER_BASE; do one 1 intent $t -D$v; done
one 1 intent $t -DWANT -DMARK_RANGED
one 1 intent $t -DW1=0 -DCARRY_VOID
one 1 intent $t -DW1=0 -DTAKEOVER -DTAKE_SMALLER
one 1 intent $t -DOWN -DALWAYS -DOWN_WORDS -DPUT_ONCE
for v in 1 2 3; do one 1 intent $t -DCHAIN=$v; done             # no mistakes: such states are there
one 0 intent $t -DWORDS -DALWAYS -DF0=3 -DNI=3
one 0 intent $t -DWORDS -DW1=0 -DF1=2; one 0 intent $t -DWORDS -DW1=0 -DF0=3 -DNI=3 -DWANT; one 0 intent $t -DWORDS -DW1=0 -DTAKEOVER
for v in -DOWN "-DOWN -DOWN_WORDS" -DPUT_ONCE -DFILES; do one 0 intent $t -DALWAYS $v; done
one 0 intent $t -DALWAYS -DCOPY
[ "$full" ] && {
    one 0 intent $t -DWORDS; one 0 intent $t -DWORDS -DOWN; one 0 intent $t -DWORDS -DTAKEOVER
    one 0 intent $t -DWORDS -DALWAYS -DF1=2; one 0 intent $t -DWORDS -DALWAYS -DW0=2
    one 0 intent $t -DWORDS -DALWAYS -DF0=3 -DNI=3 -DWANT
    one 0 intent -DCOARSE -DBASED -DWORDS -DALWAYS -DF0=1       # a death, and what is late is carried
}

for v in NO_TURN TURN_FIRST TURN_LATE TURN_ONCE RAISE_BLIND; do one 1 turn -D$v; done
one 0 turn

for v in NO_WAIT UNCLAIM_SILENT UNCLAIM_FIRST PUT_BLIND WANT_FIRST; do one 1 promise -D$v; done
for v in NO_COUNT COUNT_LATE; do one 1 promise -DF1=1 -DDEATHS=0 -D$v; done
one 0 promise
[ "$full" ] && { one 0 promise -DF0=3; one 0 promise -DWL=2; for v in "" -DREUSE_STABLE -DRETIRE_SILENT; do one 0 promise -DF1=1 -DDEATHS=0 $v; done; }
exit $bad
