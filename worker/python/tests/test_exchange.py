"""What one exchange promises, tried against a real worker process."""

import os
import tempfile
import unittest

from supervisor import (BODY, CUT, DATA, FAILED, GREETING, LAST, REQUEST, RESPONSE, WITHDRAWN, Host, environ, frame,
                        request_frame)


class HostTest(unittest.TestCase):
    """Tests that share one worker; each dials its own connection."""

    spec = "apps:application"
    settings = {}

    @classmethod
    def setUpClass(cls):
        cls.host = Host(cls.spec, **cls.settings)

    @classmethod
    def tearDownClass(cls):
        cls.host.close()

    def show(self, expression, method="POST", body=b"", **extra):
        """The repr of expression, evaluated in the worker."""
        answer = self.host.exchange(environ(method, "/show", QUERY_STRING=expression, **extra), body)
        self.assertEqual(answer.code, 200, answer.text)
        return answer.text

    def run_app(self, code, method="GET", **extra):
        return self.host.exchange(environ(method, "/run", QUERY_STRING=code, **extra))

    def generate(self, code, method="GET"):
        return self.host.exchange(environ(method, "/generator", QUERY_STRING=code))

    def answer(self, expression, method="GET"):
        return self.host.exchange(environ(method, "/answer", QUERY_STRING=expression))

    def failed(self, answer, cause):
        """answer is a 500 that the worker made for the application, and the log has its cause."""
        self.assertEqual((answer.kinds, answer.code, answer.flags), ([RESPONSE], 500, LAST | FAILED))
        return self.host.stderr.wait(cause)


class Small(HostTest):
    def test_handshake_and_greeting(self):
        self.assertEqual(self.host.handshake, b"1|1|unix|1|exchange\n")
        with self.host.dial() as slot:
            self.assertEqual(slot.greeting, (GREETING, 0, 1, b""))

    def test_is_one_frame(self):
        answer = self.host.get("/hello")
        self.assertEqual((answer.kinds, answer.code, answer.flags), ([RESPONSE], 200, LAST))
        self.assertEqual(answer.lines, ["Status: 200 OK", "Content-Type: text/plain", "Content-Length: 6"])
        self.assertEqual(answer.body, b"hello\n")

    def test_number_is_stored_before_the_application_is_called(self):
        with self.host.dial() as slot:
            number = slot.request(environ("POST", "/upload"), last=False)
            while self.host.page[0] != number:  # the application waits for its body
                pass
            slot.body(last=True)
            self.assertEqual(slot.answer().text, "0")

    def test_withdrawn_exchange_does_not_begin(self):
        with self.host.dial() as slot:
            self.host.page[1] = self.host.number + 1
            number = slot.request(environ("POST", "/run", QUERY_STRING="kept['withdrawn'] = 1"), b"a", last=False)
            self.assertEqual(slot.frame(), (WITHDRAWN, 0, 0, number.to_bytes(8, "little")))
            slot.body(b"b", last=True)
            self.assertEqual(slot.exchange(environ("GET", "/show", QUERY_STRING="'withdrawn' in kept")).text, "False")

    def test_next_request_behind_the_current_one_is_kept(self):
        one, two, three = (request_frame(1000 + i, environ("POST", "/upload"), b"x" * i) for i in (1, 2, 3))
        with self.host.dial() as slot:
            slot.send(one + two + three[:30])
            self.assertEqual([slot.answer().text, slot.answer().text], ["1", "2"])
            slot.send(three[30:])
            self.assertEqual(slot.answer().text, "3")
            self.assertEqual(slot.exchange(environ()).text, "hello\n")

    def test_frames_may_be_split_at_any_byte(self):
        data = request_frame(2000, environ("POST", "/upload"), b"ab", last=False) + frame(BODY, LAST, 0, b"cde")
        with self.host.dial() as slot:
            for at in range(1, len(data)):
                slot.send(data[:at])
                slot.send(data[at:])
                self.assertEqual(slot.answer().text, "5", "split at byte %d" % at)

    def test_environ_of_a_mebibyte(self):
        names = environ("GET", "/show", QUERY_STRING="len(environ['HTTP_COOKIE'])", HTTP_COOKIE="c" * 1_000_000)
        with self.host.dial() as slot:
            for _ in range(2):
                self.assertEqual(slot.exchange(names).text, "1000000")
            self.assertEqual(slot.exchange(environ()).text, "hello\n")


