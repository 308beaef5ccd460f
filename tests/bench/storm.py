"""Clients that ignore Retry-After: what is served, how fast, and how much is refused, against their number.

Each client keeps its connection and sends its next read as soon as it has an answer, whatever it says. The contenders
take turns. Ours runs with its default settings, unlike in the other runs: there requests may wait for longer.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from tests.bench import contenders, database, machine, rude
from tests.bench.picture import COLOURS, MARKS
from tests.bench.report import TITLES, Samples
from tests.bench.server import SETTINGS, Server

CLIENTS = (16, 64, 256, 1000, 4000)
CONTENDERS = ("ours", "asyncpg", "fastapi_raw", "starlette_raw", "fastify")
RAMP = 3.0  # seconds until all are connected and have been refused once
DEFAULTS = {name: "" for name in SETTINGS if name != "LOG_FORMAT"}

INTRODUCTION = """\
Reads of one user by keep-alive clients that send their next request as soon as they have an answer, whatever it says:
nobody heeds `Retry-After`. Every figure is the median of {rounds} rounds, in which the contenders took turns, each for
{seconds:g} s after {ramp:g} s that are not counted. Ours has its default settings: all may wait, for 2 s. The peers
have queues without limit. wrk, PostgreSQL with {users:,} users and the server share the machine.

- **served**: answers of 2xx a second, and **of peak**: that divided by the contender's best of all numbers of clients.
- **p50, p99**: milliseconds from the request to its answer, of what was served; who still waits at the end is in
  neither.
- **refused**: other answers a second. **broken**: connections that could not be made or that broke, in all rounds.
"""


@dataclass(frozen=True)
class Plan:
    """What to measure, and for how long."""

    rounds: int
    seconds: float
    contenders: tuple[str, ...]
    clients: tuple[int, ...]

    def minutes(self) -> float:
        """Return about how long it takes."""
        return self.rounds * len(self.clients) * len(self.contenders) * (self.seconds + RAMP + 0.5) / 60


def measure(plan: Plan, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Measure round by round; yield everything so far after each."""
    started = time.monotonic()
    samples: Samples = []
    rude.allow_open_files()  # before the servers start, which inherit the limit
    with database.cluster() as cluster, ExitStack() as stack:
        users = database.create(cluster, rude.USERS)
        servers = [
            stack.enter_context(Server(contenders.CONTENDERS[name], users, DEFAULTS)) for name in plan.contenders
        ]
        described = machine.describe(cluster)
        for number in range(1, plan.rounds + 1):
            for clients in plan.clients:
                for server in servers:
                    samples.append(_sample(number, clients, server, plan.seconds))
                    say(_line(samples[-1], plan.rounds))
                    server.settle()
            described["took"] = f"{(time.monotonic() - started) / 60:.0f} minutes"
            yield {"machine": described, "samples": samples}


def _sample(number: int, clients: int, server: Server, seconds: float) -> dict[str, Any]:
    found = rude.drive(server.url, rude.READ, clients, seconds, ramp=RAMP)
    return {
        "round": number,
        "clients": clients,
        "contender": server.contender.name,
        "rate": round(found.goodput, 1),
        "p50": round(found.p50, 2),
        "p99": round(found.p99, 2),
        "refused": round(found.other / found.seconds, 1),
        "broken": found.broken,
        "seconds": round(found.seconds, 2),
    }


def _line(sample: dict[str, Any], rounds: int) -> str:
    return (
        f"{sample['round']}/{rounds} {sample['clients']:4} {sample['contender']:13} served {sample['rate']:6.0f}/s"
        f"  p50 {sample['p50']:7.1f} ms  p99 {sample['p99']:7.1f} ms  refused {sample['refused']:6.0f}/s"
        f"  broken {sample['broken']}"
    )


def medians(samples: Samples) -> dict[str, dict[int, dict[str, float]]]:
    """Return for each contender and number of clients its figures, with `share`: of the contender's own peak."""
    cells: dict[str, dict[int, Samples]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        cells[sample["contender"]][sample["clients"]].append(sample)
    figures = {
        name: {
            clients: {
                **{key: median(sample[key] for sample in rounds) for key in ("rate", "p50", "p99", "refused")},
                "broken": sum(sample["broken"] for sample in rounds),
            }
            for clients, rounds in sorted(rows.items())
        }
        for name, rows in cells.items()
    }
    for rows in figures.values():
        peak = max(row["rate"] for row in rows.values())
        for row in rows.values():
            row["share"] = row["rate"] / peak if peak else 0.0
    return figures


def sections(saved: dict[str, Any]) -> list[str]:
    """Return the page: what the figures are, then a table for each number of clients."""
    samples, figures = saved["samples"], medians(saved["samples"])
    rounds, seconds = max(sample["round"] for sample in samples), median(sample["seconds"] for sample in samples)
    lines = [INTRODUCTION.format(rounds=rounds, seconds=round(seconds), ramp=RAMP, users=rude.USERS)]
    for clients in sorted({sample["clients"] for sample in samples}):
        lines += [
            f"## {clients:,} clients",
            "",
            "| | served | of peak | p50 | p99 | refused | broken |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for name, rows in figures.items():
            row = rows[clients]
            title = f"**{TITLES[name]}**" if name == contenders.OURS.name else TITLES[name]
            cells = [f"{row['rate']:,.0f}", f"{row['share']:.2f}"]
            cells += [f"{row[key]:,.1f}" if row["rate"] else "" for key in ("p50", "p99")]
            cells += [f"{row[key]:,.0f}" if row[key] else "" for key in ("refused", "broken")]
            lines.append(f"| {' | '.join([title, *cells])} |")
        lines.append("")
    return lines


def draw(samples: Samples, path: Path) -> None:
    """Write an SVG: what is served, as a share of each contender's peak, and its p99, against the number of clients."""
    figures = medians(samples)
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "users"  # the same figures make the same file
    # As wide as GitHub shows it, and white: in its dark mode too.
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.4), facecolor="white")
    left.set_ylabel("served, of the peak")
    left.set_ylim(0, 1.05)
    right.set_ylabel("p99 of what is served, milliseconds")
    right.set_yscale("log")
    ticks = sorted({sample["clients"] for sample in samples})
    for axis, key in ((left, "share"), (right, "p99")):
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{clients:,}" for clients in ticks])
        axis.set_xlabel("clients that ignore Retry-After")
        axis.grid(visible=True, which="major", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        for name, rows in figures.items():
            own = name == contenders.OURS.name
            points = [(clients, row[key]) for clients, row in rows.items() if row["rate"] or key == "share"]
            axis.plot(
                *zip(*points, strict=True), color=COLOURS[name], marker=MARKS[name], markersize=7 if own else 4,
                linewidth=3.5 if own else 1.2, zorder=3 if own else 2,
                label=f"{TITLES[name]}: {max(row['rate'] for row in rows.values()):,.0f} a second at its peak",
            )  # fmt: skip
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=2, frameon=False, fontsize="small")
    figure.tight_layout(rect=(0, 0.2, 1, 1))
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)
