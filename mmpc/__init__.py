"""mmpc: a page cache and log-structured page store that many processes write at once, without a server."""

from . import failpoints
from ._backup import Backup
from ._face import Counter, Free, Materialized, Meta, PagePtr, Unallocated, View
from ._findings import Problem
from ._metrics import Histogram, Metrics, ProcessMetrics, prometheus
from ._open import open
from ._readers import Reader, readers
from ._space import Cleaned, clean
from ._stats import Stats
from ._visit import backup
from .errors import (
    Closed,
    CollectionNotFound,
    Conflict,
    CorruptionError,
    DiskFullError,
    FragmentTooLarge,
    FragmentTypeError,
    IncompatibleStore,
    MmpcError,
    PageFreed,
    PageNotFound,
    StoreBusy,
    StoreFailed,
    Unsupported,
)
from .materializer import Add, Append, LastWriteWins, Materializer, Max, Union
from .observer import Observer
from .pagecache import PageCache
from .salvage import Salvaged, salvage
from .tx import Tx
from .verify import Report, verify

__version__ = "0.1.0"

__all__ = [
    "Add",
    "Append",
    "Backup",
    "Cleaned",
    "Closed",
    "CollectionNotFound",
    "Conflict",
    "CorruptionError",
    "Counter",
    "DiskFullError",
    "FragmentTooLarge",
    "FragmentTypeError",
    "Free",
    "Histogram",
    "IncompatibleStore",
    "LastWriteWins",
    "Materialized",
    "Materializer",
    "Max",
    "Meta",
    "Metrics",
    "MmpcError",
    "Observer",
    "PageCache",
    "PageFreed",
    "PageNotFound",
    "PagePtr",
    "Problem",
    "ProcessMetrics",
    "Reader",
    "Report",
    "Salvaged",
    "Stats",
    "StoreBusy",
    "StoreFailed",
    "Tx",
    "Unallocated",
    "Union",
    "Unsupported",
    "View",
    "backup",
    "clean",
    "failpoints",
    "open",
    "prometheus",
    "readers",
    "salvage",
    "verify",
]
