"""The broker: who is alive, what waits, who gets what.

::

    ROUTER ─▶ shell.py ─▶ codec ─▶ machine.py ─▶ effects ─▶ shell.py ─▶ ROUTER
              (socket)             (Broker: no I/O, no clock)

The machine's parts: peer.py (clients, workers, LLMs), row.py (rows and executions), ledger.py (what becomes of them),
queue.py (whose turn it is), dispatch.py (who gets what), straggler.py (who is hedged), blame.py (who is charged),
access.py (who may do what), offence.py (who is kept out), naming.py (who is meant), outgoing.py and outbox.py (what is
about to be sent, and what waits for that), tally.py and report.py (what ``genpool status`` shows).

The shell's: doorman.py, keyring.py and allowed.py (keys), connections.py and visitor.py (what libzmq does not tell).

With ``--http``, threads beside the loop answer: http.py (a small server), pages.py (its paths), board.py (how they
come by the loop's reports), metrics.py, and for the web page overview.py, history.py, sampler.py and web/.
"""
