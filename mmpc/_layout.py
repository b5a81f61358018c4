"""Where the bytes of a store are, in Python: for those who judge a store from its bytes (verify, salvage).

docs/format.md says what each field means and tests/test_verify.py compares the two. Nothing here reads a file.
"""

from __future__ import annotations

from struct import Struct

from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 5
LAYOUT_VERSION = 5
BLOCK = 4096
SECTOR = 512
SLOTS = 1024
MARK_SECTORS = BLOCK // SECTOR
SECTOR_LEASES = 29
MARKS_SIZE = SLOTS * 2 * BLOCK
SNAPSHOT_CHUNK = 65536
MAX_SEGMENTS = 1 << 22

CONFIG = Struct("<8sIIIIQQQ16sQ")  # magic, format, crc, length, shift, incompat, ro_compat, compat, uuid, created
CONFIG_MAGIC = b"MMPCconf"
INCOMPAT_AT, INCOMPAT_COMPRESSED = 24, 1  # a bit of it: there may be compressed records

SEGMENT_HEADER = Struct("<8sIIQQQQ16s")  # magic, crc, generation, number, salt, epoch, stable, uuid
SEGMENT_MAGIC = b"\0MMPCseg"
# magic, crc, generation, number, epoch; at RETIRED_AT of a segment: even generations, odd ones
SEGMENT_RETIRED = Struct("<8sIIQQ")
RETIRED_MAGIC = b"MMPCrtrd"
RETIRED_AT = (512, 1024)
SEGMENT_STAMP = Struct("<8sIIQQ32s")  # magic, crc, generation, number, stable, zero; at the end of a segment
STAMP_MAGIC = b"MMPCstmp"
# crc, magic, address, blocks, generation, previous, filled, previous_generation, stable; then end, end_epoch
LEASE_HEADER = Struct("<IIQIIQIIQQQ")
LEASE_SUMMED = 48
LEASE_MAGIC = 0x4C455345
RECORD = Struct("<QQQQQ")  # crc_commit, shape, page_colour, version, prev_colour

# address, length, salt, generation, crc: the payload of a record with EXTENT
EXTENT_BODY = Struct("<QQQII")
EXTENT_PIECE = 1 << 20
EXTENT_MOST = (1 << 30) + BLOCK
# magic, crc, generation, number, salt, epoch, stable, uuid, page, segments
RUN_HEADER = Struct("<8sIIQQQQ16sQQ")
RUN_MAGIC = b"MMPC-run"

RETIREMENTS_AT = 256  # in the log: a word, how many segments were ever retired
# magic, crc, count, epoch, slot, place, segments, retirements, discarded; then as many MARK_LEASEs
MARK_SECTOR = Struct("<8sIIQIIIIQ")
MARK_LEASE = Struct("<QII")  # address, fill, generation
MARK_MAGIC = b"MMPCmark"
WITNESS_MAGIC = b"MMPCwtns"  # of a sector that says no more than that its epoch was durable
INTENT_HEADER = Struct("<QII")  # stable, listed, carried; then so many MARK_LEASEs, then so many PIECEs
INTENT_LEASES = 64  # that one lists, at most
PIECE = Struct("<II")  # which of the leases (0: the first), from; then the bytes of it from there to its fill

# magic, crc, format, a, b, salt, segments, pages, log_size, log_taken, segment_shift, chunks_crc, created
SNAPSHOT_HEADER = Struct("<8sIIQQQQQQQIIQ")
SNAPSHOT_MAGIC = b"MMPCsnap"
SNAPSHOT_ENTRY = Struct("<QQ")  # word, live
SNAPSHOT_RUN = 2  # in `word`: the first segment of a run

