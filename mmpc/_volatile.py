"""`control`, `table`, `ids` and `rts` as their bytes say. They are believed only while they are of this boot."""

from __future__ import annotations

import os

from ._extent import run_at
from ._findings import Findings, Problem
from ._layout import (
    ADDRESS_MASK,
    BLOCK,
    CONTROL_GLOBALS,
    CONTROL_MAGIC,
    CONTROL_REPLACED,
    CONTROL_SEGMENTS,
    CONTROL_SLOTS,
    EXTENT_STATE,
    GLOBALS,
    IDENTITY,
    IDENTITY_SIZE,
    IN_USE,
    LAYOUT_VERSION,
    MAX_COLOUR,
    MAX_SEGMENTS,
    REST_RUN,
    ROLES,
    RUN_HEADER,
    SEGMENT_ENTRY,
    SEGMENT_ENTRY_SIZE,
    SLOT_LEASES,
    SLOT_LEASES_AT,
    SLOT_SIZE,
    SLOTS,
    WORDS_HEADER,
    WORDS_MAGIC,
    WORDS_OFFSET,
    crc,
    words,
)
from ._log import Log, Segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._log import Record

_BOOT = slice(40, 104)  # of the identity
TORN = "the next open makes `control` and `table` again from the log; what was not flushed may be lost"


OTHER_LAYOUT = "another version of mmpc has the store open: its counters lie where this one does not know them"


class Control:
    """The identity in `control`, judged: `of_this_boot` means that control and log are those that running processes
    use, or used; `known` that the words behind it are where this layout has them, too; `table_counts` that the table is
    of them as well. `failed`: a sync has failed, so only what is durable counts, and the rest may be lost already.
    """

    __slots__ = ("failed", "fds", "known", "of_this_boot", "of_this_store", "open_id", "table_counts")

    def __init__(self, fds: dict[str, int]) -> None:
        self.fds = fds
        self.failed = self.known = self.of_this_boot = self.of_this_store = self.table_counts = False
        self.open_id = b""

    def word(self, name: str) -> int:
        """A global."""
        return int.from_bytes(os.pread(self.fds["control"], 8, CONTROL_GLOBALS + GLOBALS[name]), "little")


def read_control(fds: dict[str, int], uuid: bytes, boot: bytes, findings: Findings) -> Control:
    """`fds`: descriptors of the files that are there, `log` among them."""
    control = Control(fds)
    if "control" not in fds:
        findings.warn("control", 0, f"is missing: {TORN}")
        return control
    data = os.pread(fds["control"], IDENTITY_SIZE, 0)
    if len(data) < IDENTITY_SIZE:
        findings.warn("control", len(data), f"is cut short: {TORN}")
        return control
    magic, sum_, version, _print, owner, boot_id, control.open_id, *identities = IDENTITY.unpack_from(data)
    holds = sum_ == crc(data[12:]) and any(data[12:])  # of nothing but zeros the checksum is 0
    control.of_this_store = owner == uuid and holds
    say = findings.damage if (holds and owner != uuid) or _is_of(data, boot) else findings.warn
    if magic not in (CONTROL_MAGIC, CONTROL_REPLACED):
        say("control", 0, f"the identity has no magic number: {TORN}")
    elif not holds:
        say("control", 8, f"the checksum of the identity is wrong: {TORN}")
    elif owner != uuid:
        say("control", 24, f"belongs to another store: {TORN}")
    elif boot_id == boot:
        _compare_files(control, magic, version, identities, findings)
    return control


def _is_of(data: bytes, boot: bytes) -> bool:
    """Whether an identity, also one that is damaged, is of this boot. `control` is synced by nobody, so a loss of power
    leaves any of its sectors, or none: an identity of another boot, or that says of which no more, need not hold.
    """
    there, sum_ = data[_BOOT], int.from_bytes(data[8:12], "little")
    return there == boot or sum_ == crc(data[12 : _BOOT.start] + boot + data[_BOOT.stop :])


def _compare_files(control: Control, magic: bytes, version: int, identities: list[int], findings: Findings) -> None:
    known = dict(zip(("control", "table", "log", "ids", "rts"), zip(*[iter(identities)] * 3, strict=True), strict=True))
    strange = [name for name in known if not _same(control.fds.get(name), known[name])]
    for name in strange:
        if name in control.fds:
            findings.warn(name, 0, f"is not the file that the identity in 'control' names: {TORN}")
        else:
            findings.warn(name, 0, "is missing; the next open makes it again")
    control.of_this_boot = "control" not in strange and "log" not in strange
    control.known = control.of_this_boot and version == LAYOUT_VERSION
    if control.known and control.word("failed"):
        control.failed = True
        findings.warn("control", CONTROL_GLOBALS + GLOBALS["failed"], "a sync has failed: close the store everywhere")
    if magic == CONTROL_REPLACED:
        findings.warn("control", 0, "a recovery was cut off; the next open does it again")
    control.table_counts = control.known and not control.failed and not strange and magic == CONTROL_MAGIC


