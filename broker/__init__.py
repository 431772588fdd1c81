"""The broker: who is alive, what waits, who gets what.

::

    ROUTER ─▶ shell.py ─▶ codec ─▶ machine.py ─▶ effects ─▶ shell.py ─▶ ROUTER
              (socket)             (Broker: no I/O, no clock)

The machine's parts: peer.py (clients, workers, LLMs), row.py (rows and executions), queue.py (whose turn it is),
blame.py (who is charged), report.py (what ``genpool status`` shows).
"""
