"""The runtime's parts without a socket."""

import os
import sys
import tempfile
import textwrap
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from colibri_runtime import Event, Response, events, http1  # noqa: E402
from colibri_runtime.answer import to_answer  # noqa: E402
from colibri_runtime.load import LoadError, load  # noqa: E402
from colibri_runtime.message import Headers, Query, Request, unquote  # noqa: E402
from colibri_runtime.shape import shape_of  # noqa: E402


class Pieces:
    """A socket that gives its bytes in small pieces."""

    def __init__(self, data, size=7):
        self.data, self.size, self.sent = data, size, b""

    def recv(self, _size):
        piece, self.data = self.data[: self.size], self.data[self.size :]
        return piece

    def sendall(self, data):
        self.sent += data


def read(data, size=7, limit=1 << 20):
    connection = http1.Connection(Pieces(data, size), limit)
    head = connection.read_head()
    return head and (head, connection.read_body(head))


class Http(unittest.TestCase):
    def test_requests_in_any_pieces(self):
        data = b"\r\nPOST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nxyz"
        chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nxyz\r\n4\r\n1234\r\n0\r\nT: 1\r\n\r\n"
        for size in (1, 2, 3, 5, 1000):
            head, body = read(data, size)
            self.assertEqual((head.method, head.target, body, head.keep_alive), ("POST", "/a?b=c", b"xyz", True))
            self.assertEqual(read(chunked, size)[1], b"xyz1234")
        self.assertIsNone(read(b""))

    def test_requests_one_after_the_other(self):
        connection = http1.Connection(Pieces(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.0\r\n\r\n", 1000), 10)
        self.assertEqual(connection.read_head().target, "/1")
        head = connection.read_head()
        self.assertEqual((head.target, head.keep_alive), ("/2", False))
        self.assertIsNone(connection.read_head())

    def test_what_is_refused(self):
        rows = [
            (b"GET  / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/2\r\n\r\n", 505),
            (b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nA: b\nX: y\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
            (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx", 400),
            (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
            (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n", 413),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n", 413),
            (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 201 + b"\r\n", 431),
            (b"GET / HTTP/1.1\r\nA: " + b"b" * 70000 + b"\r\n\r\n", 431),
        ]
        for data, status in rows:
            with self.subTest(data=data[:80]):
                with self.assertRaises(http1.Refused) as caught:
                    read(data, 4096, limit=50)
                self.assertEqual(caught.exception.status, status)

    def test_continue_is_said_before_the_body_is_read(self):
        class Waiting(Pieces):
            def recv(self, size):
                if not self.data and b"100 Continue" in self.sent:
                    self.data = b"xyz"
                return super().recv(size)

        sock = Waiting(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", 1000)
        connection = http1.Connection(sock, 10)
        self.assertEqual(connection.read_body(connection.read_head()), b"xyz")

    def test_no_header_can_be_smuggled_into_an_answer(self):
        for pair in (("a", "b\r\nc: d"), ("a\r\nb", "c"), ("", "x"), ("a b", "c")):
            with self.assertRaises(ValueError):
                http1.head_bytes(200, [pair])

    def test_any_bytes_are_a_request_or_refused(self):
        import random

        generator = random.Random(7)
        seeds = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"]
        for _ in range(3000):
            data = bytearray(generator.choice(seeds))
            for _ in range(generator.randrange(1, 6)):
                data[generator.randrange(len(data))] = generator.randrange(256)
            try:
                read(bytes(data), 1000, 100)
            except (http1.Refused, http1.Closed):
                pass


class Messages(unittest.TestCase):
    def test_percent_encoding(self):
        for text, plain in [("a%20b", "a b"), ("%C3%BC", "ü"), ("%", "%"), ("%zz", "%zz"), ("a%2", "a%2"), ("%% 1", "%% 1")]:
            self.assertEqual(unquote(text), plain)

    def test_query(self):
        query = Query("a=1&b=x+y%26&a=2&c&=d")
        self.assertEqual((query["a"], query["b"], query["c"], query.all("a")), ("1", "x y&", "", ["1", "2"]))
        self.assertEqual(query.get("z", "none"), "none")

    def test_headers(self):
        headers = Headers([("X-A", "1"), ("x-a", "2")])
        self.assertEqual((headers["x-A"], headers.all("X-a"), "X-B" in headers), ("1", ["1", "2"], False))


class Shapes(unittest.TestCase):
    def check(self, handler, kind, names=None, is_async=False):
        shape = shape_of(handler, "auto")
        self.assertEqual((shape.kind, shape.is_async), (kind, is_async))
        if names is not None:
            self.assertEqual(shape.names, names)

    def test_functions(self):
        async def asynchronous(request):
            pass

        def decorate(function):
            import functools

            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)

            return wrapper

        @decorate
        def decorated(event):
            pass

        self.check(lambda: 1, "http", ())
        self.check(lambda request: 1, "http", ("request",))
        self.check(lambda r, context: 1, "http", ("r", "context"))
        self.check(lambda r, limit=3: 1, "http", ("r",))
        self.check(lambda *args: 1, "http", ("request", "context"))
        self.check(lambda event, context: 1, "cloudevent")
        self.check(lambda environ, start_response: 1, "wsgi")
        self.check(lambda scope, receive, send: 1, "asgi")
        self.check(asynchronous, "http", ("request",), True)
        self.check(decorated, "cloudevent", ("event",))

    def test_objects(self):
        class Flask:
            def __call__(self, environ, start_response):
                pass

        class FastApi:
            async def __call__(self, scope, receive, send):
                pass

        class Thing:
            def method(self, event):
                pass

        self.check(Flask(), "wsgi")
        self.check(FastApi(), "asgi", None, True)
        self.check(Thing().method, "cloudevent", ("event",))
        self.assertEqual(shape_of(lambda event: 1, "http").kind, "http")


class Answers(unittest.TestCase):
    def check(self, result, status, content_type, body):
        found, pairs, data = to_answer(result)
        self.assertEqual((found, dict(pairs).get("content-type"), data), (status, content_type, body))

    def test_what_a_handler_may_return(self):
        text, json = "text/plain; charset=utf-8", "application/json"
        self.check("ü", 200, text, "ü".encode())
        self.check(b"x", 200, "application/octet-stream", b"x")
        self.check({"a": 1}, 200, json, b'{"a":1}\n')
        self.check([1, "x"], 200, json, b'[1,"x"]\n')
        self.check(3, 200, json, b"3\n")
        self.check(None, 204, None, b"")
        self.check(("gone", 404), 404, text, b"gone")
        self.check(("<p>", 200, {"Content-Type": "text/html"}), 200, None, b"<p>")
        self.check(Response({"a": 1}, 201), 201, json, b'{"a":1}\n')

    def test_what_it_may_not(self):
        for result in (object(), ("x", 99), {"a": object()}):
            with self.assertRaises((TypeError, ValueError)):
                to_answer(result)

    def test_a_reply_event(self):
        status, pairs, body = to_answer(Event("t", "/s", {"a": "ü"}, id="1", subject="a b"))
        headers = dict(pairs)
        self.assertEqual((status, headers["ce-type"], headers["ce-subject"]), (200, "t", "a%20b"))
        self.assertEqual((headers["content-type"], body), ("application/json", '{"a": "ü"}'.encode()))


class Events(unittest.TestCase):
    BINARY = [("ce-id", "1"), ("ce-source", "/s"), ("Ce-Type", "t"), ("ce-specversion", "1.0")]

    def decode(self, headers, body=b""):
        return events.decode(Request("POST", "/", Headers(headers), body))

    def test_binary_mode(self):
        event = self.decode(self.BINARY + [("content-type", "application/json"), ("ce-extra", "%C3%BC")], b'{"a": 1}')
        self.assertEqual((event.type, event.id, event.data, event.get("extra")), ("t", "1", {"a": 1}, "ü"))
        self.assertEqual(self.decode(self.BINARY + [("content-type", "text/plain")], b"x").data, "x")
        self.assertEqual(self.decode(self.BINARY, b"\x00").data, b"\x00")

    def test_structured_mode(self):
        headers = [("content-type", "application/cloudevents+json; charset=utf-8")]
        event = self.decode(headers, b'{"id":"1","source":"/s","type":"t","specversion":"1.0","data":{"a":1},"x":"y"}')
        self.assertEqual((event.data, event["x"]), ({"a": 1}, "y"))
        event = self.decode(headers, b'{"id":"1","source":"/s","type":"t","specversion":"1.0","data_base64":"AAE="}')
        self.assertEqual(event.data, b"\x00\x01")

    def test_both_ways(self):
        first = Event("t", "/s", {"a": 1}, id='q"1 %ü', time="2026-01-01T00:00:00Z", more="x")
        pairs, body = events.encode(first)
        second = self.decode(pairs, body)
        for name in ("type", "source", "id", "data", "time", "extensions"):
            self.assertEqual(getattr(first, name), getattr(second, name), name)

    def test_what_is_no_event(self):
        structured = [("content-type", "application/cloudevents+json")]
        rows = [
            ([], b"{}", "ce-id"),
            (self.BINARY[:3], b"", "ce-specversion"),
            (self.BINARY[:3] + [("ce-specversion", "0.3")], b"", "0.3"),
            (structured, b"[]", "object"),
            (structured, b"{", "not JSON"),
            (structured, b'{"id":"1"}', "source"),
            ([("content-type", "application/cloudevents-batch+json")], b"[]", "one by one"),
            (self.BINARY + [("content-type", "application/json")], b"{", "not JSON"),
        ]
        for headers, body, text in rows:
            with self.subTest(text=text), self.assertRaises(events.NotAnEvent) as caught:
                self.decode(headers, body)
            self.assertIn(text, str(caught.exception))


class Loading(unittest.TestCase):
    def setUp(self):
        self.path = list(sys.path)
        self.modules = set(sys.modules)

    def tearDown(self):
        sys.path[:] = self.path
        for name in set(sys.modules) - self.modules:
            del sys.modules[name]

    def load(self, files, handler=""):
        folder = tempfile.mkdtemp()
        for name, text in files.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(textwrap.dedent(text))
        return load(folder, handler)

    def test_handlers(self):
        self.assertEqual(self.load({"main.py": "def handle(): return 1"})(), 1)

    def test_a_handler_in_a_package(self):
        files = {"pkg/__init__.py": "", "pkg/views.py": "from . import other\ndef go(): return other.x", "pkg/other.py": "x = 2"}
        self.assertEqual(self.load(files, "pkg.views.go")(), 2)

    def test_what_goes_wrong_is_said_with_its_place(self):
        rows = [
            ({"main.py": "a = 1\nprint((\n"}, "", "main.py:2: SyntaxError: '(' was never closed\n    print(("),
            ({"main.py": "def f():\n  x\n y\n"}, "", "main.py:3: IndentationError"),
            ({"main.py": "import nowhere.x\n"}, "", "main.py:1: ModuleNotFoundError: No module named 'nowhere' (put it beside"),
            ({"main.py": "import lib\n", "lib.py": "\n1/0\n"}, "", "lib.py:2: ZeroDivisionError"),
            ({"main.py": "import json\njson.loads('')\n"}, "", "main.py:2: JSONDecodeError"),
            ({"main.py": "def other(): pass\n"}, "", "main.py: has no handle, which handler"),
            ({"main.py": "def other(): pass\n"}, "", "it defines: other"),
            ({"main.py": "handle = 3\n"}, "", "main.py: handle is of type int and cannot be called"),
            ({"app.py": ""}, "", "needs main.py, which the function's code does not have; it has: app.py"),
            ({"main.py": ""}, "handle", "not of the form module.function"),
            ({"main.py": "raise SystemExit(3)\n"}, "", "exit(3)"),
        ]
        for files, handler, text in rows:
            with self.subTest(text=text), self.assertRaises(LoadError) as caught:
                sys.modules.pop("main", None)
                sys.modules.pop("lib", None)
                self.load(files, handler)
            message = str(caught.exception)
            if "never closed" in text and sys.version_info < (3, 10):
                text = "SyntaxError"
            self.assertIn(text, message)


if __name__ == "__main__":
    unittest.main()
