"""HTTP/1.1 on one connection: strict heads, limited bodies, keep-alive, chunked both ways."""

HEAD_LIMIT = 64 * 1024
HEADERS_LIMIT = 200
READ_SIZE = 64 * 1024

REASONS = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified",
    307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 413: "Content Too Large", 415: "Unsupported Media Type",
    417: "Expectation Failed", 422: "Unprocessable Content", 429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip

_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGITS = frozenset("0123456789")
_HEX = frozenset(b"0123456789abcdefABCDEF")


class Refused(Exception):
    """The request is wrong; the connection ends after the answer."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status
        self.text = text


class Closed(Exception):
    """The client has gone."""


class Head:
    """A request's head."""

    __slots__ = ("method", "target", "version", "pairs", "length", "chunked", "keep_alive", "expects_continue")


class Connection:
    """Reads requests from a socket and writes answers to it."""

    def __init__(self, sock, body_limit):
        self.sock = sock
        self.body_limit = body_limit
        self.buffer = b""

    def read_head(self):
        """The next head, or None at the end of the connection."""
        buffer = self.buffer
        end = buffer.find(b"\r\n\r\n")
        while end < 0:
            if len(buffer) > HEAD_LIMIT:
                raise Refused(431, "the head of the request is longer than %d bytes" % HEAD_LIMIT)
            try:
                data = self.sock.recv(READ_SIZE)
            except BlockingIOError:
                if buffer:
                    raise Refused(408, "the head of the request did not come in time")
                continue
            except OSError:
                raise Closed
            if not data:
                if buffer.strip():
                    raise Closed
                return None
            start = max(0, len(buffer) - 3)
            buffer = (buffer + data).lstrip(b"\r\n") if not buffer else buffer + data
            end = buffer.find(b"\r\n\r\n", start)
        if end > HEAD_LIMIT:
            raise Refused(431, "the head of the request is longer than %d bytes" % HEAD_LIMIT)
        self.buffer = buffer[end + 4 :]
        return parse_head(buffer[:end].decode("latin-1"))

    def read_body(self, head):
        """The whole body."""
        if head.length == 0 and not head.chunked:
            return b""
        if head.length > self.body_limit:
            raise Refused(413, "the body is longer than %d bytes" % self.body_limit)
        if head.expects_continue and not self.buffer:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self._chunks() if head.chunked else self._exactly(head.length)

    def send(self, data):
        """Writes all of it."""
        try:
            self.sock.sendall(data)
        except OSError:
            raise Closed

    def _more(self):
        try:
            data = self.sock.recv(READ_SIZE)
        except BlockingIOError:
            raise Refused(408, "the body of the request did not come in time")
        except OSError:
            raise Closed
        if not data:
            raise Closed
        self.buffer += data

    def _exactly(self, length):
        if len(self.buffer) < length:
            parts, have = [self.buffer], len(self.buffer)
            self.buffer = b""
            while have < length:
                self._more()
                parts.append(self.buffer)
                have += len(self.buffer)
                self.buffer = b""
            self.buffer = b"".join(parts)
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return body

    def _line(self):
        while True:
            end = self.buffer.find(b"\r\n")
            if end >= 0:
                line, self.buffer = self.buffer[:end], self.buffer[end + 2 :]
                return line
            if len(self.buffer) > 4096:
                raise Refused(400, "a line of the chunked body is too long")
            self._more()

    def _chunks(self):
        parts, total = [], 0
        while True:
            size = self._line().partition(b";")[0].strip()
            if not 0 < len(size) <= 15 or not _HEX.issuperset(size):
                raise Refused(400, "a chunk of the body has no proper size")
            size = int(size, 16)
            if size == 0:
                for _ in range(HEADERS_LIMIT):
                    if not self._line():
                        return b"".join(parts)
                raise Refused(431, "the body has too many trailers")
            total += size
            if total > self.body_limit:
                raise Refused(413, "the body is longer than %d bytes" % self.body_limit)
            parts.append(self._exactly(size))
            if self._line():
                raise Refused(400, "a chunk of the body is longer than its size")


def parse_head(text):
    """A head from its text without the empty line."""
    lines = text.split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[0] or not _TOKEN.issuperset(words[0]) or not words[1] or _control(words[1]):
        raise Refused(400, "the request line is not of the form METHOD TARGET VERSION")
    if words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refused(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if len(lines) - 1 > HEADERS_LIMIT:
        raise Refused(431, "the request has more than %d headers" % HEADERS_LIMIT)
    head = Head()
    head.method, target, head.version = words[0], words[1], words[2][5:]
    if target.startswith(("http://", "https://")):
        target = "/" + target.partition("://")[2].partition("/")[2]
    head.target = target
    head.pairs = pairs = []
    lengths, codings, connection, expect = [], [], "", ""
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or not _TOKEN.issuperset(name) or _control(value):
            raise Refused(400, "a header is not of the form NAME: VALUE")
        value = value.strip(" \t")
        pairs.append((name, value))
        lower = name.lower()
        if lower == "content-length":
            lengths.append(value)
        elif lower == "transfer-encoding":
            codings.append(value.lower())
        elif lower == "connection":
            connection += "," + value.lower()
        elif lower == "expect":
            expect = value.lower()
    head.chunked = bool(codings)
    if codings and (codings != ["chunked"] or lengths or head.version == "1.0"):
        raise Refused(400, "transfer-encoding must be chunked alone, without content-length")
    if len(set(lengths)) > 1 or any(not v or len(v) > 18 or not _DIGITS.issuperset(v) for v in lengths):
        raise Refused(400, "content-length is not one number")
    head.length = int(lengths[0]) if lengths else 0
    options = [option.strip() for option in connection.split(",")]
    head.keep_alive = "close" not in options if head.version == "1.1" else "keep-alive" in options
    head.expects_continue = expect == "100-continue" and head.version == "1.1"
    return head


def _control(text):
    return any(c < " " and c != "\t" or c == "\x7f" for c in text) if not text.isprintable() else False


def head_bytes(status, pairs):
    """The head of an answer. Names and values with control characters are refused."""
    lines = ["HTTP/1.1 %d %s\r\n" % (status, REASONS.get(status, "Status"))]
    for name, value in pairs:
        name, value = str(name), str(value)
        if not name or not _TOKEN.issuperset(name) or _control(value):
            raise ValueError("the response has a header that HTTP does not allow: %r: %r" % (name, value))
        lines.append("%s: %s\r\n" % (name, value))
    lines.append("\r\n")
    return "".join(lines).encode("latin-1", "replace")


def chunk(data):
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
