"""Many threads, few connections: every answer belongs to its request, and nothing is left over."""

from __future__ import annotations

import random
import threading
from contextlib import suppress

import pytest

from connpool import ConnectionPool, PoolStats, SocketConnector
from connpool.testing import Answer, ScriptedServer
from tests.helpers.certificates import Certificates
from tests.helpers.history import History
from tests.helpers.together import together

THREADS = 16


def check_sums(stats: PoolStats) -> None:
    assert stats.size == stats.idle + stats.in_use + stats.shared + stats.opening + stats.closing
    assert stats.size <= stats.max_size


@pytest.mark.parametrize("is_tls", [False, True])
def test_every_answer_carries_the_id_of_its_request(is_tls: bool, certificates: Certificates) -> None:
    tls = certificates.server() if is_tls else None
    echo = Answer(lambda request: request, delimiter=b"\n")
    history = History()
    is_over = threading.Event()

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(400):
            text = b"%032x %s\n" % (dice.getrandbits(128), b"x" * dice.randrange(40))
            with pool.try_connect(timeout=30) as conn:
                number = conn.info.id
                history.note("granted", number)
                conn.writev_all([text[:16], text[16:]], timeout=20)
                assert conn.recv_until(b"\n", timeout=20) == text
                history.note("returned", number)

    def watch() -> None:
        while not is_over.wait(0.005):
            check_sums(pool.stats())

    with (
        ScriptedServer(script=echo, tls=tls) as server,
        ConnectionPool(
            server.endpoint, max_size=4, connector=SocketConnector(tls=certificates.client())
        ) as pool,
    ):
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            together(*(lambda seed=seed: work(seed) for seed in range(THREADS)), limit=50)
        finally:
            is_over.set()
            watcher.join(5)
        assert server.peak <= 4
        assert server.accepts <= 4
        stats = pool.stats()
        assert (stats.in_use, stats.waiting, stats.closing) == (0, 0, 0)
        assert stats.checkouts == THREADS * 400
        assert (stats.closed, stats.lost, stats.timeouts) == ({}, 0, 0)
        check_sums(stats)
        history.check()
        pool.close()
        server.until_open(0)


def test_a_storm_of_every_way_to_give_back_conserves_the_places() -> None:
    history = History()

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(60):
            with suppress(TimeoutError):
                conn = pool.try_connect(timeout=dice.choice([0.002, 5, 5, 5]))
                number = conn.info.id
                history.note("granted", number)
                if dice.random() < 0.7:
                    conn.sendall(b"x", timeout=5)
                    assert conn.recv_exactly(1, timeout=5) == b"x"
                history.note("returned", number)
                way = dice.choice(["release", "release", "terminate", "detach", "raise"])
                if way == "raise":
                    with suppress(KeyError), conn:
                        raise KeyError
                elif way == "detach":
                    conn.detach().close()
                else:
                    getattr(conn, way)()

    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=4) as pool:
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(0.002):
                check_sums(pool.stats())
                for info in pool.connections():
                    assert info.uses >= 0
                pool.endpoints()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            together(*(lambda seed=seed: work(seed) for seed in range(THREADS)), limit=40)
        finally:
            is_over.set()
            watcher.join(5)
        assert (pool.stats().in_use, pool.stats().waiting) == (0, 0)
        history.check()
        conns = [pool.try_connect(timeout=5) for _ in range(4)]  # every place is there
        for conn in conns:
            conn.release()
        pool.close()
        server.until_open(0)
