r"""What a test of pooled connections needs: virtual time, and a server and a network that misbehave.

``FakeClock`` is a clock that the test moves by hand. ``ScriptedServer`` is a real TCP, TLS or Unix
server on this machine whose behaviour is a script, a step or a sequence of steps::

    from connpool.testing import Answer, Reset, ScriptedServer

    with ScriptedServer(script=[Answer(b"+PONG\r\n", times=2), Reset()]) as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        ...                                  # two answers, then a reset
        served = server.until_accepts(1)     # what the server saw of it
        served.until_ended()
        assert (served.ending, served.received) == (Ending.OUR_RESET, b"PING\r\nPING\r\n")

The steps: ``Echo``, ``Answer``, ``Send`` (a greeting, a stray byte), ``Pause``, ``Silence`` (reads, never
answers), ``Deaf`` (does not even read), ``ReadSlowly``, ``NoHandshake`` (TLS that never speaks),
``StartTls``, ``Close``, ``Reset``. Any function that takes the ``ServedConnection`` is a step too. When its
script has ended, a connection stays open, silent, until the peer leaves.

The server as a whole refuses (``refuse``), swallows whoever dials (``black_hole``), resets everybody
(``kill``), goes away (``stop``) and comes back on the same port (``start``).

``FaultProxy`` is the network between a pool and a server that are both healthy: it drops without a word,
forgets connections, delays, limits, cuts, resets and refuses::

    with ScriptedServer() as server, FaultProxy(server.endpoint) as proxy:
        pool = ConnectionPool(proxy.endpoint)
        ...
        proxy.forget()                       # half-open: no FIN, no RST, and nothing goes through
        proxy.drop(Way.DOWN)                 # requests arrive, answers do not
        proxy.heal()

Nothing here sleeps to wait: ``until_accepts``, ``until_open`` and ``until`` return at the moment that it
is so, and fail with an ``AssertionError`` where it never is.
"""

from connpool.testing.clock import FakeClock
from connpool.testing.proxy import FaultProxy
from connpool.testing.relay import Way
from connpool.testing.served import Ending, ServedConnection
from connpool.testing.server import ScriptedServer
from connpool.testing.steps import (
    Answer,
    Close,
    Deaf,
    Echo,
    NoHandshake,
    Pause,
    ReadSlowly,
    Reset,
    Script,
    Send,
    Silence,
    StartTls,
    Step,
)

__all__ = [
    "Answer",
    "Close",
    "Deaf",
    "Echo",
    "Ending",
    "FakeClock",
    "FaultProxy",
    "NoHandshake",
    "Pause",
    "ReadSlowly",
    "Reset",
    "Script",
    "ScriptedServer",
    "Send",
    "ServedConnection",
    "Silence",
    "StartTls",
    "Step",
    "Way",
]
