"""Serves a WSGI application (PEP 3333), such as a Flask app."""

import io
import sys


def call(application, request, https=False):
    """`(status, header pairs, iterator of bytes)`."""
    started = []
    written = []

    def start_response(status, headers, exc_info=None):
        if started and exc_info is None:
            raise AssertionError("start_response was called twice")
        started[:] = [int(status.split(" ", 1)[0]), list(headers)]
        return written.append

    result = application(environ(request, https), start_response)
    iterator = iter(result)
    first = next(iterator, None)
    if not started:
        _close(result)
        raise AssertionError("the application did not call start_response")
    body = _body(written, first, iterator, result)
    if isinstance(result, (list, tuple)):
        body = b"".join(body)
    return started[0], started[1], body


def environ(request, https):
    """The environment of a request."""
    host, _, port = request.headers.get("host", "localhost").partition(":")
    scheme = request.headers.get("x-forwarded-proto", "https" if https else "http")
    env = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path.encode("utf-8", "surrogateescape").decode("latin-1"),
        "QUERY_STRING": request.raw_query,
        "SERVER_NAME": host,
        "SERVER_PORT": port or ("443" if scheme == "https" else "80"),
        "SERVER_PROTOCOL": "HTTP/" + request.version,
        "REMOTE_ADDR": request.client or "",
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in request.headers.items():
        key = name.upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            env[key] = value
        elif key != "CONTENT_LENGTH":
            key = "HTTP_" + key
            env[key] = env[key] + "," + value if key in env else value
    return env


def _body(written, first, iterator, result):
    try:
        for data in written:
            yield data
        if first is not None:
            yield first
        for data in iterator:
            yield data
    finally:
        _close(result)


def _close(result):
    close = getattr(result, "close", None)
    if close is not None:
        close()
