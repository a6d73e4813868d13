"""Errors as the API tells them: {"error": {"code", "message"}}, the message one sentence."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fusioner.errors import FusionerError

CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "busy",
    500: "internal",
    503: "unavailable",
}
"""HTTP status -> the code that goes with it."""


class ApiError(Exception):
    """An answer other than the one asked for: status, one sentence, further headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def response(self) -> JSONResponse:
        """The error as an ASGI response."""
        body = {"error": {"code": CODES[self.status], "message": self.message}}
        return JSONResponse(body, self.status, self.headers)


def add_handlers(app: FastAPI) -> None:
    """Make every error of `app` look the same."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(ClientDisconnect)
    async def nobody_listens(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)

    @app.exception_handler(FusionerError)
    async def bad_input(_: Request, error: FusionerError) -> JSONResponse:
        return ApiError(422, str(error)).response()

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        told = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not possible here"}
        status = error.status_code if error.status_code in CODES else 400
        return ApiError(status, told.get(status, str(error.detail)), error.headers).response()

    @app.exception_handler(Exception)
    async def internal(_: Request, __: Exception) -> JSONResponse:
        return ApiError(500, "the server failed on this request; its log says why").response()