def _same(fd: int | None, identity: tuple[int, ...]) -> bool:
    if fd is None:
        return False
    found = os.fstat(fd)
    return (found.st_dev, found.st_ino) == identity[:2]


# ---- what must hold between the volatile files, the marks and the log


def judge_control(control: Control, log: Log, durable: Callable[[], int], findings: Findings) -> None:
    """The globals, the segment table and the slots against the log. `durable` reads what marks and log say of that.

    Others may run: each word is read before the one that bounds it.
    """
    stable = control.word("stable")
    newest = durable()
    dirty = control.word("dirty")
    epoch = control.word("epoch")
    bad = findings.damage
    if stable > newest:
        bad("control", CONTROL_GLOBALS + GLOBALS["stable"], f"stable is {stable}, the newest mark says {newest}")
    if not max(newest, stable) < epoch <= MAX_COLOUR or dirty > epoch or log.max_colour > control.word("epoch"):
        bad(
            "control",
            CONTROL_GLOBALS + GLOBALS["epoch"],
            f"epoch {epoch} does not fit: durable {newest}, newest LSN {dirty}, newest colour {log.max_colour}",
        )
    for name, file, unit, offset in (("log_size", "log", 1, 0), ("table_pages", "table", 8, WORDS_OFFSET)):
        published, size = control.word(name), os.fstat(control.fds[file]).st_size
        if published * unit + offset > size:
            bad(file, size, f"is cut short: {published * unit + offset} bytes are in use")
    hints, size = WORDS_OFFSET + control.word("table_pages") // 8, os.fstat(control.fds["ids"]).st_size
    if size < hints:
        findings.warn("ids", size, f"is cut short: it had {hints} bytes; the next open makes it again")
    _judge_segments(control, log, findings)
    _judge_slots(control, log, findings)


