"""What the last one to leave says before it cuts the free end of the log off (docs/design.md, Segments).

Numbers that are cut off are forgotten: segments that get them again begin with generations of their own, which say
nothing of before and after. So nothing that stays may speak of what was there.
"""

from __future__ import annotations

import os

from . import _files, errors
from ._extent import run_at
from ._layout import EXTENT_MOST, RUN_HEADER
from ._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def said(path: str, config: _files.Config, c: Any, r: Any) -> bool:
    """Durably in `config`: what leases that began before name behind the cut is gone, also when something stands
    there again. Earlier cuts that this one contains are forgotten, and those behind which every segment since has
    a header: that says more. False: nothing is to be cut off. For who has the store alone.
    """
    kept, epoch = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    if lib.mm_log_free_end(c, kept, epoch, r) != errors.OK or not epoch[0]:
        return False
    shift, cuts, upto = config.segment_shift, [(epoch[0], kept[0])], kept[0]
    for cut in reversed(config.cuts):
        if cut[1] < upto and any(not any(os.pread(c.log, 8, n << shift)) for n in range(cut[1], upto)):
            cuts.append(cut)
        upto = min(upto, cut[1])
    _shorten_runs(c.log, config, kept[0])
    _files.write_config(path, config.changed(cuts=tuple(reversed(cuts))))
    return True


def _shorten_runs(log: int, config: _files.Config, kept: int) -> None:
    """The header of a run that was given back says of which generation its segments were, also those behind the cut:
    from now on it ends there. Durable before anything is cut off.
    """
    shift, shortened = config.segment_shift, False
    longest = (EXTENT_MOST >> shift) + 3
    for n in range(max(0, kept - longest), kept):
        run = run_at(os.pread(log, RUN_HEADER.size, n << shift), n, config.uuid)
        if run is None or n + run.segments <= kept:
            continue
        run.segments = kept - n
        os.pwrite(log, run.packed(config.uuid), n << shift)
        shortened = True
    if shortened:
        os.fdatasync(log)
