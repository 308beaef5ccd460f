"""The command line: compare with the peers, or the strongest of them (short); a storm of clients; growth; a profile."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tests.bench import builds, growth, machine, measure, picture, profile, report, storm, wrk
from tests.bench.contenders import CONTENDERS, OURS, READS, SHORT
from tests.bench.workloads import WORKLOADS

EVERYBODY = [*CONTENDERS, *measure.LIMITS]
RESULTS = Path(__file__).with_name("results")
PAGES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "peers": ("Against the peers", lambda saved: report.comparison(saved["samples"])),
    "short": ("Against the strongest peers", lambda saved: report.comparison(saved["samples"])),
    "storm": ("Clients that ignore Retry-After", storm.sections),
    "growth": ("How cost grows", growth.sections),
    "profile": ("Where the time goes", profile.sections),
}
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

say = partial(print, flush=True)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("what", nargs="?", choices=COMMANDS, default="peers")
    parser.add_argument("--rounds", type=int, help="5, or 3 of a storm")
    parser.add_argument(
        "--seconds", type=float, help="of each measurement: 1, or 4 of a storm; one that is slow gets more"
    )
    parser.add_argument("--contenders", nargs="+", choices=EVERYBODY)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), help="all, or the reads when short")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[], help="of every workload in every round")
    parser.add_argument("--pin", action="store_true", help="keep each peer to one core, as ours does by itself")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args()
    is_storm = options.what == "storm"
    options.rounds = options.rounds or (3 if is_storm else 5)
    options.seconds = options.seconds or (4.0 if is_storm else 1.0)
    is_short = options.what == "short"
    options.workloads = options.workloads or (READS if is_short else list(WORKLOADS))
    options.concurrency = options.concurrency or ([1, 64] if is_short else [])
    options.contenders = options.contenders or (SHORT if is_short else storm.CONTENDERS if is_storm else EVERYBODY)
    options.results.mkdir(parents=True, exist_ok=True)
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _stop)
    COMMANDS[options.what](options)


def peers(options: argparse.Namespace) -> None:
    """Measure ours against the peers. What was measured is kept after each round, and when it is interrupted."""
    wrk.require()
    plan = measure.Plan(
        rounds=options.rounds,
        seconds=options.seconds,
        contenders=_available(options.contenders),
        workloads=tuple(options.workloads),
        concurrency=tuple(options.concurrency),
        pin=options.pin,
    )
    say(f"this takes about {plan.minutes():.0f} minutes; Ctrl-C keeps what was measured")
    started = time.monotonic()
    with measure.running(plan, say) as run:
        described = machine.describe(run.cluster)
        if ours := run.servers.get(OURS.name):
            described["affinity"] = machine.affinity(ours.log)

        def keep() -> None:
            described["took"] = f"{(time.monotonic() - started) / 60:.0f} minutes"
            samples = [asdict(sample) for sample in run.samples]
            _save(options.results / f"{options.what}.json", {"machine": described, "samples": samples})

        try:
            for _ in run.rounds():
                keep()
        finally:
            if run.samples:
                keep()
    draw(options)


def overload(options: argparse.Namespace) -> None:
    """Measure what clients that ignore Retry-After do."""
    wrk.require()
    plan = storm.Plan(
        rounds=options.rounds,
        seconds=options.seconds,
        contenders=_available(options.contenders),
        clients=tuple(options.concurrency) or storm.CLIENTS,
    )
    say(f"this takes about {plan.minutes():.0f} minutes; Ctrl-C keeps what was measured")
    for results in storm.measure(plan, say):
        _save(options.results / "storm.json", results)
    draw(options)


def grow(options: argparse.Namespace) -> None:
    """Measure how cost grows with users, threads, workers and requests."""
    wrk.require()
    say("this takes about 10 minutes and 6 GB under the folder for temporary files; Ctrl-C keeps what was measured")
    for results in growth.measure(options.rounds, options.seconds, say):
        _save(options.results / "growth.json", results)
    draw(options)


def take_apart(options: argparse.Namespace) -> None:
    """Measure where the time of a request goes."""
    wrk.require()
    profile.require()
    _save(options.results / "profile.json", profile.measure(profile.SECONDS))
    draw(options)


def draw(options: argparse.Namespace) -> None:
    """Make the tables and the picture from what was measured."""
    for name, (title, sections) in PAGES.items():
        source = options.results / f"{name}.json"
        if source.exists():
            saved = json.loads(source.read_text())
            source.with_suffix(".md").write_text(report.markdown(title, saved["machine"], sections(saved)))
            if name == "peers":
                picture.draw(saved["samples"], source.with_suffix(".svg"))
            if name == "storm":
                storm.draw(saved["samples"], source.with_suffix(".svg"))
    say(f"the tables are in {options.results}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "peers": peers,
    "short": peers,
    "storm": overload,
    "growth": grow,
    "profile": take_apart,
    "draw": draw,
}


def _available(names: Sequence[str]) -> tuple[str, ...]:
    """Return those that this machine can run, and say who is left out and why."""
    missing = builds.missing(names)
    for name, why in missing.items():
        say(f"{name} is left out: {why}")
    return tuple(name for name in names if name not in missing)


def _save(path: Path, results: Mapping[str, Mapping[str, str] | Sequence[Mapping[str, Any]]]) -> None:
    """Write JSON with a line for each row, to be compared from run to run."""
    parts = []
    for name, value in results.items():
        rows = [f"  {json.dumps(row)}" for row in value] if isinstance(value, Sequence) else []
        body = "[\n" + ",\n".join(rows) + "\n ]" if rows else json.dumps(value, indent=2)
        parts.append(f" {json.dumps(name)}: {body}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _stop(_number: int, _frame: FrameType | None) -> None:
    """End, and let nothing disturb what ends the servers."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("interrupted; ARGS=draw makes the tables of what was measured")
        sys.exit(130)