class Environ(HostTest):
    def test_has_what_pep_3333_requires(self):
        rows = {
            "type(environ)": "<class 'dict'>",
            "environ['wsgi.version']": "(1, 0)",
            "[environ['wsgi.' + n] for n in ('multithread', 'multiprocess', 'run_once', 'input_terminated')]":
                "[False, True, False, True]",
            "[n for n, v in environ.items() if '.' not in n and type(v) is not str]": "[]",
            "environ['REQUEST_METHOD'], environ['SCRIPT_NAME'], environ['PATH_INFO']": "('POST', '', '/show')",
            "[n for n in environ if n.startswith('FPMD')]": "[]",
            "callable(environ['wsgi.file_wrapper'])": "True",
        }
        for expression, want in rows.items():
            with self.subTest(expression):
                self.assertEqual(self.show(expression), want)

    def test_values_are_latin_1(self):
        self.assertEqual(self.show("ascii(environ['HTTP_X'])", HTTP_X="caf\xc3\xa9"), repr(ascii("caf\xc3\xa9")))

    def test_url_scheme(self):
        for scheme in ("http", "https"):
            self.assertEqual(self.show("environ['wsgi.url_scheme']", REQUEST_SCHEME=scheme), repr(scheme))

    def test_parameters_do_not_forge_the_hosts_keys(self):
        self.assertEqual(self.show("environ['wsgi.multithread']", **{"wsgi.multithread": "yes"}), "False")

    def test_is_new_for_each_request(self):
        self.run_app("environ['wsgi.left'] = environ['LEFT'] = 1; start_response('200 OK', [])")
        self.assertEqual(self.show("[n for n in environ if 'left' in n.lower()]"), "[]")