# magic, crc, layout_version, fingerprint, uuid, boot_id, open_id; then device, inode and birth of five files
IDENTITY = Struct("<8sIIQ16s64s16s15Q")
IDENTITY_SIZE = 512
CONTROL_MAGIC = b"MMPCctrl"
CONTROL_REPLACED = b"MMPCgone"
CONTROL_GLOBALS = 4096
CONTROL_SLOTS = 12288
CONTROL_SEGMENTS = CONTROL_SLOTS + SLOTS * 1024
SLOT_SIZE = 1024
SLOT_LEASES = Struct("<QQQQ")  # announce, lease, lease_shape, lease_fill; at SLOT_LEASES_AT of a slot
SLOT_LEASES_AT = 64
# state, pid, opened; announce; pins; views
SLOT = Struct("<QQQ40xQ56x32Q64Q128x")
PINS = 32
CONTROL_TIMES, TIMES, TIME_SAMPLE = 8192, 256, Struct("<QQ")  # of the epoch: (epoch, ns since 1970)
RETIRED = 5  # a state: nothing in the segment is needed by who comes later
SEGMENT_ENTRY = Struct("<QQQQQQQQ")  # word, fill, live, salt, opened, written, since, looked
SEGMENT_ENTRY_SIZE = SEGMENT_ENTRY.size
EXTENT_STATE = 8  # it holds a large payload, or a part of one
# In the rest of a segment's word: the first of a run, with the slot that is at it; another, with the first's number.
REST_RUN, REST_MEMBER = 1 << 34, 1 << 35
IN_USE = (2, 3, 4, 5)  # states of a segment that holds records: OPEN, SEALED, CLAIMED, RETIRED
# Offsets of the globals that are judged; each is one word.
GLOBALS = {
    "epoch": 0,
    "stable": 64,
    "failed": 128,
    "log_size": 192,
    "table_pages": 256,
    "segments": 384,
    "max_pid": 576,
    "slots_used": 832,
    "id_limit": 896,
    "dirty": 1152,
}

METRICS_HEADER = Struct("<8sQ16sQ")  # magic, fingerprint, open_id, created; the rows of the slots begin at METRICS_ROWS
METRICS_MAGIC = b"MMPCmetr"
METRICS_ROWS = 4096
COUNTERS, WORDS_OF_COUNTERS = 62, 128  # then incarnation, a spare word, and the counters as the owner found them
COUNTER_WORDS = Struct("<128Q")
BUCKETS, HISTOGRAM_WORDS, ROW_WORDS = 332, 336, 8192  # sum, greatest, least, a spare word, buckets

WORDS_HEADER = Struct("<8sII16s")  # magic, layout_version, role, open_id
WORDS_MAGIC = b"MMPCords"
WORDS_OFFSET = 4096
ROLES = {"table": 1, "ids": 2, "rts": 3}

MASK32 = 0xFFFFFFFF
LAST_GENERATION = 0xFFFFFF  # MM_GENERATION_LAST: a segment of it is not used again
PAGE_BITS = 40
PAGE_MASK = (1 << PAGE_BITS) - 1
ADDRESS_BITS = 42
ADDRESS_MASK = (1 << ADDRESS_BITS) - 1
PLACE_BITS = 16
MAX_WTS = (1 << 48) - 2
MAX_COLOUR = (1 << 46) - 1
BASE, DELTA, FREE, INTENT = 1, 2, 3, 4
COMPRESSED = 1 << 43  # in `shape`, as the others
INNER = 1 << 44
INDEX = 2 << 44
INDEX_MAX = 32
EXTENT = 4 << 44
FLAGS_UNKNOWN = 8 << 44
COMMIT_XOR = 0x9E3779B9

_crc = lib.mm_crc32c


def crc(data: Any, seed: int = 0) -> int:
    """CRC-32C of bytes, without inversions, so that results can be continued."""
    return int(_crc(seed, ffi.from_buffer(data), len(data)))


def crc_word(word: int, seed: int) -> int:
    """The checksum continued over a number of 64 bits."""
    return int(_crc(seed, word.to_bytes(8, "little"), 8))


def commit_of(checksum: int) -> int:
    """The commit word of a record with this checksum."""
    return (checksum ^ COMMIT_XOR) or MASK32


def body_of(shape: int) -> int:
    """Bytes of payload and index, which the checksum covers."""
    return (shape & MASK32) + (shape >> 56 if shape & INDEX else 0)


def inner_of(shape: int) -> int:
    """How many records of its group stand before one of such a shape."""
    return 0 if shape & INDEX else shape >> 56


def span_of(body: int) -> int:
    """Bytes that a record with such a body takes."""
    return body + 47 & -8


