"""verify: judges a store from its bytes, by a second code path.

It reads files and nothing else: it needs no write permission, attaches to nothing, and works while others use the
store, after a reboot, and on a copy. With the core it shares the numbers of the layout and the checksum function;
what they mean is taken from docs/format.md.

What others are just writing is no damage. So whatever bounds something else is read first (the marks before the log,
the log before the head words), what was not there yet is looked for again, and where damage was found while marks or
config changed all is read once more.
"""

from __future__ import annotations

import os
import time

from . import _compression, _files, _reserved, _store, _volatile, errors
from ._findings import DAMAGE, Findings, Problem
from ._intents import Intents
from ._lasting import Config, Marks, Snapshot, mended_config, parse_config, read_marks, read_snapshot
from ._layout import (
    COMPRESSED,
    CONFIG,
    CONFIG_MAGIC,
    CONTROL_GLOBALS,
    FORMAT,
    GLOBALS,
    INCOMPAT_AT,
    MARK_MAGIC,
    MASK32,
    RECORD,
    RETIREMENTS_AT,
    SEGMENT_MAGIC,
    WITNESS_MAGIC,
)
from ._log import Lease, Log, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._log import Piece

    Progress = Callable[[int, int], None]

_EVERY_TIME = 2**64 - 1
_NAMES = ("log", "marks", *_files.VOLATILE)


class Report:
    """What `verify` found.

    `ok`: no damage (there may be warnings). `problems`: all of both. The numbers say what was read: segments, leases,
    whole records, committed ones, those that a recovery has discarded, pages, bytes of records, and `durable`, the
    epoch up to which the store survives a power loss. `same_boot`: the volatile files are of this boot and were judged.
    """

    __slots__ = (
        "bytes",
        "committed",
        "discarded",
        "durable",
        "leases",
        "left_out",
        "pages",
        "path",
        "problems",
        "records",
        "same_boot",
        "seconds",
        "segments",
        "snapshots",
    )

    def __init__(self, path: str, findings: Findings) -> None:
        self.path = path
        self.problems: list[Problem] = findings.problems
        self.left_out = findings.left_out
        self.segments = self.leases = self.records = self.committed = self.discarded = 0
        self.pages = self.bytes = self.durable = self.snapshots = 0
        self.same_boot = False
        self.seconds = 0.0

    @property
    def ok(self) -> bool:
        """Nothing that the store holds or promises is damaged."""
        return all(p.severity != DAMAGE for p in self.problems)

    @property
    def damage(self) -> list[Problem]:
        """The problems that are damage."""
        return [p for p in self.problems if p.severity == DAMAGE]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {"ok": self.ok}
        found |= {name: getattr(self, name) for name in self.__slots__ if name != "problems"}
        found["problems"] = [p.as_dict() for p in self.problems]
        return found

    def __str__(self) -> str:
        summary = (
            f"{self.path}: {self.pages} pages; {self.segments} segments, {self.leases} leases, {self.records} records "
            f"({self.committed} committed, {self.discarded} discarded), {self.bytes} bytes; durable up to epoch "
            f"{self.durable}; {self.seconds:.1f} s"
        )
        lines = [summary, *map(str, self.problems)]
        if self.left_out:
            lines.append(f"... and {self.left_out} more")
        warnings = len(self.problems) - len(self.damage)
        lines.append(f"sound, {warnings} warnings" if self.ok else f"DAMAGED: {len(self.damage)} places")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<mmpc.verify of {self.path!r}: {'sound' if self.ok else f'{len(self.damage)} places damaged'}>"


