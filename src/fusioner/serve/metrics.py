"""What `/metrics` tells Prometheus."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from fusioner.serve.service import Service

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests answered.", "route", "method", "status")
        self.seconds = Histogram(
            "fusioner_request_seconds",
            "From a request's first byte to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "fusioner_batch_images",
            "Images encoded in one forward.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.lookups = self._counter("cache_lookups", "Kept images asked for.", "found")

    def watch(self, service: "Service") -> None:
        """Gauges that are read off the service when asked for."""
        for name, text, read in (
            ("queue_jobs", "Jobs that wait for the model.", lambda: service.engine.waiting),
            ("requests_in_progress", "Requests let in and not answered yet.", lambda: service.queue.in_progress),
            ("cache_bytes", "Memory of the kept images.", lambda: service.store.bytes),
            ("cache_images", "Kept images.", lambda: len(service.store)),
            ("ready", "1 when /readyz says so.", lambda: float(service.ready)),
        ):
            Gauge(f"fusioner_{name}", text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"fusioner_{name}", text, labels, registry=self.registry)
