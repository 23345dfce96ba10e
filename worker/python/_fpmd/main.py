"""The order of events in a worker's life: environment, descriptors, application, serving, exit."""

import atexit
import gc
import os
import sys
import threading

from . import load, report, sync
from .wire import VERSION
from .worker import Stop, Unfit, Worker

COOKIE = "0f7c4d6a-fcb1-4e0f-9d27-exchange"

# Exit codes. 1 and 3 to 7 are load's: no application behind SPEC.
BY_HAND = 2  # not started by fpmd
PROTOCOL = 70  # the supervisor speaks no version of the exchange that this host speaks
CONFIG = 78  # the configuration asks for what this host can't do

# A concurrency model is a function that serves a worker until it is stopped.
MODELS = {"sync": sync.run}

# How long threads that are not daemons may go on after SIGTERM. Then the exit
# hooks run without them.
THREADS_GRACE = 5.0

_BY_HAND = """\
This is the part of fpmd that hosts a WSGI application; fpmd starts it. Write a file fpmd.toml

    [supervisor]
    user      = "nobody"            # who the workers are, when root starts fpmd

    [pool.app]
    listen    = "127.0.0.1:9001"
    wsgi      = %s
    directory = %s

and run: fpmd serve -c fpmd.toml --http 127.0.0.1:8080
"""


def main():
    """Runs a worker to its end and returns the exit status."""
    archive, spec = sys.argv[0], "".join(sys.argv[1:2])
    settings = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("FPMD_")}
    if settings.get("FPMD_WORKER") != COOKIE:
        sys.stderr.write(_BY_HAND % tuple(map(_quoted, (spec or "module:application", os.getcwd()))))
        return BY_HAND
    if str(VERSION) not in settings.get("FPMD_PROTOCOL_VERSIONS", "").split(","):
        report.line("fpmd: the supervisor speaks exchange protocol versions %r, this host speaks %d" % (
            settings.get("FPMD_PROTOCOL_VERSIONS", ""), VERSION))
        return PROTOCOL
    model = settings.get("FPMD_CONCURRENCY", "sync")
    if model not in MODELS:
        report.line("fpmd: concurrency = %r: this host has %s" % (model, ", ".join(MODELS)))
        return CONFIG

    worker = Worker(settings)
    _step_aside(archive, settings)
    try:
        worker.application = load.application(spec)
    except load.LoadError as error:
        if worker.forked:
            worker.leave_fork(error)
        report.line(load.explain(error, spec))
        return error.code
    if worker.forked:
        worker.leave_fork()
    # What was imported stays: out of the collector's sight it costs no time
    # in any later collection, and no copies of pages in forked children.
    gc.collect()
    gc.freeze()
    try:
        MODELS[model](worker)
    except Stop:
        pass
    except Unfit as error:
        report.line("fpmd: %s" % error)
        return CONFIG
    worker.close()
    worker.idle = False  # a second SIGTERM must not interrupt the exit hooks
    _bound_threads()
    return 0


def _quoted(text):
    """Returns text as a string of the configuration."""
    return '"%s"' % text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")


def _step_aside(archive, settings):
    """Leaves the interpreter to the application as if the host were not there."""
    if "FPMD_HOST_FD" in settings:
        os.close(int(settings["FPMD_HOST_FD"]))
    directory = settings.get("FPMD_DIRECTORY") or os.getcwd()
    extra = [entry for entry in settings.get("FPMD_PYTHON_PATH", "").split(os.pathsep) if entry]
    sys.path[:] = [directory] + extra + [entry for entry in sys.path if entry != archive]
    sys.path_importer_cache.pop(archive, None)
    sys.argv[:] = ["fpmd"]
    # The archive's name is a descriptor, which may be another file's tomorrow:
    # nobody must look for source there.
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "_fpmd":
            module.__spec__ = module.__loader__ = None
    namespace = vars(sys.modules["__main__"])
    builtins = namespace["__builtins__"]
    namespace.clear()
    namespace.update(__name__="__main__", __doc__=None, __package__=None, __loader__=None, __spec__=None,
                     __builtins__=builtins)


def _bound_threads():
    """Ends the process after THREADS_GRACE when threads of the application would keep it for ever."""
    left = [t for t in threading.enumerate() if not t.daemon and t is not threading.current_thread()]
    if not left:
        return
    over = threading.Event()
    # Exit hooks run last registered first, and only once the threads have ended.
    atexit.register(over.set)

    def give_up():
        if over.wait(THREADS_GRACE):
            return
        report.line("fpmd: stopped, leaving behind threads that are not daemons and did not end in %gs: %s" % (
            THREADS_GRACE, ", ".join(t.name for t in left if t.is_alive())))
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                pass
        os._exit(0)

    threading.Thread(target=give_up, name="fpmd-exit", daemon=True).start()
