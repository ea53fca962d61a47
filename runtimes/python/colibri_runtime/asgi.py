"""Serves an ASGI 3 application (HTTP and lifespan), such as a FastAPI app."""

from _queue import SimpleQueue

from . import loop


class LifespanFailed(Exception):
    """The application said that it cannot start."""


def start(application):
    """Runs the lifespan's start; an application without lifespan is fine."""
    loop.run(_lifespan(application))


async def _lifespan(application):
    import asyncio

    ready = asyncio.get_running_loop().create_future()
    asked = []
    forever = asyncio.Event()

    async def receive():
        if not asked:
            asked.append(True)
            return {"type": "lifespan.startup"}
        await forever.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message):
        if ready.done():
            return
        if message["type"] == "lifespan.startup.failed":
            ready.set_exception(LifespanFailed(message.get("message", "")))
        else:
            ready.set_result(None)

    async def run():
        try:
            await application({"type": "lifespan", "asgi": _VERSION, "state": {}}, receive, send)
        except BaseException:
            pass
        if not ready.done():
            ready.set_result(None)

    # Kept alive by the closure of `ready`'s holder.
    _tasks.append(asyncio.ensure_future(run()))
    await ready


_VERSION = {"version": "3.0", "spec_version": "2.3"}
_tasks = []


def call(application, request):
    """`(status, header pairs, body)`; the body is bytes, or an iterator when the application streams."""
    messages = SimpleQueue()
    running = loop.start(_serve(application, request, messages))
    head, acknowledge = messages.get()
    if head is None:
        running.result()
        raise RuntimeError("the application ended without an answer")
    loop.soon(acknowledge)
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.get("headers", ())]
    first, acknowledge = messages.get()
    if first is None:
        running.result()
        raise RuntimeError("the application ended without a body")
    loop.soon(acknowledge)
    if not first.get("more_body", False):
        return head["status"], pairs, first.get("body", b"")
    return head["status"], pairs, _stream(messages, running, first.get("body", b""))


def _stream(messages, running, first):
    try:
        yield first
        while True:
            message, acknowledge = messages.get()
            if message is None:
                running.result()
                raise RuntimeError("the application ended in the middle of its answer")
            loop.soon(acknowledge)
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return
    finally:
        running.cancel()


async def _serve(application, request, messages):
    asked = []
    gone = loop.future()

    async def receive():
        if not asked:
            asked.append(True)
            return {"type": "http.request", "body": request.body, "more_body": False}
        await gone
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] not in ("http.response.start", "http.response.body"):
            return
        # Waits until the connection's thread took it, so that a slow client slows the application down.
        taken = loop.future()
        messages.put((message, lambda: taken.done() or taken.set_result(None)))
        await taken

    try:
        await application(_scope(request), receive, send)
    finally:
        messages.put((None, None))


def _scope(request):
    host, _, port = request.headers.get("host", "localhost").partition(":")
    scheme = request.headers.get("x-forwarded-proto", "http")
    return {
        "type": "http",
        "asgi": _VERSION,
        "http_version": request.version,
        "method": request.method,
        "scheme": scheme,
        "path": request.path,
        "raw_path": request.raw_path.encode("latin-1", "replace"),
        "query_string": request.raw_query.encode("latin-1", "replace"),
        "root_path": "",
        "headers": [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in request.headers.items()],
        "client": (request.client or "", 0),
        "server": (host, int(port) if port.isdigit() else 80),
        "state": {},
    }
