"""What a fault did to the load, and the table of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import pytest

from tests.ha.load import Kind, Load

HEADS = (
    "fault", "rounds", "writes stand still, s", "reads stand still, s", "writes resume after the promotion, s",
    "failed writes", "failed reads", "lost", "refused and done", "500",
)  # fmt: skip


@dataclass
class Result:
    """Of one fault, for one form."""

    fault: str
    form: str
    writes_gap: float  # seconds
    reads_gap: float
    resumed: float | None  # seconds after the promotion; None without one
    failed_writes: int
    failed_reads: int
    lost: int
    done: int
    errors: int  # answers of 500


RESULTS = pytest.StashKey[list[Result]]()


def longest_gap(load: Load, kind: Kind) -> float:
    """Return the longest time without a success."""
    return max((later - earlier for earlier, later in pairwise(load.successes(kind))), default=float("inf"))


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table: medians, and the worst in brackets when there are several rounds."""
    lines = [HEADS, ("---",) * len(HEADS)]
    for fault in dict.fromkeys(result.fault for result in results):
        forms: dict[str, list[Result]] = {}
        for result in results:
            if result.fault == fault:
                forms.setdefault(result.form, []).append(result)
        of = list(forms.values())
        lines.append((
            fault,
            str(len(of[0])),
            _times([[result.writes_gap for result in each] for each in of]),
            _times([[result.reads_gap for result in each] for each in of]),
            _times([[result.resumed for result in each if result.resumed is not None] for each in of]),
            *(
                " · ".join(str(sum(getattr(result, name) for result in each)) for each in of)
                for name in ("failed_writes", "failed_reads", "lost", "done", "errors")
            ),
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _times(forms: Sequence[Sequence[float]]) -> str:
    return " · ".join(_time(each) for each in forms)


def _time(values: Sequence[float]) -> str:
    if not values:
        return "-"
    worst = f" ({max(values):.1f})" if len(values) > 1 else ""
    return f"{median(values):.1f}{worst}"
