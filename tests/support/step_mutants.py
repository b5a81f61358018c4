"""The C core with one step of its protocol broken, to see that the single-step tests notice."""

from __future__ import annotations

from dataclasses import replace

from .kill_mutants import Mutant, named


def old(name: str, *cases: tuple[str, str]) -> Mutant:
    """One of the points build, noticed by these cases."""
    return replace(named(name), cases=cases)


MUTANTS = [
    old("commit-word-is-never-stored", ("kill", "append-warm")),
    old("bump-pointer-moves-before-the-cas", ("kill", "append")),
    old("pins-of-the-dead-stay", ("kill", "tx")),
    old("segments-of-the-stopped-are-awaited", ("stop", "new-segment")),
    Mutant(
        "header-is-written-after-the-cas",
        (
            ("page.c", "        write_record(m, c, &p, crc);\n        uint64_t found", "        uint64_t found"),
            (
                "page.c",
                "        if (at_cas_acq_rel(head, &found, next)) {\n",
                "        if (at_cas_acq_rel(head, &found, next)) {\n            write_record(m, c, &p, crc);\n",
            ),
        ),
        (("kill", "append-warm"),),
    ),
    Mutant(
        "alive-before-the-byte-is-taken",
        (
            (
                "slot.c",
                "    int rc = mm_lock_range(m->config.lock, i, 1);\n    if (rc) return rc;\n",
                "    uint64_t state = at_load_acquire(&m->slots[i].state);\n"
                "    at_store_release(&m->slots[i].state, ((state >> 8) + 1) << 8 | MM_SLOT_LIVE);\n"
                "    at_max_release(&m->g->slots_used, i + 1);\n"
                "    int rc = mm_lock_range(m->config.lock, i, 1);\n    if (rc) return rc;\n",
            ),
            ("slot.c", "    uint64_t state = at_load_acquire(&s->state);\n    m->claimed_dead", "    m->claimed_dead"),
            ("slot.c", "    at_store_release(&s->state, ((state >> 8) + 1) << 8 | MM_SLOT_LIVE);\n", ""),
        ),
        (("stop", "attach-counted"),),
    ),
    Mutant(
        "free-before-it-is-unpinned",
        (
            (
                "slot.c",
                "    mm_segment_abandon(m, i, true);\n    if (publishing) commit_late(m, s);\n    close_lease(m, s);\n",
                "    mm_segment_abandon(m, i, true);\n    if (publishing) commit_late(m, s);\n    close_lease(m, s);\n"
                "    at_store_release(&s->state, (at_load_relaxed(&s->state) & ~UINT64_C(255)) | MM_SLOT_FREE);\n",
            ),
        ),
        (("kill", "reap"),),
    ),
    Mutant(
        "stable-before-the-mark",
        (
            ("flush.c", "    at_max_release(&m->g->stable, k.epoch);\n", ""),
            (
                "flush.c",
                "    rc = sync_and_mark(m, &k, &said, r);\n",
                "    at_max_release(&m->g->stable, k.epoch);\n    rc = sync_and_mark(m, &k, &said, r);\n",
            ),
        ),
        (("kill", "flush"),),
    ),
]

SOUND = Mutant(
    "sound",
    (),
    (
        ("kill", "append-warm"),
        ("kill", "tx"),
        ("kill", "reap"),
        ("kill", "flush"),
        ("stop", "attach-counted"),
        ("stop", "new-segment"),
    ),
)
SHORT = ("free-before-it-is-unpinned", "stable-before-the-mark")
