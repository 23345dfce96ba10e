"""From SPEC, such as "blog.wsgi:application" or "app:create()", to a WSGI callable."""

import sys

from . import report
from .worker import Stop

RAISED = 1  # the module was found, and raised while it was imported
MALFORMED = 3
NO_MODULE = 4
NO_ATTRIBUTE = 5
FACTORY_FAILED = 6
NOT_CALLABLE = 7

_COROUTINE = 0x80  # CO_COROUTINE of a code object's flags
_MESSAGE = 200  # characters of an exception's message that are repeated; the traceback has them all


class LoadError(Exception):
    """No application behind SPEC. code is the exit code; the cause, if any, has the traceback."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def application(spec):
    """Imports what spec names and returns the application."""
    module_name, attribute, factory = _parse(spec)
    module = _module(module_name, spec)
    found = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise LoadError(NO_ATTRIBUTE, "%s has no attribute %r%s" % (
                _described(found), name, _meant(module, factory))) from error
    if factory:
        found = _made(found, spec)
    if not callable(found):
        raise LoadError(NOT_CALLABLE, "%s is %s, which is not callable" % (spec, _described(found)))
    if _is_async(found):
        raise LoadError(NOT_CALLABLE, "%s is asynchronous, as an ASGI application is; "
                        "wsgi = wants a callable of environ and start_response" % spec)
    return found


def explain(error, spec):
    """Returns what the log is told of a LoadError: traceback, reason, and what was tried."""
    lines = [report.traceback(error.__cause__)] if error.__cause__ is not None else []
    lines.append("fpmd: tried wsgi = %r with directory %s, sys.path %s, interpreter %s (Python %s)" % (
        spec, sys.path[0], ", ".join(sys.path[:4]) + (", ..." if len(sys.path) > 4 else ""),
        sys.executable, sys.version.split()[0]))
    lines.append("fpmd: no application: %s" % error)  # last, for the supervisor quotes the last line
    return "\n".join(lines)


def _parse(spec):
    module, colon, attribute = spec.partition(":")
    factory = attribute.endswith("()")
    if factory:
        attribute = attribute[:-2]
    names = module.split(".") + attribute.split(".")
    if colon and all(name.isidentifier() for name in names):
        return module, attribute, factory
    hint = ""
    if not colon and all(name.isidentifier() for name in module.split(".")):
        hint = "; did you mean %r?" % (module + ":application")
    elif module.endswith(".py") or "/" in module:
        hint = "; the module is named as in an import statement, not as a file"
    raise LoadError(MALFORMED, "%r is not of the form \"module:callable\" or \"module:factory()\"%s" % (spec, hint))


def _module(name, spec):
    try:
        __import__(name)
        return sys.modules[name]
    except ModuleNotFoundError as error:
        if error.name is not None and (name + ".").startswith(error.name + "."):
            hint = "; did you mean %r?" % spec.replace(".py:", ":", 1) if name.endswith(".py") else ""
            raise LoadError(NO_MODULE, "no module named %r; looked below %s%s" % (
                error.name, sys.path[0], hint)) from error
        raise LoadError(RAISED, "%s: needs the module %r, which this interpreter does not find" % (
            name, error.name)) from error
    except Stop:
        raise
    except BaseException as error:
        raise LoadError(RAISED, "import of %s raised %s" % (name, _summary(error))) from error


def _made(factory, spec):
    if not callable(factory):
        raise LoadError(NOT_CALLABLE, "%s: the factory is %s, which is not callable" % (spec, _described(factory)))
    try:
        return factory()
    except Stop:
        raise
    except BaseException as error:
        raise LoadError(FACTORY_FAILED, "factory %s raised %s" % (spec, _summary(error))) from error


def _summary(error):
    """Returns the exception's type and the first line of its message, for a line of the log."""
    name = type(error).__name__
    try:
        text = str(error)
        if isinstance(error, SyntaxError) and error.filename:  # of which str has only the last part
            text = "%s (%s, line %s)" % (error.msg, error.filename, error.lineno)
    except Exception:  # the application's, which may raise again
        return name
    lines = text.strip().splitlines()
    if not lines:
        return name
    line = lines[0]
    return "%s: %s" % (name, line if len(line) <= _MESSAGE else line[:_MESSAGE] + "...")


def _described(thing):
    if isinstance(thing, type(sys)):
        return "module %s" % thing.__name__
    return "an object of type %s" % type(thing).__name__


def _meant(module, factory):
    """Names callables of module that an application could be, the usual names first."""
    usual = ("create_app", "make_app", "create_application") if factory else ("application", "app", "wsgi")
    names = [n for n, v in vars(module).items() if not n.startswith("_") and callable(v)
             and getattr(v, "__module__", module.__name__) in (module.__name__, None) or n in usual]
    # An instance's __module__ is its class's, so an application object made by
    # a framework is only found by what it is not: class, function, module.
    names += [n for n, v in vars(module).items() if n not in names and not n.startswith("_")
              and callable(v) and not isinstance(v, type) and not hasattr(v, "__name__")]
    if not names:
        return "; it has no callable of its own"
    names.sort(key=lambda n: usual.index(n) if n in usual else len(usual))
    suffix = "()" if factory else ""
    hint = "; did you mean `%s%s`?" % (names[0], suffix)
    if len(names) > 1:
        hint += " Callables there: " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return hint


def _is_async(found):
    for function in (found, getattr(type(found), "__call__", None)):
        code = getattr(function, "__code__", None)
        if code is not None and code.co_flags & _COROUTINE:
            return True
    return False
