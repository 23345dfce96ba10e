"""One answer: start_response, write, and the body that the application returns."""

import os
import re
from stat import S_ISREG
from time import perf_counter

from . import report
from .wire import CUT, DATA, FLAG_FAILED, FLAG_LAST, HEADER, MAX_HEADER_BLOCK, MAX_PAYLOAD, RESPONSE, RESPONSE_HEAD

# A body below this is copied behind its header and leaves by send, which costs
# less than sendmsg; above it the copy would cost more.
_COPIED = 1 << 15
# A regular file is read in parts of this size, whatever the application asked for.
_FILE_PART = 1 << 18

_CRLF = b"\r\n"
# What may stand in a header block's values: everything but control characters.
_PRINTABLE = bytes([9, *range(32, 127), *range(128, 256)])
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS = re.compile(r"([2-5][0-9][0-9]) [\t\x20-\x7e\x80-\xff]*")

_HOP_BY_HOP = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "trailers", "transfer-encoding", "upgrade"))

# An application uses the same few statuses and headers again and again, so what
# was checked and encoded is remembered. Where data make them differ, all is
# forgotten when there are too many.
_REMEMBERED = 512
_REMEMBERED_LINE = 256  # bytes of the longest
_statuses = {}  # status: (code, its line)
_names = {}  # name: whether it is Content-Length
_lines = {}  # (name, value): (its line, the length that it says or None)


