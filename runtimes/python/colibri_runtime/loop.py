"""One event loop in a thread of its own, for handlers that are async. Imported only for those."""

import asyncio
import threading

_loop = asyncio.new_event_loop()


def _run():
    asyncio.set_event_loop(_loop)
    _loop.run_forever()


threading.Thread(target=_run, name="loop", daemon=True).start()


def run(coroutine):
    """Runs a coroutine on the loop and waits for its result."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop).result()


def start(coroutine):
    """Starts a coroutine on the loop; its future can be cancelled."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop)


def soon(function, *arguments):
    """Calls a function on the loop's thread."""
    _loop.call_soon_threadsafe(function, *arguments)


def future():
    """A future of the loop."""
    return _loop.create_future()


def iterate(stream):
    """The items of an async iterator, one at a time."""
    try:
        while True:
            try:
                item = run(_next(stream))
            except StopAsyncIteration:
                return
            yield item
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            run(close())


async def _next(stream):
    return await stream.__anext__()
