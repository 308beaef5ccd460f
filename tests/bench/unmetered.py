"""Our service with nothing counted, to measure the cost of metrics: `python -m tests.bench.unmetered serve`."""

from prometheus_client import Counter, Gauge, Histogram

from service import __main__ as command
from service.telemetry import metrics


def nothing(*_args: object, **_options: object) -> None:
    """Count nothing."""


for kind, method in ((Counter, "inc"), (Gauge, "set"), (Histogram, "observe")):
    setattr(kind, method, nothing)
metrics.count_request = nothing

if __name__ == "__main__":
    command.main()
