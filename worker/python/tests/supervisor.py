"""The supervisor's side of the exchange, as far as the tests of the host need it."""

import io
import mmap
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
COOKIE = "0f7c4d6a-fcb1-4e0f-9d27-exchange"
REQUEST, BODY, GREETING, RESPONSE, DATA, CUT, WITHDRAWN = 1, 2, 16, 17, 18, 19, 20
LAST, CUT_SHORT, FAILED = 1, 2, 4
LIMIT = 30  # seconds after which a test that waits in vain fails


def archive():
    """The host as Archive of host.go makes it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for path in [HERE.parent / "__main__.py", *sorted((HERE.parent / "_fpmd").glob("*.py"))]:
            z.write(path, path.relative_to(HERE.parent))
    return data.getvalue()


def environ(method="GET", path="/", **extra):
    """What nginx sends for a request, as normalised by the supervisor."""
    names = {
        "REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "REQUEST_URI": path, "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "example.org", "SERVER_PORT": "80", "REQUEST_SCHEME": "http",
        "GATEWAY_INTERFACE": "CGI/1.1", "SERVER_SOFTWARE": "nginx/1.22.1", "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "40000", "HTTP_HOST": "example.org", "HTTP_USER_AGENT": "curl/7.88.1", "HTTP_ACCEPT": "*/*",
        "REQUEST_ID": "0123456789abcdef",
    }
    names.update(extra)
    return {name: value for name, value in names.items() if value is not None}


def frame(kind, flags, aux, payload=b""):
    return struct.pack("<BBHI", kind, flags, aux, len(payload)) + payload


def request_frame(number, names, body=b"", last=True, slot=0):
    block = b"".join(n.encode("latin-1") + b"\0" + v.encode("latin-1") + b"\0" for n, v in names.items())
    return frame(REQUEST, LAST if last else 0, slot, struct.pack("<QI", number, len(block)) + block + body)


class Log:
    """What a worker wrote to one of its descriptors, read as it comes."""

    def __init__(self, descriptor):
        self.data = b""
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, args=(descriptor,), daemon=True)
        self._thread.start()

    def _read(self, descriptor):
        with open(descriptor, "rb", buffering=0) as f:
            while True:
                part = f.read(65536)
                with self._changed:
                    self.data += part
                    self._ended = not part
                    self._changed.notify_all()
                if not part:
                    return

    def wait(self, text):
        """Waits until text was written, and returns everything."""
        with self._changed:
            if not self._changed.wait_for(lambda: text.encode() in self.data or self._ended, LIMIT) \
                    or text.encode() not in self.data:
                raise AssertionError("%r not in the log:\n%s" % (text, self.data.decode()))
            return self.data.decode()

    def whole(self):
        """Waits until the process has ended, and returns everything."""
        self._thread.join(LIMIT)
        return self.data.decode()


class Host:
    """One worker process. spec is what it serves, from directory."""

    def __init__(self, spec, directory=HERE, python=sys.executable, start=True, **settings):
        self.folder = tempfile.mkdtemp()
        self._listener = socket.socket(socket.AF_UNIX)
        self.address = os.path.join(self.folder, "worker.sock")
        self._listener.bind(self.address)
        self._listener.listen(8)
        self._handshake, handshake = os.pipe()
        lifeline, self._lifeline = os.pipe()
        page = os.memfd_create("page")
        os.ftruncate(page, 4096)
        self.page = memoryview(mmap.mmap(page, 4096)).cast("Q")
        host = os.memfd_create("host")
        os.write(host, archive())
        out, stdout = os.pipe()
        err, stderr = os.pipe()
        environment = {
            "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "FPMD_WORKER": COOKIE, "FPMD_PROTOCOL_VERSIONS": "1",
            "FPMD_LISTEN_FD": str(self._listener.fileno()), "FPMD_HANDSHAKE_FD": str(handshake),
            "FPMD_PAGE_FD": str(page), "FPMD_LIFELINE_FD": str(lifeline), "FPMD_THREADS": "1", "FPMD_POOL": "test",
            "FPMD_WORKER_ID": "1", "FPMD_DEBUG": "0", "FPMD_HOST_FD": str(host), "FPMD_DIRECTORY": str(directory),
        }
        environment.update(settings)
        environment = {name: value for name, value in environment.items() if value is not None}
        inherited = [self._listener.fileno(), handshake, page, lifeline, host]
        self.process = subprocess.Popen(
            [python, "-B", "/proc/self/fd/%d" % host, spec], cwd=directory, env=environment, pass_fds=inherited,
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True)
        for descriptor in (handshake, lifeline, page, host, stdout, stderr):
            os.close(descriptor)
        self._listener.close()
        self.stdout, self.stderr = Log(out), Log(err)
        self.number = 0
        if start:
            self.handshake = self.read_handshake()
            if not self.handshake:
                raise AssertionError("no handshake:\n" + self.stderr.whole())

    def read_handshake(self):
        with open(self._handshake, "rb") as f:
            self._handshake = None
            return f.read()

    def dial(self):
        """Connects a slot and waits for its greeting."""
        return Slot(self)

    def exchange(self, names, body=b""):
        """One exchange on a connection of its own."""
        with self.dial() as slot:
            return slot.exchange(names, body)

    def get(self, path, **extra):
        return self.exchange(environ("GET", path, **extra))

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        return self.process.wait(LIMIT)

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._lifeline)
        if self._handshake is not None:
            os.close(self._handshake)
        shutil.rmtree(self.folder)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Answer:
    """What came back: the frames as (type, flags, aux, payload), and what they amount to."""

    def __init__(self, frames):
        self.frames = frames
        self.kinds = [kind for kind, *_ in frames]
        kind, self.flags, self.code, payload = frames[0]
        self.cut = self.kinds[-1] == CUT
        self.echo = frames[-1][2] if self.cut else None
        self.block = self.body = b""
        if kind == RESPONSE:
            size, self.echo = struct.unpack_from("<HH", payload)
            self.block, self.body = payload[4:4 + size], payload[4 + size:]
        self.body += b"".join(payload for kind, _, _, payload in frames[1:] if kind == DATA)
        self.lines = self.block.decode("latin-1").split("\r\n")[:-2]
        self.headers = dict(line.split(": ", 1) for line in self.lines)

    @property
    def text(self):
        return self.body.decode()


class Slot:
    """One connection to a worker."""

    def __init__(self, host):
        self.host = host
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        self.sock.connect(host.address)
        self._stream = self.sock.makefile("rb")
        self.greeting = self.frame()

    def frame(self):
        """Reads one frame; None at the end of the connection."""
        try:
            head = self._stream.read(8)
            if len(head) < 8:
                return None
            kind, flags, aux, length = struct.unpack("<BBHI", head)
            return kind, flags, aux, self._stream.read(length)
        except ConnectionResetError:
            return None

    def send(self, data):
        self.sock.sendall(data)

    def request(self, names, body=b"", last=True):
        """Sends a REQUEST and returns its number."""
        self.host.number += 1
        self.send(request_frame(self.host.number, names, body, last))
        return self.host.number

    def body(self, data=b"", last=False, cut=False):
        self.send(frame(BODY, (LAST if last else 0) | (CUT_SHORT if cut else 0), 0, data))

    def answer(self):
        """Reads one whole answer."""
        frames = []
        while True:
            one = self.frame()
            if one is None:
                raise AssertionError("connection ended after %r; log:\n%s" % (
                    frames, self.host.stderr.data.decode()))
            frames.append(one)
            if one[0] in (CUT, WITHDRAWN) or one[1] & LAST:
                return Answer(frames)

    def exchange(self, names, body=b""):
        number = self.request(names, body)
        answer = self.answer()
        if answer.echo != number & 0xFFFF:
            raise AssertionError("answer to exchange %s, want %d" % (answer.echo, number))
        return answer

    def ended(self):
        """Reports that the worker closes the connection without another frame."""
        return self.frame() is None

    def close(self):
        self._stream.close()
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
