"""From what a handler returned to status, headers and body."""

from .message import Event, Response

TEXT = "text/plain; charset=utf-8"


def to_answer(result):
    """`(status, header pairs, body)`; the body is bytes or an iterator of bytes."""
    status, headers = 200, []
    if isinstance(result, Response):
        status, headers, result = result.status, _pairs(result.headers), result.body
    elif isinstance(result, tuple) and 2 <= len(result) <= 3 and isinstance(result[1], int):
        status = result[1]
        headers = _pairs(result[2]) if len(result) == 3 else []
        result = result[0]
    elif hasattr(result, "status_code") and hasattr(result, "headers"):
        return _foreign(result)
    if not 200 <= int(status) <= 999:
        raise ValueError("the handler returned the status %r; it must be from 200 to 999" % (status,))
    if result is None:
        return (204 if status == 200 else status), headers, b""
    if isinstance(result, Event):
        from . import events

        more, body = events.encode(result)
        return status, headers + more, body
    if isinstance(result, str):
        return status, _typed(headers, TEXT), result.encode("utf-8")
    if isinstance(result, (bytes, bytearray, memoryview)):
        return status, _typed(headers, "application/octet-stream"), bytes(result)
    if hasattr(result, "__next__"):
        return status, _typed(headers, TEXT), result
    import json

    try:
        text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise TypeError("the handler returned a %s, which is no text, bytes or JSON: %s" % (type(result).__name__, error))
    return status, _typed(headers, "application/json"), text.encode("utf-8") + b"\n"


def _foreign(result):
    """A response object of another library: status_code, headers, body or data."""
    for name in ("body", "data", "content", "text"):
        body = getattr(result, name, None)
        if body is not None and not callable(body):
            break
    else:
        body = b""
    if isinstance(body, str):
        body = body.encode("utf-8")
    return result.status_code, _pairs(result.headers), bytes(body)


def _pairs(headers):
    if headers is None:
        return []
    pairs = headers.items() if hasattr(headers, "items") else headers
    return [(str(name), str(value)) for name, value in pairs]


def _typed(headers, kind):
    if any(name.lower() == "content-type" for name, _ in headers):
        return headers
    return headers + [("content-type", kind)]
