"""The limits of a server, which are options of `fusioner serve`."""

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from cyclopts import Parameter, validators

Count: TypeAlias = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Amount: TypeAlias = Annotated[float, Parameter(validator=validators.Number(gt=0))]


@Parameter(name="*", group="Limits")
@dataclass(frozen=True)
class Limits:
    """Limits of one server.

    Attributes:
        max_requests: Requests in progress at once; further ones are answered 429.
        max_requests_per_client: The same for one client address, so that others always find a place.
        batch: Images encoded in one forward pass. Default: 8 on a GPU, 1 on a CPU, where more is not faster.
        timeout: Seconds from a request's first byte to the end of its response, then 503.
        max_body_mb: Megabytes (10^6 bytes) of a request body, else 413.
        max_megapixels: 10^6 pixels of an image (checked before decoding), else 413.
        max_labels: Labels of one request, else 422.
        max_label_length: Characters of one label, else 422.
        cache_mb: Megabytes of encoded images kept for further requests; the least recently used are dropped first.
    """

    max_requests: Count = 32
    max_requests_per_client: Count = 24
    batch: Count | None = None
    timeout: Amount = 120.0
    max_body_mb: Amount = 32.0
    max_megapixels: Amount = 50.0
    max_labels: Count = 200
    max_label_length: Count = 200
    cache_mb: Amount = 1024.0

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1e6)
