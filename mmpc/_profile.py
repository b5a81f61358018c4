"""Metrics as text: the table that `print_profile` prints, and the format of Prometheus."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._metrics import Histogram, Metrics

# Rows of a section: (name in the table, histogram); the counters that are told below it.
_SECTIONS: tuple[tuple[str, tuple[tuple[str, str], ...], tuple[str, ...]], ...] = (
    (
        "pagecache",
        (
            ("start", "attach"),
            ("recover", "recover"),
            ("snapshot", "snapshot"),
            ("get hit", "get_hit"),
            ("page_in", "page_in"),
            ("pull", "pull"),
            ("merge", "merge"),
            ("rewrite", "rewrite"),
            ("replace", "replace"),
            ("link", "link"),
            ("append", "append"),
            ("allocate", "allocate"),
            ("free", "free"),
            ("consolidate", "consolidate"),
        ),
        ("cache_hits", "cache_misses", "cache_evictions", "retries", "conflicts", "helps", "reaps", "views"),
    ),
    ("serialization", (("serialize", "serialize"), ("deserialize", "deserialize")), ()),
    (
        "log",
        (
            ("make_stable", "flush"),
            ("write", "sync"),
            ("written bytes", "payload"),
            ("reserve lat", "lease"),
            ("flush batch", "flush_batch"),
        ),
        ("leases", "leased_bytes", "flushes", "syncs"),
    ),
    ("segment accountant", (("clean", "clean"),), ("cleanings", "cleaned_segments", "cleaned_bytes", "moved_bytes")),
)
_UNITS = {"ns": "seconds", "bytes": "size_bytes", "calls": "calls"}
_WRITES = ("appends", "links", "replaces", "frees", "allocates")
_COLUMNS = ("op", "min (us)", "med (us)", "90 (us)", "99 (us)", "99.9 (us)", "99.99 (us)", "max (us)", "count")
_LAST_COLUMN = "sum (s)"


def _line(first: str, rest: list[str]) -> str:
    return " | ".join([f"{first: >17}", *(f"{text: >10}" for text in rest)])


def _row(name: str, h: Histogram) -> str:
    scale = 1e3 if h.unit == "ns" else 1.0
    values = [float(h.least), *(h.percentile(q) for q in (50, 90, 99, 99.9, 99.99)), float(h.greatest)]
    return _line(name, [*(f"{v / scale:.1f}" for v in values), str(h.count), f"{h.sum / 1e9:.3f}"])


def profile(m: Metrics) -> str:
    """The table: sections, their rows by what they cost in all. The rows of bytes and calls have no microseconds."""
    lines = ["pagecache profile:", "", _line(_COLUMNS[0], [*_COLUMNS[1:], _LAST_COLUMN]), "-" * 134]
    for title, rows, told in _SECTIONS:
        lines.append(f"{title}:")
        ordered = sorted(rows, key=lambda row: -m.histograms[row[1]].sum)
        lines += [_row(name, m.histograms[histogram]) for name, histogram in ordered]
        lines += [f"{name.replace('_', ' '): >17} | {m.counters[name]: >10}" for name in told]
        if title == "log":
            writes = sum(m.counters[name] for name in _WRITES)
            lines.append(f"log reservations: {writes}")
            lines.append(f"log res attempts: {writes + m.counters['retries']}")
    return "\n".join(lines)


# ---- Prometheus


def _escaped(text: str) -> str:
    """Also of a path that is no text, so that the exposition can be encoded."""
    text = text.encode(errors="backslashreplace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _family(name: str, kind: str, what: str, samples: list[str]) -> list[str]:
    return [f"# HELP {name} {_help(what)}", f"# TYPE {name} {kind}", *samples]


def _bounds(unit: str) -> tuple[float, list[int]]:
    """How many units a base unit is; values above which a bucket of ours begins: each doubling."""
    if unit == "ns":
        return 1e9, [1 << k for k in range(5, 37)]
    return 1.0, [1 << k for k in range(0 if unit == "calls" else 3, 11 if unit == "calls" else 31)]


def _histogram(name: str, label: str, h: Histogram) -> Iterator[str]:
    """Our buckets are whole numbers in [low, high), so what is below a bound is at most the bound minus one."""
    scale, bounds = _bounds(h.unit)
    buckets, seen = list(h.buckets()), 0
    for bound in bounds:
        while buckets and buckets[0][1] <= bound:
            seen += buckets.pop(0)[2]
        yield f'{name}_bucket{{{label},le="{(bound - 1) / scale!r}"}} {seen}'
    yield f'{name}_bucket{{{label},le="+Inf"}} {h.count}'
    yield f"{name}_sum{{{label}}} {h.sum / scale!r}"
    yield f"{name}_count{{{label}}} {h.count}"


def exposition(stores: list[Metrics]) -> str:
    """All samples of a family stand together, one for each store."""
    from ._metrics import described

    if not stores:
        return ""
    labels = [f'store="{_escaped(m.path)}"' for m in stores]
    named = list(zip(labels, stores, strict=True))
    lines: list[str] = []
    for name, what in described("counters"):
        full = f"mmpc_{name}_total"
        lines += _family(full, "counter", what, [f"{full}{{{label}}} {m.counters[name]}" for label, m in named])
    for name, what in described("gauges"):
        full = f"mmpc_{name}"
        lines += _family(full, "gauge", what, [f"{full}{{{label}}} {m.gauges[name]}" for label, m in named])
    alive = [f"mmpc_processes{{{label}}} {sum(p.alive for p in m.processes)}" for label, m in named]
    lines += _family("mmpc_processes", "gauge", "processes that have the store open", alive)
    begun = [f"mmpc_metrics_start_time_seconds{{{label}}} {m.since!r}" for label, m in named]
    lines += _family("mmpc_metrics_start_time_seconds", "gauge", "when counting began, in seconds since 1970", begun)
    for name, h in stores[0].histograms.items():
        full = f"mmpc_{name}_{_UNITS[h.unit]}"
        note = f" (one in {h.every} is looked at, and counts for as many)" if h.every > 1 else ""
        samples = [line for label, m in named for line in _histogram(full, label, m.histograms[name])]
        lines += _family(full, "histogram", h.what + note, samples)
    return "\n".join(lines) + "\n"
