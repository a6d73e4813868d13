"""Before any route: who may ask, how much they may send, and what every answer's headers say."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusioner.serve.errors import ApiError
from fusioner.serve.metrics import Metrics

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
}
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        key: what requests to /v1 and /metrics must bring as `Authorization: Bearer`; None asks for nothing.
        origins: other web pages whose scripts may call the API (CORS).
        host: the address listened on; where it is a local one, requests under other names are refused, so that a page
            of the web cannot reach this server by giving its own name the address 127.0.0.1 (DNS rebinding).
    """

    key: str | None = None
    origins: Sequence[str] = ()
    host: str = "127.0.0.1"


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, access: Access, body: int, metrics: Metrics) -> None:
        """`body`: most bytes of a request's body."""
        self.app, self.access, self.body, self.metrics = app, access, body, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, headers = monotonic(), 500, Headers(scope=scope)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.body:
                raise self._too_large()
            return message

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._dress(MutableHeaders(scope=message), scope["path"])
            await send(message)

        try:
            self._check(scope, headers)
            await self.app(scope, counted, dressed)
        except ApiError as error:
            await error.response()(scope, receive, dressed)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"  # a client may send any word
            self.metrics.requests.labels(route, method, status).inc()
            self.metrics.seconds.labels(route).observe(monotonic() - start)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.access.host in _LOCAL and _split(f"//{host}").hostname not in _LOCAL:
            raise ApiError(403, "this server answers to localhost only: start it with --host to serve other names")
        if origin and origin not in self.access.origins and _split(origin).netloc != host:
            raise ApiError(403, f"pages of {origin} may not call this server: allow them with --cors-origin")
        path, asks = scope["path"], scope["method"] != "OPTIONS"
        if self.access.key and asks and (path.startswith("/v1/") or path == "/metrics"):
            scheme, _, sent = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(sent.encode(), self.access.key.encode()):
                raise ApiError(401, "send the API key as 'Authorization: Bearer KEY'", {"WWW-Authenticate": "Bearer"})
        if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > self.body:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is over this server's limit of {self.body / 1e6:g} MB")

    def _dress(self, headers: MutableHeaders, path: str) -> None:
        for name, value in _ALWAYS.items():
            headers.setdefault(name, value)
        headers.setdefault("Cache-Control", "no-store" if path.startswith("/v1/") else "no-cache")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