class Input(HostTest):
    def read(self, expression, parts, **extra):
        """expression with i = wsgi.input, where each of parts comes as a frame of its own."""
        with self.host.dial() as slot:
            query = "(lambda i: %s)(environ['wsgi.input'])" % expression
            slot.request(environ("POST", "/show", QUERY_STRING=query, **extra), parts[0], last=len(parts) == 1)
            for n, part in enumerate(parts[1:], 2):
                slot.body(part, last=n == len(parts))
            answer = slot.answer()
            self.assertEqual(answer.code, 200, self.host.stderr.data.decode())
            self.assertEqual(slot.exchange(environ()).text, "hello\n")
            return answer.text

    def test_is_a_file_of_bytes(self):
        rows = [
            ("i.read()", b"one\ntwo\n\nend"),
            ("i.read(-1)", b"one\ntwo\n\nend"),
            ("i.read(None)", b"one\ntwo\n\nend"),
            ("i.read(0)", b""),
            ("i.read(5)", b"one\nt"),
            ("i.read(100)", b"one\ntwo\n\nend"),
            ("i.readline()", b"one\n"),
            ("i.readline(2)", b"on"),
            ("i.readline(4)", b"one\n"),
            ("i.readline(0)", b""),
            ("(i.read(), i.read(), i.read(5), i.readline(), i.readlines())[1:]", (b"", b"", b"", [])),
            ("(i.readline(2), i.readline(), i.read(3), i.readline(), i.readlines())",
             (b"on", b"e\n", b"two", b"\n", [b"\n", b"end"])),
            ("i.readlines()", [b"one\n", b"two\n", b"\n", b"end"]),
            ("i.readlines(5)", [b"one\n", b"two\n"]),
            ("list(i)", [b"one\n", b"two\n", b"\n", b"end"]),
            ("(next(i), next(i), i.read())", (b"one\n", b"two\n", b"\nend")),
        ]
        whole = b"one\ntwo\n\nend"
        splits = [[whole], [b"", whole], [whole, b""], [b"one\nt", b"", b"wo\n\ne", b"nd"],
                  [whole[i:i + 1] for i in range(len(whole))]]
        for expression, want in rows:
            for parts in splits:
                with self.subTest(expression, parts=parts):
                    self.assertEqual(self.read(expression, parts, CONTENT_LENGTH="12"), repr(want))

    def test_of_a_request_without_body_is_empty(self):
        self.assertEqual(self.read("(i.read(), i.read(1), i.readline(), i.readlines(), list(i))", [b""]),
                         repr((b"", b"", b"", [], [])))

    def test_ends_without_content_length(self):
        self.assertEqual(self.read("i.read()", [b"a", b"b"]), "b'ab'")

    def test_never_reads_into_the_next_request(self):
        with self.host.dial() as slot:
            slot.send(request_frame(1000, environ("POST", "/upload", CONTENT_LENGTH="9999"), b"abc")
                      + request_frame(1001, environ()))
            self.assertEqual((slot.answer().text, slot.answer().text), ("3", "hello\n"))

    def test_streams_while_the_answer_streams(self):
        with self.host.dial() as slot:
            slot.request(environ("POST", "/interactive"), b"one\n", last=False)
            self.assertEqual(slot.frame()[3][-4:], b"ONE\n")
            slot.body(b"two\n")
            self.assertEqual(slot.frame(), (DATA, 0, 0, b"TWO\n"))
            slot.body(last=True)
            self.assertEqual(slot.frame(), (DATA, LAST, 0, b""))

    def test_large_body(self):
        with self.host.dial() as slot:
            slot.request(environ("POST", "/upload"), last=False)
            for _ in range(64):
                slot.body(b"x" * 100_001)
            slot.body(b"y", last=True)
            self.assertEqual(slot.answer().text, str(64 * 100_001 + 1))

    def test_early_answer_drops_the_rest_of_the_body(self):
        for rest in ([b"b", b"c"], [b"x" * 500_000, b""], [b""]):
            for cut in (False, True):
                with self.subTest(rest=[len(r) for r in rest], cut=cut), self.host.dial() as slot:
                    slot.request(environ("POST", "/hello"), b"a", last=False)
                    self.assertEqual(slot.answer().text, "hello\n")
                    for part in rest[:-1]:
                        slot.body(part)
                    slot.body(rest[-1], last=True, cut=cut)
                    self.assertEqual(slot.exchange(environ()).text, "hello\n")

    def test_client_that_leaves_raises_oserror_and_is_not_answered(self):
        for tail in (b"", b"\1"):
            name = "left%d" % len(tail)
            with self.host.dial() as slot:
                code = "try:\n environ['wsgi.input'].read()\nexcept OSError as e: kept[%r] = type(e).__name__\n" \
                       "start_response('200 OK', [])\nresult = Closing([b'x'], %r)" % (name, name)
                slot.request(environ("POST", "/run", QUERY_STRING=code), b"abc", last=False)
                slot.send(tail)
                slot.sock.shutdown(1)
                self.assertTrue(slot.ended())
            self.assertEqual(self.show("kept[%r], closes.count(%r)" % (name, name)), "('Gone', 1)")
        self.assertNotIn("Gone", self.host.stderr.data.decode())

    def test_kept_beyond_its_request_reads_no_other(self):
        self.host.exchange(environ("POST", "/run", QUERY_STRING="kept['input'] = environ['wsgi.input']; "
                                   "kept['write'] = start_response('200 OK', [])"), b"body")
        for attempt in ("kept['input'].read()", "kept['write'](b'forged')"):
            with self.subTest(attempt), self.host.dial() as slot:
                code = "start_response('200 OK', [])\ntry: %s\nexcept ValueError: result = [b'refused']" % attempt
                self.assertIn(slot.exchange(environ("POST", "/run", QUERY_STRING=code), b"secret").text,
                              ("refused", "done"))
                self.assertEqual(slot.exchange(environ()).text, "hello\n")
        self.assertEqual(self.show("kept['input'].read()", body=b"secret"), "b''")


