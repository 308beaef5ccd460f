"""The metrics of all workers together."""

from collections import defaultdict
from operator import add
from threading import Lock
from typing import Any

from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.extras.admin.worker_files import WorkerFiles
from service.telemetry.fast_histogram import Series
from service.telemetry.metrics import FAST_HISTOGRAMS

FILE = "metrics"

Labels = tuple[tuple[str, str], ...]  # each with its value


class Snapshot:
    """The metrics at one moment. Snapshots of several workers can be added up."""

    def __init__(self) -> None:
        self.histograms: dict[str, Series] = {histogram.name: {} for histogram in FAST_HISTOGRAMS}
        self._families: dict[str, tuple[str, str]] = {}  # documentation and type
        self._samples = defaultdict[tuple[str, str, Labels], float](float)  # by family, name and labels

    def values(self, name: str) -> dict[Labels, float]:
        """Return the samples of a counter or gauge, by its name at /metrics."""
        return {labels: value for (_, found, labels), value in self._samples.items() if found == name}

    def sum(self, name: str) -> float:
        """Return the sum of these samples."""
        return sum(self.values(name).values())

    def families(self) -> list[Metric]:
        """Return everything as prometheus_client exposes it."""
        families = {name: Metric(name, *described) for name, described in self._families.items()}
        for (family, name, labels), value in self._samples.items():
            families[family].samples.append(Sample(name, dict(labels), value))
        return [*(each.family(self.histograms[each.name]) for each in FAST_HISTOGRAMS), *families.values()]

    def add_this_worker(self) -> None:
        """Add what this worker counts itself."""
        for family in REGISTRY.collect():
            self._families[family.name] = (family.documentation, family.type)
            for sample in family.samples:
                self._samples[family.name, sample.name, tuple(sample.labels.items())] += sample.value
        for histogram in FAST_HISTOGRAMS:
            self._add_series(histogram.name, histogram.series())

    def add_json(self, content: Any, *, gauges: bool) -> None:  # noqa: ANN401 - any JSON
        """Add what `to_json` returned in another worker; without gauges, if that worker ended."""
        self._families |= content["families"]
        for family, name, labels, value in content["samples"]:
            if gauges or content["families"][family][1] != "gauge":
                self._samples[family, name, tuple(map(tuple, labels))] += value
        for histogram in FAST_HISTOGRAMS:
            series = content["histograms"].get(histogram.name, [])
            # Another release may have other buckets, which cannot be added up.
            fitting = {tuple(key): numbers for key, numbers in series if len(numbers) == len(histogram.bounds) + 2}
            self._add_series(histogram.name, fitting)

    def to_json(self) -> Any:  # noqa: ANN401 - any JSON
        """Return what `add_json` takes."""
        return {
            "families": self._families,
            "samples": [(*key, value) for key, value in self._samples.items()],
            "histograms": {name: list(series.items()) for name, series in self.histograms.items()},
        }

    def _add_series(self, name: str, series: Series) -> None:
        total = self.histograms[name]
        for labelvalues, numbers in series.items():
            before = total.get(labelvalues)
            total[labelvalues] = list(map(add, before, numbers)) if before else numbers


class AllWorkers(Collector):
    """Collects the metrics of this worker, and what the other workers published of theirs."""

    def __init__(self, files: WorkerFiles) -> None:
        self._files = files
        self._inherited: Any = None
        self._lock = Lock()

    def open(self) -> None:
        """Adopt the counters of the ended worker that had these files, and publish. Raises OSError."""
        self._inherited = self._files.read(FILE)
        self.publish()

    def publish(self) -> Snapshot:
        """Write a snapshot of this worker for the others, and return it: 1 to 3 ms. Raises OSError."""
        with self._lock:  # an older snapshot must not replace a newer one
            own = self._own()
            self._files.write(FILE, own.to_json())
        return own

    def snapshot(self) -> Snapshot:
        """Return a snapshot of all workers: 2 to 5 ms."""
        try:
            total = self.publish()  # what was shown is not lost when this worker is killed
        except OSError:  # the thread that publishes regularly reports it
            total = self._own()
        for content, is_alive in self._files.read_others(FILE):
            total.add_json(content, gauges=is_alive)
        return total

    def collect(self) -> list[Metric]:
        """Return the metrics of all workers."""
        return self.snapshot().families()

    def _own(self) -> Snapshot:
        own = Snapshot()
        if self._inherited:
            own.add_json(self._inherited, gauges=False)
        own.add_this_worker()
        return own