def _judge_segments(control: Control, log: Log, findings: Findings) -> None:
    count = control.word("segments")
    size = os.fstat(control.fds["control"]).st_size
    at = CONTROL_GLOBALS + GLOBALS["segments"]
    if size < CONTROL_SEGMENTS + BLOCK:
        findings.damage("control", size, f"is cut short: {TORN}")
    if count > MAX_SEGMENTS or CONTROL_SEGMENTS + count * SEGMENT_ENTRY_SIZE > size:
        findings.damage("control", at, f"{count} segments do not fit the file")
        return
    # Who died when it made the log shorter leaves segments behind the end that nobody needs.
    beyond = [n for n, segment in log.segments.items() if n >= count and not log.gone(segment)]
    if beyond:
        findings.damage("control", at, f"there are {max(beyond) + 1} segments, not {count}")
    data = os.pread(control.fds["control"], count * SEGMENT_ENTRY_SIZE, CONTROL_SEGMENTS)
    holding = {address >> log.shift for address in log.leases}
    for number, entry in enumerate(SEGMENT_ENTRY.iter_unpack(data[: len(data) // 64 * 64])):
        segment, wrong = log.segments.get(number), None
        for _ in range(3):  # it may just be changing, or have changed since the header was read
            wrong = _wrong_with_entry(entry, segment, number, log, number in holding)
            if wrong is None:
                break
            segment = log.segment_now(number)
            place = CONTROL_SEGMENTS + number * SEGMENT_ENTRY_SIZE
            entry = SEGMENT_ENTRY.unpack(os.pread(control.fds["control"], SEGMENT_ENTRY_SIZE, place))
        if wrong is not None:
            findings.add(wrong)


def _wrong_with_entry(
    entry: tuple[int, ...], segment: Segment | None, number: int, log: Log, holds: bool
) -> Problem | None:
    word, salt = entry[0], entry[3]
    state, generation = word & 15, word >> 4 & 0xFFFFFF
    place = CONTROL_SEGMENTS + number * SEGMENT_ENTRY_SIZE
    if state == EXTENT_STATE:
        run = log.runs.get(number)
        published = word >> 28 == REST_RUN | SLOTS
        if published and (run is None or (run.generation, run.salt) != (generation, salt)):
            run = run_at(log.read(number << log.shift, RUN_HEADER.size), number, log.uuid)
            if run is None or (run.generation, run.salt) != (generation, salt):
                return Problem("control", place, f"the entry of segment {number} does not fit the header of its run")
        return None
    if segment is None:
        if state in IN_USE and not os.pread(log.fd, 1, (number << log.shift) + 1):
            return Problem("log", log.size, f"segment {number} lies beyond the end")
    elif state in IN_USE and (generation, salt) != (segment.generation, segment.salt):
        return Problem("control", place, f"the entry of segment {number} does not fit its header")
    elif state not in IN_USE and generation == segment.generation and holds and not log.gone(segment):
        return Problem("control", place, f"segment {number} is said to be in state {state}, but holds data")
    return None


def ask_for_headers(control: Control, log: Log) -> None:
    """A segment in use has a whole header, whatever it holds; one that is prepared, or was when its owner died, may
    have part of one.
    """
    for number in sorted(log.broken):
        entry = os.pread(control.fds["control"], 8, CONTROL_SEGMENTS + number * SEGMENT_ENTRY_SIZE)
        if int.from_bytes(entry, "little") & 15 in IN_USE:
            log.segment(number)


def _judge_slots(control: Control, log: Log, findings: Findings) -> None:
    used = control.word("slots_used")
    if used > SLOTS:
        findings.damage("control", CONTROL_GLOBALS + GLOBALS["slots_used"], f"{used} slots do not exist")
    for slot in range(min(used, SLOTS)):
        place = CONTROL_SLOTS + slot * SLOT_SIZE + SLOT_LEASES_AT
        wrong = [said for _ in range(3) if (said := _slot_names(control, log, place)) is not None]
        if len(wrong) == 3:  # else its owner was just taking another lease
            findings.damage("control", place, f"slot {slot} names {wrong[-1]}")


def _slot_names(control: Control, log: Log, place: int) -> str | None:
    data = os.pread(control.fds["control"], SLOT_LEASES.size, place)
    if len(data) < SLOT_LEASES.size:
        return None
    _announce, address, shape, fill = SLOT_LEASES.unpack(data)
    if not address or not fill:
        return None
    if address >> log.shift >= control.word("segments"):
        return None  # given back when the log was made shorter
    if not log.needed(address, shape >> 32):
        return None
    lease = log.refresh(address)
    if lease is None or lease.end - lease.address < fill:
        return f"a lease at {address} that is not filled to {fill}"
    return None


# ---- head words


def judge_words(control: Control, findings: Findings) -> None:
    """The headers of table, ids and rts."""
    for name, role in ROLES.items():
        data = os.pread(control.fds[name], WORDS_HEADER.size, 0)
        expected = WORDS_HEADER.pack(WORDS_MAGIC, LAYOUT_VERSION, role, control.open_id)
        if data != expected:
            at = next((i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), len(data))
            findings.warn(name, at, "the header is damaged; the next open makes the file again")
            control.table_counts = False


def heads(control: Control) -> Iterator[tuple[int, int]]:
    """(page, head word) of every word in `table` that is not 0, published or not."""
    fd, at, page = control.fds["table"], WORDS_OFFSET, 0
    while data := os.pread(fd, 1 << 19, at):
        for head in words(data):
            if head:
                yield page, head
            page += 1
        at += 1 << 19


def judge_heads(control: Control, log: Log, findings: Findings) -> None:
    """Each head names a whole record of its page, as new as the newest committed one; no page is missing."""
    published, seen = control.word("table_pages"), set()
    for page, head in heads(control):
        seen.add(page)
        if page >= published and page >= control.word("table_pages"):
            place = WORDS_OFFSET + 8 * page
            findings.damage("table", place, f"a head word beyond the {published} that 'control' publishes", page)
        if _wrong_with_head(log, page, head, log.find, newest_too=False) is not None:
            wrong = settled(control, log, page)
            if wrong is not None:
                findings.add(wrong)
    for page in log.newest.keys() - seen:
        findings.damage("table", WORDS_OFFSET + 8 * page, "the head word is missing", page)


def settled(control: Control, log: Log, page: int) -> Problem | None:
    """What is wrong with a page as its head word, and the log, say now.

    A head that is the same before and after names a chain whose segments are not used again. While it changes the page
    is looked at again: somebody changes, or moves, it.
    """
    head = _head(control, page)
    for _ in range(100):
        wrong = _wrong_with_head(log, page, head, log.look, newest_too=True)
        before, head = head, _head(control, page)
        if wrong is None or head == before:
            return wrong
    return None


def address_of(control: Control, page: int) -> int:
    """Where the newest record of a page is, by its head word."""
    return (_head(control, page) & ADDRESS_MASK) << 3


def _head(control: Control, page: int) -> int:
    return int.from_bytes(os.pread(control.fds["table"], 8, WORDS_OFFSET + 8 * page), "little")


def _wrong_with_head(
    log: Log, page: int, head: int, find: Callable[[int], Record | None], newest_too: bool
) -> Problem | None:
    """`newest_too`: the chain under the newest record that the log has of the page is judged here as well."""
    place, address, newest = WORDS_OFFSET + 8 * page, (head & ADDRESS_MASK) << 3, log.newest.get(page)
    if head.bit_count() & 1:
        return Problem("table", place, "the head word is damaged", page)
    record = find(address)
    if record is None:
        return Problem("log", address, "the newest record is damaged", page)
    if record.page != page:
        return Problem("table", place, f"the head word names a record of page {record.page}", page)
    if newest is not None and log.versions[newest] > record.version:
        return Problem("table", place, "the head word names an old record", page)
    if newest is None or newest_too or log.addresses[newest] != record.address:
        chain = log.chain(record, find)
        return chain if isinstance(chain, Problem) else None
    return None