def colour_of(page_colour: int, prev_colour: int) -> int:
    """The colour of a record."""
    return page_colour >> PAGE_BITS | prev_colour >> ADDRESS_BITS << 24


def sane(shape: int, version: int, prev: int) -> str | None:
    """What is wrong with the fields of a record whose checksum holds; None: they can be."""
    kind, depth, wts = shape >> 40 & 7, shape >> 32 & 255, version >> PLACE_BITS
    if kind not in (BASE, DELTA, FREE, INTENT):
        return f"kind {kind} is unknown"
    if shape & FLAGS_UNKNOWN:
        return f"flags {shape >> 43 & 31:#x} are unknown"
    if not 0 < wts <= MAX_WTS and kind != INTENT:  # it has the epoch of a mark there
        return f"version {wts} cannot be"
    if shape & INDEX and (kind != DELTA or shape & INNER or not 0 < shape >> 56 <= INDEX_MAX):
        return f"an index of {shape >> 56} bytes cannot be in a record of kind {kind}"
    if shape & EXTENT and (kind == FREE or shape & MASK32 != EXTENT_BODY.size):
        return f"an extent of {shape & MASK32} bytes cannot be in a record of kind {kind}"
    if kind == FREE and shape & (MASK32 | COMPRESSED):
        return "a FREE record has a payload"
    if (depth > 1 and prev != 0) != (kind == DELTA) or depth == 0 or (depth == 1 and prev != 0):
        return f"depth {depth} and predecessor {prev} do not fit kind {kind}"
    return None


class Intent:
    """What an INTENT says: which epoch was durable then, which leases were written to, what it carries of them."""

    __slots__ = ("fills", "pieces", "stable")

    def __init__(self, stable: int, fills: list[tuple[int, int, int]], pieces: list[tuple[int, int, bytes]]) -> None:
        self.stable = stable
        self.fills = fills  # address, fill, generation, as marks list them
        self.pieces = pieces  # of which of them, from where in it, the bytes


def intent_of(payload: bytes) -> Intent | None:
    """What the payload of an INTENT says. None: it cannot be one, so it counts for nothing."""
    if len(payload) < INTENT_HEADER.size:
        return None
    stable, listed, carried = INTENT_HEADER.unpack_from(payload)
    at, pieces = INTENT_HEADER.size + MARK_LEASE.size * listed, []
    if listed > INTENT_LEASES or at > len(payload):
        return None
    fills = [(a, n, g) for a, n, g in MARK_LEASE.iter_unpack(payload[INTENT_HEADER.size : at])]
    for _ in range(carried):  # each takes bytes of the payload: it ends, whatever the number says
        if at + PIECE.size > len(payload):
            return None
        index, start = PIECE.unpack_from(payload, at)
        at += PIECE.size
        fill = fills[index][1] if index < listed else 0
        if not LEASE_HEADER.size <= start <= fill or start % 8 or fill % 8 or at + fill - start > len(payload):
            return None
        pieces.append((index, start, payload[at : at + fill - start]))
        at += fill - start
    return Intent(stable, fills, pieces) if at == len(payload) else None


def words(data: Any) -> Any:
    """A view of little-endian words; the machine is little-endian, as the core asserts."""
    return memoryview(data)[: len(data) & -8].cast("Q") if len(data) >= 8 else ()

# Offsets of the globals that are only figures for people; each is one word.
FIGURES = {
    "free_ids": 640,
    "reaped": 1024,
    "helped": 1088,
    "flush_time": 1472,
    "flushes": 1664,
    "shared": 1728,
    "log_taken": 1792,
    "log_snapshot": 1856,
    "snapshots": 1984,
    "cleaned": 2112,
    "moved": 2176,
}
SLOT_COUNTS, SLOT_COUNTS_AT = Struct("<QQ"), 96  # operations, conflicts; at SLOT_COUNTS_AT of a slot
WRITTEN_ALWAYS = (1 << 64) - 1  # `written` of a segment that somebody helped a record in
# Names of the states of a segment, by number.
STATES = ("free", "preparing", "open", "sealed", "claimed", "retired", "punching", "hole", "extent")
