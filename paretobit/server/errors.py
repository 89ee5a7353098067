"""What goes wrong, in the form that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from paretobit.errors import ParetobitError
from paretobit.server.job import Busy, Closing

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error. param: the field that is wrong; code: a word that programs compare."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def to_json(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


def unsupported(param: str) -> ApiError:
    return bad(f"'{param}' is not supported by this server", param, "unsupported_parameter")


def of(why: Exception) -> ApiError:
    """What to answer for an exception. Texts of unexpected ones stay in the log."""
    if isinstance(why, ApiError):
        return why
    if isinstance(why, Busy):
        return ApiError(429, str(why), None, "queue_full", retry_after=str(why.seconds))
    if isinstance(why, Closing):
        return ApiError(503, str(why), None, "shutting_down", retry_after="10")
    if isinstance(why, ParetobitError):
        return bad(str(why), None, "context_length_exceeded" if "do not fit the context" in why.message else None)
    return ApiError(500, "the server failed on this request; its log says why")


def of_validation(why: ValidationError) -> ApiError:
    """One thing that is wrong: a field that there is not, or what lies deepest, as of two kinds that a field may be the
    one that was meant fails later."""
    listed = why.errors(include_url=False, include_context=False, include_input=False)
    first = next((each for each in listed if each["type"] == "extra_forbidden"), None)
    first = first or max(listed, key=lambda each: len(each["loc"]))
    param = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return unsupported(param)
    if first["type"] == "json_invalid":
        return bad(f"the body is not valid JSON: {first['msg']}", None, "invalid_json")
    kind = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return bad(f"'{param}': {first['msg']}" if param else first["msg"], param or None, kind)


def _path(loc: tuple[int | str, ...]) -> str:
    """messages[0].content; what pydantic calls the members of a union is left out."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            path += f".{part}" if path else part
    return path[:200]
