#!/usr/bin/env bash
# tests/native/build.sh SANITIZER OUTDIR: every tests/native/*.c, each with the C core, becomes OUTDIR/<name>.
#
# SANITIZER is what -fsanitize takes (address,undefined or thread), or none. A program here is a pthread harness with
# its own main: no arguments, exit status 0 when all is well, temporary files below $TMPDIR. It runs in seconds;
# with MMPC_LONG=1 in its environment it may take minutes. The files of the core that need Python (hot*.c and
# whoever includes <Python.h>) are left out. $CC (cc) compiles; $MMPC_DEFINES adds macros, as in csrc/build_ffi.py.
set -euo pipefail

sanitizer=$1
out=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
csrc=$here/../../csrc

flags=(-O1 -g -std=gnu11 -pthread -fno-omit-frame-pointer -fno-strict-aliasing -UNDEBUG -Wall -Wextra -Werror)
case $sanitizer in
    none) ;;
    thread)
        # TSan does not model fences (gcc warns); the harness synchronises through atomics as well.
        flags+=(-fsanitize=thread -Wno-tsan) ;;
    *) flags+=("-fsanitize=$sanitizer" -fno-sanitize-recover=all) ;;
esac
# gcc's own advice: sanitizers make this warning err; the real build keeps it.
[ "$sanitizer" = none ] || flags+=(-Wno-maybe-uninitialized)
for macro in ${MMPC_DEFINES:-}; do flags+=("-D$macro"); done

core=()
for file in "$csrc"/*.c; do
    case ${file##*/} in hot*) continue ;; esac
    grep -q '<Python\.h>' "$file" || core+=("$file")
done

mkdir -p "$out/core"
objects=()
for file in "${core[@]}"; do
    object=$out/core/$(basename "$file" .c).o
    "${CC:-cc}" "${flags[@]}" -I"$csrc" -c "$file" -o "$object"
    objects+=("$object")
done
for file in "$here"/*.c; do
    [ -e "$file" ] || { echo "no C file in tests/native" >&2; exit 1; }
    "${CC:-cc}" "${flags[@]}" -I"$csrc" "$file" "${objects[@]}" -lm -o "$out/$(basename "$file" .c)"
done
rm -r "$out/core"