class Response(HostTest):
    def test_refuses_statuses_and_headers(self):
        rows = [
            ("200, [], []", "status must be a str"),
            ("b'200 OK', [], []", "status must be a str"),
            ("'200', [], []", "status is '200'"),
            ("'OK', [], []", "status is 'OK'"),
            ("'100 Continue', [], []", "status is '100 Continue'"),
            ("'600 No', [], []", "status is '600 No'"),
            (r"'200 OK\r\nX: y', [], []", "status is"),
            (r"'200 \u20ac', [], []", "status is"),
            ("'200 OK', (), []", "headers must be a list"),
            ("'200 OK', None, []", "headers must be a list"),
            ("'200 OK', {}, []", "headers must be a list"),
            ("'200 OK', [['A', 'b']], []", "header must be a (name, value) tuple"),
            ("'200 OK', [('A',)], []", "header must be a (name, value) tuple"),
            ("'200 OK', [('A', 1)], []", "must be str, got ('A', 1)"),
            ("'200 OK', [(b'A', 'b')], []", "must be str, got (b'A', 'b')"),
            ("'200 OK', [('A', type('S', (str,), {})('b\\n'))], []", r"the control character '\n'"),
            (r"'200 OK', [('A', 'b\r\nC: d')], []", r"the control character '\r'"),
            (r"'200 OK', [('A', 'b\n')], []", r"the control character '\n'"),
            ("'200 OK', [('A', 'b'), ('A', ['b'])], []", "must be str, got ('A', ['b'])"),
            (r"'200 OK', [('A', 'b\0')], []", r"the control character '\x00'"),
            (r"'200 OK', [('A', '\x7f')], []", r"the control character '\x7f'"),
            (r"'200 OK', [('A', '\u20ac')], []", "beyond latin-1"),
            (r"'200 OK', [('A\r\nB', 'c')], []", "is not a token"),
            ("'200 OK', [('A B', 'c')], []", "is not a token"),
            ("'200 OK', [('A:', 'c')], []", "is not a token"),
            ("'200 OK', [('', 'c')], []", "is not a token"),
            ("'200 OK', [('\xe4', 'c')], []", "is not a token"),
            ("'200 OK', [('Status', '200 OK')], []", "header Status is not allowed"),
            ("'200 OK', [('STATUS', '200 OK')], []", "header Status is not allowed"),
            ("'200 OK', [('Connection', 'close')], []", "hop-by-hop"),
            ("'200 OK', [('transfer-encoding', 'chunked')], []", "hop-by-hop"),
            ("'200 OK', [('Keep-Alive', '1')], []", "hop-by-hop"),
            ("'200 OK', [('Upgrade', 'x')], []", "hop-by-hop"),
            ("'200 OK', [('Content-Length', 'x')], []", "not a number of bytes"),
            ("'200 OK', [('Content-Length', '-1')], []", "not a number of bytes"),
            ("'200 OK', [('Content-Length', '+1')], []", "not a number of bytes"),
            ("'200 OK', [('Content-Length', '1'), ('content-length', '2')], []", "given twice"),
            ("'200 OK', [('A', 'b' * 65536)], []", "header block of"),
        ]
        for expression, cause in rows:
            with self.subTest(expression):
                self.failed(self.answer(expression), cause)

    def test_headers_made_from_data(self):
        for prefix in ("a", "b", "a"):  # more of them than are remembered
            text = "'200 OK', [('X-%%d' %% i, '%s%%d' %% i) for i in range(700)], []" % prefix
            answer = self.answer(text)
            self.assertEqual([answer.headers["X-%d" % i] for i in range(700)], ["%s%d" % (prefix, i) for i in range(700)])

    def test_a_subclass_of_str_is_a_str(self):
        for _ in range(2):  # the second time it is remembered
            for method in ("'__str__': lambda s: 'no'", "'encode': lambda *_: b'no'", "'__eq__': 1 .__truediv__, '__hash__': str.__hash__"):
                answer = self.answer("'200 OK', [('X', type('S', (str,), {%s})('yes')), ('Y', 'yes')], []" % method)
                self.assertEqual((answer.headers["X"], answer.headers["Y"]), ("yes", "yes"))
            answer = self.answer("'200 OK', [type('T', (tuple,), {'__iter__': lambda s: iter('no')})(('X', 'yes'))], []")
            self.assertEqual(answer.headers["X"], "yes")
            self.assertEqual(self.answer("'200 OK', [('X', 'yes')], []").headers["X"], "yes")

    def test_passes_headers_on_unaltered(self):
        answer = self.answer(r"'299 \xe4h', [('Set-Cookie', 'a=1'), ('Set-Cookie', 'b=\xe4\t2'), ('x-Odd', ' v ')], []")
        self.assertEqual(answer.code, 299)
        self.assertEqual(answer.lines, ["Status: 299 \xe4h", "Set-Cookie: a=1", "Set-Cookie: b=\xe4\t2", "x-Odd:  v ",
                                        "Content-Length: 0"])

    def test_content_length_is_supplied_when_the_whole_body_is_known(self):
        rows = [("[b'abc']", "3"), ("(b'abc',)", "3"), ("[b'']", "0"), ("[]", "0"), ("[b'ab', b'', b'c']", "3"),
                ("iter([])", "0"), ("{b'abc': 1}", "3"), ("iter([b'abc'])", None), ("iter([b'a', b'b'])", None)]
        for result, want in rows:
            with self.subTest(result):
                self.assertEqual(self.answer("'200 OK', [], " + result).headers.get("Content-Length"), want)

    def test_content_length_is_never_exceeded(self):
        for result in ("[b'abcdef']", "[b'ab', b'cdef']", "iter([b'ab', b'cdef', b'gh'])", "iter([b'abc', b'd'])"):
            with self.subTest(result):
                answer = self.answer("'200 OK', [('Content-Length', '3')], " + result)
                self.assertEqual((answer.code, answer.body, answer.cut), (200, b"abc", False))
                self.host.stderr.wait("more than the 3 bytes of its Content-Length")

    def test_answer_shorter_than_its_content_length_is_cut(self):
        for result in ("[b'ab']", "[b'a', b'b']", "iter([b'ab'])", "iter([b'a', b'', b'b'])"):
            with self.subTest(result):
                answer = self.answer("'200 OK', [('Content-Length', '3')], " + result)
                self.assertEqual((answer.code, answer.body, answer.frames[-1][:2]), (200, b"ab", (CUT, FAILED)))
                self.host.stderr.wait("sent 2 of the 3 bytes")
        self.assertTrue(self.answer("'200 OK', [('Content-Length', '3')], []").cut)

    def test_head_204_and_304_have_no_body(self):
        for method, status in (("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified")):
            for headers in ("[]", "[('Content-Length', '5')]"):
                for result in ("[]", "[b'']", "[b'hello']", "[b'he', b'llo']", "iter([b'he', b'llo'])", "iter([])"):
                    with self.subTest(method + status, headers=headers, result=result):
                        answer = self.answer("%r, %s, %s" % (status, headers, result), method)
                        self.assertEqual((answer.kinds, answer.body, answer.flags), ([RESPONSE], b"", LAST))

    def test_head_tells_the_length_that_get_would_have(self):
        self.assertEqual(self.answer("'200 OK', [], [b'hello']", "HEAD").headers.get("Content-Length"), "5")
        self.assertIsNone(self.answer("'200 OK', [], []", "HEAD").headers.get("Content-Length"))

    def test_headers_go_out_with_the_first_block_that_is_not_empty(self):
        with self.host.dial() as slot:
            slot.request(environ("POST", "/generator", QUERY_STRING="start_response('200 OK', [])\nyield b''\n"
                                 "yield environ['wsgi.input'].read(1)\nyield environ['wsgi.input'].read(1)"),
                         last=False)
            slot.body(b"a")
            self.assertEqual(slot.frame()[3][-5:], b"\r\n\r\na")
            slot.body(b"b", last=True)
            self.assertEqual([slot.frame(), slot.frame()], [(DATA, 0, 0, b"b"), (DATA, LAST, 0, b"")])

    def test_start_response_may_be_called_late(self):
        self.assertEqual(self.generate("yield b''\nstart_response('201 Created', [])\nyield b'x'").code, 201)
        self.failed(self.generate("yield b'x'"), "did not call start_response")
        self.failed(self.generate("yield b''"), "did not call start_response")
        self.failed(self.run_app("pass"), "did not call start_response")

    def test_start_response_twice(self):
        self.failed(self.run_app("start_response('200 OK', []); start_response('201 Created', [])"), "a second time")

    def test_exc_info_replaces_headers_that_were_not_sent(self):
        answer = self.run_app("start_response('200 OK', [('Content-Length', '99')])\ntry: 1/0\nexcept Exception: "
                              "start_response('503 Busy', [('A', 'b')], sys.exc_info())")
        self.assertEqual((answer.code, answer.headers, answer.text),
                         (503, {"Status": "503 Busy", "A": "b", "Content-Length": "4"}, "done"))

    def test_exc_info_raises_once_headers_are_out(self):
        answer = self.generate("start_response('200 OK', [])\nyield b'x'\ntry: raise LookupError('late one')\n"
                               "except Exception: start_response('500 No', [], sys.exc_info())\nyield b'never'")
        self.assertEqual((answer.code, answer.body, answer.kinds), (200, b"x", [RESPONSE, CUT]))
        self.host.stderr.wait("LookupError: late one")

    def test_write(self):
        for result, want in (("[]", b"ab"), ("[b'c']", b"abc"), ("iter([b'c'])", b"abc")):
            answer = self.run_app("w = start_response('200 OK', []); w(b'a'); w(b''); w(b'b'); result = " + result)
            self.assertEqual((answer.body, answer.cut), (want, False))
        answer = self.run_app("w = start_response('200 OK', [('Content-Length', '2')]); w(b'abc'); w(b'd')\nresult = []")
        self.assertEqual((answer.body, answer.cut), (b"ab", False))
        self.failed(self.run_app("start_response('200 OK', [])('str')"), "write() takes bytes, got str")

    def test_wrong_types_before_headers_are_500(self):
        rows = [("None", "returned NoneType"), ("'text'", "returned str"), ("5", "returned int"),
                ("b'bytes'", "returned bytes"), ("['text']", "yielded str"), ("[b'a', 'b']", "yielded str"),
                ("[None]", "yielded NoneType"), ("iter(['text'])", "yielded str"),
                ("iter([bytearray(b'a')])", "yielded bytearray"), ("asgi(1, 2, 3)", "returned coroutine")]
        for result, cause in rows:
            with self.subTest(result):
                self.failed(self.answer("'200 OK', [], " + result), cause)

    def test_wrong_types_after_headers_cut(self):
        answer = self.answer("'200 OK', [], iter([b'a', 'b'])")
        self.assertEqual((answer.code, answer.body, answer.kinds), (200, b"a", [RESPONSE, CUT]))

    def test_large_answers(self):
        for size in (1, 32767, 32768, 1 << 20, (16 << 20) - 100, (16 << 20) + 5, 40 << 20):
            for result in ("[b'x' * %d]", "iter([b'x' * %d])", "iter([b'y', b'x' * %d])"):
                with self.subTest(result % size):
                    answer = self.answer("'200 OK', [], " + result % size)
                    self.assertEqual((len(answer.body.lstrip(b"y")), answer.cut), (size, False))

    def test_application_objects(self):
        for name in ("Class", "instance"):
            self.assertEqual(self.host.get("/" + name).text, name.lower())

    def test_file_wrapper(self):
        with tempfile.NamedTemporaryFile() as f:
            f.write(b"z" * 1_000_000)
            f.flush()
            answer = self.run_app("f = kept['file'] = open(%r, 'rb'); f.read(5); start_response('200 OK', []); "
                                  "result = environ['wsgi.file_wrapper'](f, 4096)" % f.name)
        self.assertEqual(len(answer.body), 999_995)
        self.assertEqual(self.show("kept['file'].closed"), "True")
        answer = self.run_app("import io; start_response('200 OK', []); "
                              "result = environ['wsgi.file_wrapper'](io.BytesIO(b'abc'))")
        self.assertEqual(answer.body, b"abc")


