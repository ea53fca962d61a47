"""The server: loads the function, then accepts connections, one thread for each, until SIGTERM.

The platform's gateway keeps the number of requests in flight at the function's concurrency and holds few connections,
so threads are few; handlers that are not async also pass a gate of that width, whoever connects.
"""

import sys

import _signal
import _socket
import _thread
import posix
import time

from . import http1
from .load import LoadError, explain, load
from .message import Context, Headers, Request, new_id
from .shape import ASGI, EVENT, HTTP, WSGI, shape_of

MOST_CONNECTIONS = 4096
READ_TIMEOUT_S = 60
TERMINATION_LOG = "/dev/termination-log"


class Config:
    """What the platform says, by environment variables."""

    def __init__(self, env):
        text = lambda name, default="": env.get(name.encode(), default.encode()).decode("utf-8", "replace")  # noqa: E731
        self.code = text("COLIBRI_CODE", "/code").rstrip("/")
        self.handler = text("COLIBRI_HANDLER")
        self.signature = text("COLIBRI_SIGNATURE", "auto")
        self.function = text("COLIBRI_FUNCTION")
        self.namespace = text("COLIBRI_NAMESPACE")
        self.version = text("K_REVISION")
        self.concurrency = _number(text("COLIBRI_CONCURRENCY"), 0)
        self.timeout_s = _number(text("COLIBRI_TIMEOUT_MS"), 300_000) / 1000
        self.body_limit = _number(text("COLIBRI_BODY_LIMIT_BYTES"), 64 << 20)
        self.port = _number(text("PORT"), 8080)


class Stop(BaseException):
    """Raised in the main thread by SIGTERM; no `except Exception` of a function stops it."""


