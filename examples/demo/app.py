"""What make demo shows: one WSGI application, standard library only.

    /           a page: who answered, what it was given, what to try
    /hello      one line, and who says it
    /env        the environ, as text
    /stream     a line each half second
    /slow?s=2   an answer that takes its time
    /boom       an exception
"""
import os
import time
from html import escape
from urllib.parse import parse_qs

TEXT = [("Content-Type", "text/plain; charset=utf-8")]
served = 0  # by this worker, since it started


def application(environ, start_response):
    global served
    served += 1
    view = VIEWS.get(environ["PATH_INFO"])
    if view is None:
        start_response("404 Not Found", TEXT)
        return [("There are: " + " ".join(VIEWS) + "\n").encode()]
    return view(environ, start_response)


def hello(environ, start_response):
    start_response("200 OK", TEXT)
    return [f"Hello from worker {os.getpid()}, its request number {served}.\n".encode()]


def env(environ, start_response):
    start_response("200 OK", TEXT)
    return ["".join(f"{k}={v!r}\n" for k, v in sorted(environ.items())).encode()]


def stream(environ, start_response):
    start_response("200 OK", TEXT + [("X-Accel-Buffering", "no")])
    for n in range(1, 11):
        yield f"{n}: worker {os.getpid()}, {time.strftime('%X')}\n".encode()
        time.sleep(0.5)


def slow(environ, start_response):
    try:
        seconds = float(parse_qs(environ["QUERY_STRING"]).get("s", ["1"])[0])
        time.sleep(seconds)
    except (ValueError, OverflowError):  # not a number, negative, or for ever
        start_response("400 Bad Request", TEXT)
        return [b"s is a number of seconds, such as /slow?s=1.5\n"]
    start_response("200 OK", TEXT)
    return [f"{os.getpid()} answers after {seconds:g} s.\n".encode()]


def boom(environ, start_response):
    raise RuntimeError("this was asked for: /boom")


def page(environ, start_response):
    base = environ["SCRIPT_NAME"]
    url = f"{environ['wsgi.url_scheme']}://{environ.get('HTTP_HOST') or environ['SERVER_NAME']}{base}"
    rows = "".join(
        f"<tr><th>{escape(k)}<td>{escape(str(v)) or '&nbsp;'}"
        for k, v in sorted(environ.items(), key=lambda kv: (not kv[0].isupper(), kv[0])))
    html = PAGE
    for name, value in {
        "PID": os.getpid(), "PARENT": os.getppid(), "SERVED": served, "USER": whoami(),
        "URL": escape(url), "BASE": escape(base), "ROWS": rows,  # last: it has what a client sent
    }.items():
        html = html.replace(f"@{name}@", str(value))
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")])
    return [html.encode("utf-8", "replace")]