class Failure(HostTest):
    def test_traceback_is_in_the_log_and_not_in_the_page(self):
        answer = self.run_app("raise LookupError('secret') from KeyError('cause')")
        log = self.failed(answer, "LookupError: secret")
        self.assertEqual(answer.text, "500 Internal Server Error: app_error\n")
        self.assertIn("the application failed on GET /run (0123456789abcdef)\nKeyError: 'cause'", log)
        self.assertIn("apps.py", log)
        self.assertNotIn("_fpmd", log)

    def test_page_has_outcome_and_request_id_as_the_supervisors(self):
        answer = self.run_app("environ['REQUEST_ID'] = 7; 1/0")
        self.assertEqual(answer.lines, [
            "Status: 500 Internal Server Error", "Content-Type: text/plain; charset=utf-8", "Cache-Control: no-store",
            "Content-Length: %d" % len(answer.body), "Fpmd-Outcome: app_error", "Fpmd-Request-Id: 0123456789abcdef"])

    def test_head_gets_no_page(self):
        self.assertEqual(self.run_app("1/0", "HEAD").body, b"")

    def test_exits_and_exhaustion_are_failures_of_one_request(self):
        for error in ("SystemExit(3)", "KeyboardInterrupt()", "MemoryError()", "RecursionError()", "GeneratorExit()"):
            with self.subTest(error):
                self.failed(self.run_app("raise " + error), error.partition("(")[0])
                self.assertEqual(self.host.get("/").text, "hello\n")

    def test_after_headers_the_answer_is_cut(self):
        answer = self.generate("start_response('200 OK', [])\nyield b'x'\n1/0")
        self.assertEqual((answer.body, answer.frames[-1][:2]), (b"x", (CUT, FAILED)))

    def test_after_the_whole_content_length_the_answer_stands(self):
        answer = self.generate("start_response('200 OK', [('Content-Length', '1')])\nyield b'x'\n"
                               "raise LookupError('tail')")
        self.assertEqual((answer.body, answer.cut), (b"x", False))
        self.host.stderr.wait("LookupError: tail")

    def test_close_is_called_once(self):
        rows = [
            ("complete", "[b'x']", None), ("empty", "[]", None), ("fails", "(1/0 for _ in '1')", None),
            ("fails late", "(b'x' if n else 1/0 for n in (1, 0))", None), ("wrong", "['x']", None),
            ("excess", "[b'x', b'y']", "1"), ("short", "[b'x']", "9"),
        ]
        for name, result, length in rows:
            with self.subTest(name):
                headers = "[('Content-Length', %r)]" % length if length else "[]"
                self.answer("'200 OK', %s, Closing(%s, %r)" % (headers, result, name))
                self.assertEqual(self.show("closes.count(%r)" % name), "1")

    def test_close_that_fails_costs_no_answer(self):
        for error in ("LookupError('closing')", "SystemExit('closing')"):
            answer = self.answer("'200 OK', [], Closing([b'x'], 'e', %s)" % error)
            self.assertEqual((answer.body, answer.cut), (b"x", False))
            self.host.stderr.wait(error.partition("(")[0] + ": closing")
        self.assertEqual(self.host.get("/").text, "hello\n")

    def test_client_that_leaves_while_the_answer_streams(self):
        with self.host.dial() as slot:
            slot.request(environ("GET", "/endless"))
            self.assertEqual(slot.frame()[0], RESPONSE)
        self.assertEqual(self.show("closes.count('endless')"), "1")

    def test_client_that_leaves_before_the_answer(self):
        with self.host.dial() as slot:
            slot.request(environ("GET", "/answer", QUERY_STRING="'200 OK', [], Closing([b'x' * 9**7] * 9, 'early')"))
        self.assertEqual(self.show("closes.count('early')"), "1")

    def test_client_that_left_is_noticed_only_when_the_application_fails(self):
        for name, before in (("at 500", ""), ("at cut", "write(b'x')")):
            code = "class Waits(Closing):\n def __iter__(self):\n  %s\n  wait_for_hangup()\n" \
                   "  raise LookupError('alone')\n" \
                   "write = start_response('200 OK', [])\nresult = Waits([], %r)" % (before or "pass", name)
            with self.subTest(name):
                with self.host.dial() as slot:
                    slot.request(environ("GET", "/run", QUERY_STRING=code))
                self.assertEqual(self.show("closes.count(%r)" % name), "1")
                self.host.stderr.wait("LookupError: alone")

    def test_long_work_after_content_length_holds_last_back(self):
        # The answer after the first slow one is complete at once, yet LAST
        # waits for close: until then the slot is not free.
        slow = "start_response('200 OK', [('Content-Length', '1')])\nyield b'x'\ntime.sleep(0.01)"
        self.assertEqual(self.generate(slow).kinds, [RESPONSE])
        with self.host.dial() as slot:
            self.assertEqual(slot.exchange(environ("GET", "/generator", QUERY_STRING=slow)).kinds, [RESPONSE])
            answer = slot.exchange(environ("GET", "/generator", QUERY_STRING=slow))
            self.assertEqual([f[:2] for f in answer.frames], [(RESPONSE, 0), (DATA, LAST)])
            answer = slot.exchange(environ("GET", "/generator", QUERY_STRING=slow + "\nraise LookupError('held')"))
            self.assertEqual([f[:2] for f in answer.frames], [(RESPONSE, 0), (DATA, LAST)])


