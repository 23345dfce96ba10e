"""The forms that a WSGI application (PEP 3333) takes, each servable under fpmd.

Which one a pool runs is the part behind the colon in its configuration.
"""
import time


def application(environ, start_response):
    """A function: wsgi = "app:application"."""
    body = f"Hello, {environ.get('REMOTE_ADDR') or 'you'}.\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [body]  # one block: the host supplies Content-Length


class Countdown:
    """A class: wsgi = "app:Countdown".

    Calling it makes an instance for each request, and the instance is the
    answer: it is iterated, block by block, and closed whatever happens.
    """

    def __init__(self, environ, start_response):
        self.start = start_response

    def __iter__(self):
        self.start("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        for n in (3, 2, 1):
            yield f"{n}\n".encode()  # leaves at once
            time.sleep(0.1)
        yield b"liftoff\n"

    def close(self):
        """Called exactly once, also when the client leaves halfway."""


class Greeter:
    """An instance: wsgi = "app:greeter". It keeps what was set up at its import."""

    def __init__(self, greeting):
        self.greeting = greeting

    def __call__(self, environ, start_response):
        name = environ["PATH_INFO"].strip("/") or "world"
        name = name.encode("latin-1").decode("utf-8", "replace")  # PEP 3333: bytes as latin-1
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{self.greeting}, {name}.\n".encode()]


greeter = Greeter("Good day")


class Timed:
    """Middleware: wraps an application, and says how long it took.

    It passes blocks on as they come, and close() with them: swallowing
    either is the usual mistake.
    """

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        began = time.perf_counter()

        def start(status, headers, exc_info=None):
            ms = (time.perf_counter() - began) * 1000
            return start_response(status, headers + [("Server-Timing", f"app;dur={ms:.2f}")], exc_info)

        return self.app(environ, start)


timed = Timed(application)


def create():
    """A factory: wsgi = "app:create()". Called once in each worker, before it is ready."""
    return Timed(Greeter("Welcome"))
