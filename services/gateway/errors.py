"""Every refusal as OpenAI's error object, whatever went wrong and wherever."""

import json
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
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
    headers = {} if retry_after_s is None else {"Retry-After": str(max(1, round(retry_after_s)))}
    body = json.dumps(error_body(status, message, param=param, code=code))
    return web.Response(status=status, text=body, content_type="application/json", headers=headers)


def ended_response(end: End) -> web.Response:
    return error_response(end.status, end.message, code=end.code, retry_after_s=end.retry_after_s)


def rejected(error: ValidationError) -> Rejected:
    """The first thing that is wrong, with the name of its field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    return Rejected(f"{param or 'body'}: {first['msg']}", param=param, code="invalid_value")


@web.middleware
async def shape_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Runs outermost. A bug is logged with its traceback, answered by 500, and harms this request only."""
    try:
        return await handler(request)
    except Rejected as error:
        return error_response(error.status, str(error), param=error.param, code=error.code)
    except Overloaded as error:
        return error_response(error.status, str(error), code="overloaded", retry_after_s=error.retry_after_s)
    except web.HTTPRequestEntityTooLarge:
        return error_response(413, "the request body is too large", code="body_too_large")
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
