"""The WSGI host of fpmd: one process that serves one application to its supervisor.

main.py is the order of events, load.py finds the application, worker.py is
what the process shares with its supervisor (descriptors, page, signals),
sync.py is the loop of a worker that takes one exchange at a time. Below them,
wire.py is the frames, connection.py one connection and the request's body,
answer.py one answer, report.py what goes to the log.

The package imports all it needs before the application's folder enters
sys.path, so no module of the application can take the place of one of its own,
nor the other way about.
"""
