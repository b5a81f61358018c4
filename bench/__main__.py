"""Benchmarks of mmpc beside its peers and floors.

    python -m bench                 every question but nometrics, which compiles the C core (about two minutes)
    python -m bench hit append      some of them
    python -m bench --quick         a tenth of the rounds
    python -m bench --strict        exit status 1 if a figure misses its bar (else 0: speed is no test)
    python -m bench --json FILE     the result there, not to bench/results/local-*.json, which git ignores
    python -m bench --save          the result to bench/results/ under a name that git keeps

Questions: {names}.

How to read it. All rows of a question are measured in turn in many short rounds; a ratio is computed round by
round, so that what a shared machine does to the clock hits both of its sides, and its median is given with
the 10th and 90th percentile. Nanoseconds are per operation with the loop subtracted; compare ratios, not
nanoseconds of different runs. `MISSED` is a figure on the wrong side of its bar. lmdb (`pip install lmdb`)
and sqlite3 never sync, and store bytes that are packed beforehand unless a row says otherwise; mmpc packs. An
error, or a count that is not exact, ends the run with status 1.
"""

import argparse
import faulthandler
import json
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from .harness import Env, interleave
from .picture import draw
from .report import file_system, machine, question_result, table

QUESTIONS = ("hit", "append", "cold", "scaling", "counter", "startup", "batch", "verbs", "readers")
QUESTIONS += ("durable", "recovery", "space", "views", "memory", "coldchain", "ids", "metrics")
QUESTIONS += ("commands", "compression", "nometrics")
BY_NAME = ("nometrics",)  # only where it is named: it compiles the C core
HANGS = 900.0  # seconds after which a question is ended, with every thread's stack
MEMORY = ("tmpfs", "ramfs")


def arguments() -> argparse.Namespace:
    """The command line."""
    text = (__doc__ or "").replace("{names}", ", ".join(QUESTIONS))
    parser = argparse.ArgumentParser(
        "python -m bench", None, text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", metavar="NAME", help="a question; all without")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--save", action="store_true")
    parser.add_argument(
        "--dir", type=Path, help="a folder for the stores (default: a temporary one on a disk)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args()
    if unknown := set(parsed.questions) - set(QUESTIONS):
        parser.error(f"no question {', '.join(sorted(unknown))}; there are: {', '.join(QUESTIONS)}")
    return parsed


def store_folder(wanted: Path | None) -> Path:
    """Where the stores go: the folder wanted, else the first usual one that is not in memory."""
    if wanted is not None:
        return wanted.resolve()
    usual = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    return next(
        (folder for folder in usual if folder.is_dir() and file_system(folder) not in MEMORY), usual[0]
    )


def ask(name: str, env: Env) -> dict[str, Any]:
    """One question, from its setup to its result; an error becomes the result."""
    faulthandler.dump_traceback_later(HANGS, exit=True)
    start = time.perf_counter()
    try:
        with import_module(f".{name}", __package__).setup(env) as question:
            result = question_result(question, interleave(question, env.seed))
    except Exception as error:
        traceback.print_exc()
        return {"title": name, "rows": [], "figures": [], "error": f"{type(error).__name__}: {error}"}
    finally:
        faulthandler.cancel_dump_traceback_later()
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


def destination(options: argparse.Namespace, date: str) -> Path:
    """The file that the result goes to."""
    if options.json is not None and not options.save:
        return Path(options.json)
    stamp = date.replace("-", "").replace(":", "")
    folder = Path.cwd() / "bench" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{'' if options.save else 'local-'}{stamp}.json"


def main() -> int:
    """Ask, print and save; the exit status."""
    options = arguments()
    date = time.strftime("%Y-%m-%dT%H:%M:%S")
    base = store_folder(options.dir)
    where = machine(base)
    print(json.dumps(where), flush=True)
    results = {}
    with tempfile.TemporaryDirectory(prefix="mmpc-bench-", dir=base) as folder:
        env = Env(Path(folder), options.quick, options.seed)
        for name in options.questions or [name for name in QUESTIONS if name not in BY_NAME]:
            results[name] = ask(name, env)
            print("\n" + table(results[name]), flush=True)
    path = destination(options, date)
    path.write_text(
        json.dumps({"date": date, "seed": options.seed, "machine": where, "questions": results}, indent=1)
    )
    drawn = [draw(result, path.with_name(f"{path.stem}-{name}.svg")) for name, result in results.items()]
    pictures = [str(picture) for picture in drawn if picture is not None]
    figures = [figure for result in results.values() for figure in result["figures"]]
    missed = [figure["name"] for figure in figures if figure["missed"]]
    failed = [name for name, result in results.items() if "error" in result]
    bars = sum(bool(figure["bar"]) for figure in figures)
    print(f"\n{bars} bars, {len(missed)} missed: {'; '.join(missed) or '-'}")
    print(f"failed: {', '.join(failed) or '-'}\nresult: {', '.join([str(path), *pictures])}")
    return 1 if failed or (missed and options.strict) else 0


if __name__ == "__main__":
    sys.exit(main())
