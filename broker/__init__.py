"""The broker: who is alive, what waits, who gets what.

::

    ROUTER ─▶ shell.py ─▶ codec ─▶ machine.py ─▶ effects ─▶ shell.py ─▶ ROUTER
              (socket)             (Broker: no I/O, no clock)

The machine's parts: peer.py (clients, workers, LLMs), row.py (rows and executions), ledger.py (what becomes of them),
queue.py (whose turn it is), dispatch.py (who gets what), blame.py (who is charged), outgoing.py (what is about to be
sent), report.py (what ``genpool status`` shows).

With ``--http``, threads beside the loop answer: http.py (a small server), pages.py (its paths), board.py (how they
come by the loop's reports), metrics.py, and for the web page overview.py, history.py, sampler.py and web/.
"""
