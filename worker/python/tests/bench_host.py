"""Prints the µs that one small exchange takes: bench_host.py [APPLICATION] [COUNT].

Wall time at one connection, and the worker's own CPU time (user + system).
"""

import os
import sys
import time

from supervisor import Host, environ, request_frame


def cpu(pid):
    with open("/proc/%d/schedstat" % pid) as f:
        return int(f.read().split()[0]) / 1e3


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "hello"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    with Host("apps:" + name) as host, host.dial() as slot:
        names = environ("GET", "/", **{"HTTP_X_%d" % i: "some value %d" % i for i in range(11)})
        request = request_frame(1, names)
        size = 0
        slot.send(request)
        while not size:
            kind, flags, _, payload = slot.frame()
            size = 8 + len(payload)
            assert flags == 1, "bench wants an answer of one frame"
        buffer = bytearray(size)
        for _ in range(3):
            start, used = time.perf_counter(), cpu(host.process.pid)
            for _ in range(count):
                slot.sock.send(request)
                got = slot.sock.recv_into(buffer)
                while got < size:
                    got += slot.sock.recv_into(buffer)
            wall = (time.perf_counter() - start) * 1e6 / count
            print("%s: %d exchanges, request %d bytes, answer %d bytes: %.1f µs wall, %.1f µs worker CPU" % (
                name, count, len(request), size, wall, (cpu(host.process.pid) - used) / count))


if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    main()
