"""The sync model: one slot, one exchange at a time, in the main thread."""

from time import perf_counter

from . import report
from .answer import Answer, FileWrapper
from .connection import Empty, Gone, Input
from .wire import (FLAG_LAST, REQUEST_HEAD, WITHDRAWN, WITHDRAWN_FRAME, ProtocolError, environ_from, parse_request)
from .worker import Unfit

_HEAD = REQUEST_HEAD.size
_EMPTY = Empty()

# The supervisor may take a slot for idle as soon as it has LAST. An application
# that does long work once its Content-Length is reached (in close(), after its
# last yield) would make the next request wait for it, so for the next _HELD
# exchanges LAST is a frame of its own, sent when that work is done. What counts
# as long is more than a busy machine takes to let the worker run again: the
# send has just woken somebody who wants the processor.
_LONG_TAIL = 0.01
_HELD = 256


def run(worker):
    """Serves exchanges until the worker is stopped."""
    if worker.threads > 1:
        raise Unfit("threads = %d: the sync model takes one exchange at a time; want 1" % worker.threads)
    worker.environ["wsgi.file_wrapper"] = FileWrapper
    worker.ready(1)
    while True:
        connection = worker.accept()
        try:
            _serve(worker, connection)
        except Gone:
            pass  # an abort, or the end of the slot: the supervisor dials again when it wants one
        except ProtocolError as error:
            report.line("fpmd: exchange protocol broken: %s; connection closed" % error)
        finally:
            worker.release(connection)
        if worker.stopping:
            return


def _serve(worker, connection):
    """Serves the exchanges of one connection.

    Read downwards, it is an exchange's whole life in the worker. A small one
    is one recv and one send.
    """
    application = worker.application
    page = worker.page
    shared = worker.environ
    receive = connection.sock.recv_into
    held = 0
    while True:
        worker.idle = True
        if worker.stopping:
            return
        if connection.lo == connection.hi:
            connection.lo = 0
            try:
                connection.hi = receive(connection.buffer)
            except BlockingIOError:
                connection.hi = 0
                worker.wait(connection.sock)
                continue
            except OSError:
                connection.hi = 0
            if not connection.hi:
                return
        lo = connection.lo
        if connection.hi - lo < _HEAD:
            connection.fill_request()
            lo = connection.lo
        flags, slot, length, number, size = parse_request(connection.buffer, lo)
        if slot:
            raise ProtocolError("REQUEST for slot %d of a worker with one" % slot)
        if connection.hi - lo < _HEAD + size:
            connection.fill(_HEAD + size)
            lo = connection.lo
        lo += _HEAD
        environ = environ_from(connection.view[lo:lo + size])
        connection.lo = lo + size
        rest = length - 12 - size
        if rest or not flags:
            body = Input(connection, rest, flags & FLAG_LAST)
        else:
            body = None

        worker.idle = False
        page[0] = number
        if page[1] == number:
            connection.send(WITHDRAWN_FRAME.pack(WITHDRAWN, 0, 0, 8, number))
            if body is not None:
                body.end()
            continue

        environ.update(shared)
        environ["wsgi.input"] = _EMPTY if body is None else body
        environ["wsgi.url_scheme"] = environ.get("REQUEST_SCHEME", "http")
        answer = Answer(connection, number, environ.get("REQUEST_METHOD") == "HEAD", environ.get("REQUEST_ID", ""))
        if held:
            answer.hold = True
            held -= 1
        try:
            if _answer(worker, application, environ, answer):
                held = _HELD
        except Gone:
            if worker.forked:
                worker.leave_fork()
        answer.connection = None  # a write() kept for later must not reach the next exchange
        if connection.gone:
            if body is not None:
                body.detach()
            return
        if body is not None:
            body.end()


def _answer(worker, application, environ, answer):
    """Calls the application and sends its answer. Reports whether it worked on for long after its Content-Length."""
    result = None
    try:
        result = application(environ, answer.start_response)
        if type(result) is list or type(result) is tuple:
            answer.whole(result)
            return False
        answer.stream(result)
        # With a hold, an answer that is complete to the client waits for close.
        if not answer.ended and (answer.completed is None or not answer.hold):
            answer.finish()
    except BaseException as error:
        _fail(worker, environ, answer, error)
    _close(environ, result)
    if not answer.ended and not answer.connection.gone:
        answer.finish()
    return answer.completed is not None and perf_counter() - answer.completed > _LONG_TAIL


def _close(environ, result):
    try:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    except BaseException as error:
        report.line("fpmd: close() failed after the answer to %s\n%s" % (_named(environ), report.traceback(error)))


def _fail(worker, environ, answer, error):
    """Answers for an application that raised: 500 before the header block is out, CUT after."""
    gone = answer.connection.gone and _is_abort(error)
    if not gone and not (worker.forked and isinstance(error, SystemExit)):
        told = report.traceback(error)
        report.line("fpmd: the application failed on %s\n%s" % (_named(environ), told))
    if worker.forked:
        worker.leave_fork(error)
    if answer.connection.gone:
        return
    try:
        if not answer.started:
            page = "500 Internal Server Error: app_error\n"
            if worker.debug:
                page += "\n" + told + "\n"
            answer.fail(page.encode("utf-8", "backslashreplace"))
        elif not answer.ended:
            if answer.completed is not None:
                answer.finish()  # the client has all of it; only what came after failed
            else:
                answer.cut()
    except Gone:
        pass  # the iterable is still to be closed


def _is_abort(error):
    """Reports whether error is, or was raised because of, the client's leaving."""
    while error is not None:
        if isinstance(error, Gone):
            return True
        error = error.__cause__ or error.__context__
    return False


def _named(environ):
    """Returns method, path and id of a request, safe to stand in a log line."""
    get = environ.get
    url = get("REQUEST_URI") or "%s%s" % (get("SCRIPT_NAME"), get("PATH_INFO"))
    return ascii("%s %s (%s)" % (get("REQUEST_METHOD"), url, get("REQUEST_ID")))[1:-1]
