"""The results as a picture: throughput and p99 against concurrency, ours and the peers, failures marked."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from tests.bench.contenders import OURS
from tests.bench.report import TITLES, Samples, medians
from tests.bench.workloads import CONCURRENCY, WORKLOADS

LIMIT = "constant"
COLOURS = {
    OURS.name: "#d81b1b",
    "asyncpg": "#1f77b4",
    "fastapi_raw": "#0b3c6f",
    "starlette_raw": "#9aa500",
    "fastify": "#222222",
    "nethttp": "#00a0a0",
    "psycopg": "#17a2b8",
    "textbook": "#7b3fa0",
    "sqlalchemy": "#d98200",
    "connect": "#8c564b",
    "flask": "#2e8b3d",
    "django": "#d46a9f",
    LIMIT: "#888888",
}
MARKS = dict(zip(COLOURS, "os<>X*D^vPph.", strict=True))  # who cannot tell the colours has the shapes
FIGURES = {"rate": "requests a second", "p99": "p99, milliseconds"}


def draw(samples: Samples, path: Path) -> None:
    """Write an SVG: a row for each workload that is measured at every concurrency."""
    figures = medians(samples)
    rows = [
        name
        for name, workload in WORKLOADS.items()
        if workload.every_round == CONCURRENCY and len({cell[1] for cell in figures if cell[0] == name}) > 1
    ]
    if not rows:
        return
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "users"  # the same figures make the same file
    height = 3.1 * len(rows) + 1.3
    # As wide as GitHub shows it, and white: in its dark mode too.
    figure, axes = plt.subplots(len(rows), 2, figsize=(9.5, height), squeeze=False, facecolor="white")
    for (left, right), workload in zip(axes, rows, strict=True):
        left.set_title(WORKLOADS[workload].title, loc="left", fontsize="medium", fontweight="bold")
        for axis, (value, label) in zip((left, right), FIGURES.items(), strict=True):
            _plot(axis, figures, workload, value)
            axis.set_ylabel(label)
    for axis in axes[-1]:
        axis.set_xlabel("connections")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, frameon=False, fontsize="small")
    figure.tight_layout(rect=(0, 0.85 / height, 1, 1))
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)


def _plot(axis: Any, figures: dict[tuple[str, int, str], dict[str, Any]], workload: str, value: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.grid(visible=True, which="major", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    concurrency = sorted({cell[1] for cell in figures if cell[0] == workload})
    axis.set_xticks(concurrency, [str(connections) for connections in concurrency])
    failures: dict[int, int] = {}
    for name, colour in COLOURS.items():
        points = [(c, figures[workload, c, name]) for c in concurrency if (workload, c, name) in figures]
        good = [(c, row[value]) for c, row in points if not row["failed"]]
        axis.plot(
            [c for c, _ in good], [figure for _, figure in good], label=TITLES[name], color=colour,
            marker=MARKS[name], markersize=7 if name == OURS.name else 4, linewidth=3.5 if name == OURS.name else 1.2,
            linestyle="--" if name == LIMIT else "-", zorder=3 if name == OURS.name else 2,
        )  # fmt: skip
        for c in (c for c, row in points if row["failed"]):
            _fails(axis, c, failures.get(c, 0), value, colour)
            failures[c] = failures.get(c, 0) + 1


def _fails(axis: Any, connections: int, above: int, value: str, colour: str) -> None:
    """Mark one that failed at the edge where the worst is: its figure would mean nothing."""
    edge = 0.04 + 0.09 * above if value == "rate" else 0.96 - 0.09 * above
    place = axis.get_xaxis_transform()
    axis.plot([connections], [edge], marker="X", markersize=11, color=colour, transform=place, clip_on=False, zorder=4)
    axis.annotate(
        "fails", (connections, edge), xycoords=place, fontsize="small", color=colour, fontweight="bold",
        xytext=(-8, -3), textcoords="offset points", ha="right",
    )  # fmt: skip
