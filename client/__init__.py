"""The client: ``ProcessLLM`` and ``LLMPool``, and the thread that speaks to a broker for them.

::

    generate/stream ─▶ call.py ─▶ link.py ─▶ machine.py ─▶ effects ─▶ protocol/dealer.py ─▶ DEALER
    (caller's thread)  (shares)   (threads)  (Client: no I/O)         (I/O thread)
            ▲                        │
            └────── futures ◀────────┤ I/O thread
                    progress ◀───────┘ callbacks thread: user code runs here, never in the I/O thread
"""