class Server:
    """Serves one handler."""

    def __init__(self, config, shape):
        self.config = config
        self.shape = shape
        self.connections = 0
        self.in_flight = 0
        self.draining = False
        self.lock = _thread.allocate_lock()
        gated = config.concurrency > 0 and not shape.is_async and shape.kind != ASGI
        self.gate = Gate(config.concurrency) if gated else None

    def listen(self):
        """Listens on the configured port; port 0 picks a free one."""
        listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", self.config.port))
        listener.listen(1024)
        return listener

    def accept(self, listener):
        """Takes connections until something raises."""
        timeout = READ_TIMEOUT_S.to_bytes(8, sys.byteorder) + bytes(8)
        while True:
            try:
                fd, address = listener._accept()
            except Stop:
                raise
            except OSError:
                time.sleep(0.01)
                continue
            sock = _socket.socket(fileno=fd)
            if self.connections >= MOST_CONNECTIONS:
                sock.close()
                continue
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, timeout)
            with self.lock:
                self.connections += 1
            try:
                _thread.start_new_thread(self.serve, (sock, address[0]))
            except RuntimeError:
                with self.lock:
                    self.connections -= 1
                sock.close()

    def serve(self, sock, client):
        """Answers the requests of one connection."""
        connection = http1.Connection(sock, self.config.body_limit)
        try:
            while self.one(connection, client):
                pass
        except http1.Closed:
            pass
        except http1.Refused as error:
            self.refuse(connection, error)
        except BaseException as error:
            log_failure("connection", error)
        finally:
            sock.close()
            with self.lock:
                self.connections -= 1

    def refuse(self, connection, error):
        """Tells the client what was wrong with its request."""
        body = (error.text + "\n").encode()
        pairs = [("content-type", "text/plain; charset=utf-8"), ("content-length", len(body)), ("connection", "close")]
        try:
            connection.send(http1.head_bytes(error.status, pairs) + body)
        except http1.Closed:
            pass

    def one(self, connection, client):
        """One request; whether the connection goes on."""
        head = connection.read_head()
        if head is None:
            return False
        with self.lock:
            self.in_flight += 1
        try:
            body = connection.read_body(head)
            request = Request(head.method, head.target, Headers(head.pairs), body, client, head.version)
            return self.answer(connection, head, request)
        finally:
            with self.lock:
                self.in_flight -= 1

    def answer(self, connection, head, request):
        """Calls the handler and writes what it returned."""
        invocation_id = request.headers.get("x-request-id") or new_id()
        keep = head.keep_alive and not self.draining
        first, body = None, b""
        try:
            status, pairs, body = self.invoke(request, invocation_id)
            if not isinstance(body, bytes):
                # An error before the first piece still becomes a 500.
                body = pieces(body)
                first = next(body, None)
            prepared = [pair for pair in pairs if pair[0].lower() not in ("connection", "transfer-encoding")]
            head_line = self.head(head, status, prepared, body, keep)
        except http1.Refused as error:
            status, body, first = error.status, (error.text + "\n").encode(), None
            head_line = self.head(head, status, [("content-type", "text/plain; charset=utf-8")], body, keep)
        except BaseException as error:
            log_failure(invocation_id, error)
            text = "the function failed; its log tells more under the id %s\n" % invocation_id
            status, body, first = 500, text.encode(), None
            pairs = [("content-type", "text/plain; charset=utf-8"), ("x-colibri-invocation-id", invocation_id)]
            if not http1._TOKEN.issuperset(invocation_id):
                pairs.pop()
            head_line = self.head(head, status, pairs, body, keep)
        return self.write(connection, head, status, head_line, body, first, keep, invocation_id)

    def head(self, head, status, pairs, body, keep):
        """The answer's head, with the framing that the body needs."""
        if has_body(status):
            if isinstance(body, bytes):
                if head.method != "HEAD" or body:
                    pairs = [pair for pair in pairs if pair[0].lower() != "content-length"]
                    pairs.append(("content-length", len(body)))
            elif not any(name.lower() == "content-length" for name, _ in pairs) and head.version == "1.1":
                pairs.append(("transfer-encoding", "chunked"))
        if not keep or streams_to_end(head, status, pairs, body):
            pairs.append(("connection", "close"))
        elif head.version == "1.0":
            pairs.append(("connection", "keep-alive"))
        return http1.head_bytes(status, pairs)

    def write(self, connection, head, status, head_line, body, first, keep, invocation_id):
        """Writes an answer; whether the connection goes on."""
        silent = head.method == "HEAD" or not has_body(status)
        if isinstance(body, bytes):
            connection.send(head_line if silent else head_line + body)
            return keep
        chunked = b"\r\ntransfer-encoding: chunked\r\n" in head_line
        try:
            connection.send(head_line)
            if silent:
                return keep
            piece = first
            while piece is not None:
                if piece:
                    connection.send(http1.chunk(piece) if chunked else piece)
                piece = next(body, None)
            if chunked:
                connection.send(b"0\r\n\r\n")
        except http1.Closed:
            raise
        except BaseException as error:
            # The client sees that the answer is cut off: there is no last chunk.
            log_failure(invocation_id, error)
            return False
        finally:
            body.close()
        return keep and (chunked or not streams_to_end(head, status, None, body, head_line))

    def invoke(self, request, invocation_id):
        """Calls the handler as its shape asks."""
        shape = self.shape
        if shape.kind == ASGI:
            from . import asgi

            return asgi.call(shape.handler, request)
        if self.gate:
            with self.gate:
                return self.call(request, invocation_id)
        return self.call(request, invocation_id)

    def call(self, request, invocation_id):
        """Calls a handler that is not ASGI."""
        from .answer import to_answer

        shape, config = self.shape, self.config
        if shape.kind == WSGI:
            from . import wsgi

            return wsgi.call(shape.handler, request)
        context = Context(invocation_id, time.time() + config.timeout_s, config.function, config.namespace, config.version)
        first = request
        if shape.kind == EVENT:
            from . import events

            try:
                first = events.decode(request)
            except events.NotAnEvent as error:
                raise http1.Refused(400, str(error))
        result = shape.call(first, context)
        if hasattr(result, "__await__"):
            from . import loop

            result = loop.run(result)
        if hasattr(result, "__anext__"):
            from . import loop

            result = loop.iterate(result)
        return to_answer(result)

    def drain(self):
        """Waits for the requests in flight."""
        self.draining = True
        limit = time.monotonic() + max(1.0, self.config.timeout_s)
        while self.in_flight and time.monotonic() < limit:
            time.sleep(0.002)