class Debug(HostTest):
    settings = {"FPMD_DEBUG": "1"}

    def test_page_has_the_traceback(self):
        answer = self.run_app("raise LookupError('for the page')")
        self.failed(answer, "for the page")
        self.assertIn("LookupError: for the page", answer.text)
        self.assertNotIn("_fpmd", answer.text)


class Validator(HostTest):
    def test_finds_nothing(self):
        with self.host.dial() as slot:
            for method, path, extra, parts in [
                ("GET", "/valid", {}, [b""]),
                ("HEAD", "/valid_echo", {}, [b""]),
                ("POST", "/valid_echo", {"CONTENT_LENGTH": "10", "CONTENT_TYPE": "text/plain"}, [b"0123456789"]),
                ("POST", "/valid_echo", {"CONTENT_LENGTH": "10"}, [b"01234", b"56789"]),
                ("POST", "/valid_echo", {}, [b"0123456789", b"abc", b""]),
                ("POST", "/valid_echo", {"CONTENT_LENGTH": "0"}, [b""]),
            ]:
                with self.subTest(method, parts=parts):
                    slot.request(environ(method, path, **extra), parts[0], last=len(parts) == 1)
                    for n, part in enumerate(parts[1:], 2):
                        slot.body(part, last=n == len(parts))
                    answer = slot.answer()
                    self.assertEqual((answer.code, answer.body), (200, b"hello\n" if path == "/valid" else b"".join(parts)))
        self.assertNotIn("Error", self.host.stderr.data.decode())
        self.assertNotIn("Warning", self.host.stderr.data.decode())


