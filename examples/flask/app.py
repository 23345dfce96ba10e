"""A Flask application: a page, a form, JSON, and an answer that streams."""
import time

from flask import Flask, Response, jsonify, render_template_string, request

app = Flask(__name__)

PAGE = """<!doctype html>
<title>Flask under fpmd</title>
<h1>Hello{% if name %}, {{ name }}{% endif %}.</h1>
<form method="post"><input name="name" placeholder="your name"> <button>Greet</button></form>
<p><a href="{{ url_for('environ') }}">environ</a>, <a href="{{ url_for('count') }}">a stream</a></p>
"""


@app.route("/", methods=["GET", "POST"])
def home():
    return render_template_string(PAGE, name=request.form.get("name", ""))


@app.route("/environ")
def environ():
    return jsonify({k: v for k, v in request.environ.items() if isinstance(v, str)})


@app.route("/count")
def count():
    def lines():
        for n in range(1, 6):
            yield f"{n}\n"
            time.sleep(0.2)

    # nginx collects an answer unless it is told not to.
    return Response(lines(), mimetype="text/plain", headers={"X-Accel-Buffering": "no"})


@app.route("/upload", methods=["PUT"])
def upload():
    size = 0
    while block := request.stream.read(1 << 16):  # never the whole of it in memory
        size += len(block)
    return f"{size} bytes\n"