def verify(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Report:
    """Reads all of the store in `path` and says what is damaged; changes nothing.

    Judged are `config`, the marks, the snapshots, the headers of segments and leases, every record, the groups, what
    must be whole by the marks and by later leases, the chain of each page's newest version, now and as a power loss
    would leave it, and, if they are of this boot, `control` and the head words. Anybody may use the store meanwhile:
    where damage is found while others write it is looked at again under a pin, so that nothing is used again meanwhile.

    `progress(done, total)` is called now and then with bytes. The result is a `Report`; damage is no exception.
    Errors: FileNotFoundError (no such directory); IncompatibleStore (no store, or of another format); PermissionError;
    Unsupported (there may be compressed fragments, and zstandard is not installed).
    """
    where = os.path.abspath(os.fsdecode(path))
    if not os.path.isdir(where):
        raise FileNotFoundError(2, "no store here", where)
    begun = time.monotonic()
    report, before = _once(where, progress)
    for _ in range(2):
        if report.ok or before == _changing(where):
            break
        with _store.Held(where):
            report, before = _once(where, progress)
    report.seconds = time.monotonic() - begun
    return report


def _changing(path: str) -> tuple[bytes | None, int]:
    """What tells that somebody was at work: `config`, and when `marks` was written to."""
    try:
        return _config_bytes(path), os.stat(os.path.join(path, "marks")).st_mtime_ns
    except OSError:
        return None, 0


def _once(path: str, progress: Progress | None) -> tuple[Report, tuple[bytes | None, int]]:
    before = _changing(path)
    with Files(path) as files:
        check = Check(files, progress)
        check.run()
        return check.report(), before


def _config_bytes(path: str) -> bytes | None:
    try:
        fd = _files.open_file(os.path.join(path, "config"))
    except FileNotFoundError:
        return None
    with open(fd, "rb") as f:
        return f.read(_files.MAX_CONFIG)


class Files:
    """The files of a store, open for reading; what is not there, or no file, is in `missing`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fds: dict[str, int] = {}
        self.missing: dict[str, str] = {}
        self.names = sorted(os.listdir(path))
        for name in (*_NAMES, *(n for n in self.names if _files.is_snapshot(n))):
            try:
                self.fds[name] = _files.open_file(os.path.join(path, name))
            except FileNotFoundError:
                self.missing[name] = "is missing"
            except errors.CorruptionError:
                self.missing[name] = "is not a regular file"
            except OSError as e:
                if isinstance(e, PermissionError):
                    self.__exit__()
                    raise
                self.missing[name] = f"cannot be opened: {e.strerror}"

    def snapshots(self) -> list[str]:
        """Names of the snapshots that are there, newest first."""
        return sorted((n for n in self.fds if _files.is_snapshot(n)), reverse=True)

    def size(self, name: str) -> int:
        return os.fstat(self.fds[name]).st_size if name in self.fds else 0

    def log(self, at: int, n: int) -> bytes:
        """Bytes of the log as they lie there. What the device cannot read is for who reads all of it to tell of."""
        try:
            return os.pread(self.fds["log"], n, at)
        except OSError:
            return b""

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}


def find_config(files: Files, findings: Findings) -> Config:
    """The config of a store, mended where one bit is wrong. Errors: IncompatibleStore (no store, another format);
    Unsupported (no zstandard for a store that needs it); CorruptionError: nothing can be made of it.
    """
    try:
        data = _config_bytes(files.path)
    except errors.CorruptionError:
        data = b""
    ours = looks_like_a_store(files)
    if data is None and not ours:
        raise errors.IncompatibleStore(f"{files.path!r} is not an mmpc store: it holds no 'config'")
    config = parse_config(data or b"")
    if isinstance(config, Config):
        if not config.compatible:
            raise errors.IncompatibleStore("the store uses features unknown to this mmpc")
        if config.compressed:
            _compression.check_here(files.path)
        return config
    mended = mended_config(data or b"")
    if mended is not None:
        findings.damage("config", 0, f"{config}; with one bit turned back it is whole")
        return mended
    form = CONFIG.unpack_from(data)[1] if data and len(data) >= CONFIG.size else 0
    if data and data.startswith(CONFIG_MAGIC) and form != FORMAT:
        raise errors.IncompatibleStore(f"the store has format {form}, this mmpc reads format {FORMAT}")
    if data and not data.startswith(CONFIG_MAGIC) and not ours:
        raise errors.IncompatibleStore("'config' was not written by mmpc: this is another program's directory")
    raise errors.CorruptionError(
        f"'config' {'is missing' if data is None else 'is damaged: ' + config}", file="config", offset=0
    )


def looks_like_a_store(files: Files) -> bool:
    """Whether the log, or a mark, or the witness in its place, begins as ours do."""
    log, marks = files.fds.get("log"), files.fds.get("marks")
    return (log is not None and os.pread(log, 8, 0) == SEGMENT_MAGIC) or (
        marks is not None and os.pread(marks, 8, 0) in (MARK_MAGIC, WITNESS_MAGIC)
    )


class Check:
    """One reading of a store."""

    def __init__(self, files: Files, progress: Progress | None) -> None:
        self.files, self.progress = files, progress
        self.findings = Findings()
        self.config: Config | None = None
        self.marks = Marks()
        self.log: Log | None = None
        self.pieces: list[Piece] = []  # bytes of the log that only an intent has
        self.snapshots: list[Snapshot] = []
        self.same_boot = False
        self.control: _volatile.Control | None = None

    def run(self, config: Config | None = None) -> None:
        """Reads everything; `config`: what to go by where the store's own cannot be read."""
        files, findings = self.files, self.findings
        try:
            config = self.config = find_config(files, findings)
        except errors.CorruptionError as e:
            findings.damage("config", e.offset or 0, f"{e}" if config else f"{e}: nothing else can be judged")
            self.config = config
            if config is None:
                return
        self._directory()
        for name in files.snapshots():  # before the marks: their epochs are marks that were made
            snapshot = read_snapshot(name, files.fds[name], config, findings)
            if snapshot is not None:
                self.snapshots.append(snapshot)
        self.marks = self._read_marks(findings)
        self._config_is_the_newest()
        if "log" not in files.fds:
            return
        control = self.control = _volatile.read_control(files.fds, config.uuid, _files.boot_id(), findings)
        self.same_boot = control.of_this_boot
        carried, live = self._read_intents(self.marks), control.of_this_boot and not control.failed
        if not live:  # else all is in its place, and who uses a segment again may have written there since
            self.pieces = carried
            self._tell_of_pieces()
        limit = _EVERY_TIME if live else self.marks.durable
        log = self.log = Log(files.fds["log"], config, self.marks.durable, limit, findings, self.pieces)
        log.scan(self._tell)
        if log.flags & COMPRESSED and not config.compressed:
            said = "it does not say that there may be compressed records, and there are"
            findings.damage("config", INCOMPAT_AT, said)
        self._required(log)
        self._chains(log, control)
        self._lost_marks(log)
        self._heads_of_snapshots(log, control)
        self._volatile(control, log)
        log.judge_headers()

    def _tell(self, done: int) -> None:
        if self.progress is not None and self.log is not None:
            self.progress(done, self.log.size)

    def _read_marks(self, findings: Findings) -> Marks:
        if "marks" not in self.files.fds or self.config is None:
            return Marks()
        return read_marks(self.files.fds["marks"], self.config.uuid, findings)

    def _read_intents(self, marks: Marks) -> list[Piece]:
        """What the log itself says was durable: after a loss of power all of it counts, before one what a witness bears
        out. Returns what flushes carried that is not in its place.
        """
        if "log" not in self.files.fds or self.config is None:
            return []
        intents = Intents(self.config, marks, self.files.log, self.same_boot)
        intents.promote()
        return intents.pieces

    def _tell_of_pieces(self) -> None:
        """A page that was not written before the power was lost, or is damaged since: nobody can tell."""
        n = sum(len(data) for _at, data in self.pieces)
        if n:
            said = f"{n} bytes are not in their place, and flushes carry them: the next open puts them there"
            self.findings.warn("log", self.pieces[0][0], said)

    def _durable_now(self) -> int:
        """As the marks and the log say now. Who makes a mark between the two may use again what an older intent lists:
        where a witness knows of more than both, they are read once more.
        """
        durable = 0
        for _ in range(3):
            marks = self._read_marks(Findings())
            self._read_intents(marks)
            durable = marks.durable
            if marks.witness <= durable:
                break
        return durable

    def _directory(self) -> None:
        for name, why in self.files.missing.items():
            if name in ("log", "marks"):
                self.findings.damage(name, 0, why)
        if "lock" not in self.files.names:
            self.findings.damage("lock", 0, "is missing")
        for name in self.files.names:
            if not _files.belongs(name):
                self.findings.warn(name, 0, "does not belong to a store")

    # ---- what must be whole

    def _required(self, log: Log) -> None:
        """Below the fills of the newest mark, and in the leases before one that is required or counts."""
        for address, fill, generation in self.marks.leases:
            self._backwards(log, self._require(log, address, generation, fill, "the newest mark"))
        for address, lease in log.leases.items():
            if lease.ended > lease.end - address and log.counts(lease.ended_epoch) and self._stands(log, address):
                self.findings.damage("log", lease.end, "a damaged record in a lease that was used beyond it")
        for lease in [lease for lease in log.leases.values() if lease.counts]:
            self._backwards(log, lease)
        if self.marks.segments << log.shift >= log.size + (1 << log.shift):
            self.findings.damage("log", log.size, f"is cut short: {self.marks.segments} segments were in use")
        known = int.from_bytes(log.read(RETIREMENTS_AT, 8), "little") & MASK32
        if known - self.marks.retirements & 1 << 31:
            said = f"knows of {known} retirements, the newest mark of {self.marks.retirements}: it is the older one"
            self.findings.damage("log", RETIREMENTS_AT, said)

    def _stands(self, log: Log, address: int) -> bool:
        """The segment has not been used again, or retired, since it was read."""
        read, now = log.segments[address >> log.shift], log.segment_now(address >> log.shift)
        return now is None or (now.generation == read.generation and not log.gone(now))

    def _config_is_the_newest(self) -> None:
        """A config from before a recovery discarded colours would bring them back."""
        config = self.config
        assert config is not None
        if self.marks.discarded > max((hi for _lo, hi in config.discards), default=0):
            said = f"colours up to {self.marks.discarded} were discarded, says the newest mark; this 'config' is older"
            self.findings.damage("config", 0, said)

    def _backwards(self, log: Log, lease: Lease | None) -> None:
        while lease is not None and lease.previous and not lease.followed:
            lease.followed = True
            number = lease.previous >> log.shift
            if number >= self.marks.segments:
                return  # free when the newest mark was made: it may have been cut off since
            assert self.config is not None
            if self.config.cut_since(lease.stable, number):
                return  # cut off since that lease began
            who = f"the lease at {lease.address}"
            lease = self._require(log, lease.previous, lease.previous_generation, lease.filled, who)

    def _require(self, log: Log, address: int, generation: int, fill: int, who: str) -> Lease | None:
        """A lease that must be there, filled so far; looked at again, since it may have been written to after it was
        read. None: damage, or nothing in its segment is needed, which was retired, or is used again.
        """
        if not log.needed(address, generation):
            return None
        lease = log.leases.get(address)
        if lease is None or lease.end - address < fill:
            lease = log.refresh(address)
            if not log.needed(address, generation):
                return None
        if lease is None:
            self.findings.damage("log", address, f"the lease that {who} names is damaged or missing")
            return None
        log.leases.setdefault(address, lease)
        if lease.end - address < fill:
            self.findings.damage("log", lease.end, f"a damaged record below the fill that {who} gives", None)
            return None
        return log.leases[address]

    def _lost_marks(self, log: Log) -> None:
        """Whoever knows of a newer durable epoch than the marks say proves that a mark is lost."""
        durable = self.marks.durable
        known = [(s.stable, f"segment {n}") for n, s in log.segments.items() if s.stable > durable]
        known += [(lease.stable, f"the lease at {a}") for a, lease in log.leases.items() if lease.stable > durable]
        known += [(epoch, f"what stands in the log at {a}") for a, epoch in log.later.items() if epoch > durable]
        known += [(s.b, s.name) for s in self.snapshots if s.b > durable]
        if self.marks.witness > durable:
            known.append((self.marks.witness, "a witness in 'marks'"))
        if known and "marks" in self.files.fds:
            durable = self._durable_now()  # they were read first
        for epoch, who in known:
            if epoch > durable:
                said = f"epoch {epoch} was durable, says {who}; the newest mark says {durable}"
                self.findings.damage("marks", 0, said)
                return
        if durable == 0 and log.allocated and "marks" in self.files.fds:  # a creation ends with the first one
            self.findings.damage("marks", 0, "there is no mark")

    # ---- pages

    def _chains(self, log: Log, control: _volatile.Control) -> None:
        """The newest version of each page that counts, as it is and as a power loss would leave it."""
        for page, index in log.newest.items():
            self._judge_chain(log, control, log.record(index))
            durable = log.newest_durable.get(page)
            if durable is not None and durable != index:
                self._judge_chain(log, control, log.record(durable))
            if page in (_reserved.META, _reserved.COUNTER):
                self._judge_reserved(log, log.record(index))

    def _judge_reserved(self, log: Log, record: Record) -> None:
        """What the store itself wrote to pages 0 and 1, if the record is still there."""
        wrong = _reserved.wrong_with(record.page, log.payload(record))
        if wrong is not None and log.look(record.address) is not None:
            self.findings.damage("log", record.address, wrong, record.page)

    def _judge_chain(self, log: Log, control: _volatile.Control, record: Record) -> None:
        """What is wrong with the chain under a record is damage, unless the page has left it since it was read: then
        its head word says so, and for a version that was durable there was a flush since.
        """
        found = log.chain(record)
        if not isinstance(found, Problem):
            return
        newest = log.newest.get(record.page)
        last = newest is None or log.versions[newest] <= record.version
        if control.table_counts and (last or self._durable_now() > self.marks.durable):
            wrong = _volatile.settled(control, log, record.page)
            if wrong is None:
                return
        self.findings.add(found)

    def _heads_of_snapshots(self, log: Log, control: _volatile.Control) -> None:
        """A head counts while its segment has the generation of the copy: its record must be there."""
        for snapshot in self.snapshots:
            left = self.left(snapshot)
            for page, address in snapshot.heads():
                number = address >> log.shift
                segment = log.segments.get(number)
                if number >= len(snapshot.entries):
                    self.findings.warn(snapshot.name, 0, f"the head of page {page} lies in no segment", page)
                elif segment is None and number not in left:
                    log.missed.add(number)
                    self.findings.damage("log", number << log.shift, f"the segment of page {page} is gone", page)
                elif number not in left:
                    record = log.find(address)
                    if record is None or record.page != page:
                        if log.needed(address, snapshot.entries[number] >> 32):
                            said = f"the record that {snapshot.name} names is damaged"
                            self.findings.damage("log", address, said, page)
                    elif page not in log.newest or log.versions[log.newest[page]] < record.version:
                        self._judge_chain(log, control, record)
                elif page not in log.newest and not self.same_boot:  # else its head word tells
                    said = f"page {page} left the segment after {snapshot.name} was made; where it went is gone"
                    self.findings.damage("log", address, said, page)

    def left(self, snapshot: Snapshot) -> set[int]:
        """Segments that were retired, used again, or cut off since the snapshot: its heads there were replaced."""
        log, config = self.log, self.config
        if log is None or config is None:
            return set()
        words = enumerate(snapshot.entries)
        return {n for n, word in words if config.cut_since(snapshot.b, n) or not log.needed(n << log.shift, word >> 32)}

    def _judge_numbers(self, control: _volatile.Control, log: Log) -> None:
        """No number is handed out that page 1 does not cover; it only rises."""
        limit = control.word("id_limit")
        record = log.look(_volatile.address_of(control, _reserved.COUNTER))
        if record is None or record.page != _reserved.COUNTER:
            return  # used again just now, or told of already
        covered = _reserved.ceiling(log.read(record.address + RECORD.size, record.length))
        if covered is not None and covered < limit and log.look(record.address) is not None:
            said = f"numbers of generate_id below {limit} are handed out; page 1 covers those below {covered}"
            self.findings.damage("control", CONTROL_GLOBALS + GLOBALS["id_limit"], said, _reserved.COUNTER)

    def _volatile(self, control: _volatile.Control, log: Log) -> None:
        if control.known and not control.failed:
            _volatile.ask_for_headers(control, log)
        if not control.of_this_boot:
            if control.of_this_store:
                stable, epoch = control.word("stable"), control.word("epoch")
                if self._durable_now() < stable < epoch:
                    said = f"epoch {stable} was durable, says 'control', which is of another boot; the marks do not"
                    self.findings.damage("marks", 0, said)
            return
        if control.table_counts:
            _volatile.judge_words(control, self.findings)
        if control.table_counts:
            _volatile.judge_control(control, log, self._durable_now, self.findings)
            _volatile.judge_heads(control, log, self.findings)
            self._judge_numbers(control, log)

    # ---- the result

    def report(self) -> Report:
        report, log = Report(self.files.path, self.findings), self.log
        report.durable, report.same_boot, report.snapshots = self.marks.durable, self.same_boot, len(self.snapshots)
        if log is not None:
            report.segments, report.leases, report.records = len(log.segments), len(log.leases), len(log.standings)
            report.committed, report.discarded = log.committed, log.discarded
            report.pages, report.bytes = len(log.newest), log.bytes
        return report
