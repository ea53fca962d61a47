"""Loggers that name the invocation. Imported only when a handler asks for one."""

import logging
import sys


class _Adapter(logging.LoggerAdapter):
    def process(self, msg, kwargs):
        return "[%s] %s" % (self.extra["id"], msg), kwargs


def logger(function, invocation_id):
    """The function's logger, with the id before each message."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    return _Adapter(logging.getLogger(function or "function"), {"id": invocation_id})
