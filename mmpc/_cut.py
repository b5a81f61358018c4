"""What the last one to leave says before it cuts the free end of the log off (docs/design.md, Segments).

Numbers that are cut off are forgotten: segments that get them again begin with generations of their own, which say
nothing of before and after. So nothing that stays may speak of what was there.
"""

from __future__ import annotations

import os

from . import _files, errors
from ._extent import run_at
from ._layout import EXTENT_MOST, RUN_HEADER
from ._log import segment_at
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def said(path: str, config: _files.Config, c: Any, r: Any) -> bool:
    """Durably in `config`: what leases that began before name behind the cut is gone, also when something stands
    there again. Earlier cuts that this one contains are forgotten, and those behind which every segment has had a
    header since: that says more. False: nothing is to be cut off. For who has the store alone.
    """
    kept, epoch = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    if lib.mm_log_free_end(c, kept, epoch, r) != errors.OK or not epoch[0]:
        return False
    cuts, upto = [(epoch[0], kept[0])], kept[0]
    for cut in reversed(config.cuts):
        if cut[1] < upto and not _begun_since(c.log, config, cut, upto):
            cuts.append(cut)
        upto = min(upto, cut[1])
    _shorten_runs(c.log, config, kept[0])
    _files.write_config(path, config.changed(cuts=tuple(reversed(cuts))))
    return True


def _begun_since(log: int, config: _files.Config, cut: tuple[int, int], upto: int) -> bool:
    """Each segment behind the cut, up to that one, has a header of its own or of its run that was written later. One
    of before is there again where the power failed before the cut was on the disk: it says nothing new.
    """
    epoch, n = cut
    while n < upto:
        data = os.pread(log, RUN_HEADER.size, n << config.segment_shift)
        run = run_at(data, n, config.uuid)
        header = run or segment_at(data, n, config.uuid)
        if header is None or header.epoch <= epoch:
            return False
        n += run.segments if run is not None else 1
    return True


def _shorten_runs(log: int, config: _files.Config, kept: int) -> None:
    """The header of a run that was given back says of which generation its segments were, also those behind the cut:
    from now on it ends there. Durable before anything is cut off: also one that ends there already is written again,
    since an earlier sync of it may have failed, after which the kernel calls it clean.
    """
    shift, shortened = config.segment_shift, False
    longest = (EXTENT_MOST >> shift) + 3
    for n in range(max(0, kept - longest), kept):
        run = run_at(os.pread(log, RUN_HEADER.size, n << shift), n, config.uuid)
        if run is None or n + run.segments < kept:
            continue
        run.segments = kept - n
        os.pwrite(log, run.packed(config.uuid), n << shift)
        shortened = True
    if shortened:
        os.fdatasync(log)
