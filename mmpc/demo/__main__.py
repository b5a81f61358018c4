"""The command line of the demo: arguments, order of steps, exit status.

Exit status: 0 if all is well; 1 if something was lost, duplicated or torn, a worker crashed, or a search
found nothing; 2 if the command could not be carried out; 130 if interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmpc

from . import index, peer, place, report
from .crew import Crew, JobFailed, Tally
from .recount import judge, recount
from .search import search
from .sources import Tree, standard_library
from .writer import Writer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (place.Unusable, index.NotAnIndex) as error:
        print(f"mmpc.demo: {error}", file=sys.stderr)
        return 2
    except (JobFailed, mmpc.MmpcError) as error:
        print(f"mmpc.demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmmpc.demo: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmpc.demo",
        description="Index Python's standard library with processes that are killed meanwhile.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--store", type=Path, default=place.default_store(), help="directory (default: %(default)s)"
    )
    common.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    build = commands.add_parser("index", parents=[common], help="build the index, recount, judge")
    build.set_defaults(run=_index)
    build.add_argument("--workers", type=_at_least_one, help="processes (default: 4; with --peer: 1, then 2)")
    build.add_argument(
        "--kill-every", type=_seconds, default=0.0, metavar="SECONDS", help="kill one, on average"
    )
    build.add_argument(
        "--limit", type=_at_least_one, metavar="FILES", help="fewer files, spread over the library"
    )
    build.add_argument(
        "--seed", type=int, help="of the order of files, the victims and the times (default: random)"
    )
    build.add_argument("--again", action="store_true", help="index once more into a finished index")
    build.add_argument("--peer", choices=["lmdb"], help="then run the same job on this and on mmpc in turns")
    build.add_argument(
        "--rounds", type=_at_least_one, default=3, help="of the comparison (default: %(default)s)"
    )

    again = commands.add_parser("check", parents=[common], help="recount and judge an index that exists")
    again.set_defaults(run=_check)

    query = commands.add_parser(
        "search", parents=[common], help="the files that hold all the words, by count"
    )
    query.set_defaults(run=_search)
    query.add_argument("words", nargs="+", metavar="WORD")
    query.add_argument("--top", type=_at_least_one, default=10, help="files to name (default: %(default)s)")
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("seconds, 0 for no kills")
    return number


# ---- index


def _index(options: argparse.Namespace) -> int:
    if options.peer and not peer.available():
        print("mmpc.demo: --peer lmdb needs lmdb: pip install lmdb", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    tree = standard_library(options.limit)
    say = _sayer(options)
    say(f"{_title(tree)}\nseed {seed}, store {options.store}")
    with place.exclusive(options.store):
        tally = _build(options, tree, seed)
        facts = _judge(options, tree, tally)
    facts |= {"seed": seed}
    if not options.json:
        report.show_verdict(facts)
    if options.peer:
        duels = _compare(options, tree, facts["postings"], seed)
        facts["peer"] = {"name": "lmdb", "duels": [dataclasses.asdict(duel) for duel in duels]}
        if not options.json:
            report.show_duels(duels)
    if options.json:
        print(json.dumps(facts))
    elif facts["ok"] and not options.peer:
        print("  Try: python -m mmpc.demo search mmap flush\n")
    return 0 if facts["ok"] else 1


def _sayer(options: argparse.Namespace) -> Any:
    return (lambda text: None) if options.json else lambda text: print(text, flush=True)


def _title(tree: Tree) -> str:
    return (
        f"The standard library of Python {platform.python_version()}: {len(tree):,} files, "
        f"{tree.size / 1e6:.1f} MB in {tree.root}"
    )


def _build(options: argparse.Namespace, tree: Tree, seed: int) -> Tally:
    """Let a crew index what is to be done."""
    pages, layout, todo = place.prepare(options.store, tree, again=options.again)
    with pages:
        if len(todo) < len(tree):
            _sayer(options)(f"going on: {len(tree) - len(todo):,} files are done already")
        shown = report.progress(silent=options.json)
        started = time.perf_counter()

        def step(tally: Tally) -> None:
            rate = tally.postings / (time.perf_counter() - started)
            shown.step(tally.files, f"{rate:>9,.0f} postings/s  {tally.killed:>4,} killed")

        crew = Crew(
            tree,
            lambda: Writer(pages, layout),
            workers=options.workers or 4,
            kill_every=options.kill_every,
            seed=seed,
            progress=step,
        )
        shown.begin("indexing", len(todo))
        try:
            return crew.run(todo)
        finally:
            shown.end()


# ---- check


def _check(options: argparse.Namespace) -> int:
    pages, layout = place.attach(options.store)
    with pages:
        tree = index.tree(pages, layout)
    if tree.digest != layout.tree:
        raise place.Unusable(
            f"the files in {tree.root} have changed since; build anew: python -m mmpc.demo index"
        )
    facts = _judge(options, tree, None)
    if options.json:
        print(json.dumps(facts))
    else:
        print(_title(tree))
        report.show_verdict(facts)
    return 0 if facts["ok"] else 1


def _judge(options: argparse.Namespace, tree: Tree, tally: Tally | None) -> dict[str, Any]:
    """Recount, compare with a freshly opened store, and say all there is to say about it."""
    shown = report.progress(silent=options.json)
    shown.begin("recounting", len(tree))
    started = time.perf_counter()
    try:
        expected = recount(tree, shown.step)
    finally:
        shown.end()
    seconds = time.perf_counter() - started
    pages, layout = place.attach(options.store)
    with pages:
        verdict = judge(pages, layout, tree, expected)
    facts = report.summary(verdict, tally)
    return facts | {
        "ok": verdict.good and not (tally and tally.crashed),
        "seconds_recounting": round(seconds, 3),
        "bytes_on_disk": place.bytes_on_disk(options.store),
        "store": str(options.store),
        "python": platform.python_version(),
    }


# ---- peer


def _compare(options: argparse.Namespace, tree: Tree, postings: int, seed: int) -> list[peer.Duel]:
    """The same job on mmpc and lmdb in turns, with each number of workers."""
    numbers = [options.workers] if options.workers else [1, 2]
    shown = report.progress(silent=options.json)
    shown.begin("comparing", 2 * options.rounds * len(numbers))
    jobs = 0

    def step(more: int) -> None:
        nonlocal jobs
        jobs += more
        shown.step(jobs)

    folder = options.store.parent
    try:
        return [
            peer.duel(
                tree, postings, workers=number, rounds=options.rounds, seed=seed, folder=folder, progress=step
            )
            for number in numbers
        ]
    finally:
        shown.end()


# ---- search


def _search(options: argparse.Namespace) -> int:
    started = time.perf_counter()
    pages, layout = place.attach(options.store)
    with pages:
        opened = time.perf_counter()
        answer = search(pages, layout, options.words, options.top)
        answered = time.perf_counter()
    times = {
        "opened_ms": round((opened - started) * 1e3, 3),
        "answered_ms": round((answered - opened) * 1e3, 3),
    }
    if options.json:
        print(json.dumps(dataclasses.asdict(answer) | times))
    else:
        report.show_answer(answer, **times)
    return 0 if answer.found else 1


if __name__ == "__main__":
    sys.exit(main())
