"""What Prometheus reads: counts and durations, labelled by route template so that ids never become series."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

REQUESTS = Counter("gptstore_http_requests_total", "HTTP requests answered.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram("gptstore_http_request_seconds", "Seconds from request to last byte.", ["route"])
FIRST_TOKEN_SECONDS = Histogram(
    "gptstore_first_token_seconds",
    "Seconds from admission to the first token at the relay.",
    buckets=(0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30, 60, 120),
)
INTER_TOKEN_SECONDS = Histogram(
    "gptstore_inter_token_seconds",
    "Seconds between two events of one answer at the relay.",
    buckets=(0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 5),
)
TOKENS = Counter("gptstore_tokens_relayed_total", "Tokens handed on by the relay.")
GENERATIONS = Counter("gptstore_generations_total", "Generations that ended, by outcome.", ["outcome"])

# What workers say of themselves is asked for when Prometheus comes: it lies in Valkey, not in this process.
WORKER_LABELS = ("kind", "base", "worker")


class WorkerFigures(Collector):
    """`gptstore_worker_…` gauges from the workers' signs of life: `[{kind, base, pid, figures: {name: number}}]`."""

    def __init__(self, workers: Iterable[Mapping[str, Any]]) -> None:
        self._workers = list(workers)

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for worker in self._workers:
            for name, value in worker.get("figures", {}).items():
                family = families.setdefault(
                    name, GaugeMetricFamily(f"gptstore_worker_{name}", "See EngineStats.", labels=WORKER_LABELS)
                )
                family.add_metric([worker["kind"], worker["base"], str(worker["pid"])], value)
        yield from families.values()


def exposition(workers: Iterable[Mapping[str, Any]]) -> bytes:
    """This process's metrics and the workers', in Prometheus's text form."""
    registry = CollectorRegistry()
    registry.register(WorkerFigures(workers))
    return generate_latest() + generate_latest(registry)
