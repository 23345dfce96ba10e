"""The host's reading of a connection, for FuzzHost and FuzzHostEnviron of fuzz_test.go.

It takes one conversation after the other from standard input, each as REQUEST
says and then its bytes, and answers each with a line of JSON: the exchanges
that an application was called for, and how the connection ended.
"""

import json
import pathlib
import struct
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from _fpmd import sync  # noqa: E402
from _fpmd.connection import Connection, Gone  # noqa: E402
from _fpmd.wire import ProtocolError  # noqa: E402

CONVERSATION = struct.Struct("<IIB")  # length, where it is split between two reads, how the application reads


class Socket:
    """A socket whose other end sends stream, in two pieces, and then its end."""

    def __init__(self, stream, split):
        self.pieces = [piece for piece in (stream[:split], stream[split:]) if piece]

    def recv(self, size):
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if len(piece) > size:
            self.pieces.insert(0, piece[size:])
        return piece[:size]

    def recv_into(self, buffer):
        piece = self.recv(len(buffer))
        buffer[:len(piece)] = piece
        return len(piece)

    def sendall(self, data):
        pass

    def sendmsg(self, parts):
        return sum(map(len, parts))


def whole(body):
    yield body.read()


def parts(body):
    part = body.read(7)
    while part:
        yield part
        part = body.read(7)


def lines(body):
    line = body.readline()
    while line:
        yield line
        line = body.readline(5)


def list_of_lines(body):
    yield b"".join(body.readlines())


def unread(body):
    return iter(())


WAYS = [whole, parts, lines, list_of_lines, iter, unread]


def converse(stream, split, way):
    served = []

    def application(environ, start_response):
        body, end = b"", "unread" if way is unread else "whole"
        try:
            for part in way(environ["wsgi.input"]):
                body += part
        except ConnectionAbortedError:
            end = "cut"
        except Gone:
            end = "gone"
        except ProtocolError:
            end = "broken"
        served.append({
            "Number": worker.page[0], "Body": body.hex(), "End": end,
            "Environ": {name.encode("latin-1").hex(): value.encode("latin-1").hex()
                        for name, value in environ.items() if not name.startswith("wsgi.")},
        })
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    worker = types.SimpleNamespace(
        application=application, page=[0, 0], environ={}, stopping=False, forked=False, debug=False)
    try:
        sync._serve(worker, Connection(Socket(stream, split)))
    except Gone:
        pass
    except ProtocolError as error:
        return {"Served": served, "Broken": str(error)}
    return {"Served": served, "Broken": ""}


def main():
    while True:
        head = sys.stdin.buffer.read(CONVERSATION.size)
        if not head:
            return
        length, split, way = CONVERSATION.unpack(head)
        found = converse(sys.stdin.buffer.read(length), split, WAYS[way % len(WAYS)])
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
