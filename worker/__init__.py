"""The worker: ``LLM``, its engines, and the process that serves one.

::

    DEALER ─▶ protocol/dealer.py ─▶ machine.py ─▶ effects ─▶ shell.py ─▶ engine threads (call.py) ─▶ LLM
              (socket, one thread)  (Worker: no I/O)

The machine's parts: desk.py (what is held of each broker), health.py, isolation.py (of suspects), running.py.
"""
