"""What a server allows; every limit has its sentence in the answer to whom it stops."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one server.

    Attributes:
        requests: requests in progress at once; more are answered 429.
        batch: images the encoder takes in one forward, when so many wait.
        timeout: seconds from a request's first byte to its answer; then 503.
        body_mb: megabytes (10^6 bytes) of a request body; more is 413.
        megapixels: 10^6 pixels of one image; more is 413, found out before decoding.
        labels: labels of one request; more is 422.
        label_length: characters of one label; more is 422.
        cache_mb: megabytes of encoded images kept for `POST /v1/images/{id}/segment`; the longest unused goes first.
    """

    requests: int = 32
    batch: int = 8
    timeout: float = 120.0
    body_mb: float = 32.0
    megapixels: float = 50.0
    labels: int = 200
    label_length: int = 200
    cache_mb: float = 1024.0

    @property
    def body(self) -> int:
        """Of a request body, bytes."""
        return int(self.body_mb * 1e6)

    @property
    def pixels(self) -> int:
        """Of one image."""
        return int(self.megapixels * 1e6)

    @property
    def cache(self) -> int:
        """Of the encoded images together, bytes."""
        return int(self.cache_mb * 1e6)
