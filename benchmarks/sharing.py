"""What it costs to hold a connection together, and what it brings."""

from collections.abc import Mapping

from benchmarks.adapters import Ours, OursThroughWith
from benchmarks.compare import interleave, rates, spin_all, versus
from benchmarks.plan import Plan, Workload
from benchmarks.race import Result, Running, Track, race
from benchmarks.report import Row, at_least
from benchmarks.servers import HOST, EchoServer
from connpool import Connection, ConnectionPool, Endpoint

THREADS = 32
CONNECTIONS = 4
SIZE = 100  # bytes of a request, and of its answer
PATIENCE = 5.0  # seconds that a write or a read may last


class OursShared(Ours):
    """Shares instead of exclusive loans; nobody else holds one."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.pool.configure(sharable=True)

    def spin(self, running: Running, track: Track) -> None:
        share = self.pool.share
        bundle = track.bundle
        while running:
            for _ in bundle:
                conn = share()
                conn.release()
            track.turns += len(bundle)


class OursSharedThroughWith(OursShared):
    """The same, used as it is meant to be used."""

    def spin(self, running: Running, track: Track) -> None:
        share = self.pool.share
        bundle = track.bundle
        while running:
            for _ in bundle:
                with share():
                    pass
            track.turns += len(bundle)


class OursJoined(OursShared):
    """Shares of what others share already."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.others = [self.pool.share() for _ in range(size)]

    def close(self) -> None:
        for conn in self.others:
            conn.release()
        super().close()


def sharing(plan: Plan) -> list[Row]:
    """What does a share cost one thread, for each exclusive loan?"""
    results = spin_all(
        plan,
        {
            "exclusive": Ours,
            "shared": OursShared,
            "joined": OursJoined,
            "exclusive, through with": OursThroughWith,
            "shared, through with": OursSharedThroughWith,
        },
        threads=1,
        size=1,
    )
    return [
        *rates(results),
        versus(results, "shared", "exclusive", at_least(1 / 3)),
        versus(results, "joined", "exclusive", at_least(1 / 3)),
        versus(results, "shared, through with", "exclusive, through with", at_least(1 / 3)),
    ]


def exchange(plan: Plan) -> list[Row]:
    """Do 32 threads that ask over 4 connections get as far sharing these as taking turns at them?"""
    request = b"x" * SIZE

    def read(conn: Connection) -> bytes:
        return conn.recv_exactly(SIZE, PATIENCE)

    with EchoServer() as server:

        def run(is_shared: bool) -> Result:
            endpoint = Endpoint(HOST, server.port)
            with ConnectionPool(endpoint, max_size=CONNECTIONS, sharable=True) as pool:
                for conn in [pool.try_connect() for _ in range(CONNECTIONS)]:
                    conn.release()
                lend = pool.share if is_shared else pool.try_connect

                def job(running: Running, track: Track) -> None:
                    while running:
                        with lend() as conn:
                            conn.exchange([request], read, PATIENCE)
                        track.turns += 1

                tracks, elapsed, spent = race(job, THREADS, plan.seconds, plan.warm_up)
            return Result(tuple(track.served for track in tracks), elapsed, cpu=spent)

        results = interleave({"exclusive": False, "shared": True}, run, plan.repeats)
    return [*rates(results), versus(results, "shared", "exclusive", at_least(0.9))]


WORKLOADS: Mapping[str, Workload] = {"sharing": sharing, "exchange": exchange}
