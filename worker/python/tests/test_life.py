"""What a worker's life promises: how it starts, what it refuses, how it ends."""

import pathlib
import tempfile
import unittest

from supervisor import BODY, LAST, Host, environ, frame, request_frame

USUAL = "import sys, os, time, threading, signal, atexit\n" \
        "def application(environ, start_response):\n" \
        "    start_response('200 OK', [])\n" \
        "    return [repr(eval(environ['QUERY_STRING'])).encode()]\n"


class Life(unittest.TestCase):
    def serve(self, code, spec="site_under_test:application", start=True, files=(), **settings):
        """A worker that serves code, the source of the module site_under_test."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        directory = pathlib.Path(folder.name)
        for name, text in {"site_under_test.py": code, **dict(files)}.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(text)
        host = Host(spec, directory, start=start, **settings)
        self.addCleanup(host.close)
        return host

    def evaluate(self, host, expression):
        return host.get("/", QUERY_STRING=expression).text


class Start(Life):
    def test_forms_of_a_specification(self):
        for spec, want in [("apps:hello", "hello\n"), ("apps:Class", "class"), ("apps:instance", "instance"),
                           ("apps:Namespace.nested", "instance"), ("apps:create()", "instance"),
                           ("apps:Instance()", "instance")]:
            with self.subTest(spec), Host(spec) as host:
                self.assertEqual(host.get("/").text, want)

    def test_no_application_exits_with_a_code_and_a_reason(self):
        rows = [
            ("site_under_test", 3, "did you mean 'site_under_test:application'?"),
            ("site_under_test.py:application", 4, "; did you mean 'site_under_test:application'?\n"),
            ("/srv/app.py:application", 3, "as in an import statement, not as a file"),
            ("", 3, "is not of the form"),
            ("site_under_test:", 3, "is not of the form"),
            ("site_under_test:create(1)", 3, "is not of the form"),
            ("nowhere:application", 4, "no module named 'nowhere'"),
            ("package.nowhere:application", 4, "no module named 'package.nowhere'"),
            ("raises:application", 1, "fpmd: no application: import of raises raised ZeroDivisionError: division by zero\n"),
            ("lines:application", 1, "fpmd: no application: import of lines raised RuntimeError: no db\n"),
            ("long:application", 1, "fpmd: no application: import of long raised RuntimeError: %s...\n" % ("x" * 200)),
            ("mute:application", 1, "fpmd: no application: import of mute raised Mute\n"),
            ("syntax:application", 1, "DIRECTORY/syntax.py, line 2)\n"),
            ("indented:application", 1, "import of indented raised IndentationError: unexpected indent (DIRECTORY/indented.py, line 1)\n"),
            ("exits:application", 1, "import of exits raised SystemExit: no database\n"),
            ("exits_bare:application", 1, "import of exits_bare raised SystemExit\n"),
            ("needs:application", 1, "needs the module 'not_installed'"),
            ("site_under_test:app", 5, "did you mean `application`?"),
            ("empty:app", 5, "it has no callable of its own"),
            ("site_under_test:NUMBER", 7, "which is not callable"),
            ("site_under_test:NUMBER()", 7, "which is not callable"),
            ("site_under_test:broken()", 6, "fpmd: no application: factory site_under_test:broken() raised LookupError: no database\n"),
            ("site_under_test:nothing()", 7, "NoneType, which is not callable"),
            ("site_under_test:asgi", 7, "is asynchronous"),
        ]
        code = USUAL + "NUMBER = 7\ndef nothing(): pass\ndef broken(): raise LookupError('no database')\n" \
                       "async def asgi(scope, receive, send): pass\n"
        files = {"package/__init__.py": "", "raises.py": "1/0\n", "syntax.py": "\ndef\n", "empty.py": "",
                 "indented.py": "  x = 1\n", "lines.py": "raise RuntimeError('no db\\nat all')\n",
                 "long.py": "raise RuntimeError('x' * 201)\n", "exits_bare.py": "raise SystemExit\n",
                 "mute.py": "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute\n",
                 "exits.py": "raise SystemExit('no database')\n", "needs.py": "import not_installed\n"}
        for spec, want, cause in rows:
            with self.subTest(spec):
                host = self.serve(code, spec, start=False, files=files)
                self.assertEqual(host.wait(), want)
                log = host.stderr.whole()
                directory = log.split("with directory ")[-1].split(",")[0]
                self.assertIn(cause.replace("DIRECTORY", directory), log)
                self.assertIn("fpmd: tried wsgi = %r with directory %s, sys.path" % (spec, directory), log)
                self.assertNotIn("_fpmd", log)
                self.assertEqual(host.read_handshake(), b"")

    def test_by_hand_says_how_to_run_it(self):
        for cookie in (None, "other"):
            with Host("blog:app", start=False, FPMD_WORKER=cookie) as host:
                self.assertEqual(host.wait(), 2)
                log = host.stderr.whole()
                self.assertIn('wsgi      = "blog:app"\n', log)
                self.assertIn("fpmd serve", log)

    def test_refuses_what_it_cannot_do(self):
        for settings, want, cause in [
            ({"FPMD_PROTOCOL_VERSIONS": "2,3"}, 70, "versions '2,3', this host speaks 1"),
            ({"FPMD_THREADS": "4"}, 78, "threads = 4"),
            ({"FPMD_CONCURRENCY": "gevent"}, 78, "concurrency = 'gevent'"),
        ]:
            with self.subTest(settings), Host("apps:hello", start=False, **settings) as host:
                self.assertEqual(host.wait(), want)
                self.assertIn(cause, host.stderr.whole())

    def test_decides_for_one_slot_when_threads_is_0(self):
        with Host("apps:hello", FPMD_THREADS="0", FPMD_PROTOCOL_VERSIONS="1,2") as host:
            self.assertEqual(host.handshake, b"1|1|unix|1|exchange\n")

    def test_the_application_has_the_interpreter_for_itself(self):
        host = self.serve(USUAL, FPMD_PYTHON_PATH="/first:/second")
        for expression, want in [
            ("sys.path[0] == os.getcwd(), sys.path[1:3]", (True, ["/first", "/second"])),
            ("[p for p in sys.path if p.startswith('/proc')]", []),
            ("sys.argv", ["fpmd"]),
            ("sorted(n for n in vars(sys.modules['__main__']) if n.strip('_') == n)", []),
            ("[n for n in os.environ if n.startswith('FPMD')]", []),
            ("hasattr(sys.modules['__main__'], '__file__')", False),
        ]:
            with self.subTest(expression):
                self.assertEqual(self.evaluate(host, expression), repr(want))

    def test_modules_of_the_application_shadow_nothing_and_are_not_shadowed(self):
        names = ("main", "worker", "sync", "load", "report", "answer", "wire", "connection")
        files = {name + ".py": "mine = %r\n" % name for name in names}
        files.update({"traceback.py": "1/0\n", "struct.py": "1/0\n", "select.py": "1/0\n", "gc.py": "1/0\n"})
        host = self.serve("import %s\n%s" % (", ".join(names), USUAL), files=files)
        self.assertEqual(self.evaluate(host, "[m.mine for m in (%s)]" % ", ".join(names)), repr(list(names)))

    def test_replaced_sockets_do_not_reach_the_host(self):
        host = self.serve(USUAL + "import socket, select\nsocket.setdefaulttimeout(0.001)\nsocket.socket = None\n"
                                  "del select.poll\n")
        self.assertEqual(self.evaluate(host, "1"), "1")
        self.assertEqual(self.evaluate(host, "2"), "2")

    def test_a_child_forked_at_import_does_not_serve(self):
        host = self.serve("import os\npid = os.fork()\n" + USUAL)
        host.stderr.wait("returned to the host")
        self.assertEqual(self.evaluate(host, "os.waitpid(pid, 0)[0] == pid"), "True")

    def test_descriptors_of_the_host_are_closed(self):
        # Left are: standard ones, listener, connection, lifeline, the page's and two for waiting.
        with Host("apps:application") as host:
            self.assertEqual(host.get("/show", QUERY_STRING="len(sockets_and_pipes())").text, "6")


class Stop(Life):
    def test_idle_before_the_first_connection(self):
        host = self.serve(USUAL)
        host.terminate()
        self.assertEqual(host.wait(), 0)

    def test_idle_on_a_connection(self):
        host = self.serve(USUAL)
        with host.dial() as slot:
            slot.exchange(environ(QUERY_STRING="1"))
            host.terminate()
            self.assertTrue(slot.ended())
            self.assertEqual(host.wait(), 0)

    def test_idle_for_long(self):
        host = self.serve(USUAL)
        with host.dial():
            # The worker has given up recv for poll, which its wait channel shows.
            with open("/proc/%d/syscall" % host.process.pid) as f:
                while f.read().split()[0] not in ("7", "73", "271"):
                    f.seek(0)
            host.terminate()
            self.assertEqual(host.wait(), 0)

    def test_during_the_import(self):
        host = self.serve("import time\nprint('importing')\ntry: time.sleep(60)\nexcept Exception: pass\n", start=False)
        host.stdout.wait("importing")
        host.terminate()
        self.assertEqual(host.wait(), 0)

    def test_finishes_what_has_begun(self):
        with Host("apps:application") as host, host.dial() as slot:
            number = slot.request(environ("POST", "/upload"), b"a", last=False)
            while host.page[0] != number:
                pass
            host.terminate()
            slot.body(b"b", last=True)
            self.assertEqual(slot.answer().text, "2")
            self.assertTrue(slot.ended())
            self.assertEqual(host.wait(), 0)
            self.assertEqual(host.stderr.whole(), "")

    def test_leaves_the_request_behind_the_one_that_has_begun(self):
        with Host("apps:application") as host, host.dial() as slot:
            slot.send(request_frame(1, environ("POST", "/upload"), b"a", last=False))
            while host.page[0] != 1:
                pass
            host.terminate()
            slot.send(frame(BODY, LAST, 0, b"b") + request_frame(2, environ()))
            self.assertEqual(slot.answer().text, "2")
            self.assertTrue(slot.ended())
            self.assertEqual(host.wait(), 0)
            self.assertEqual(host.page[0], 1)

    def test_runs_exit_hooks(self):
        with Host("apps:at_exit()") as host:
            host.terminate()
            self.assertEqual(host.wait(), 0)
            self.assertEqual(host.stdout.whole(), "exit hook ran\n")

    def test_threads_do_not_prevent_the_end(self):
        with Host("apps:stubborn()") as host:
            host.terminate()
            self.assertEqual(host.wait(), 0)
            self.assertEqual(host.stdout.whole(), "exit hook ran\n")
            self.assertIn("did not end in 5s: stubborn", host.stderr.whole())

    def test_threads_that_end_are_waited_for(self):
        host = self.serve(USUAL + "stop = threading.Event()\natexit.register(print, 'hook')\n"
                                  "def work():\n    while threading.main_thread().is_alive(): time.sleep(0.01)\n"
                                  "    print('thread ended')\nthreading.Thread(target=work).start()\n")
        host.terminate()
        self.assertEqual(host.wait(), 0)
        self.assertEqual(host.stdout.whole(), "thread ended\nhook\n")

    def test_a_handler_of_the_application_may_take_over(self):
        host = self.serve(USUAL + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n")
        host.terminate()
        self.assertEqual(host.wait(), 5)


if __name__ == "__main__":
    unittest.main()
