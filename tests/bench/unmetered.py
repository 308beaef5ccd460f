"""Our service with nothing counted, to tell what the metrics cost: `python -m tests.bench.unmetered serve`."""

from service import __main__ as command
from service.telemetry import metrics


def nothing(*_args: object, **_options: object) -> None:
    """Count nothing."""


for name in ("add", "set", "observe"):
    for family in (metrics.Counter, metrics.Gauge, metrics.Histogram):
        if hasattr(family, name):
            setattr(family, name, nothing)
metrics.note = nothing

if __name__ == "__main__":
    command.main()
