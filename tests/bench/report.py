"""The results as tables. A figure is the median over the rounds; a ratio is made within each round, then its median."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from tests.bench.contenders import CONTENDERS, OURS
from tests.bench.workloads import WORKLOADS

Samples = list[dict[str, Any]]

TITLES = {
    **{name: contender.title for name, contender in CONTENDERS.items()},
    "pgbench": "limit: pgbench, our statement",
    "hashing": "limit: Argon2id on every core",
}

INTRODUCTION = """\
Every figure is the median of {rounds} rounds, in which the contenders were driven in turn (A B C … A B C …), each
after a warm-up that is not counted; what was measured in one round only says so. All servers run at once over one
PostgreSQL with 10,000 users, each with one worker process; only the one that is driven has work. How each is set up
stands in its file under [peers](../peers).

The benchmark keeps nobody to a core: wrk (one thread), PostgreSQL and the server share the machine as the scheduler has
it. Ours keeps its worker to a core by itself, as it always does; for the peers `ARGS=--pin` does the same from outside,
which helps those with threads. No peer writes an access log; ours writes its line per request to a file. Ours runs with
a queue that is long and patient enough for every client, as the peers' are; by default a request waits for 2 s at most.

- **a second**: requests answered well (status below 400).
- **p50, p99**: milliseconds, of a closed loop: a client sends its next request when it has its answer. wrk counts for
  a long answer also those that would have waited behind it.
- **server, PostgreSQL**: microseconds of processor time for a request, of all processes of the server, and of
  PostgreSQL's.
- **errors**: answers with a status of 400 or more, and connections that broke. **fails**: in a look of its own, of up
  to 40 s after a fresh start, more than one request in a hundred went wrong, or fewer answers came than there were
  clients.
- **ours is**: our throughput divided by theirs in the same round; the median of that.
"""


def medians(samples: Samples) -> dict[tuple[str, int, str], dict[str, Any]]:
    """Return for each workload, concurrency and contender its figures, with `ratio`: ours divided by theirs."""
    cells = defaultdict(list)
    ours = {}
    for sample in samples:
        cells[sample["workload"], sample["connections"], sample["contender"]].append(sample)
        if sample["contender"] == OURS.name:
            ours[sample["workload"], sample["connections"], sample["round"]] = sample["rate"]
    figures = {}
    for cell, rounds in cells.items():
        keys = [(sample, ours.get((cell[0], cell[1], sample["round"]))) for sample in rounds]
        ratios = [own / sample["rate"] for sample, own in keys if own and sample["rate"]]
        figures[cell] = {
            name: median(sample[name] for sample in rounds)
            for name in ("rate", "p50", "p99", "server_us", "postgres_us")
        } | {
            "ratio": median(ratios) if ratios else None,
            "errors": sum(sample["refused"] + sample["broken"] + sample["late"] for sample in rounds),
            "answers": sum(sample["answers"] for sample in rounds),
            "failed": any(sample["failed"] for sample in rounds),
            "seconds": sum(sample["seconds"] for sample in rounds),
            "rounds": len({sample["round"] for sample in rounds}),
        }
    return figures


def markdown(title: str, machine: dict[str, str], sections: Sequence[str]) -> str:
    """Return a page: the machine, then the sections."""
    rows = [f"| {name} | {value} |" for name, value in machine.items()]
    return "\n".join([f"# {title}", "", "| | |", "|---|---|", *rows, "", *sections])


def comparison(samples: Samples) -> list[str]:
    """Return the sections of the main run: what the figures are, then each workload's table."""
    figures = medians(samples)
    sections = [INTRODUCTION.format(rounds=max(sample["round"] for sample in samples))]
    for name, workload in WORKLOADS.items():
        for connections in sorted({cell[1] for cell in figures if cell[0] == name}):
            rows = {cell[2]: row for cell, row in figures.items() if cell[:2] == (name, connections)}
            rounds = max(row["rounds"] for row in rows.values())
            title = f"{workload.title}, {connections} connection{'s'[: connections > 1]}"
            sections += [f"## {title}{' (one round)'[: 12 * (rounds == 1)]}", ""]
            sections += _table(rows)
    return sections


def _table(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| | a second | p50 | p99 | server | PostgreSQL | errors | ours is |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_line(name, row) for name, row in rows.items()]
    return [*lines, ""]


def _line(name: str, row: dict[str, Any]) -> str:
    figures = [""] * 4  # of one that did not answer they would mean nothing
    if row["rate"]:
        figures = [_time(row["p50"]), _time(row["p99"]), _used(row["server_us"]), _used(row["postgres_us"])]
    title = f"**{TITLES[name]}**" if name == OURS.name else TITLES[name]
    rate = f"{row['rate']:,.0f}"
    return f"| {' | '.join([title, rate, *figures, _errors(row), _ratio(name, row)])} |"


def _time(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _used(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if microseconds >= 1 else ""


def _errors(row: dict[str, Any]) -> str:
    if row["failed"]:
        return f"**fails**: {row['errors']:,} of {row['answers']:,} answers in {row['seconds']:.0f} s"
    return f"{row['errors']:,}" if row["errors"] else ""


def _ratio(name: str, row: dict[str, Any]) -> str:
    return "" if name == OURS.name or row["ratio"] is None else f"{row['ratio']:.2f} times"
