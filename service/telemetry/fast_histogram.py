"""A histogram for what every request observes."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from threading import Lock

from prometheus_client.core import HistogramMetricFamily

# By label values: the sum of all observations, then the count of each bucket.
Series = dict[tuple[str, ...], list[float]]


class FastHistogram:
    """Use it like prometheus_client's Histogram, and list it in metrics.FAST_HISTOGRAMS.

    With 25 buckets and one label, an observation costs 0.4 µs. prometheus_client's compares the value with each bound
    in turn and costs 1.8 µs.
    """

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *, buckets: Sequence[float]
    ) -> None:
        """Begin at zero. `buckets` are the upper bounds, in order and without infinity."""
        self.name = name
        self.documentation = documentation
        self.labelnames = labelnames
        self.bounds = buckets
        self._children: dict[tuple[str, ...], _Child] = {}
        if not labelnames:
            self.labels()

    def labels(self, *labelvalues: str) -> "_Child":
        """Return the series with these label values."""
        child = self._children.get(labelvalues)
        return child or self._children.setdefault(labelvalues, _Child(self.bounds))

    def observe(self, amount: float) -> None:
        """Observe a value, if there are no labels."""
        self._children[()].observe(amount)

    def series(self) -> Series:
        """Return a copy of all series."""
        return {labelvalues: child.numbers() for labelvalues, child in self._children.copy().items()}

    def family(self, series: Series) -> HistogramMetricFamily:
        """Return `series` as prometheus_client exposes them."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labelnames)
        bounds = [*map(str, self.bounds), "+Inf"]
        for labelvalues, (total, *counts) in series.items():
            family.add_metric(labelvalues, list(zip(bounds, accumulate(counts), strict=True)), total)
        return family


class _Child:
    """One series."""

    __slots__ = ("_bounds", "_lock", "_numbers")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._numbers = [0.0] + [0] * (len(bounds) + 1)
        self._lock = Lock()

    def observe(self, amount: float) -> None:
        bucket = bisect_left(self._bounds, amount)
        with self._lock:
            self._numbers[0] += amount
            self._numbers[1 + bucket] += 1

    def numbers(self) -> list[float]:
        with self._lock:
            return self._numbers.copy()
