"""Bytes of a store, rewritten so that their checksums hold: what a crash, or somebody else's life, could have left."""

from __future__ import annotations

import os
import struct

from mmpc import _files
from mmpc._lasting import Config, parse_config
from mmpc._layout import (
    BLOCK,
    LEASE_HEADER,
    LEASE_SUMMED,
    MARK_LEASE,
    MARK_MAGIC,
    MARK_SECTOR,
    RETIRED_AT,
    RETIRED_MAGIC,
    SECTOR,
    SEGMENT_RETIRED,
    crc,
)
from mmpc._log import Log, Segment

from . import loss


def config_of(path: str) -> Config:
    config = parse_config(loss.get(path, "config"))
    assert isinstance(config, Config)
    return config


def scanned(path: str, durable: int = 2**64 - 1) -> Log:
    """The log of a store that nobody writes to, read."""
    from mmpc._findings import Findings

    fd = os.open(os.path.join(path, "log"), os.O_RDONLY)
    try:
        log = Log(fd, config_of(path), durable, durable, Findings())
        log.scan(lambda done: None)
        return log
    finally:
        os.close(fd)


def write(path: str, name: str, at: int, data: bytes) -> None:
    with open(os.path.join(path, name), "r+b") as f:
        f.seek(at)
        f.write(data)


def turn(path: str, name: str, at: int) -> None:
    """One bit of a file."""
    write(path, name, at, bytes([loss.get(path, name)[at] ^ 1]))


def mark(path: str, leases: list[tuple[int, int, int]]) -> None:
    """The newest mark lists these leases: address, fill, generation of the segment."""
    data, seed = loss.get(path, "marks"), crc(config_of(path).uuid)
    heads = {at: MARK_SECTOR.unpack_from(data, at) for at in range(0, 16 * BLOCK, SECTOR) if data[at]}
    newest = max(head[3] for head in heads.values())
    for at, (_magic, _crc, _count, epoch, slot, place, *says) in heads.items():
        if epoch == newest:
            here = leases if place % 8 == 0 else []
            sector = MARK_SECTOR.pack(MARK_MAGIC, 0, len(here), epoch, slot, place, *says)
            sector = (sector + b"".join(MARK_LEASE.pack(*lease) for lease in here)).ljust(SECTOR, b"\0")
            write(path, "marks", at, sector[:8] + struct.pack("<I", crc(sector[12:], seed)) + sector[12:])


def retire(path: str, segment: Segment, epoch: int) -> None:
    """The segment says that it was retired at an epoch."""
    said = SEGMENT_RETIRED.pack(RETIRED_MAGIC, 0, segment.generation, segment.number, epoch)
    said = said[:8] + struct.pack("<I", crc(said[12:], crc(config_of(path).uuid))) + said[12:]
    write(path, "log", (segment.number << config_of(path).shift) + RETIRED_AT[segment.generation % 2], said)


def retired(path: str, number: int) -> bytes:
    """What a segment says of the retirement of its generations."""
    base, log = number << config_of(path).shift, loss.get(path, "log")
    return b"".join(log[base + at : base + at + SEGMENT_RETIRED.size] for at in RETIRED_AT)


def unend(path: str, lease: int) -> None:
    """The lease says nothing of its end."""
    write(path, "log", lease + LEASE_SUMMED, bytes(LEASE_HEADER.size - LEASE_SUMMED))


def older_config(path: str) -> bytes:
    """`config` as it was before the last pair was added."""
    config = _files.read_config(path)
    assert config is not None
    return config.changed(discards=config.discards[:-1]).encode()


def replace(path: str, name: str, data: bytes) -> None:
    """All bytes of a file, which stays the same file."""
    write(path, name, 0, data)
    os.truncate(os.path.join(path, name), len(data))
