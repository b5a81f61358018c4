"""What a judge of a store found: problems, each with file and offset."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DAMAGE, WARNING = "damage", "warning"


class Problem:
    """One thing that is not as it should be, at `offset` of `file`; `page` where it is known whose it is.

    `severity` is "damage": something that the store holds, or promises, is not there; or "warning": nothing is lost,
    but it should not look like this (a spare copy is damaged, unused bytes are not zero, a file does not belong).
    """

    __slots__ = ("file", "message", "offset", "page", "severity")

    def __init__(self, file: str, offset: int, message: str, page: int | None = None, severity: str = DAMAGE) -> None:
        self.file = file
        self.offset = offset
        self.page = page
        self.message = message
        self.severity = severity

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in ("file", "offset", "page", "severity", "message")}

    def __str__(self) -> str:
        whose = "" if self.page is None else f"page {self.page}: "
        return f"{self.severity}: {self.file} at {self.offset}: {whose}{self.message}"

    def __repr__(self) -> str:
        return f"Problem({str(self)!r})"


class Findings:
    """A list of problems without repetitions, bounded: a store in ruins has one a record."""

    MOST = 10_000

    __slots__ = ("_seen", "left_out", "problems")

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.left_out = 0
        self._seen: set[tuple[str, int, str]] = set()

    def damage(self, file: str, offset: int, message: str, page: int | None = None) -> None:
        self.add(Problem(file, offset, message, page))

    def warn(self, file: str, offset: int, message: str, page: int | None = None) -> None:
        self.add(Problem(file, offset, message, page, WARNING))

    def add(self, problem: Problem) -> None:
        what = problem.file, problem.offset, problem.message
        if what in self._seen:
            return
        if len(self.problems) >= self.MOST:
            self.left_out += 1
            return
        self._seen.add(what)
        self.problems.append(problem)

    @property
    def damaged(self) -> bool:
        return any(p.severity == DAMAGE for p in self.problems)
