"""What flushes said in the log itself: a second path beside csrc/promote.c, by docs/format.md alone.

After a loss of power the newest mark may be older than what was durable: a flush that needed one sync left an intent in
the log. It holds when every lease that it lists is whole up to its fill, and its base, a mark, is not newer than the
newest mark.
"""

from __future__ import annotations

from ._lasting import Marks
from ._layout import BLOCK, INNER, INTENT, LEASE_HEADER, MARK_LEASE, MASK32, RECORD, body_of, colour_of, span_of
from ._log import lease_at, segment_at, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._lasting import Config

Fill = tuple[int, int, int]  # address, fill, generation, as marks list them


class Intents:
    """The intents in the leases that any mark names; `read(at, n)` gives bytes of the log."""

    def __init__(self, config: Config, marks: Marks, read: Callable[[int, int], bytes]) -> None:
        self.uuid, self.shift, self.read, self.marks = config.uuid, config.shift, read, marks
        self.discards = config.discards

    def promote(self) -> None:
        """Makes of the marks what a recovery would: the newest intent that holds counts as one."""
        found: list[tuple[int, list[Fill]]] = []
        for address, generation in sorted(self.marks.named):
            found += self._of_lease(address, generation)
        for epoch, fills in sorted(found, key=lambda intent: -intent[0]):
            if all(self._filled(*fill) for fill in fills):
                self._adopt(epoch, fills)
                return

    def _adopt(self, epoch: int, fills: list[Fill]) -> None:
        known = {(a, g): n for a, n, g in self.marks.leases}
        for address, n, generation in fills:
            known[address, generation] = max(n, known.get((address, generation), 0))
        self.marks.durable = epoch
        self.marks.leases = [(a, n, g) for (a, g), n in known.items()]

    def _records(self, address: int, generation: int) -> Iterator[tuple[int, tuple[int, int, int, int, int], bytes]]:
        """Where each whole record of a lease ends, its words and its payload."""
        number = address >> self.shift
        segment = segment_at(self.read(number << self.shift, BLOCK), number, self.uuid)
        if segment is None or segment.generation != generation or address % BLOCK:
            return
        room = (number + 1 << self.shift) - address
        lease = lease_at(self.read(address, BLOCK), 0, address, segment, room)
        if lease is None:
            return
        data, at = self.read(address, lease.size), LEASE_HEADER.size
        while (words := whole(data, at, address + at, segment.seed)) is not None:
            payload = data[at + RECORD.size : at + RECORD.size + (words[1] & MASK32)]
            at += span_of(body_of(words[1]))
            yield at, words, payload

    def _of_lease(self, address: int, generation: int) -> Iterator[tuple[int, list[Fill]]]:
        for _end, (word, shape, page_colour, base, prev_colour), payload in self._records(address, generation):
            colour = colour_of(page_colour, prev_colour)
            if shape >> 40 & 7 != INTENT or not word >> 32 or base > self.marks.durable:
                continue
            if colour > self.marks.durable and not any(lo < colour <= hi for lo, hi in self.discards):
                yield colour, list(MARK_LEASE.iter_unpack(payload[8 : 8 + (len(payload) - 8) // 16 * 16]))

    def _filled(self, address: int, fill: int, generation: int) -> bool:
        reached = LEASE_HEADER.size
        for end, (word, shape, *_rest), _payload in self._records(address, generation):
            if end > fill or (not word >> 32 and not shape & INNER):
                break
            reached = end
        return reached == fill
