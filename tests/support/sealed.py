"""Values that say whose they are: a wrong value is seen, whatever it holds."""

import zlib


def seal(pid: int, number: int, size: int = 20) -> bytes:
    """The `number`-th fragment of page `pid`, with a checksum over both and the filling."""
    body = b"%d:%d:" % (pid, number) + bytes((pid * 31 + number * 7 + i) & 255 for i in range(size))
    return zlib.crc32(body).to_bytes(4, "little") + body


def numbers(pid: int, fragments: list[bytes]) -> list[int]:
    """The numbers of sealed fragments. AssertionError: one is damaged or belongs to another page."""
    found = []
    for fragment in fragments:
        body = fragment[4:]
        assert zlib.crc32(body).to_bytes(4, "little") == fragment[:4], (
            f"page {pid}: damaged fragment {fragment!r}"
        )
        owner, number, _ = body.split(b":", 2)
        assert int(owner) == pid, f"page {pid} shows a fragment of page {int(owner)}"
        found.append(int(number))
    return found
