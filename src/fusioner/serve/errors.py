"""Errors of the API: {"error": {"code", "message"}}, the message in one sentence."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fusioner.errors import FusionerError

STATUSES = {
    400: ("bad_request", "The body is malformed."),
    401: ("unauthorized", "The API key is missing or wrong."),
    403: ("forbidden", "The server does not accept this Host or Origin."),
    404: ("not_found", "There is no such image."),
    405: ("method_not_allowed", "The route has no such method."),
    408: ("too_slow", "The body arrives too slowly."),
    413: ("too_large", "The body or the image is too large."),
    415: ("unsupported_media_type", "The body is of an unsupported type."),
    422: ("invalid", "A field is invalid, or the image cannot be read."),
    429: ("busy", "Too many requests are in progress; see Retry-After."),
    500: ("internal", "The server failed."),
    503: ("unavailable", "The model is not loaded, the time limit is exceeded, or the server is shutting down."),
}
"""HTTP status -> `code` of the error, and its description in OpenAPI."""


class ApiError(Exception):
    """An error response: status, one sentence and extra headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def response(self) -> JSONResponse:
        """Return the error as a response."""
        body = {"error": {"code": STATUSES[self.status][0], "message": self.message}}
        return JSONResponse(body, self.status, self.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Give all errors of `app` the same form."""

    def handle(error_class: type[Exception], convert) -> None:
        app.add_exception_handler(error_class, lambda request, error: convert(request, error).response())

    def http_error(request: Request, error: HTTPException) -> ApiError:
        status = error.status_code if error.status_code in STATUSES else 400
        messages = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not possible here"}
        return ApiError(status, messages.get(status, str(error.detail)), error.headers)

    handle(ApiError, lambda _, error: error)
    handle(FusionerError, lambda _, error: ApiError(422, str(error)))
    handle(HTTPException, http_error)
    handle(Exception, lambda *_: ApiError(500, "the server failed on this request: see its log"))
    app.add_exception_handler(ClientDisconnect, lambda *_: Response(status_code=499))
