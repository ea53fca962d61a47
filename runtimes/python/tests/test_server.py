"""The whole runtime as a process, spoken to over sockets."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STARTED = []


class Process:
    """A running function."""

    def __init__(self, code, **env):
        self.folder = tempfile.mkdtemp()
        with open(os.path.join(self.folder, "main.py"), "w") as file:
            file.write(textwrap.dedent(code))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        env = {"COLIBRI_CODE": self.folder, "PORT": str(self.port), "COLIBRI_FUNCTION": "f", **env}
        command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", os.path.join(HERE, "boot.py")]
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=subprocess.STDOUT)
        STARTED.append(self.process)

    def connect(self):
        for _ in range(1000):
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=20)
            except ConnectionRefusedError:
                if self.process.poll() is not None:
                    raise AssertionError("the runtime ended: " + self.output())
                time.sleep(0.01)
        raise AssertionError("the runtime does not listen")

    def call(self, method="GET", target="/", headers=(), body=b""):
        with self.connect() as sock:
            return exchange(sock, method, target, [("connection", "close"), *headers], body)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def output(self):
        self.log.seek(0)
        return self.log.read().decode()


def exchange(sock, method="GET", target="/", headers=(), body=b""):
    lines = ["%s %s HTTP/1.1" % (method, target), "host: x", *("%s: %s" % pair for pair in headers)]
    if body:
        lines.append("content-length: %d" % len(body))
    sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return answer(sock, method)


def answer(sock, method="GET"):
    file = sock.makefile("rb")
    status = int(file.readline().split()[1])
    headers = {}
    while True:
        line = file.readline().strip().decode()
        if not line:
            break
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if method == "HEAD" or status == 204:
        return status, headers, b""
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size = file.readline()
            if not size:
                return status, headers, body + b"<cut>"
            piece = file.read(int(size, 16))
            file.readline()
            if not piece:
                return status, headers, body
            body += piece
    return status, headers, file.read(int(headers.get("content-length", 0)))


class Server(unittest.TestCase):
    def tearDown(self):
        while STARTED:
            process = STARTED.pop()
            if process.poll() is None:
                process.kill()
            process.wait()

    def test_requests_on_one_connection(self):
        process = Process("def handle(request):\n    return {'m': request.method, 'p': request.path, 'b': request.text}")
        with process.connect() as sock:
            for number in range(3):
                status, headers, body = exchange(sock, "POST", "/%d" % number, (), b"x")
                self.assertEqual((status, json.loads(body)), (200, {"m": "POST", "p": "/%d" % number, "b": "x"}))
                self.assertNotIn("connection", headers)
            status, headers, body = exchange(sock, "HEAD", "/")
            self.assertEqual((status, body), (200, b""))
        self.assertEqual(process.stop(), 0)

    def test_an_exception_is_in_the_log_and_not_in_the_answer(self):
        process = Process("def handle(request):\n    print('before')\n    raise ValueError('secret')")
        status, headers, body = process.call(headers=[("x-request-id", "id-7")])
        self.assertEqual((status, headers["x-colibri-invocation-id"]), (500, "id-7"))
        self.assertNotIn(b"secret", body)
        process.stop()
        log = process.output()
        self.assertIn("before\n", log)
        self.assertIn("[id-7] ValueError: secret\n", log)
        self.assertIn('main.py", line 3', log)
        self.assertNotIn("server.py", log)

    def test_streams(self):
        code = """
            def handle(request):
                if request.path == "/early":
                    raise_early()
                yield "one "
                if request.path == "/late":
                    raise RuntimeError("late")
                yield b"two"
        """
        process = Process(code)
        status, headers, body = process.call()
        self.assertEqual((status, headers["transfer-encoding"], body), (200, "chunked", b"one two"))
        self.assertEqual(process.call(target="/early")[0], 500)
        self.assertEqual(process.call(target="/late")[2], b"one <cut>")
        process.stop()
        self.assertIn("RuntimeError: late", process.output())

    def test_async_handlers(self):
        code = """
            import asyncio
            async def handle(request, context):
                await asyncio.sleep(0)
                return context.function
        """
        self.assertEqual(Process(code).call()[2], b"f")
        code = """
            import asyncio
            async def handle(request):
                for text in ("a", "b"):
                    await asyncio.sleep(0)
                    yield text
        """
        self.assertEqual(Process(code).call()[2], b"ab")

    def test_wsgi(self):
        code = """
            def handle(environ, start_response):
                start_response("201 Created", [("X-Path", environ["PATH_INFO"])])
                return [environ["wsgi.input"].read(), environ["QUERY_STRING"].encode()]
        """
        status, headers, body = Process(code).call("POST", "/a?b", (), b"x")
        self.assertEqual((status, headers["x-path"], body), (201, "/a", b"xb"))

    def test_asgi(self):
        code = """
            started = []
            async def handle(scope, receive, send):
                if scope["type"] == "lifespan":
                    await receive()
                    started.append(True)
                    await send({"type": "lifespan.startup.complete"})
                    return
                message = await receive()
                await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
                await send({"type": "http.response.body", "body": message["body"], "more_body": True})
                await send({"type": "http.response.body", "body": str(started).encode()})
        """
        status, headers, body = Process(code).call("POST", "/", (), b"x")
        self.assertEqual((status, headers["x-a"], body), (200, "b", b"x[True]"))

    def test_events(self):
        code = """
            from colibri_runtime import Event
            def handle(event):
                return Event("reply", "/f", {"was": event.type})
        """
        process = Process(code)
        binary = [("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t"), ("ce-specversion", "1.0")]
        status, headers, body = process.call("POST", "/", binary)
        self.assertEqual((status, headers["ce-type"], json.loads(body)), (200, "reply", {"was": "t"}))
        self.assertEqual(process.call("POST")[0], 400)

    def test_the_gate_is_as_wide_as_the_concurrency(self):
        code = """
            import threading, time
            lock, now, most = threading.Lock(), 0, 0
            def handle(request):
                global now, most
                if request.path == "/most":
                    return most
                with lock:
                    now += 1
                    most = max(most, now)
                time.sleep(0.05)
                with lock:
                    now -= 1
        """
        process = Process(code, COLIBRI_CONCURRENCY="3")
        process.call(target="/most")
        callers = [threading.Thread(target=process.call) for _ in range(12)]
        [caller.start() for caller in callers]
        [caller.join() for caller in callers]
        self.assertEqual(process.call(target="/most")[2], b"3\n")

    def test_term_lets_requests_end(self):
        code = """
            import time
            def handle(request):
                print("in")
                time.sleep(0.3)
                return "done"
        """
        process = Process(code)
        with process.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            while "in\n" not in process.output():
                time.sleep(0.005)
            process.process.send_signal(signal.SIGTERM)
            self.assertEqual(answer(sock)[2], b"done")
        self.assertEqual(process.process.wait(20), 0)

    def test_code_that_cannot_be_loaded_ends_the_process(self):
        process = Process("def handle(:\n")
        self.assertEqual(process.process.wait(20), 1)
        self.assertTrue(process.output().startswith("main.py:1: SyntaxError: "), process.output())

    def test_wrong_requests_are_told_why(self):
        process = Process("def handle(request): pass")
        with process.connect() as sock:
            sock.sendall(b"NONSENSE\r\n\r\n")
            status, headers, body = answer(sock)
            self.assertEqual((status, headers["connection"]), (400, "close"))
            self.assertIn(b"request line", body)
        self.assertEqual(process.call()[0], 204)


if __name__ == "__main__":
    unittest.main()