class Gate:
    """Lets so many through at once."""

    def __init__(self, width):
        self.free = width
        self.lock = _thread.allocate_lock()
        self.waiting = []

    def __enter__(self):
        with self.lock:
            if self.free:
                self.free -= 1
                return
            turn = _thread.allocate_lock()
            turn.acquire()
            self.waiting.append(turn)
        turn.acquire()

    def __exit__(self, *_):
        with self.lock:
            if self.waiting:
                self.waiting.pop(0).release()
            else:
                self.free += 1


def pieces(body):
    """The pieces of a streamed body as bytes."""
    try:
        for piece in body:
            if isinstance(piece, str):
                piece = piece.encode("utf-8")
            yield bytes(piece)
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            close()


def has_body(status):
    """Whether an answer of that status has a body."""
    return status >= 200 and status not in (204, 304)


def streams_to_end(head, status, pairs, body, head_line=None):
    """Whether only the end of the connection ends the body."""
    if isinstance(body, bytes) or head.method == "HEAD" or not has_body(status):
        return False
    if head_line is not None:
        return b"\r\ncontent-length:" not in head_line.lower()
    return not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in pairs)


def log_failure(invocation_id, error):
    """Writes the traceback, each line with the id."""
    import traceback

    trace = error.__traceback__
    # The runtime's own frames say nothing to the function's author.
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename.startswith(_HERE):
        trace = trace.tb_next
    lines = "".join(traceback.format_exception(type(error), error, trace)).splitlines()
    text = "".join("[%s] %s\n" % (invocation_id, line) for line in lines)
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


_HERE = __file__.rpartition("/")[0] + "/"


def _number(text, default):
    try:
        return int(text)
    except ValueError:
        return default


def fail(text):
    """Ends the process with a text that the platform shows to the function's author."""
    try:
        fd = posix.open(TERMINATION_LOG, posix.O_WRONLY | posix.O_TRUNC)
        posix.write(fd, text.encode("utf-8", "replace")[:4096])
        posix.close(fd)
    except OSError:
        pass
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
    sys.stdout.flush()
    posix._exit(1)


def prepare(config):
    """Loads the handler and finds out how to call it."""
    handler = load(config.code, config.handler)
    shape = shape_of(handler, config.signature)
    if shape.kind not in (HTTP, EVENT, WSGI, ASGI):
        raise LoadError("signature %r is not one of auto, http, cloudevent, wsgi, asgi" % config.signature)
    if shape.kind == ASGI:
        from . import asgi

        try:
            asgi.start(handler)
        except Exception as error:
            raise LoadError("the application did not start: %s" % explain(error, config.code, config.code))
    elif shape.is_async:
        from . import loop  # noqa: F401
    return shape


def main():
    """Serves until SIGTERM or SIGINT."""
    config = Config(posix.environ)
    sys.stdout.reconfigure(line_buffering=True)
    stopping = []

    def stop(_signal_number, _frame):
        if not stopping:
            stopping.append(True)
            raise Stop

    _signal.signal(_signal.SIGTERM, stop)
    _signal.signal(_signal.SIGINT, stop)
    listener = None
    try:
        try:
            shape = prepare(config)
        except LoadError as error:
            fail(str(error))
        server = Server(config, shape)
        try:
            listener = server.listen()
        except OSError as error:
            fail("cannot listen on port %d: %s" % (config.port, error))
        server.accept(listener)
    except Stop:
        if listener is not None:
            listener.close()
            server.drain()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(0)
