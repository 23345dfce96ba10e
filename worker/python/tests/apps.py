"""Applications that the tests serve. application calls the function that PATH_INFO names."""

import atexit
import os
import select
import signal
import subprocess
import sys
import threading
import time
from wsgiref.validate import validator

START = dict(os.environ)
PLAIN = [("Content-Type", "text/plain")]
closes = []  # what close() of Closing was called for
kept = {}  # what an application keeps beyond its request


def application(environ, start_response):
    return globals()[environ["PATH_INFO"].strip("/") or "hello"](environ, start_response)


def hello(environ, start_response):
    start_response("200 OK", PLAIN)
    return [b"hello\n"]


valid = validator(hello)


def _valid_echo(environ, start_response):
    body = []
    while True:
        part = environ["wsgi.input"].read(7)
        if not part:
            break
        body.append(part)
    start_response("200 OK", PLAIN)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else body


valid_echo = validator(_valid_echo)


class Class:
    def __init__(self, environ, start_response):
        self.start_response = start_response

    def __iter__(self):
        self.start_response("200 OK", PLAIN)
        yield b"class"


class Instance:
    def __call__(self, environ, start_response):
        start_response("200 OK", PLAIN)
        return [b"instance"]


instance = Instance()


class Namespace:
    nested = instance


def create():
    return Instance()


def broken_factory():
    raise LookupError("no database")


async def asgi(scope, receive, send):
    pass


number = 7


def show(environ, start_response):
    start_response("200 OK", PLAIN)
    return [repr(eval(environ["QUERY_STRING"], dict(globals(), environ=environ))).encode("latin-1")]


def answer(environ, start_response):
    """Evaluates QUERY_STRING to (status, headers, result)."""
    status, headers, result = eval(environ["QUERY_STRING"], globals())
    start_response(status, headers)
    return result


def run(environ, start_response):
    """Executes QUERY_STRING as the application's body."""
    space = dict(globals(), environ=environ, start_response=start_response, result=[b"done"])
    exec(environ["QUERY_STRING"], space)
    return space["result"]


def generator(environ, start_response):
    """Executes QUERY_STRING as a generator's body."""
    lines = environ["QUERY_STRING"].splitlines()
    space = dict(globals(), environ=environ, start_response=start_response)
    exec("def body():\n" + "\n".join(" " + line for line in lines), space)
    return space["body"]()


class Closing:
    def __init__(self, result, name, error=None):
        self.result, self.name, self.error = result, name, error

    def __iter__(self):
        return iter(self.result)

    def close(self):
        closes.append(self.name)
        if self.error:
            raise self.error


def endless(environ, start_response):
    start_response("200 OK", PLAIN)

    def blocks():
        while True:
            yield b"x" * 65536
    return Closing(blocks(), "endless")


def upload(environ, start_response):
    """Reads the whole body and tells its size."""
    size = 0
    while True:
        part = environ["wsgi.input"].read(65536)
        if not part:
            break
        size += len(part)
    start_response("200 OK", PLAIN)
    return [b"%d" % size]


def interactive(environ, start_response):
    """Answers each line of the body when it comes."""
    start_response("200 OK", PLAIN)
    return (line.upper() for line in environ["wsgi.input"])


def fork(environ, start_response):
    """Forks a child that returns its own answer; the parent waits for it."""
    pid = os.fork()
    start_response("200 OK", PLAIN)
    if not pid:
        return [b"from the child"]
    return [b"child ended with %d" % os.WEXITSTATUS(os.waitpid(pid, 0)[1])]


def sockets_and_pipes():
    """What this process holds besides standard input, output and error."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        if int(descriptor) > 2:
            try:
                found.append(os.readlink("/proc/self/fd/" + descriptor))
            except OSError:  # the descriptor by which the folder was listed
                pass
    return [name for name in found if not name.startswith("/proc")]


def wait_for_hangup():
    """Waits until the other end of the exchange's connection has closed it."""
    hangups = select.poll()
    for descriptor in os.listdir("/proc/self/fd"):
        path = "/proc/self/fd/" + descriptor
        if os.path.islink(path) and os.readlink(path).startswith("socket:"):
            hangups.register(int(descriptor), 0)
    while not any(event & select.POLLHUP for _, event in hangups.poll()):
        pass


def at_exit():
    atexit.register(print, "exit hook ran")
    return hello


def stubborn():
    atexit.register(print, "exit hook ran")
    threading.Thread(target=time.sleep, args=(3600,), name="stubborn").start()
    return hello


def vector_hello(environ, start_response):
    body = b"Hello, World!\n"
    start_response("200 OK", PLAIN + [("Content-Length", str(len(body)))])
    return [body]


def vector_echo(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", PLAIN + [("Content-Length", str(len(body)))])
    return [body]


def vector_fail(environ, start_response):
    raise LookupError("as the vectors want it")