def whoami():
    import pwd
    try:
        return escape(pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:
        return os.getuid()


VIEWS = {"/": page, "/hello": hello, "/env": env, "/stream": stream, "/slow": slow, "/boom": boom}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>fpmd: worker @PID@ answers</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --ink: #1d2433; --soft: #667085; --line: #e2e6ee; --card: #fff; --paper: #f5f7fa; --accent: #0a7f6f }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --soft: #98a2b3; --line: #303848; --card: #1b212c; --paper: #12161d; --accent: #4fd1bd } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 56rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 1.9rem; letter-spacing: -.02em; margin: 0 }
h1 b, a { color: var(--accent) }
h2 { font-size: 1.05rem; margin: 0 0 .6rem }
.lead { color: var(--soft); margin: .2rem 0 1.6rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: 1.1rem 1.3rem; margin: 0 0 1rem }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem }
.facts div { color: var(--soft); font-size: .85rem }
.facts b { display: block; color: var(--ink); font-size: 1.5rem; font-variant-numeric: tabular-nums }
.way { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; color: var(--soft); font-size: .84rem; margin-top: 1rem }
.way b { border: 1px solid var(--line); border-radius: .4rem; padding: .1rem .55rem; color: var(--ink) }
code { font: .88em/1.5 ui-monospace, monospace; background: var(--paper); border: 1px solid var(--line); border-radius: .3rem; padding: .1rem .35rem; user-select: all; overflow-wrap: anywhere }
li { margin: .35rem 0 } ul { padding-left: 1.2rem; margin: 0 }
button { font: inherit; color: #fff; background: #0a7f6f; border: 0; border-radius: .4rem; padding: .4rem .9rem; cursor: pointer }
#dots { display: flex; flex-wrap: wrap; gap: .3rem; margin-top: .8rem; min-height: 1.1rem }
#dots i { width: 1.1rem; height: 1.1rem; border-radius: 50%; background: var(--line) }
#legend { color: var(--soft); font-size: .9rem }
table { border-collapse: collapse; width: 100%; font-size: .84rem }
th, td { text-align: left; vertical-align: top; padding: .22rem .5rem .22rem 0; border-top: 1px solid var(--line) }
th { font-weight: 500; color: var(--soft); white-space: nowrap }
td { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
</style>
<main>
<h1>Worker <b>@PID@</b> answers.</h1>
<p class="lead">A Python WSGI application, run by fpmd.</p>

<section>
<div class="facts">
<div><b>@PID@</b>this worker</div>
<div><b>@SERVED@</b>requests it has served</div>
<div><b>@USER@</b>who it is</div>
<div><b>@PARENT@</b>fpmd, its parent</div>
</div>
<div class="way"><b>browser</b> HTTP &rarr; <b>fpmd's front</b> FastCGI &rarr; <b>pool demo</b> exchange &rarr; <b>worker @PID@</b> WSGI &rarr; <b>app.py</b></div>
</section>

<section>
<h2>Ask twenty-four times, six at once</h2>
<button id="ask">Ask</button> <span id="legend">A colour for each worker. Kill one meanwhile.</span>
<div id="dots"></div>
</section>

<section>
<h2>What to try</h2>
<ul>
<li>Kill this worker, <code>kill -9 @PID@</code>, and reload the page: another answers, and a new one has started.
<li>Roll all workers, <code>kill -HUP @PARENT@</code>: every pid is new, and no request is lost.
<li><code>curl -i @URL@/hello</code> is one line; <a href="@BASE@/env">/env</a> is what a worker is given.
<li><code>curl -N @URL@/stream</code> comes line by line. Leave with ^C: the worker is told.
<li><code>curl -i @URL@/slow?s=2</code> keeps one worker busy; two of these, and the third waits in the queue.
<li><code>curl -i @URL@/boom</code> raises an exception: the answer is 500, and the terminal has the traceback and <code>outcome=app_error</code>.
<li><code>kill -QUIT @PARENT@</code> ends the demo gently, ^C in its terminal at once.
</ul>
</section>

<section>
<h2>The environ of this request</h2>
<table>@ROWS@</table>
</section>
</main>
<script>
const hues = ["#0a7f6f", "#d9822b", "#5b6ee1", "#c23b6b", "#3b8ec2", "#8a6d3b"], seen = new Map();
document.getElementById("ask").onclick = async () => {
  const dots = document.getElementById("dots"), unlit = Array.from({ length: 24 }, () => dots.appendChild(document.createElement("i")));
  while (dots.children.length > 96) dots.firstChild.remove();
  await Promise.all(Array.from({ length: 6 }, async () => {
    for (let dot; (dot = unlit.shift());) {
      let who;
      try {
        const answer = await fetch("@BASE@/slow?s=0.1");
        who = answer.ok ? "worker " + parseInt(await answer.text()) : answer.headers.get("Fpmd-Outcome") || answer.status;
      } catch (e) { who = "no answer"; }
      if (!seen.has(who)) seen.set(who, [hues[seen.size % hues.length], 0]);
      dot.style.background = seen.get(who)[0]; dot.title = who; seen.get(who)[1]++;
      document.getElementById("legend").replaceChildren(...[...seen].map(([w, [hue, n]]) => {
        const s = document.createElement("span");
        s.style.color = hue; s.textContent = w + ": " + n + "\\u2003";
        return s;
      }));
    }
  }));
};
</script>
</html>
"""
