"""Access control, body size and headers, applied before any route."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from urllib.parse import SplitResult, urlsplit

from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusioner.serve.errors import ApiError

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
}
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """Who may call the server.

    Attributes:
        key: required by /v1 and /metrics as `Authorization: Bearer`; None requires nothing.
        origins: other web pages whose scripts may call the API (CORS).
        host: the address listened on; if it is a loopback address, requests with other host names are refused, so that
            a web page cannot reach the server by resolving its own name to 127.0.0.1 (DNS rebinding).
    """

    key: str | None = None
    origins: Sequence[str] = ()
    host: str = "127.0.0.1"


class SecurityMiddleware:
    """ASGI middleware that checks host, origin, key and body size, adds security headers and counts requests."""

    def __init__(
        self, app: ASGIApp, access: Access, max_body_bytes: int, requests: Counter, seconds: Histogram
    ) -> None:
        self.app, self.access, self.max_body_bytes = app, access, max_body_bytes
        self.requests, self.seconds = requests, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, received = monotonic(), 500, 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise self._too_large()
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store" if scope["path"].startswith("/v1/") else "no-cache")
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
            await self.app(scope, receive_limited, send_with_headers)
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"  # a client may send any word
            self.requests.labels(route, method, status).inc()
            self.seconds.labels(route).observe(monotonic() - start)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.access.host in _LOOPBACK and _split(f"//{host}").hostname not in _LOOPBACK:
            raise ApiError(403, "this server answers to localhost only: start it with --host to serve other names")
        if origin and origin not in self.access.origins and _split(origin).netloc != host:
            raise ApiError(403, f"pages of {origin} may not call this server: allow them with --cors-origin")
        protected = scope["path"].startswith("/v1/") or scope["path"] == "/metrics"
        if self.access.key and protected and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.encode(), self.access.key.encode()):
                raise ApiError(401, "send the API key as 'Authorization: Bearer KEY'", {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is over this server's limit of {self.max_body_bytes / 1e6:g} MB")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
