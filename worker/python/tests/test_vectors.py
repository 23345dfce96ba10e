"""The examples of protocol/testdata, which the Go side runs too."""

import json
import pathlib
import socket
import sys
import unittest

from supervisor import HERE, Host, environ

sys.path.insert(0, str(HERE.parent))

from _fpmd import answer, wire  # noqa: E402
from _fpmd.connection import Connection, Gone  # noqa: E402

VECTORS = json.loads((pathlib.Path(HERE).parents[2] / "protocol" / "testdata" / "vectors.json").read_text())
KINDS = {name: getattr(wire, name) for name in (
    "REQUEST", "BODY", "GREETING", "RESPONSE", "DATA", "CUT", "WITHDRAWN")}
FLAGS = {"LAST": wire.FLAG_LAST, "CUT": wire.FLAG_CUT, "FAILED": wire.FLAG_FAILED}


def flags_of(frame):
    return sum(FLAGS[name] for name in frame["flags"])


class Recorder:
    """A connection that keeps what an answer sends."""

    def __init__(self):
        self.sent = b""

    def send(self, data):
        self.sent += data


def encoded(frame):
    """A frame to the supervisor, as the host writes it."""
    kind, flags, body = frame["type"], flags_of(frame), frame.get("body", "").encode("latin-1")
    recorder = Recorder()
    one = answer.Answer(recorder, frame.get("number", 0), False, "")
    if kind == "GREETING":
        return wire.HEADER.pack(wire.GREETING, 0, wire.VERSION, 0)
    if kind == "WITHDRAWN":
        return wire.WITHDRAWN_FRAME.pack(wire.WITHDRAWN, 0, 0, 8, frame["number"])
    if kind == "CUT":
        return wire.HEADER.pack(wire.CUT, flags, frame["aux"], 0)
    if kind == "RESPONSE":
        one.code = frame["aux"]
        one._response(frame["block"].encode("latin-1"), body, flags)
    else:
        one._data(body, flags)
    return recorder.sent


def decoded(data):
    """A frame to the worker, read by the functions that the host reads it by, in the form of a vector's frame."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        connection = Connection(ours)
        if data[0] == wire.BODY:
            length, flags = connection.next_body()
            found = {"type": "BODY", "aux": 0}
        else:
            connection.fill_request()
            flags, slot, length, number, size = wire.parse_request(connection.buffer, connection.lo)
            connection.fill(wire.REQUEST_HEAD.size + size)
            start = connection.lo + wire.REQUEST_HEAD.size
            variables = wire.environ_from(connection.view[start:start + size])
            connection.lo = start + size
            found = {"type": "REQUEST", "aux": slot, "number": number,
                     "environ": [list(pair) for pair in variables.items()]}
        left = length - (wire.REQUEST_HEAD.size - wire.HEADER.size + size if found["type"] == "REQUEST" else 0)
        connection.fill(left)
        found.update(flags=[name for name, bit in FLAGS.items() if flags & bit], length=length,
                     body=bytes(connection.view[connection.lo:connection.lo + left]).decode("latin-1"))
        return found


class Vectors(unittest.TestCase):
    def test_frames(self):
        for vector in VECTORS["frames"]:
            data = bytes.fromhex(vector["hex"])
            with self.subTest(vector["name"]):
                if vector["to"] == "worker":
                    if vector.get("error"):
                        self.assertRaises(wire.ProtocolError, decoded, data)
                    else:
                        self.assertEqual(decoded(data), vector["frame"])
                elif not vector.get("error"):
                    self.assertEqual(encoded(vector["frame"]).hex(), vector["hex"])

    def test_environs(self):
        for vector in VECTORS["environs"]:
            data = bytes.fromhex(vector["hex"])
            with self.subTest(vector["name"]):
                if vector.get("error"):
                    self.assertRaises(wire.ProtocolError, wire.environ_from, data)
                else:
                    self.assertEqual(list(map(list, wire.environ_from(data).items())), vector["variables"])

    def test_header_blocks(self):
        for vector in VECTORS["header_blocks"]:
            if vector.get("error"):
                continue  # the host only writes them
            with self.subTest(vector["name"]):
                code, block, _ = answer._header_block("%d %s" % (vector["status"], vector["reason"]),
                                                      [tuple(field) for field in vector["fields"]])
                self.assertEqual((code, (block + b"\r\n").hex()), (vector["status"], vector["hex"]))

    def test_conversations(self):
        hosts = {}
        for vector in VECTORS["conversations"]:
            name = vector["application"]
            if name not in hosts:
                hosts[name] = Host("apps:vector_" + name)
                self.addCleanup(hosts[name].close)
            with self.subTest(vector["name"]):
                self.converse(hosts[name], vector["steps"])

    def converse(self, host, steps):
        host.page[0] = host.page[1] = 0
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(host.address)
            stream = sock.makefile("rb")
            for number, step in enumerate(steps):
                with self.subTest(step=number):
                    if step["from"] == "supervisor":
                        if step.get("close"):
                            sock.shutdown(socket.SHUT_WR)
                        elif "page" in step:
                            host.page[2 * step["page"]["slot"] + 1] = step["page"]["withdrawn"]
                        else:
                            sock.sendall(bytes.fromhex(step["hex"]))
                    elif step.get("close"):
                        try:
                            self.assertEqual(stream.read(1), b"")
                        except ConnectionResetError:
                            pass
                    elif "hex" in step:
                        want = bytes.fromhex(step["hex"])
                        self.assertEqual(stream.read(len(want)).hex(), want.hex())
                    else:
                        frame, = step["frames"]
                        kind, flags, aux, length = wire.parse_header(stream.read(wire.HEADER.size))
                        stream.read(length)
                        self.assertEqual((kind, flags, aux), (KINDS[frame["type"]], flags_of(frame), frame["aux"]))
            if not any(step.get("close") for step in steps):
                block = b"".join(("%s\0%s\0" % pair).encode("latin-1") for pair in environ().items())
                sock.sendall(wire.REQUEST_HEAD.pack(wire.REQUEST, wire.FLAG_LAST, 0, 12 + len(block), 99, len(block))
                             + block)
                self.assertEqual(wire.parse_header(stream.read(wire.HEADER.size))[0], wire.RESPONSE)
            stream.close()


class ShortFrames(unittest.TestCase):
    def test_a_lost_connection_is_no_breach(self):
        self.assertRaises(Gone, decoded, b"\1\1\0\0")


if __name__ == "__main__":
    unittest.main()
