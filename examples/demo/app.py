"""What make demo shows: one WSGI application, standard library only.

    /           a page: who answered, what it was given, what to try
    /hello      one line, and who says it
    /env        the environ, as text
    /pool       the pool's workers, as JSON; the page shows them while it is open
    /stream     a line each half second
    /slow?s=2   an answer that takes its time
    /boom       an exception
"""
import json
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


def pool(environ, start_response):
    answer = {"answers": os.getpid(), "served": served, "parent": os.getppid(), "workers": workers()}
    start_response("200 OK", [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [json.dumps(answer).encode() + b"\n"]


def workers():
    """The processes whose parent is ours, oldest first: all of fpmd's, where this is its only pool."""
    tick, page_size = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    now, parent, found = time.clock_gettime(time.CLOCK_BOOTTIME), os.getppid(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as f:  # proc(5): PID (NAME) STATE PARENT ...
                stat = f.read().rpartition(")")[2].split()
        except OSError:  # it has ended, or is not ours to see
            continue
        if int(stat[1]) == parent and stat[0] not in "ZX":
            found.append({"pid": int(name), "age": round(now - int(stat[19]) / tick, 2),
                          "cpu": (int(stat[11]) + int(stat[12])) / tick, "memory": int(stat[21]) * page_size})
    return sorted(found, key=lambda w: (-w["age"], w["pid"]))


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


VIEWS = {"/": page, "/hello": hello, "/env": env, "/pool": pool, "/stream": stream, "/slow": slow, "/boom": boom}

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
#legend, #teller { color: var(--soft); font-size: .9rem }
#teller { margin: .7rem 0 0 }
#pool td, #pool th { padding: .4rem .6rem .4rem 0 } #pool thead th { border: 0 }
#pool tr { transition: background 1s, opacity 1s } #pool tr.new { background: #0a7f6f33 }
#pool tr.gone { color: #c23b3b; background: #c23b3b22; opacity: .7 } #pool tr.gone td { text-decoration: line-through }
#pool i { display: inline-block; height: .6rem; border-radius: .3rem; background: var(--accent); vertical-align: middle; min-width: 2px; transition: width .5s }
#pool tr.gone code { visibility: hidden }
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
<h2>The pool, as it is now</h2>
<table id="pool"><thead><tr><th>worker<th>age<th>processor<th>memory<th>served<th>end it<tbody></table>
<p id="teller">&nbsp;</p>
</section>

<section>
<h2>Ask twenty-four times, six at once</h2>
<button id="ask">Ask</button> <span id="legend">A colour for each worker. Kill one meanwhile.</span>
<div id="dots"></div>
</section>

<section>
<h2>What to try</h2>
<ul>
<li>Kill a worker, <code>kill -9 @PID@</code>, and watch the pool above: another takes its place. Reload the page: another answers.
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
const rows = new Map(), body = document.querySelector("#pool tbody"), teller = document.getElementById("teller");
const ago = s => s < 60 ? Math.floor(s) + " s" : s < 3600 ? Math.floor(s / 60) + " min" : Math.floor(s / 3600) + " h";
function show(pool, first) {
  const now = performance.now() / 1000;
  for (const w of pool.workers) {
    let row = rows.get(w.pid);
    if (!row) {
      row = { tr: body.insertRow(), served: "?", cpu: w.cpu, at: now };
      for (let i = 0; i < 6; i++) row.tr.insertCell();
      row.tr.cells[2].append(document.createElement("i"), "");
      row.tr.cells[5].appendChild(document.createElement("code")).textContent = "kill -9 " + w.pid;
      if (!first) { row.tr.className = "new"; setTimeout(() => row.tr.classList.remove("new"), 4000); }
      rows.set(w.pid, row);
    }
    if (w.pid === pool.answers) row.served = pool.served; // each knows its own only
    const busy = now > row.at ? Math.min(100, Math.max(0, (w.cpu - row.cpu) / (now - row.at) * 100)) : 0;
    [row.cpu, row.at] = [w.cpu, now];
    const [pid, age, cpu, memory, served] = row.tr.cells;
    pid.textContent = w.pid; age.textContent = ago(w.age); memory.textContent = (w.memory / 1048576).toFixed(1) + " MiB"; served.textContent = row.served;
    cpu.firstChild.style.width = busy * .8 + "px"; cpu.lastChild.data = " " + busy.toFixed(0) + " %, " + w.cpu.toFixed(2) + " s in all";
  }
  for (const [pid, row] of rows) if (!pool.workers.some(w => w.pid === pid)) {
    rows.delete(pid); row.tr.className = "gone"; row.tr.cells[1].textContent = "gone"; setTimeout(() => row.tr.remove(), 6000);
  }
  teller.textContent = "Asked each second. Worker " + pool.answers + " has answered; what others have served, they alone could say.";
}
(async () => {
  for (let first = true; ; await new Promise(r => setTimeout(r, 1000))) {
    if (document.hidden) continue;
    const late = setTimeout(() => teller.textContent = "No worker is free to answer: the question waits in the queue.", 700);
    try {
      const answer = await fetch("@BASE@/pool");
      if (!answer.ok) throw answer.headers.get("Fpmd-Outcome") || answer.status;
      show(await answer.json(), first); first = false;
    } catch (e) { teller.textContent = e instanceof Error ? "Nobody answers: fpmd has ended, or is not to be reached." : "No worker has answered: " + e; }
    clearTimeout(late);
  }
})();
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