class Streams(HostTest):
    def test_print_is_a_log_line_at_once(self):
        self.assertEqual(self.run_app(r"print('printed \u20ac'); start_response('200 OK', [])").kinds, [RESPONSE])
        self.host.stdout.wait("printed \u20ac\n")
        self.run_app("os.write(1, b'raw\\n'); start_response('200 OK', [])")
        self.host.stdout.wait("raw\n")

    def test_wsgi_errors_is_a_text_stream(self):
        self.run_app(r"e = environ['wsgi.errors']; e.write('told \u20ac \ud800\n'); e.writelines(['one\n', 'two\n']); "
                     "e.flush(); start_response('200 OK', [])")
        self.host.stderr.wait("told \u20ac \\ud800\none\ntwo\n")

    def test_stdin_is_empty(self):
        self.assertEqual(self.show("sys.stdin.read()"), "''")


class Children(HostTest):
    def test_of_exec_inherit_no_descriptor(self):
        self.assertEqual(self.show("sorted(os.listdir('/proc/%d/fd' % subprocess.Popen(['sleep', '60'], "
                                   "close_fds=False).pid))"), "['0', '1', '2']")

    def test_forked_that_returns_does_not_answer(self):
        answer = self.host.get("/fork")
        self.assertEqual(answer.text, "child ended with 1")
        self.host.stderr.wait("returned to the host")

    def test_forked_child_that_exits_has_its_own_status(self):
        code = "pid = os.fork()\nif not pid: sys.exit(7)\n" \
               "result = [b'%d' % os.WEXITSTATUS(os.waitpid(pid, 0)[1])]\nstart_response('200 OK', [])"
        self.assertEqual(self.run_app(code).text, "7")

    def test_forked_child_holds_none_of_the_descriptors_and_ends_at_sigterm(self):
        code = "pid = os.fork()\nif not pid:\n print('forked', len(sockets_and_pipes()))\n signal.pause()\n" \
               "kept['child'] = pid; start_response('200 OK', [])"
        self.run_app(code)
        self.host.stdout.wait("forked 0\n")
        self.assertEqual(self.show("os.kill(kept['child'], signal.SIGTERM), "
                                   "os.WTERMSIG(os.waitpid(kept['child'], 0)[1])"), "(None, 15)")


