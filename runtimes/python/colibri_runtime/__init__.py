"""Serves one Python function over HTTP.

Written for a quick start: `socket`, `threading`, `http`, `json`, `asyncio` and the like are imported when first needed,
and the interpreter's own `_socket`, `_thread` and `_signal` stand in until then.

A function may import from here what it wants to return: `Response` and `Event`.
"""

from .message import Event, Response

__all__ = ["Event", "Response"]
