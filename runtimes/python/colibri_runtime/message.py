"""What a handler is given and what it may return."""


def unquote(text, plus=False):
    """Undoes percent encoding; a bad escape stays as it is."""
    if plus:
        text = text.replace("+", " ")
    if "%" not in text:
        return text
    first, *rest = text.encode("utf-8", "surrogateescape").split(b"%")
    out = [first]
    for part in rest:
        try:
            out.append(bytes.fromhex(part[:2].decode("ascii")) + part[2:] if len(part[:2].strip()) == 2 else b"%" + part)
        except ValueError:
            out.append(b"%" + part)
    return b"".join(out).decode("utf-8", "replace")


class Query(dict):
    """The query's names and values; of a repeated name the first value, `all(name)` gives each."""

    def __init__(self, text=""):
        super().__init__()
        self._all = {}
        for pair in text.split("&"):
            if not pair:
                continue
            name, _, value = pair.partition("=")
            name, value = unquote(name, True), unquote(value, True)
            self.setdefault(name, value)
            self._all.setdefault(name, []).append(value)

    def all(self, name):
        """Every value of that name."""
        return list(self._all.get(name, ()))


class Headers:
    """Header fields in order; names are compared without regard to case."""

    __slots__ = ("pairs", "_first")

    def __init__(self, pairs=()):
        self.pairs = list(pairs)
        self._first = {}
        for name, value in self.pairs:
            self._first.setdefault(name.lower(), value)

    def get(self, name, default=None):
        """The first value of that name."""
        return self._first.get(name.lower(), default)

    def all(self, name):
        """Every value of that name."""
        name = name.lower()
        return [value for key, value in self.pairs if key.lower() == name]

    def items(self):
        """Names and values as they came."""
        return list(self.pairs)

    def keys(self):
        """The names, each once, in lower case."""
        return self._first.keys()

    def __getitem__(self, name):
        return self._first[name.lower()]

    def __contains__(self, name):
        return name.lower() in self._first

    def __iter__(self):
        return iter(self._first)

    def __len__(self):
        return len(self._first)

    def __repr__(self):
        return "Headers(%r)" % (self.pairs,)


class Request:
    """One HTTP request."""

    __slots__ = ("method", "target", "path", "raw_path", "raw_query", "query", "params", "headers", "body", "client", "version")

    def __init__(self, method, target, headers, body=b"", client=None, version="1.1"):
        raw_path, _, raw_query = target.partition("?")
        self.method = method
        self.target = target
        self.raw_path = raw_path
        self.raw_query = raw_query
        self.path = unquote(raw_path)
        self.query = Query(raw_query)
        self.params = {}
        self.headers = headers
        self.body = body
        self.client = client
        self.version = version

    @property
    def text(self):
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    def json(self):
        """The body as JSON."""
        import json

        return json.loads(self.body)

    def __repr__(self):
        return "<Request %s %s>" % (self.method, self.target)


class Response:
    """An answer with its status and headers."""

    __slots__ = ("body", "status", "headers")

    def __init__(self, body=b"", status=200, headers=None):
        self.body = body
        self.status = status
        self.headers = headers or {}


class Event:
    """A CloudEvent 1.0. Attributes that are not of the standard are in `extensions`."""

    __slots__ = ("type", "source", "id", "data", "datacontenttype", "subject", "time", "dataschema", "specversion", "extensions")

    STANDARD = ("type", "source", "id", "datacontenttype", "subject", "time", "dataschema", "specversion")

    def __init__(self, type, source, data=None, id=None, datacontenttype=None, specversion="1.0", **more):
        self.type = type
        self.source = source
        self.data = data
        self.id = id or new_id()
        self.datacontenttype = datacontenttype
        self.specversion = specversion
        self.subject = more.pop("subject", None)
        self.time = more.pop("time", None)
        self.dataschema = more.pop("dataschema", None)
        self.extensions = more

    def get(self, name, default=None):
        """An attribute, of the standard or not."""
        if name in self.STANDARD:
            value = getattr(self, name)
            return default if value is None else value
        return self.extensions.get(name, default)

    def __getitem__(self, name):
        value = self.data if name == "data" else self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __repr__(self):
        return "<Event %s %s from %s>" % (self.type, self.id, self.source)


class Context:
    """What a handler may know of its invocation."""

    __slots__ = ("invocation_id", "deadline", "function", "namespace", "version", "_logger")

    def __init__(self, invocation_id, deadline, function, namespace, version):
        self.invocation_id = invocation_id
        self.deadline = deadline
        self.function = function
        self.namespace = namespace
        self.version = version
        self._logger = None

    @property
    def logger(self):
        """A logger whose lines carry the invocation's id."""
        if self._logger is None:
            from . import logs

            self._logger = logs.logger(self.function, self.invocation_id)
        return self._logger

    def remaining(self):
        """Seconds until the deadline; never negative."""
        import time

        return max(0.0, self.deadline - time.time())


def new_id():
    """A fresh id of 32 hexadecimal digits."""
    import posix

    with open("/dev/urandom", "rb", 0) as source:
        return source.read(16).hex() if not hasattr(posix, "getrandom") else posix.getrandom(16).hex()
