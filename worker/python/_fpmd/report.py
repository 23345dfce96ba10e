"""What the host itself writes to the log: descriptor 2, one write for each entry."""

import os
import sys
from traceback import TracebackException

# Frames of files below this are the host's own, of no use to the reader of a
# traceback.
_HOST = os.path.dirname(__file__) + "/"
_MAIN = os.path.dirname(os.path.dirname(__file__)) + "/__main__.py"


def line(text):
    """Writes text, one or more lines, to the log."""
    if sys.stderr is not None:
        try:
            sys.stderr.flush()  # what the application wrote came first
        except (OSError, ValueError):
            pass
    data = memoryview((text + "\n").encode("utf-8", "backslashreplace"))
    while data:
        try:
            data = data[os.write(2, data):]
        except OSError:  # nobody reads the log: serving goes on
            return


def traceback(error):
    """Returns error's whole traceback, with its causes, without the host's frames."""
    told = TracebackException(type(error), error, error.__traceback__)
    waiting = [told]
    while waiting:
        one = waiting.pop()
        one.stack[:] = [f for f in one.stack if not (f.filename.startswith(_HOST) or f.filename == _MAIN)]
        waiting += filter(None, (one.__cause__, one.__context__))
        waiting += getattr(one, "exceptions", None) or ()
    return "".join(told.format()).rstrip("\n")
