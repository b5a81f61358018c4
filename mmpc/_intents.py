"""What flushes said in the log itself: a second path beside csrc/promote.c, by docs/format.md alone.

The newest mark may be older than what was durable: a flush that needed one sync left an intent in the log. It holds
when every lease that it lists is whole up to its fill, and its base, a mark, is not newer than the newest mark. What
those leases held that was not on the disk yet it may carry itself: after a loss of power that is put into its place
before anything is judged.
"""

from __future__ import annotations

from ._lasting import Marks
from ._layout import (
    ADDRESS_MASK,
    BLOCK,
    INNER,
    INTENT,
    LEASE_HEADER,
    MASK32,
    RECORD,
    Intent,
    body_of,
    colour_of,
    intent_of,
    span_of,
)
from ._log import in_place, lay, lease_at, segment_at, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._lasting import Config
    from ._log import Lease, Piece

    Fill = tuple[int, int, int]  # address, fill, generation, as marks list them
    Words = tuple[int, int, int, int, int]  # of a record


class Intents:
    """The intents in the leases that any mark names; `read(at, n)` gives bytes of the log.

    `bounded`: on the boot that they were written on. There the page cache has what a sync did not bring to the disk,
    and the sync may have failed; a witness says how far they did not.
    `pieces`: what they carry that is not in its place in the log, in order. Who reads the log sees it there.
    """

    def __init__(self, config: Config, marks: Marks, read: Callable[[int, int], bytes], bounded: bool) -> None:
        self.uuid, self.shift, self.marks, self._raw = config.uuid, config.shift, marks, read
        self.discards, self.bounded = config.discards, bounded
        self.pieces: list[Piece] = []
        self._leases: dict[tuple[int, int], tuple[Lease, int] | None] = {}
        self._ends: dict[tuple[int, int], set[int]] = {}

    def promote(self) -> None:
        """Makes of the marks what a recovery would: the newest intent that holds counts as one."""
        if self.bounded and self.marks.witness <= self.marks.durable:
            return
        found = self._carried_out()
        for epoch, base, intent in sorted(found, key=lambda one: -one[0]):
            if base <= self.marks.durable and all(self._filled(*fill) for fill in intent.fills):
                self._adopt(epoch, intent.fills)
                return

    def _adopt(self, epoch: int, fills: list[Fill]) -> None:
        known = {(a, g): n for a, n, g in self.marks.leases}
        for address, n, generation in fills:
            known[address, generation] = max(n, known.get((address, generation), 0))
        self.marks.durable = epoch
        self.marks.leases = [(a, n, g) for (a, g), n in known.items()]

    # ---- what they carry

    def _carried_out(self) -> list[tuple[int, int, Intent]]:
        """Epoch, base and content of all that may count, with what they carry in its place. One may lie in what another
        carries, so a lease is looked at again that something was put into. Each counts once: whatever the bytes say, an
        end comes.
        """
        todo, found = set(self.marks.named), dict[int, tuple[int, int, Intent]]()
        while todo:
            for at, epoch, base, intent in self._of_lease(*todo.pop()):
                if at in found:
                    continue
                found[at] = epoch, base, intent
                for index, start, data in intent.pieces:
                    address, _fill, generation = intent.fills[index]
                    if self._put(intent.fills[index], start, data) and (address, generation) in self.marks.named:
                        todo.add((address, generation))
        return list(found.values())

    def _put(self, fill: Fill, start: int, data: bytes) -> bool:
        """Whether that changes anything. What does not fit the lease that is there, or the file, belongs nowhere."""
        address, n, generation = fill
        found = self._lease(address, generation)
        if found is None or n > found[0].size:
            return False
        here = self._read(address + start, len(data))
        if len(here) < len(data) or here == data:
            return False
        lay(self.pieces, address + start, data)
        return True

    def _of_lease(self, address: int, generation: int) -> Iterator[tuple[int, int, int, Intent]]:
        """Where those lie in a lease that may count, their epochs, bases and contents."""
        for at, (word, shape, page_colour, base, prev_colour), data in self._records(address, generation):
            colour = colour_of(page_colour, prev_colour)
            if shape >> 40 & 7 != INTENT or not word >> 32 or colour <= self.marks.durable:
                continue
            if (self.bounded and colour > self.marks.witness) or any(lo < colour <= hi for lo, hi in self.discards):
                continue
            intent = intent_of(data[at + RECORD.size : at + RECORD.size + (shape & MASK32)])
            if intent is not None:
                yield address + at, colour, base, intent

    # ---- leases

    def _read(self, at: int, n: int) -> bytes:
        if at > ADDRESS_MASK << 3:  # no file has it: what was listed is nonsense
            return b""
        data = self._raw(at, n)
        return in_place(self.pieces, at, data) if self.pieces else data

    def _lease(self, address: int, generation: int) -> tuple[Lease, int] | None:
        """The lease, if it is there, and the seed of its checksums; no piece reaches into what says so."""
        if (address, generation) not in self._leases:
            self._leases[address, generation] = self._look(address, generation)
        return self._leases[address, generation]

    def _look(self, address: int, generation: int) -> tuple[Lease, int] | None:
        number = address >> self.shift
        segment = segment_at(self._read(number << self.shift, BLOCK), number, self.uuid)
        if segment is None or segment.generation != generation or address % BLOCK:
            return None
        room = (number + 1 << self.shift) - address
        lease = lease_at(self._read(address, BLOCK), 0, address, segment, room)
        return None if lease is None else (lease, segment.seed)

    def _records(self, address: int, generation: int) -> Iterator[tuple[int, Words, bytes]]:
        """Where each whole record of a lease begins, its words, and the bytes of the lease."""
        found = self._lease(address, generation)
        if found is None:
            return
        lease, seed = found
        data, at = self._read(address, lease.size), LEASE_HEADER.size
        while (words := whole(data, at, address + at, seed)) is not None:
            yield at, words, data
            at += span_of(body_of(words[1]))

    def _filled(self, address: int, fill: int, generation: int) -> bool:
        """The lease is there, and its records are whole up to exactly its fill."""
        key = address, generation
        if key not in self._ends:
            self._ends[key] = self._whole_ends(address, generation)
        return fill in self._ends[key]

    def _whole_ends(self, address: int, generation: int) -> set[int]:
        """Where the records of a lease end, up to the first that is not whole, or not committed."""
        ends = {LEASE_HEADER.size} if self._lease(address, generation) is not None else set()
        for at, (word, shape, *_rest), _data in self._records(address, generation):
            if not word >> 32 and not shape & INNER:
                break
            ends.add(at + span_of(body_of(shape)))
        return ends
