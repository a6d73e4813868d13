"""Access control and headers, applied before any route."""

import base64
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from urllib.parse import SplitResult, urlsplit

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusioner.serve.errors import ApiError
from fusioner.serve.service import Service

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
}
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})
_PROTECTED = ("/metrics", "/setup", "/predict", "/webhook")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """Access rules of the server.

    Attributes:
        key: required by /v1 and /metrics as `Authorization: Bearer`; None requires nothing.
        origins: other web pages whose scripts may call the API (CORS).
        host: the address listened on; if it is a loopback address, requests with other host names are refused, so that
            a web page cannot reach the server by resolving its own name to 127.0.0.1 (DNS rebinding).
        allowed_hosts: further host names that requests may use, as behind a proxy; those of `origins` may be used too.
            If there are any, other names are refused on every address.
        root_path: path prefix under which a reverse proxy shows the server; requests may come with or without it.
    """

    key: str | None = None
    origins: Sequence[str] = ()
    host: str = "127.0.0.1"
    allowed_hosts: Sequence[str] = ()
    root_path: str = ""

    def accepts_host(self, host: str) -> bool:
        """Return whether requests may use this value of the Host header."""
        if self.host not in _LOOPBACK and not self.allowed_hosts:
            return True
        names = (*_LOOPBACK, self.host, *self.allowed_hosts, *(_split(origin).hostname for origin in self.origins))
        return _split(f"//{host}").hostname in names


class SecurityMiddleware:
    """ASGI middleware that checks host, origin and key, adds security headers and counts requests."""

    def __init__(self, app: ASGIApp, access: Access, service: Service) -> None:
        self.app, self.access, self.service = app, access, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = monotonic(), 500
        request_method = scope["method"]
        root, path = self.access.root_path, scope["path"]
        if not path.startswith(f"{root}/"):  # the proxy removed it
            path = root + path
        scope = {**scope, "root_path": root, "path": path}
        if request_method == "HEAD":  # answered as GET; uvicorn drops the body
            scope["method"] = "GET"

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                no_store = get_route_path(scope).startswith("/v1/")
                headers.setdefault("Cache-Control", "no-store" if no_store else "no-cache")
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
            await self.app(scope, receive, send_with_headers)
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = request_method if request_method in _METHODS else "other"  # a client may send any word
            self.service.requests.labels(route, method, status).inc()
            self.service.seconds.labels(route).observe(monotonic() - start)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.access.accepts_host(host):
            raise ApiError(403, "this server answers to localhost only: allow other names with --allowed-host")
        if origin and origin not in self.access.origins and _split(origin).netloc != host:
            raise ApiError(403, f"pages of {origin} may not call this server: allow them with --cors-origin")
        path = get_route_path(scope)
        protected = path.startswith("/v1/") or path in _PROTECTED
        if self.access.key is not None and protected and scope["method"] != "OPTIONS":
            key = _sent_key(headers.get("authorization", ""))
            if not hmac.compare_digest(key, self.access.key.encode()):
                raise ApiError(401, "send the API key as 'Authorization: Bearer KEY'", {"WWW-Authenticate": "Bearer"})
        if "content-length" in headers and "transfer-encoding" in headers:  # proxies may disagree where the body ends
            raise ApiError(400, "send Content-Length or Transfer-Encoding, not both", {"Connection": "close"})


def _sent_key(authorization: str) -> bytes:
    """Return the token of Bearer, or the password of Basic, which is what Label Studio sends."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return value.encode() if scheme.lower() == "bearer" else b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
