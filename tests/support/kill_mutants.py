"""The C core with one step of its protocol broken, to see that the crash tests notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """Replaces text in files of csrc/; `cases` of support.kill_cases are to fail on it."""

    name: str
    edits: tuple[tuple[str, str, str], ...]  # file, text as it stands, text instead
    cases: tuple[tuple[str, str], ...]  # mode, case


MUTANTS = [
    Mutant(
        "runs-of-the-dead-stay",
        (("segment.c", "    if (dead) mm_runs_abandon(m, slot);\n", ""),),
        (("kill", "extent"),),
    ),
    Mutant(
        "a-run-that-the-dead-published-is-given-back",
        (
            (
                "run.c",
                "&ignored) == 0) mm_run_retire(m, n, generation, page);\n    else",
                "&ignored) <= 1) mm_run_retire(m, n, generation, page);\n    else",
            ),
        ),
        (("kill", "extent"),),
    ),
    Mutant(
        "a-run-goes-when-its-record-moves",
        (("relocate.c", "mm_group_committed(m, &v, last, bytes, 0, r);", "mm_group_committed(m, &v, last, bytes, UINT64_MAX, r);"),),
        (("kill", "extent-clean"),),
    ),
    Mutant(
        "a-claim-is-not-aged",
        (("clean.c", "    return m->victim.aged;\n", "    return true;\n"),),
        (("stop", "append-warm"), ("stop", "append")),
    ),
    Mutant(
        "used-again-under-a-publish",
        (
            ("clean.c", "    return m->victim.aged;\n", "    return true;\n"),
            ("reuse.c", "if (!oldest) oldest = mm_oldest_holder(m);", "if (!oldest) oldest = UINT64_MAX;"),
        ),
        (("stop", "append-warm"), ("stop", "clean")),
    ),
    Mutant(
        "commit-word-is-never-stored",
        (
            ("page.c", "    at_store_release(w, mm_committed((uint32_t)at_load_relaxed(w))); /* release: who sees it, sees a whole record (intent.c) */\n", "    (void)w;\n"),
            ("log.c", "if (word == mm_committed((uint32_t)word)) return MM_OK;", "return MM_OK;"),
        ),
        (("kill", "append-warm"),),
    ),
    Mutant(
        "published-before-it-is-written",
        (
            (
                "page.c",
                "if (c->length) at_copy(m->log + m->lease.bump + MM_RECORD_HEADER, c->payload, c->length);",
                "",
            ),
            (
                "page.c",
                "        if (at_cas_acq_rel(head, &found, next)) {\n",
                "        if (at_cas_acq_rel(head, &found, next)) {\n"
                "            if (c->length) at_copy(m->log + m->lease.bump + MM_RECORD_HEADER, c->payload, c->length);\n",
            ),
        ),
        (("kill", "append-warm"),),
    ),
    Mutant(
        "nobody-helps",
        (("log.c", "if (word == mm_committed((uint32_t)word)) return MM_OK;", "return MM_OK;"),),
        (("kill", "append-warm"),),
    ),
    Mutant(
        "commit-word-is-left-to-others",
        (("page.c", "    at_store_release(w, mm_committed((uint32_t)at_load_relaxed(w))); /* release: who sees it, sees a whole record (intent.c) */\n", "    (void)w;\n"),),
        (("kill", "append-warm"),),
    ),
    Mutant(
        "view-is-noted-after-the-unpin",
        (
            (
                "view.c",
                "    uint32_t k = note(m, word_of(p.segment, p.generation));\n",
                "    at_store_release(&m->slot->pins[a->pin], 0);\n"
                "    uint32_t k = note(m, word_of(p.segment, p.generation));\n",
            ),
        ),
        (("stop", "view"),),
    ),
    Mutant(
        "view-is-not-noted",
        (("view.c", "        at_store_release(&m->slot->views[k], word); /* the", "        /* the"),),
        (("stop", "view"),),
    ),
    Mutant(
        "views-of-the-dead-stay",
        (
            (
                "slot.c",
                "    for (uint32_t k = 0; k < MM_VIEWS; k++) at_store_relaxed(&s->views[k], 0);\n",
                "",
            ),
        ),
        (("kill", "view"),),
    ),
    Mutant(
        "bump-pointer-stays",
        (("page.c", "    m->lease.bump += span;\n", "    (void)span;\n"),),
        (("kill", "append"),),
    ),
    Mutant(
        "bump-pointer-moves-before-the-cas",
        (
            (
                "page.c",
                "        if (at_cas_acq_rel(head, &found, next)) {\n",
                "        m->lease.bump += mm_span_of(c->length + p.index.n);\n        if (at_cas_acq_rel(head, &found, next)) {\n",
            ),
        ),
        (("kill", "append"),),
    ),
    Mutant(
        "pins-of-the-dead-stay",
        (("slot.c", "for (uint32_t k = 0; k < MM_PINS; k++) at_store_relaxed(&s->pins[k], 0);", ""),),
        (("kill", "tx"),),
    ),
    Mutant(
        "slots-of-the-dead-stay",
        (
            (
                "slot.c",
                "    at_store_release(&s->state, (state & ~UINT64_C(255)) | MM_SLOT_FREE); /* who loads FREE sees the rest */\n",
                "    (void)state;\n",
            ),
        ),
        (("kill", "get"),),
    ),
    Mutant(
        "segments-of-the-stopped-are-awaited",
        (
            (
                "lease.c",
                "        if (rc == MM_SPACE || below) rc = move_on(",
                "        for (uint64_t i = 0; rc == MM_SPACE && i < at_load_acquire(&m->g->segments); i++)\n"
                "            while (mm_segword_state(at_load_acquire(&m->segments[i].word)) == MM_SEG_PREPARING) { }\n"
                "        if (rc == MM_SPACE || below) rc = move_on(",
            ),
        ),
        (("stop", "new-segment"),),
    ),
    Mutant(
        "growth-is-not-checked",
        (
            (
                "table.c",
                "        if (e) return mm_os_failed(r, e);\n        at_max_release(&m->g->table_pages, want);",
                "        at_max_release(&m->g->table_pages, want);",
            ),
        ),
        (("fail", "allocate-growth"),),
    ),
]


SOUND = Mutant(
    "sound",
    (),
    (
        ("kill", "append-warm"),
        ("kill", "append"),
        ("kill", "get"),
        ("stop", "new-segment"),
        ("fail", "allocate-growth"),
    ),
)


def named(name: str) -> Mutant:
    return next(m for m in MUTANTS if m.name == name)


def build(mutant: Mutant, root: Path, directory: Path, defines: str = "MMPC_POINTS") -> Path:
    """A build of a copy of the project with the mutant's edits; returns what goes on PYTHONPATH."""
    source, target = directory / "source", directory / "built"
    shutil.copytree(
        root,
        source,
        ignore=shutil.ignore_patterns(".*", "build", "*.so", "*.egg-info", "tests", "bench", "docs", "__pycache__"),
    )
    for name, old, new in mutant.edits:
        path = source / "csrc" / name
        text = path.read_text()
        assert text.count(old) == 1, f"{mutant.name}: {name} does not hold, exactly once: {old}"
        path.write_text(text.replace(old, new))
    environment = {**os.environ, "MMPC_DEFINES": defines, "CFLAGS": "-O1", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    return target
