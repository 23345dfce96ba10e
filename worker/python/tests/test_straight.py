"""The straight path: what a small exchange costs in system calls, counted at the socket."""

import pathlib
import sys
import types
import unittest

from supervisor import environ, frame, request_frame, BODY, LAST

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from _fpmd import sync  # noqa: E402
from _fpmd.connection import Connection  # noqa: E402


class Socket:
    """A socket that hands out what it was given, one piece for each call, and keeps a list of calls."""

    def __init__(self, pieces, takes=None):
        self.pieces = list(pieces)
        self.takes = takes  # how many bytes a sendmsg takes; None: all
        self.calls = []
        self.sent = b""

    def recv_into(self, buffer):
        self.calls.append("recv")
        piece = self.pieces.pop(0) if self.pieces else b""
        buffer[:len(piece)] = piece
        return len(piece)

    def sendall(self, data):
        self.calls.append("send")
        self.sent += data

    def sendmsg(self, parts):
        self.calls.append("sendmsg")
        data = b"".join(parts)[:self.takes]
        self.sent += data
        return len(data)


def serve(sock, body):
    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        environ["wsgi.input"].read()
        return body

    worker = types.SimpleNamespace(application=application, page=[0] * 4, environ={}, stopping=False, forked=False)
    sync._serve(worker, Connection(sock))


class StraightPath(unittest.TestCase):
    def test_system_calls(self):
        get = request_frame(1, environ())
        post = request_frame(1, environ("POST"), b"x" * 1000)
        for name, pieces, body, want in [
            ("small", [get], [b"hello"], ["recv", "send"]),
            ("empty", [get], [], ["recv", "send"]),
            ("several blocks", [get], [b"a", b"b"], ["recv", "send"]),
            ("body in the frame", [post], [b"hello"], ["recv", "send"]),
            ("two at once", [get + get], [b"hello"], ["recv", "send", "send"]),
            ("body behind it", [request_frame(1, environ(), last=False) + frame(BODY, LAST, 0, b"x")], [b"y"],
             ["recv", "send"]),
            ("large", [get], [b"x" * (8 << 20)], ["recv", "sendmsg"]),
        ]:
            with self.subTest(name):
                sock = Socket(pieces)
                serve(sock, body)
                self.assertEqual(sock.calls, want + ["recv"])  # the last one waits for the next request

    def test_partial_sends_lose_nothing(self):
        whole = Socket([request_frame(1, environ())])
        body = bytes(range(256)) * 1024
        serve(whole, [body])
        for takes in (0, 1, 11, 12, 50, 90, 100, 1000, len(whole.sent) - 1):
            with self.subTest(takes=takes):
                sock = Socket([request_frame(1, environ())], takes)
                serve(sock, [body])
                self.assertEqual(sock.sent, whole.sent)


if __name__ == "__main__":
    unittest.main()
