"""mmpc with one step of its durability broken, to see that the crash laboratory notices.

Not here: fences and memory orders, since the trace is one order of all stores.  And, because in the model of the disk
(a sector is written whole, but for one that a write is just changing) they change nothing:

* A mark over the block with the newer epoch, or the marks of a slot not settled by its new owner.  A mark is eight
  sectors that each say the epoch.  Each is on the disk as it was or as it became, so an epoch that was durable is
  never lost.  Settling is for a sync that failed, which no power loss is.
* A group that counts by its last record alone.  A scan goes through a lease record by record and ends at the first that
  is not whole, so it meets the last record of a group only when all inner ones before it are whole.
* A snapshot that has its name before its bytes are durable, or loses its predecessor before its name is durable.  One
  that is torn is passed over; operations in a directory come in their order; and the log still has all.
* The last one flushes only after it has left: nobody can tell.
* An intent without what was committed for one that stands still before it raises its fill: too seldom in a recorded
  life.  tests/test_intents.py makes one.
* A recovery that does not sync the log first.  After a power loss all that it reads is on the disk; it matters where
  none was lost (a copied directory, a failed sync).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """Replaces text in files of the project; one of the scenarios of support.disk_scenarios must fail on it."""

    name: str
    edits: tuple[tuple[str, str, str], ...]  # file, text as it stands, text instead
    scenarios: tuple[str, ...]
    judges: str = "core"  # or "both": mmpc.verify as well

    @property
    def compiled(self) -> bool:
        return any(name.startswith("csrc/") for name, _old, _new in self.edits)


SYNC_LOG = "    int e = whole ? mm_os_sync(m->config.log) : sync_own(m, &said->lease);\n"
LIST = "    list_leases(m, &k);\n"
WRITE_MARK = (
    "    if (!e) e = !said->put ? mm_mark_write(m, k) : whole ? mm_mark_note(m, k) : mm_mark_witness(m, k->epoch);\n"
)
COLOUR = "    uint64_t colour = at_load_acquire(&m->g->epoch); /* after everything that was looked at; again at each retry */\n"
WRITE = "static void write_record(mm *m, const change *c, const plan *p, uint32_t payload_crc)\n"
WRITE_AT = "static void write_record(mm *m, const change *c, const plan *p, uint32_t payload_crc, uint64_t colour)\n"
CALL = "        write_record(m, c, &p, crc);\n"
HEAD = "    int rc = mm_head(m, c->pid, &head, r);\n    if (rc) return rc;\n    plan p;\n"

MUTANTS = [
    Mutant(
        "a-store-that-the-trace-does-not-tell",
        (("csrc/page.c", "    at_written(&rec->shape, MM_RECORD_HEADER - sizeof rec->crc_commit);\n", ""),),
        ("create",),
    ),
    Mutant(
        "commit-word-skipped-at-publish",
        (
            (
                "csrc/page.c",
                "    at_store_release(w, mm_committed((uint32_t)at_load_relaxed(w))); /* release: who sees it, sees a whole record (intent.c) */\n",
                "    (void)w;\n",
            ),
        ),
        ("writers",),
    ),
    Mutant(
        "commit-word-skipped-at-help",
        (
            (
                "csrc/log.c",
                "    at_store_release(w, mm_committed((uint32_t)word)); /* release: who sees it, sees a whole record (intent.c) */\n",
                "    (void)w, (void)word;\n",
            ),
        ),
        ("deaths",),
    ),
    Mutant(
        "committed-before-it-is-published",
        (
            (
                "csrc/log.c",
                "    at_store_relaxed(&rec->crc_commit, mm_checksum_header(payload_crc, rec));\n",
                "    at_store_relaxed(&rec->crc_commit, mm_committed(mm_checksum_header(payload_crc, rec)));\n",
            ),
        ),
        ("rivals", "deaths"),
    ),
    Mutant(
        "epoch-steps-after-the-sync",
        (
            (
                "csrc/flush.c",
                "    mm_mark k = { .epoch = at_add_seq_cst(&m->g->epoch, 1) };\n",
                "    mm_mark k = { .epoch = at_load_acquire(&m->g->epoch) };\n",
            ),
            (
                "csrc/flush.c",
                SYNC_LOG,
                SYNC_LOG + "    k->epoch = at_add_seq_cst(&m->g->epoch, 1);\n",
            ),
        ),
        ("writers", "rivals", "leaders"),
    ),
    Mutant(
        "mark-before-the-sync-of-the-log",
        (
            (
                "csrc/flush.c",
                SYNC_LOG,
                "    (void)whole;\n    int e = mm_mark_write(m, k);\n    if (!e) e = mm_os_sync(m->config.log);\n",
            ),
            ("csrc/flush.c", WRITE_MARK, ""),
        ),
        ("writers",),
    ),
    Mutant("log-not-synced", (("csrc/flush.c", SYNC_LOG, "    int e = 0;\n    (void)sync_own;\n"),), ("writers",)),
    Mutant(
        "mark-not-synced",
        (
            (
                "csrc/marks.c",
                "    if (!e) e = mm_os_sync(m->config.marks);\n    if (!e) m->mark_block ^= 1;\n",
                "    if (!e) m->mark_block ^= 1;\n",
            ),
        ),
        ("writers",),
    ),
    Mutant(
        "stable-before-the-mark",
        (("csrc/flush.c", LIST, LIST + "    at_max_release(&m->g->stable, k.epoch);\n"),),
        ("writers",),
    ),
    Mutant(
        "leases-listed-after-the-sync",
        (("csrc/flush.c", LIST, ""), ("csrc/flush.c", WRITE_MARK, "    list_leases(m, k);\n" + WRITE_MARK)),
        ("rivals", "writers"),
    ),
    Mutant(
        "fill-announced-before-the-record",
        (
            (
                "csrc/page.c",
                CALL,
                "        at_store_release(&m->slot->lease_fill, m->lease.bump + mm_span_of(c->length + p.index.n) - m->lease.start);\n"
                + CALL,
            ),
        ),
        ("rivals", "writers"),
    ),
    Mutant(
        "colour-before-the-head",
        (
            ("csrc/page.c", WRITE, WRITE_AT),
            ("csrc/page.c", COLOUR, ""),
            ("csrc/page.c", HEAD, HEAD + "    uint64_t colour = at_load_acquire(&m->g->epoch);\n"),
            ("csrc/page.c", CALL, "        write_record(m, c, &p, crc, colour);\n"),
        ),
        ("rivals", "writers"),
    ),
    Mutant(
        "colour-not-reloaded-at-a-retry",
        (
            ("csrc/page.c", WRITE, WRITE_AT),
            ("csrc/page.c", COLOUR, ""),
            (
                "csrc/page.c",
                "    for (;;) {\n" + CALL,
                "    uint64_t colour = at_load_acquire(&m->g->epoch);\n"
                "    for (;;) {\n        write_record(m, c, &p, crc, colour);\n",
            ),
        ),
        ("rivals",),
    ),
    Mutant(
        "lsn-is-the-colour",
        (
            (
                "csrc/page.c",
                "mm_version_wts(p->version), at_load_acquire(&m->g->epoch) };\n    if (at_load",
                "mm_version_wts(p->version), mm_record_colour((const mm_record *)w) };\n    if (at_load",
            ),
        ),
        ("rivals", "writers"),
    ),
    Mutant(
        "lease-header-skipped",
        (("csrc/lease.c", "    at_copy(m->log + l.start, &h, sizeof h);\n", ""),),
        ("writers",),
    ),
    Mutant(
        "segment-header-skipped",
        (("csrc/segment.c", "    at_copy(m->log + at, whole, holds_payload(m, n) ? sizeof whole : sizeof(mm_run_header)); /* which is longer, and may have stood here */\n", "    (void)holds_payload;\n"),),
        ("writers",),
    ),
    Mutant(
        "snapshot-without-the-leases",
        (
            (
                "csrc/snapshot.c",
                "        if (live && segment < n && at_load_relaxed(&m->slots[i].lease)) entries[segment].word |= MM_SNAPSHOT_SCAN;\n",
                "        (void)live;\n        (void)segment;\n",
            ),
        ),
        ("snapshots",),
    ),
    Mutant(
        "snapshot-not-flushed",
        (
            (
                "csrc/snapshot.c",
                "    if (!rc) rc = mm_flush(m, at_load_acquire(&m->g->epoch), &advanced, r);\n",
                "    (void)advanced;\n",
            ),
        ),
        ("snapshots",),
    ),
    Mutant(
        "snapshot-newer-than-its-flush",
        (
            (
                "csrc/snapshot.c",
                "    h.b = at_load_acquire(&m->g->stable);\n",
                "    h.b = at_load_acquire(&m->g->epoch);\n",
            ),
        ),
        ("snapshots",),
    ),
    Mutant(
        "what-was-discarded-is-not-recorded",
        (("mmpc/_recovery.py", "joined(config.discards, self.durable, epoch)", "config.discards"),),
        ("writers",),
    ),
    Mutant(
        "epoch-not-above-what-was-discarded",
        (("mmpc/_recovery.py", "epoch = max([newest, int(self.report.max_epoch), self.durable, *(hi for _lo, hi in config.discards)]) + 1", "epoch = self.durable + 1"),),
        ("leaders", "recovery"),
    ),
    Mutant(
        "those-who-leave-together-do-not-flush",
        (
            (
                "mmpc/pagecache.py",
                "        _store.flush_after_last(options)\n",
                "",
            ),
        ),
        ("close",),
    ),
    Mutant(
        "the-last-one-does-not-look-again",
        (
            (
                "mmpc/pagecache.py",
                "        _store.flush_after_last(options)\n",
                "        if not last:\n            _store.flush_after_last(options)\n",
            ),
        ),
        ("close",),
    ),
    Mutant(
        "torn-marks-stay-torn",
        (("mmpc/_store.py", "            must(lib.mm_marks_mend(c, r), r)\n", ""),),
        ("handover", "writers"),
        judges="both",
    ),
    Mutant(
        "config-renamed-before-its-sync",
        (("mmpc/_files.py", "            data = data[os.write(fd, data) :]\n        os.fsync(fd)\n",
          "            data = data[os.write(fd, data) :]\n"),),
        ("create",),
    ),
    Mutant(
        "directory-not-synced-after-the-rename",
        (
            (
                "mmpc/_files.py",
                '    os.rename(name, os.path.join(path, "config"))\n    sync_directory(path)\n',
                '    os.rename(name, os.path.join(path, "config"))\n',
            ),
        ),
        ("create",),
    ),
    Mutant(
        "config-before-the-size-of-marks",
        (
            (
                "mmpc/_files.py",
                "                os.fsync(fd)  # `config` must not be on the disk before this size is: a shorter file was cut\n",
                "",
            ),
        ),
        ("create",),
    ),
    Mutant(
        "used-again-before-it-is-durable",
        (("csrc/reuse.c", "if (mm_segword_state(w) != MM_SEG_RETIRED || since > marked) continue;", "if (mm_segword_state(w) != MM_SEG_RETIRED) continue;"),),
        ("cleaning", "cleaning-lives"),
    ),
    Mutant(
        "a-retirement-is-not-told",
        (("csrc/reuse.c", "    at_copy(m->log + base + mm_retired_offset(t.generation), &t, sizeof t);\n", ""),),
        ("cleaning", "cleaning-lives"),
    ),
    Mutant(
        "a-retirement-that-was-discarded-is-believed",
        (("csrc/scan.c", "    return colour_counts(s, t->epoch);\n", "    return true;\n"),),
        ("cleaning-lives", "cleaning"),
    ),
    Mutant(
        "commit-word-skipped-at-a-move",
        (
            (
                "csrc/group.c",
                "    at_store_release(w, mm_committed((uint32_t)at_load_relaxed(w))); /* release: who sees it, sees a whole group (intent.c) */\n",
                "    (void)w;\n",
            ),
            ("csrc/log.c", "if (word == mm_committed((uint32_t)word)) return MM_OK;", "return MM_OK;"),
        ),
        ("cleaning", "cleaning-lives"),
    ),
    Mutant(
        "even-and-odd-retirements-in-one-sector",
        (("csrc/layout.h", "return 512 * (1 + generation % 2); }", "return 512 + 0 * generation; }"),),
        ("cleaning", "groups", "cleaning-lives"),
    ),
    Mutant(
        "an-intent-lists-nothing",
        (("csrc/intent.c", "        if (b->fill > a->fill) add(", "        if (b->fill < a->fill) add("),),
        ("steady", "rivals"),
    ),
    Mutant(
        "an-intent-is-believed-unseen",
        (("csrc/promote.c", "        if (!filled(s, &l)) return false;\n", ""),),
        ("steady", "writers", "leaders", "rivals"),
    ),
    Mutant(
        "an-intent-is-not-looked-for",
        (
            (
                "mmpc/_store.py",
                "lib.mm_promote(c, *_pairs(config), limit.this_boot, r)",
                "lib.mm_promote(c, *_pairs(config), True, r)",
            ),
        ),
        ("steady", "writers", "leaders"),
    ),
    Mutant(
        "an-intent-of-what-was-discarded-is-believed",
        (
            ("csrc/promote.c", " || discarded(s, colour)) return MM_OK;", " || (discarded(s, colour) && false)) return MM_OK;"),
            ("csrc/promote.c", "        if (!filled(s, &l)) return false;\n", ""),
        ),
        ("lives", "recovery", "cleaning-lives"),
    ),
    Mutant(
        "used-again-while-an-intent-lists-it",
        (
            ("csrc/reuse.c", "since > marked) continue;", "since > at_load_acquire(&m->g->stable)) continue;"),
            ("csrc/reuse.c", "    mm_want_mark(m, since); /*", "    /*"),
            ("csrc/intent.c", " || base->retirements != now->retirements) return false;", ") return false;"),
        ),
        ("cleaning", "cleaning-lives", "cleaning", "cleaning-lives"),  # one of two recordings of 4,000 images shows it
    ),
    Mutant(
        "the-base-of-intents-is-overwritten",
        (
            (
                "csrc/marks.c",
                "    return mm_os_write_at(m->config.marks, &b, sizeof b, block_offset(m->slot_index, m->mark_block));\n",
                "    m->mark_block ^= 1;\n"
                "    return mm_os_write_at(m->config.marks, &b, sizeof b, block_offset(m->slot_index, m->mark_block ^ 1));\n",
            ),
        ),
        ("steady", "writers", "leaders"),
    ),
    Mutant(
        "what-is-carried-is-not-put-into-its-place",
        (
            (
                "csrc/promote.c",
                "i < s->found; i++) rc = put_pieces(s, &s->intents[i]);",
                "i < s->found && i > s->found; i++) rc = put_pieces(s, &s->intents[i]);",
            ),
        ),
        ("carrying", "ids"),
    ),
    Mutant(
        "only-the-pieces-of-the-newest-intent-are-put",
        (
            (
                "csrc/promote.c",
                "for (uint64_t i = 0; !rc && i < s->found; i++) rc = put",
                "for (uint64_t i = s->found ? s->found - 1 : 0; !rc && i < s->found; i++) rc = put",
            ),
        ),
        ("carrying", "carrying-lives"),
    ),
    Mutant(
        "ones-own-pages-are-synced-and-nothing-is-carried",
        (
            (
                "csrc/intent.c",
                "    uint32_t bytes = say(m, &n, said->carries, &s);\n",
                "    uint32_t bytes = say(m, &n, false, &s);\n",
            ),
        ),
        ("carrying",),
    ),
    Mutant(
        "a-mark-is-noted-after-a-sync-of-ones-own-pages",
        (("csrc/flush.c", WRITE_MARK, "    if (!e) e = said->put ? mm_mark_note(m, k) : mm_mark_write(m, k);\n"),),
        ("carrying",),
    ),
    Mutant(
        "of-ones-own-pages-the-last-alone-is-synced",
        (
            (
                "csrc/flush.c",
                "    uint64_t from = (l->address + mm_intent_placed(m, l)) & ",
                "    uint64_t from = (l->address + l->fill - 1) & ",
            ),
        ),
        ("carrying", "carrying-lives"),
    ),
    Mutant(
        "what-was-carried-counts-as-durable-before-the-sync",
        (
            ("csrc/flush.c", "    mm_fills_durable(m, &now, &said);\n    if (!said.put) {\n", "    if (!said.put) {\n"),
            (
                "csrc/flush.c",
                "    rc = sync_and_mark(m, &k, &said, r);\n",
                "    mm_fills_durable(m, &now, &said);\n    rc = sync_and_mark(m, &k, &said, r);\n",
            ),
        ),
        ("leaders", "carrying", "carrying-lives"),
    ),
    Mutant(
        "a-new-lease-is-as-durable-as-the-last",
        (
            (
                "csrc/lease.c",
                "((at_load_relaxed(&m->slot->lease_durable) >> 32) + 1) << 32);",
                "at_load_relaxed(&m->slot->lease_durable));",
            ),
        ),
        ("carrying", "carrying-lives"),
    ),
    Mutant(
        "numbers-before-their-ceiling-is-durable",
        (("csrc/ids.c", "    if (!rc && !durable) rc = mm_flush(m, c.lsn, &advanced, r);\n", "    (void)durable, (void)advanced;\n"),),
        ("ids", "ids-lives"),
    ),
    Mutant(
        "a-ceiling-that-is-written-counts-as-durable",
        (("csrc/ids.c", "d->value >= need && d->stable >= d->lsn;", "d->value >= need;"),),
        ("ids", "ids-lives"),
    ),
    Mutant(
        "the-limit-is-the-ceiling-that-was-just-written",
        (("csrc/ids.c", "mm_guarded(m, r, raise_limit, &need)", "mm_guarded(m, r, raise_limit, &want)"),),
        ("ids", "ids-lives"),
    ),
]

def build(mutant: Mutant, root: Path, sound: Path, directory: Path) -> Path:
    """A disk build with the mutant's edits; what goes on PYTHONPATH.  `sound` is one without, to save compiling."""
    target = directory / "built"
    if not mutant.compiled:
        shutil.copytree(sound, target)
        edit(mutant, target)
        return target
    source = directory / "source"
    shutil.copytree(
        root,
        source,
        ignore=shutil.ignore_patterns(".*", "build", "*.so", "*.egg-info", "tests", "bench", "docs", "__pycache__"),
    )
    edit(mutant, source)
    environment = {**os.environ, "MMPC_DEFINES": "MMPC_DISK", "CFLAGS": "-O1", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    return target


def edit(mutant: Mutant, root: Path) -> None:
    for name, old, new in mutant.edits:
        path = root / name
        text = path.read_text()
        assert text.count(old) == 1, f"{mutant.name}: {name} does not hold, exactly once: {old}"
        path.write_text(text.replace(old, new))
