"""What a diagnosis finds, one line each: ok, a warning, or a problem that would end or has ended a run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` was looked at, what was found, and what to do about it."""

    level: Level
    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n         -> {self.remedy}" if self.remedy else ""
        return f"{self.level:8} {self.what}: {self.found}{remedy}"


def ok(what: str, found: str) -> Finding:
    return Finding("ok", what, found)


def warning(what: str, found: str, remedy: str) -> Finding:
    return Finding("warning", what, found, remedy)


def problem(what: str, found: str, remedy: str) -> Finding:
    return Finding("problem", what, found, remedy)


def has_problem(findings: Sequence[Finding]) -> bool:
    return any(finding.level == "problem" for finding in findings)


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"problem": has_problem(findings), "findings": [asdict(finding) for finding in findings]}


def gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
