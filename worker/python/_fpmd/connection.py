"""One connection to the supervisor, and the request's body that comes over it."""

from sys import maxsize

from .wire import BODY, FLAG_CUT, FLAG_LAST, HEADER, REQUEST_HEAD, ProtocolError, check_request, parse_header

# What is read at once. Most requests, with their environ, take one or two KiB.
_BUFFER = 1 << 16
# A read of the body this large goes around the buffer, at most _LARGEST at once.
_LARGE = 1 << 14
_LARGEST = 1 << 18


class Gone(ConnectionResetError):
    """The supervisor closed the connection: nobody waits for the exchange any more.

    An application sees it as the OSError that a lost client is.
    """


class Connection:
    """A greeted connection. Bytes lo to hi of buffer are read and not yet used.

    gone is True once the other end has left; nothing is sent from then on.
    """

    def __init__(self, sock):
        self.sock = sock
        self.buffer = bytearray(_BUFFER)
        self.view = memoryview(self.buffer)
        self.lo = self.hi = 0
        self.gone = False

    def send(self, data):
        """Sends all of data, however often the kernel takes only a part."""
        if self.gone:
            raise Gone("the client has left")
        try:
            self.sock.sendall(data)
        except OSError as error:
            self._lost(error)

    def send_two(self, head, data):
        """Sends head and then data, which is large, without copying data."""
        if self.gone:
            raise Gone("the client has left")
        try:
            sent = self.sock.sendmsg((head, data)) - len(head)
            if sent < 0:
                self.sock.sendall(head[sent:])
                sent = 0
            if sent < len(data):
                self.sock.sendall(memoryview(data)[sent:])
        except OSError as error:
            self._lost(error)

    def fill(self, need):
        """Waits until need bytes, or more, are in the buffer at lo."""
        if self.lo == self.hi:
            self.lo = self.hi = 0
        if self.lo + need > len(self.buffer):
            unread = bytes(self.view[self.lo:self.hi])
            if need > len(self.buffer):
                self.buffer = bytearray(need + _BUFFER)
                self.view = memoryview(self.buffer)
            self.lo, self.hi = 0, len(unread)
            self.view[:self.hi] = unread
        while self.hi - self.lo < need:
            self.hi += self._received(self.sock.recv_into, self.view[self.hi:])

    def receive(self, size):
        """Returns 1 to size bytes from the socket. The buffer is empty."""
        return self._received(self.sock.recv, size)

    def fill_request(self):
        """Waits for the head of a REQUEST, and refuses any other frame as soon as it has its header."""
        self.fill(HEADER.size)
        check_request(self.buffer, self.lo)
        self.fill(REQUEST_HEAD.size)

    def next_body(self):
        """Reads the header of the next BODY frame and returns its length and flags."""
        if self.hi - self.lo < HEADER.size:
            self.fill(HEADER.size)
        kind, flags, _, length = parse_header(self.buffer, self.lo)
        if kind != BODY:
            raise ProtocolError("frame of type %d where a BODY was due" % kind)
        self.lo += HEADER.size
        return length, flags

    def close(self):
        self.gone = True
        self.sock.close()

    def _received(self, receive, argument):
        if self.gone:
            raise Gone("the client has left")
        while True:
            try:
                received = receive(argument)
            except BlockingIOError:  # the socket's receive timeout, which is for idle workers
                continue
            except OSError as error:
                self._lost(error)
            if received:
                return received
            self.gone = True
            raise Gone("the client left before the request was complete")

    def _lost(self, error):
        self.gone = True
        raise Gone(*error.args) from error


class Empty:
    """wsgi.input of a request without a body; one serves all."""

    __slots__ = ()

    def read(self, size=-1):
        return b""

    def readline(self, size=-1):
        return b""

    def readlines(self, hint=-1):
        return []

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration


class Input:
    """wsgi.input of a request with a body: it is read from the connection as the application asks for it.

    It ends where the body ends, whatever CONTENT_LENGTH says. When the client
    leaves before that, reading raises Gone.
    """

    __slots__ = ("_connection", "_left", "_last")

    def __init__(self, connection, left, last):
        self._connection = connection
        self._left = left  # bytes of the present frame that were not read yet
        self._last = last  # no frame follows the present one

    def read(self, size=-1):
        if size is None or size < 0:
            size = maxsize
        parts = []
        while size > 0:
            part = self._part(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readline(self, size=-1):
        if size is None or size < 0:
            size = maxsize
        parts = []
        while size > 0:
            here = min(self._available(), size)
            if not here:
                break
            connection = self._connection
            found = connection.buffer.find(b"\n", connection.lo, connection.lo + here)
            if found >= 0:
                parts.append(self._take(found + 1 - connection.lo))
                break
            parts.append(self._take(here))
            size -= here
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readlines(self, hint=-1):
        if hint is None or hint <= 0:
            hint = maxsize
        lines = []
        while hint > 0:
            line = self.readline()
            if not line:
                break
            lines.append(line)
            hint -= len(line)
        return lines

    def __iter__(self):
        return self

    def __next__(self):
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def end(self):
        """Reads and drops what the application left, and lets go of the connection."""
        connection = self._connection
        while True:
            here = min(self._left, connection.hi - connection.lo)
            connection.lo += here
            self._left -= here
            if self._left:
                connection.fill(1)
            elif self._last:
                break
            else:
                self._left, flags = connection.next_body()
                self._last = flags & FLAG_LAST
        self.detach()

    def detach(self):
        """Makes sure that an application which kept this object can't read another request by it."""
        self._connection = None

    def _available(self):
        """Returns how many bytes can be taken from the buffer, after waiting for one; 0: the body has ended."""
        while not self._left:
            if self._last:
                return 0
            self._next_frame()
        connection = self._exchange()
        if connection.lo == connection.hi:
            connection.fill(1)
        return min(self._left, connection.hi - connection.lo)

    def _part(self, size):
        """Returns 1 to size bytes, or none at the body's end."""
        connection = self._connection
        if self._left >= _LARGE <= size and connection is not None and connection.lo == connection.hi:
            data = connection.receive(min(size, self._left, _LARGEST))
            self._left -= len(data)
            return data
        return self._take(min(self._available(), size))

    def _take(self, size):
        if not size:
            return b""
        connection = self._connection
        start = connection.lo
        connection.lo = start + size
        self._left -= size
        return bytes(connection.view[start:start + size])

    def _next_frame(self):
        self._left, flags = self._exchange().next_body()
        self._last = flags & FLAG_LAST
        if flags & FLAG_CUT:
            raise ConnectionAbortedError("the rest of the request's body was given up: its answer is complete")

    def _exchange(self):
        if self._connection is None:
            raise ValueError("read from wsgi.input after its request has ended")
        return self._connection
