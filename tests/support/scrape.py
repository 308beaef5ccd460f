"""What the service counts, read by Prometheus's own parser."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.process import Service

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(service: Service) -> Samples:
    """Ask over a new connection: whichever worker takes it."""
    return scrape_url(service.url)


def scrape_url(url: str) -> Samples:
    """Ask a service that is known by its URL only."""
    answer = httpx.get(f"{url}/metrics", timeout=30)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def counted(service: Service, name: str, **labels: str) -> float:
    """Return the sum of everything that has this name and, among others, these labels."""
    return sum(
        number
        for (each, found), number in scrape(service).items()
        if each == name and labels.items() <= dict(found).items()
    )
