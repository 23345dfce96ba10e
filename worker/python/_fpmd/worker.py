"""What one worker process shares with its supervisor: descriptors, page, signals, handshake."""

import io
import mmap
import os
import signal
import sys
from select import POLLIN, poll
from socket import AF_UNIX, SO_RCVTIMEO, SO_SNDBUF, SOCK_STREAM, SOL_SOCKET
from socket import socket as Socket
from struct import pack

from . import report
from .connection import Connection, Gone
from .wire import GREETING, HEADER, PAGE_SIZE, VERSION

# How long an idle worker waits in recv before it waits in poll instead, which
# a signal interrupts without a gap (see Worker.wait).
_RECEIVE_TIMEOUT = pack("@ll", 1, 0)
# The kernel takes this or net.core.wmem_max, whichever is less. More room
# means fewer times that a large answer puts the worker to sleep.
_SEND_BUFFER = 1 << 20


class Stop(SystemExit):
    """SIGTERM came while no exchange had begun. Exit status 0."""


class Unfit(Exception):
    """The configuration asks a concurrency model for what it can't do."""


class Worker:
    """One process of a pool. settings are the FPMD_* variables it was started with.

    A concurrency model (sync.run) is handed the worker with its application
    loaded, calls ready, and serves connections from accept until stopping.

    idle is True while nothing has begun, so that SIGTERM may end the process
    at once by raising Stop; otherwise it sets stopping, and the model returns
    when what has begun has ended.
    """

    def __init__(self, settings):
        self.application = None
        self.threads = int(settings.get("FPMD_THREADS", "0"))
        self.debug = settings.get("FPMD_DEBUG") == "1"
        self.idle = True
        self.stopping = False
        self.forked = False  # this is a child that the application forked

        listen, self._handshake, page, self._lifeline = (
            int(settings[name]) for name in (
                "FPMD_LISTEN_FD", "FPMD_HANDSHAKE_FD", "FPMD_PAGE_FD", "FPMD_LIFELINE_FD"))
        for descriptor in (listen, self._handshake, page, self._lifeline):
            os.set_inheritable(descriptor, False)
        # The class is kept from before the application's import: a package
        # that replaces socket.socket or its default timeout must not reach us.
        self._listener = Socket(AF_UNIX, SOCK_STREAM, 0, listen)
        self._listener.settimeout(None)
        self._connections = set()
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Two words a slot: begun and withdrawn (PROTOCOL.md section 6).
        self._memory = mmap.mmap(page, PAGE_SIZE)
        self.page = memoryview(self._memory).cast("Q")
        os.close(page)

        self.environ = {
            "wsgi.version": (1, 0),
            "wsgi.errors": open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False),
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }
        # A pipe would make stdout block buffered, and a character that the
        # locale lacks would make print fail a request.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")

        os.register_at_fork(after_in_child=self._after_fork)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminate)

    def ready(self, slots):
        """Tells the supervisor that the application is loaded and takes slots exchanges at once."""
        line = b"1|%d|unix|%d|exchange\n" % (VERSION, slots)
        os.write(self._handshake, line)
        os.close(self._handshake)
        self._handshake = -1

    def accept(self):
        """Waits for a connection and greets it: from now on its slot is idle to the supervisor."""
        while True:
            self.wait(self._listener)
            # Not accept: that looks up socket.socket, which the application
            # may have replaced, at the time of the call.
            descriptor, _ = self._listener._accept()
            sock = Socket(AF_UNIX, SOCK_STREAM, 0, descriptor)
            sock.settimeout(None)
            sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _RECEIVE_TIMEOUT)
            sock.setsockopt(SOL_SOCKET, SO_SNDBUF, _SEND_BUFFER)
            connection = Connection(sock)
            self._connections.add(connection)
            try:
                connection.send(HEADER.pack(GREETING, 0, VERSION, 0))
            except Gone:
                self.release(connection)
                continue
            return connection

    def release(self, connection):
        self._connections.discard(connection)
        connection.close()

    def close(self):
        """Takes no further connection, however long the exit hooks of the application last."""
        self._listener.close()

    def wait(self, sock):
        """Waits until sock can be read; raises Stop at SIGTERM.

        A signal that comes just before recv sets a flag that recv does not
        see. The wakeup descriptor is written by the C handler itself, so poll
        can't miss it. It is set only here: event loops use it too.
        """
        self.idle = True
        previous = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            ready = poll()
            ready.register(sock, POLLIN)
            ready.register(self._woken, POLLIN)
            while True:
                if self.stopping:
                    raise Stop(0)
                found = [descriptor for descriptor, _ in ready.poll()]
                if self._woken in found:
                    os.read(self._woken, 512)
                elif found:
                    return
        finally:
            signal.set_wakeup_fd(previous)

    def leave_fork(self, error=None):
        """Ends a child of the application that came back into the host, where it has no business.

        sys.exit in the child, which gets here as SystemExit, keeps its meaning.
        """
        code = 0
        if not isinstance(error, SystemExit):
            report.line("fpmd: process %d, forked by the application of worker %d, returned to the host; it was ended"
                        % (os.getpid(), os.getppid()))
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else error.code is not None
        elif error is not None:
            code = 1
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                pass
        os._exit(code & 0xFF)

    def _terminate(self, number, frame):
        self.stopping = True
        if self.idle:
            raise Stop(0)

    def _after_fork(self):
        """In a forked child: closes what is the parent's, and lets SIGTERM end the child."""
        self.forked = True
        self._listener.close()
        self.page.release()
        self._memory.close()  # it holds a descriptor, too
        for connection in self._connections:
            connection.close()
        for descriptor in (self._handshake, self._lifeline, self._woken, self._waker):
            if descriptor >= 0:
                os.close(descriptor)
        self._handshake = self._lifeline = self._woken = self._waker = -1
        if signal.getsignal(signal.SIGTERM) == self._terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