class Answer:
    """What start_response and write belong to, until the answer has ended.

    An answer is started once its RESPONSE was sent, and ended once LAST or CUT was.
    """

    code = 0
    block = None  # the header block without the empty line at its end; None before start_response
    length = None  # Content-Length as the application gave it
    left = None  # how much of it is still to come, once started
    started = False
    ended = False
    hold = False  # LAST goes out by itself, when the application has nothing more to do
    excess = 0
    completed = None  # when the client had all of a streamed answer whose length is known

    def __init__(self, connection, number, head, request_id):
        self.connection = connection
        self.echo = number & 0xFFFF
        self.head = head
        self.request_id = request_id  # before the application has the environ, which it may alter

    def start_response(self, status, headers, exc_info=None):
        if exc_info:
            try:
                if self.started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no cycle through this frame
        elif self.block is not None:
            raise AssertionError("start_response was called a second time, without exc_info")
        self.code, self.block, self.length = _header_block(status, headers)
        return self.write

    def write(self, data):
        """The write callable of PEP 3333."""
        if type(data) is not bytes:
            raise TypeError("write() takes bytes, got %s" % type(data).__name__)
        if self.connection is None:
            raise ValueError("write() after its request has ended")
        self.send(data)

    def whole(self, blocks):
        """Sends the answer whose body is blocks, a list or tuple with all of it."""
        if len(blocks) == 1:
            data = blocks[0]
            if type(data) is not bytes:
                raise _wrong_block(data)
        else:
            for data in blocks:
                if type(data) is not bytes:
                    raise _wrong_block(data)
            data = b"".join(blocks)
        if self.started:
            self.send(data)
            self.finish()
            return
        block = self.block
        if block is None:
            raise _not_started()
        size = len(data)
        if self.head or self.code == 204 or self.code == 304 or self.length is not None and self.length != size:
            if self.length is None and self.head and size and self.code not in (204, 304):
                self.block = block + b"Content-Length: %d\r\n" % size
            self.finish(data)
            return
        if self.length is None:
            block += b"Content-Length: %d\r\n\r\n" % size
        else:
            block += _CRLF
        if size < _COPIED:
            self._at_once(block, data)
            return
        self._response(block, data, FLAG_LAST)

    def stream(self, result):
        """Sends the answer whose body is the iterable result, each block when the application yields it."""
        kind = type(result)
        if kind is str or kind is bytes or not (hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")):
            raise TypeError("the application returned %s, not an iterable of bytes%s" % (
                kind.__name__, "; return [body] for a body" if kind is bytes else ""))
        for data in result:
            if type(data) is not bytes:
                raise _wrong_block(data)
            if not data:
                continue
            if not self.started and self.length is None and _is_one_block(result):
                self._supply_length(len(data))
            self.send(data)
            if self.excess:
                return

    def send(self, data):
        """Sends a block of the body, and the header block before the first that is not empty."""
        if not data:
            return
        if not self.started:
            block = self.block
            if block is None:
                raise _not_started()
            block += _CRLF
            if self.head or self.code == 204 or self.code == 304:
                self.completed = perf_counter()
                self._response(block, b"", 0 if self.hold else FLAG_LAST)
                return
            length = self.length
            size = len(data)
            if length == size < _COPIED and not self.hold:  # most answers: one block, whose length is known
                self.completed = perf_counter()
                self.left = 0
                self._at_once(block, data)
                return
            self.left = length
            data, flags = self._bounded(data)
            self._response(block, data, flags)
            return
        if self.head or self.code == 204 or self.code == 304:
            return
        if self.ended:
            self._exceeded(len(data))
            return
        data, flags = self._bounded(data)
        if data:
            self._data(data, flags)

    def finish(self, data=b""):
        """Ends the answer, after data, when the application has nothing more to say.

        An answer shorter than its Content-Length is cut, so that the client sees it.
        """
        if data:
            self.send(data)
        if self.ended:
            return
        bodiless = self.head or self.code == 204 or self.code == 304
        if not self.started:
            if self.block is None:
                raise _not_started()
            if not bodiless and self.length:
                self.left = self.length
                self._response(self.block + _CRLF, b"", 0)
            else:
                if not bodiless:
                    self._supply_length(0)
                self._response(self.block + _CRLF, b"", FLAG_LAST)
                return
        if self.left and not bodiless:
            self.cut()
            report.line("fpmd: answer cut: the application sent %d of the %d bytes of its Content-Length" % (
                self.length - self.left, self.length))
            return
        self.ended = True
        self.connection.send(HEADER.pack(DATA, FLAG_LAST, 0, 0))

    def cut(self):
        """Ends the answer visibly incomplete, because the application failed."""
        self.ended = True
        self.connection.send(HEADER.pack(CUT, FLAG_FAILED, self.echo, 0))

    def fail(self, page):
        """Answers 500 with page, in place of whatever the application had in mind."""
        # As the supervisor's own pages, in manager/outcome.go.
        block = b"Status: 500 Internal Server Error\r\nContent-Type: text/plain; charset=utf-8\r\n" \
                b"Cache-Control: no-store\r\nContent-Length: %d\r\n" \
                b"Fpmd-Outcome: app_error\r\nFpmd-Request-Id: %s\r\n\r\n" % (
                    len(page), self.request_id.encode("latin-1"))
        self.code = 500
        self._response(block, b"" if self.head else page, FLAG_LAST | FLAG_FAILED)

    def _bounded(self, data):
        """Returns the part of data that Content-Length allows, and LAST if that completes the answer."""
        if self.left is None:
            return data, 0
        over = len(data) - self.left
        if over > 0:
            self._exceeded(over)
            data = data[:self.left]
        self.left -= len(data)
        if self.left:
            return data, 0
        if self.completed is None:
            self.completed = perf_counter()
        return data, 0 if self.hold else FLAG_LAST

    def _exceeded(self, size):
        if not self.excess:
            report.line("fpmd: the application sent more than the %d bytes of its Content-Length; the rest is dropped"
                        % (self.length or 0))
        self.excess += size

    def _supply_length(self, size):
        # A second Content-Length can't come of it: start_response replaces the block.
        if self.length is None and self.block is not None and not (self.head or self.code == 204 or self.code == 304):
            self.block += b"Content-Length: %d\r\n" % size
            self.length = size

    def _at_once(self, block, data):
        """Sends an answer whose body is data, which is small, all of it in one frame."""
        self.started = self.ended = True
        length = len(block)
        self.connection.send(
            RESPONSE_HEAD.pack(RESPONSE, FLAG_LAST, self.code, 4 + length + len(data), length, self.echo) + block + data)

    def _response(self, block, data, flags):
        size = len(data)
        room = MAX_PAYLOAD - 4 - len(block)
        rest = None
        if size > room:
            data, rest = memoryview(data)[:room], memoryview(data)[room:]
            size = room
        now = flags if rest is None else flags & ~FLAG_LAST
        head = RESPONSE_HEAD.pack(RESPONSE, now, self.code, 4 + len(block) + size, len(block), self.echo) + block
        self.started = True
        self._frame(head, data, now)
        if rest is not None:
            self._data(rest, flags & FLAG_LAST)

    def _data(self, data, flags):
        size = len(data)
        if size > MAX_PAYLOAD:
            data = memoryview(data)
            while len(data) > MAX_PAYLOAD:
                self._frame(HEADER.pack(DATA, 0, 0, MAX_PAYLOAD), data[:MAX_PAYLOAD], 0)
                data = data[MAX_PAYLOAD:]
            size = len(data)
        self._frame(HEADER.pack(DATA, flags, 0, size), data, flags)

    def _frame(self, head, data, flags):
        if flags & FLAG_LAST:
            self.ended = True
        if len(data) < _COPIED:
            self.connection.send(head + data)
        else:
            self.connection.send_two(head, data)


class FileWrapper:
    """wsgi.file_wrapper: the blocks of a file-like object. Closing it closes the object."""

    def __init__(self, filelike, block_size=8192):
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close
        try:
            # A pipe keeps the block size: a larger one would wait for more.
            if S_ISREG(os.fstat(filelike.fileno()).st_mode):
                self.block_size = max(block_size, _FILE_PART)
        except (AttributeError, OSError, TypeError, ValueError):
            pass

    def __iter__(self):
        return self

    def __next__(self):
        data = self.filelike.read(self.block_size)
        if data:
            return data
        raise StopIteration


def _header_block(status, headers):
    """Returns the code, the header block but for its last line, and Content-Length or None."""
    if type(status) is not str:
        raise TypeError("status must be a str, got %s" % type(status).__name__)
    code, line = _statuses.get(status) or _checked_status(status)
    if type(headers) is not list:
        raise TypeError("headers must be a list of (name, value) tuples, got %s" % type(headers).__name__)
    length = None
    lines = [line]
    for header in headers:
        try:
            known = _lines.get(header) if type(header) is tuple else None
        except Exception:  # it can't be a key, or compares in a way of its own
            known = None
        line, number = known or _checked_header(header)
        lines.append(line)
        if number is not None:
            if length is not None:
                raise ValueError("Content-Length is given twice: %d and %d" % (length, number))
            length = number
    block = b"".join(lines)
    # Room for the Content-Length that the host may add, and the empty line.
    if len(block) > MAX_HEADER_BLOCK - 48:
        raise ValueError("header block of %d bytes, at most %d" % (len(block), MAX_HEADER_BLOCK - 48))
    return code, block, length


def _checked_status(status):
    match = _STATUS.fullmatch(status)
    if not match:
        raise ValueError("status is %r, want three digits (200 to 599), a space and a reason "
                         "of printable latin-1 characters" % status)
    line = ("Status: %s\r\n" % status).encode("latin-1")
    return _remember(_statuses, status, (int(match.group(1)), line), len(line))


def _checked_header(header):
    """Returns the line of a header, and the number of bytes that it says if it is Content-Length."""
    if not isinstance(header, tuple) or len(header) != 2:
        raise TypeError("header must be a (name, value) tuple, got %r" % (header,))
    name, value = tuple.__iter__(header)
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError("name and value of a header must be str, got %r" % (header,))
    plain = type(header) is tuple and type(name) is str and type(value) is str
    # Of a subclass, what it holds counts, and not what its methods say.
    name, value = str.__str__(name), str.__str__(value)
    is_length = _names.get(name)
    if is_length is None:
        is_length = _checked_name(name)
    number = None
    if is_length:
        if not (value.isascii() and value.isdigit() and len(value) < 20):
            raise ValueError("Content-Length is %r, not a number of bytes" % value)
        number = int(value)
    try:
        encoded = value.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError("header %s: %r has a character beyond latin-1" % (name, value)) from None
    refused = encoded.translate(None, _PRINTABLE)
    if refused:
        raise ValueError("header %s: %r has the control character %r" % (name, value, chr(refused[0])))
    line = b"%s: %s\r\n" % (name.encode("ascii"), encoded)
    return _remember(_lines, header, (line, number), len(line)) if plain else (line, number)


def _checked_name(name):
    if not _TOKEN.fullmatch(name):
        raise ValueError("header name %r is not a token (RFC 9110 section 5.6.2)" % name)
    lower = name.lower()
    if lower in _HOP_BY_HOP:
        raise ValueError("header %s is hop-by-hop, the web server's own (PEP 3333)" % name)
    if lower == "status":
        raise ValueError("header Status is not allowed: the status is start_response's first argument")
    return _remember(_names, name, lower == "content-length", len(name))


def _remember(known, key, value, size):
    if size <= _REMEMBERED_LINE:
        if len(known) >= _REMEMBERED:
            known.clear()
        known[key] = value
    return value


def _wrong_block(data):
    return TypeError("the application's iterable yielded %s, not bytes" % type(data).__name__)


def _not_started():
    return AssertionError("the application did not call start_response before its body's first block, or its end")


def _is_one_block(result):
    try:
        return len(result) == 1
    except Exception:  # most iterables have no len, and one that fails is as good as none
        return False


