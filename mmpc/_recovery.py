"""Recovery: from a snapshot and the records of the log to the state that counts.

Decides first, acts last: nothing that lasts is changed but `config`, which learns which colours were discarded before
anybody can write, so that a record passed over once never counts again (docs/design.md, Choices). Of `log`, zeros at
the end are cut off, and what a failed sync may have lost is written again. Cut off anywhere, it is done again from the
start and finds the same.
"""

from __future__ import annotations

import os

from . import _files, _snapshot, errors, failpoints
from ._files import Config
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def must(rc: int, r: Any) -> None:
    """Raises what a status of the core means, if it is not OK."""
    if rc:
        raise errors.from_status(rc, pid=0, length=r.length, offset=r.offset, file=r.file, os_error=r.os_error)


def known_stable(fd: int, uuid: bytes) -> int:
    """The durable epoch that `control` knew of, of whatever boot it is; 0: none, or not to be believed.

    It was set after the mark was durable, so a smaller newest mark means that marks were lost. Epoch and `stable` lie
    in one sector; what damage made of one does not fit the other.
    """
    identity, words = os.pread(fd, 512, 0), os.pread(fd, 128, 4096)
    if len(words) < 128 or identity[24:40] != uuid:
        return 0
    if int.from_bytes(identity[8:12], "little") != _files.crc32c(identity[12:]):
        return 0
    epoch, stable = (int.from_bytes(words[at : at + 8], "little") for at in (0, 64))
    return stable if stable < epoch else 0


def flat(pairs: tuple[tuple[int, int], ...]) -> Any:
    """Pairs as the core takes them; the caller keeps what it gets as long as the core looks at it."""
    return ffi.new("uint64_t[]", [x for pair in pairs for x in pair])


def joined(pairs: tuple[tuple[int, int], ...], lo: int, hi: int) -> tuple[tuple[int, int], ...]:
    """The pairs and (lo, hi], which is above all of them, as few as say the same.

    It swallows those that it contains or touches, so `config` grows only by crashes with a flush in between; never
    over a gap, in which colours count (model: discard.pml, MERGE).
    """
    apart = tuple(p for p in pairs if p[1] < lo)
    return (*apart, (min([lo, *(p[0] for p in pairs if p[1] >= lo)]), hi))


class Found:
    """What a recovery finds in the log, decides, and says.

    `c` holds descriptors of the lasting files and of fresh volatile ones; nobody is attached. `limited`: only what is
    durable (colours up to `durable`) counts; else no power was lost, and every committed record does. `alone`: for a
    process that changes nothing of the store, so what it passes over stays for the next recovery to pass over.
    """

    def __init__(
        self, c: Any, config: Config, path: str, durable: int, limited: bool, alone: bool = False
    ) -> None:
        self.c, self.config, self.path, self.durable, self.limited = c, config, path, durable, limited
        self.alone = alone
        self.report = ffi.new("mm_scan_report *")
        self.used: str | None = None  # name of the snapshot
        self.notes: list[str] = []

    def rebuild(self) -> int:
        """Fills table and segments, with a snapshot if one holds; the next epoch.  What was discarded is durably in
        `config` on return.
        """
        failpoints.reach("recovery sync")
        rc = 0 if self.alone else lib.mm_sync_fd(self.c.log)
        if rc:
            raise OSError(rc, os.strerror(rc), os.path.join(self.path, "log"))
        chosen = _snapshot.choose(self.c, self.path, self.durable, self.notes)
        try:
            if chosen is None or not self._filled(chosen):
                self._filled(None)
        finally:
            if chosen is not None:
                chosen.close()
        return self._next_epoch()

    def _filled(self, chosen: _snapshot.Chosen | None) -> bool:
        """False: the snapshot holds, and what it says cannot be."""
        r = ffi.new("mm_result *")
        discards, cuts = flat(self.config.discards), flat(self.config.cuts)
        fd, info = (chosen.fd, chosen.info) if chosen is not None else (-1, ffi.NULL)
        limit = self.durable if self.limited else 2**64 - 1
        self.used = chosen.name if chosen is not None else None
        must(lib.mm_format(self.c, r), r)
        gone = ffi.new("mm_gone *", {"discards": discards, "pairs": len(self.config.discards)})
        gone.cuts, gone.cut_count = cuts, len(self.config.cuts)
        rc = lib.mm_rebuild(self.c, limit, gone, fd, info, self.report, r)
        if rc == errors.CORRUPT and r.file == errors.SNAPSHOT and chosen is not None:
            self.notes.append(f"{chosen.name} does not fit the log and was not used")
            return False
        must(rc, r)
        return True

    def _next_epoch(self) -> int:
        config, newest = self.config, int(self.report.max_colour)
        epoch = max([newest, int(self.report.max_epoch), self.durable, *(hi for _lo, hi in config.discards)]) + 1
        if not self.limited or newest <= self.durable or self.alone:
            return epoch
        discards = joined(config.discards, self.durable, epoch)
        failpoints.reach("zero garbage segment")
        _files.write_config(self.path, config.changed(discards=discards))
        failpoints.reach("zero garbage segment post")
        self.c.discarded = epoch  # marks of this attachment say so: an older config is noticed
        return epoch + 1

    def tell(self, seconds: float, mm: Any) -> None:
        """Counts it, in the attachment that came of it, and says a line for the log of the program."""
        if self.report.segments == 0:
            return  # a store that was just made
        lib.mm_metrics_add(mm, lib.mm_metric_named(0, b"recoveries"), 1)
        lib.mm_metrics_record(mm, lib.mm_metric_named(1, b"recover"), int(seconds * 1e9), 1)
        import logging  # not at import: it takes longer than all of mmpc

        r = self.report
        logging.getLogger("mmpc").info(
            "%s: recovered %d pages in %.3f s: %s; read %d of %d segments (%d records) %s; "
            "durable up to epoch %d, %d records discarded%s",
            self.path,
            r.pages,
            seconds,
            "only what was durable counts" if self.limited else "no power was lost, all counts",
            r.scanned,
            r.segments,
            r.records,
            f"beside {self.used}" if self.used else "without a snapshot",
            self.durable,
            r.discarded,
            "".join(f"; {note}" for note in self.notes),
        )
