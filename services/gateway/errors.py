"""Every refusal as OpenAI's error object, whatever went wrong and wherever."""

import json
import logging
import math
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import ValidationError

from services.gateway.events import End
from shared.errors import Overloaded, Rejected

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log = structlog.get_logger()

_TYPES = {
    401: "authentication_error", 404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error",
    503: "service_unavailable_error", 504: "timeout_error",
}  # fmt: skip


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, object]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or kind}}


def error_response(
    status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
) -> web.Response:
    headers = {} if retry_after_s is None else {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
    body = json.dumps(error_body(status, message, param=param, code=code))
    return web.Response(status=status, text=body, content_type="application/json", headers=headers)


def ended_response(end: End) -> web.Response:
    return error_response(end.status, end.message, code=end.code, retry_after_s=end.retry_after_s)


def rejected(error: ValidationError) -> Rejected:
    """The first thing that is wrong, with the name of its field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"] if not _names_a_type(part)) or None
    message = first["msg"].removeprefix("Value error, ")
    return Rejected(f"{param or 'body'}: {message}", param=param, code="invalid_value")


def _names_a_type(part: str | int) -> bool:
    """Which alternative of a field was tried ("str", "list[str]"): none of the client's business."""
    return isinstance(part, str) and (part == "str" or part.startswith("list["))


@web.middleware
async def shape_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Runs outermost. A bug is logged with its traceback, answered by 500, and harms this request only."""
    try:
        return await handler(request)
    except Rejected as error:
        return error_response(error.status, str(error), param=error.param, code=error.code)
    except Overloaded as error:
        return error_response(error.status, str(error), code=error.code, retry_after_s=error.retry_after_s)
    except web.HTTPRequestEntityTooLarge:
        return error_response(413, "the request body is too large", code="body_too_large")
    except web.RequestPayloadError as error:
        return error_response(400, f"the body cannot be read: {_one_line(error)}", code="invalid_body")
    except web.HTTPMethodNotAllowed as error:
        response = error_response(405, f"{request.method} is not allowed here", code="method_not_allowed")
        response.headers["Allow"] = error.headers.get("Allow", "")
        return response
    except web.HTTPException as error:
        return error_response(error.status, f"{error.reason}: {request.method} {request.path}")
    except ConnectionError:
        raise  # the client is gone: there is no one to answer
    except Exception:
        _log.exception("request handler failed", path=request.path)
        return error_response(500, "internal error", code="internal_error")


def quiet_malformed() -> None:
    """What is no HTTP is answered by 400 and leaves no traceback: strangers must not fill the log."""
    logging.getLogger("aiohttp.server").addFilter(_is_our_fault)


def _is_our_fault(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
