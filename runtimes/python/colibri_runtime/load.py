"""Finds the handler, and says in one clear text what is wrong where that fails."""

import sys

DEFAULT_HANDLER = "main.handle"


class LoadError(Exception):
    """The code cannot be loaded; the text is for the person who wrote it."""


def load(code, handler):
    """The object that `handler` (`module.name`, dots for packages) names in the folder `code`."""
    module_name, _, attribute = (handler or DEFAULT_HANDLER).rpartition(".")
    if not module_name:
        raise LoadError("handler %r is not of the form module.function, such as %s" % (handler, DEFAULT_HANDLER))
    path = _file_of(code, module_name)
    if path is None:
        raise LoadError(
            "handler %s needs %s.py, which the function's code does not have; it has: %s"
            % (handler, module_name.replace(".", "/"), _listing(code))
        )
    if code not in sys.path:
        sys.path.insert(0, code)
    try:
        __import__(module_name)
    except SystemExit as error:
        raise LoadError("%s: the code ended the process with exit(%s) while it was loaded" % (_at(error, code, path), error.code))
    except Exception as error:
        raise LoadError(explain(error, code, path))
    module = sys.modules[module_name]
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise LoadError(
            "%s: has no %s, which handler %s names; it defines: %s"
            % (_short(path, code), attribute, handler, _names(module))
        )
    if not callable(found):
        raise LoadError("%s: %s is of type %s and cannot be called" % (_short(path, code), attribute, type(found).__name__))
    return found


def explain(error, code, path):
    """`file:line: Type: message`, and for a syntax error the line and the place in it."""
    if isinstance(error, SyntaxError) and error.filename:
        text = "%s:%s: %s: %s" % (_short(error.filename, code), error.lineno or 1, type(error).__name__, error.msg)
        if error.text:
            line = error.text.rstrip("\n")
            stripped = line.lstrip()
            column = max(0, (error.offset or 1) - 1 - (len(line) - len(stripped)))
            text += "\n    %s\n    %s^" % (stripped, " " * min(column, len(stripped)))
        return text
    text = "%s: %s" % (_at(error, code, path), type(error).__name__)
    if str(error):
        text += ": %s" % error
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        text += " (put it beside the code: pip install --target . %s)" % package
    return text


def _at(error, code, path):
    """Innermost place of the traceback that is in the function's own code."""
    place = _short(path, code) + ":1"
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(code + "/"):
            place = "%s:%d" % (_short(name, code), trace.tb_lineno)
        trace = trace.tb_next
    return place


def _short(path, code):
    return path[len(code) + 1 :] if path.startswith(code + "/") else path


def _file_of(code, module_name):
    import posix

    base = code + "/" + module_name.replace(".", "/")
    for path in (base + ".py", base + "/__init__.py"):
        try:
            posix.stat(path)
            return path
        except OSError:
            pass
    return None


def _listing(code):
    import posix

    try:
        names = sorted(posix.listdir(code))
    except OSError as error:
        return "nothing (%s)" % error
    shown = ", ".join(names[:10]) or "nothing"
    return shown + (", ..." if len(names) > 10 else "")


def _names(module):
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return ", ".join(names[:10]) or "no function"
