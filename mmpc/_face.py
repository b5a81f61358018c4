"""Which face carries the verbs: the C-API one, or the portable one over cffi (PyPy, or MMPC_FACE=cffi)."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing takes longer to import than all of mmpc
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")
    from ._hot import Counter, Free, Materialized, Meta, PagePtr, Unallocated, Verbs, View
elif sys.implementation.name != "cpython" or os.environ.get("MMPC_FACE") == "cffi":
    from ._portable import Counter, Free, Materialized, Meta, PagePtr, T, Unallocated, Verbs, View
else:
    import importlib.machinery
    import importlib.util

    from . import _native

    # PEP 489: a second module in the same shared object, so that both faces share one core.
    _loader = importlib.machinery.ExtensionFileLoader("mmpc._hot", _native.__file__)
    _spec = importlib.util.spec_from_file_location("mmpc._hot", _native.__file__, loader=_loader)
    _hot = importlib.util.module_from_spec(_spec)
    _loader.exec_module(_hot)
    sys.modules["mmpc._hot"] = _hot
    from ._hot import Counter, Free, Materialized, Meta, PagePtr, Unallocated, Verbs, View

    T = None  # the parameter of Verbs[T], which the C class ignores

__all__ = ["Counter", "Free", "Materialized", "Meta", "PagePtr", "Unallocated", "Verbs", "View"]
