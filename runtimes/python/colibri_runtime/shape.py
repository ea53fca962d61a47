"""What a handler is: how it wants to be called. Looks at code objects, for `inspect` is slow to import."""

HTTP, EVENT, WSGI, ASGI = "http", "cloudevent", "wsgi", "asgi"

_VARARGS, _COROUTINE, _ASYNC_GENERATOR = 0x04, 0x80, 0x200


class Shape:
    """How to call `handler`."""

    __slots__ = ("handler", "kind", "names", "is_async")

    def __init__(self, handler, kind, names, is_async):
        self.handler = handler
        self.kind = kind
        self.names = names
        self.is_async = is_async

    def call(self, first, context):
        """Calls the handler with as many arguments as it takes."""
        names = self.names
        if len(names) == 0:
            return self.handler()
        if len(names) == 1:
            return self.handler(context if names[0] == "context" else first)
        return self.handler(first, context)


def shape_of(handler, signature):
    """The shape of a handler; `signature` is one of the four kinds or `auto`."""
    code, bound, names = _code_of(handler)
    flags = code.co_flags if code else 0
    is_async = bool(flags & (_COROUTINE | _ASYNC_GENERATOR))
    kind = signature
    if kind in (None, "", "auto"):
        kind = _guess(names)
    return Shape(handler, kind, names, is_async)


def _guess(names):
    if len(names) == 3 and names[0] == "scope":
        return ASGI
    if len(names) == 2 and (names[0] in ("environ", "env") or names[1] == "start_response"):
        return WSGI
    if names and names[0] in ("event", "cloudevent", "cloud_event"):
        return EVENT
    return HTTP


def _code_of(handler):
    """Code object, whether its first argument is bound, and the names of the positional arguments to give."""
    seen = 0
    while hasattr(handler, "__wrapped__") and seen < 32:
        handler, seen = handler.__wrapped__, seen + 1
    bound = False
    if hasattr(handler, "__func__"):
        handler, bound = handler.__func__, True
    if isinstance(handler, type):
        found = getattr(handler, "__init__", None)
        handler, bound = found, True
    code = getattr(handler, "__code__", None)
    if code is None:
        call = getattr(type(handler), "__call__", None)
        code, bound = getattr(call, "__code__", None), True
        defaults = getattr(call, "__defaults__", None)
    else:
        defaults = getattr(handler, "__defaults__", None)
    if code is None:
        return None, False, ("request",)
    names = code.co_varnames[: code.co_argcount]
    if bound:
        names = names[1:]
    if code.co_flags & _VARARGS and not names:
        return code, bound, ("request", "context")
    required = len(names) - len(defaults or ())
    # An argument with a default is given only where it is the request or the context.
    keep = [name for i, name in enumerate(names) if i < required or (i == 1 and name == "context")]
    return code, bound, tuple(keep[:3])