class ProtocolBreaks(HostTest):
    def test_close_the_connection_with_a_log_line(self):
        good = request_frame(1, environ())
        block = b"A\0b\0"
        rows = [
            ("unknown type", frame(9, 0, 0, b"x" * 12), "unknown type 9"),
            ("frame of the other direction", frame(DATA, 0, 0, b"x" * 12), "DATA where a REQUEST was due"),
            ("body without request", frame(BODY, LAST, 0, b"x" * 12), "BODY where a REQUEST was due"),
            ("unknown flag", good[:1] + b"\x81" + good[2:], "REQUEST with flags 0x81"),
            ("another slot", request_frame(1, environ(), slot=1), "REQUEST for slot 1"),
            ("number 0", request_frame(0, environ()), "number 0"),
            ("too long", frame(REQUEST, 1, 0)[:4] + b"\xff\xff\xff\xff" + b"\0" * 12, "REQUEST of 4294967295 bytes"),
            ("too short", frame(REQUEST, 1, 0, b"\1" * 11) + b"\0", "REQUEST of 11 bytes"),
            ("environ beyond the frame", frame(REQUEST, 1, 0, b"\1" + b"\0" * 7 + b"\5\0\0\0" + block), "environ block of 5"),
            ("environ without NUL", frame(REQUEST, 1, 0, b"\1" + b"\0" * 7 + b"\3\0\0\0A\0b"), "does not end with NUL"),
            ("odd environ", frame(REQUEST, 1, 0, b"\1" + b"\0" * 7 + b"\2\0\0\0A\0"), "environ block of 1 strings"),
            ("empty name", frame(REQUEST, 1, 0, b"\1" + b"\0" * 7 + b"\3\0\0\0\0b\0"), "one of them empty"),
            ("name twice", frame(REQUEST, 1, 0, b"\1" + b"\0" * 7 + b"\x08\0\0\0" + block * 2), "1 different names"),
            ("request inside a body", request_frame(1, environ("POST", "/hello"), last=False) + good,
             "where a BODY was due"),
        ]
        for name, data, cause in rows:
            with self.subTest(name), self.host.dial() as slot:
                slot.send(data)
                while not slot.ended():
                    pass
                self.host.stderr.wait(cause)
        self.assertEqual(self.host.get("/").text, "hello\n")


if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    unittest.main()
