"""CloudEvents 1.0 over HTTP, binary and structured mode.

Source: CloudEvents HTTP protocol binding 1.0.2, sections 3.1 and 3.2.
"""

from .message import Event, unquote

STRUCTURED = "application/cloudevents+json"
_PREFIX = "ce-"


class NotAnEvent(Exception):
    """The request holds no event; the text says what is missing."""


def decode(request):
    """The event in a request."""
    content_type = request.headers.get("content-type", "")
    media = content_type.partition(";")[0].strip().lower()
    if media.startswith("application/cloudevents-batch"):
        raise NotAnEvent("batches of events are not taken; send the events one by one")
    if media.startswith("application/cloudevents"):
        if media != STRUCTURED:
            raise NotAnEvent("the structured format %s is not known; use %s" % (media, STRUCTURED))
        return _structured(request.body)
    return _binary(request, content_type)


def _binary(request, content_type):
    attributes = {
        name[len(_PREFIX) :].lower(): unquote(value)
        for name, value in request.headers.items()
        if name.lower().startswith(_PREFIX)
    }
    _check(attributes, "header ce-")
    if content_type:
        attributes["datacontenttype"] = content_type
    data = request.body
    if _is_json(content_type) and data:
        data = _json(data, "the data")
    elif content_type.lower().startswith("text/"):
        data = data.decode("utf-8", "replace")
    return Event(data=data, **attributes)


def _structured(body):
    attributes = _json(body, "the event")
    if not isinstance(attributes, dict):
        raise NotAnEvent("a structured event must be a JSON object")
    attributes = {str(name).lower(): value for name, value in attributes.items() if value is not None}
    _check(attributes, "member ")
    data = attributes.pop("data", None)
    encoded = attributes.pop("data_base64", None)
    if encoded is not None:
        import binascii

        try:
            data = binascii.a2b_base64(encoded)
        except (binascii.Error, TypeError, ValueError) as error:
            raise NotAnEvent("data_base64 is not base64: %s" % error)
    return Event(data=data, **attributes)


def _check(attributes, what):
    missing = [name for name in ("id", "source", "specversion", "type") if not attributes.get(name)]
    if missing:
        raise NotAnEvent(
            "this function takes CloudEvents, and the request has no %s" % ", ".join(what + name for name in missing)
        )
    if attributes["specversion"] != "1.0":
        raise NotAnEvent("CloudEvents %s are not known, only 1.0" % attributes["specversion"])
    attributes.pop("data", None) if what.startswith("header") else None


def _json(data, what):
    import json

    try:
        return json.loads(data)
    except ValueError as error:
        raise NotAnEvent("%s is not JSON: %s" % (what, error))


def _is_json(content_type):
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or media.endswith("+json")


def encode(event):
    """Headers and body of an event in binary mode."""
    data, content_type = event.data, event.datacontenttype
    if data is None:
        body = b""
    elif isinstance(data, (bytes, bytearray)):
        body = bytes(data)
    elif isinstance(data, str) and not (content_type and _is_json(content_type)):
        body, content_type = data.encode("utf-8"), content_type or "text/plain; charset=utf-8"
    else:
        import json

        body, content_type = json.dumps(data, ensure_ascii=False).encode("utf-8"), content_type or "application/json"
    attributes = {name: getattr(event, name) for name in Event.STANDARD if name != "datacontenttype"}
    attributes.update(event.extensions)
    headers = [(_PREFIX + name, _quote(str(value))) for name, value in attributes.items() if value is not None]
    if content_type:
        headers.append(("content-type", content_type))
    return headers, body


def _quote(text):
    """Percent encoding of what a CloudEvents header must not hold as it is (section 3.1.3.2)."""
    if text.isascii() and text.isprintable() and not set(text) & {'"', "%", " "}:
        return text
    keep = lambda c: 0x21 <= c <= 0x7E and c not in b'"%'  # noqa: E731
    return "".join(chr(c) if keep(c) else "%%%02X" % c for c in text.encode("utf-8"))
