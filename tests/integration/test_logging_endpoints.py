"""One line for each change of an endpoint's state, however many dials fail."""

from __future__ import annotations

import logging
import re

import pytest

from connpool import ConnectionPool, ConnPoolError, NoEndpointError
from connpool.testing import ScriptedServer
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.helpers.wire import refused_port
from tests.stress.stage import make_stage  # noqa: F401 - a fixture
from tests.stress.works import A, Caller, door

ENDPOINT = "connpool.endpoint"


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.DEBUG, "connpool")
    return caplog


def lines(log, level=logging.INFO, logger=ENDPOINT):
    """What one logger said at *level* or above."""
    return [
        (record.levelname, record.getMessage())
        for record in log.records
        if record.name == logger and record.levelno >= level
    ]


def test_a_refused_dial_is_one_line_with_address_and_reason(log, capfd):
    with refused_port() as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        with ConnectionPool(address, name="orders", reap_interval=None) as pool:
            with pytest.raises(NoEndpointError):
                pool.try_connect()
            until(lambda: lines(log))
    ((level, line),) = lines(log)
    assert level == "WARNING"
    assert address in line
    assert "refused" in line.lower()
    assert "orders" in line
    assert "\n" not in line
    assert capfd.readouterr() == ("", "")


def test_repeats_are_counted_and_summed_up_at_the_return(stage, log):
    s = stage()
    s.down.add(A)
    for _ in range(5):
        with pytest.raises(ConnPoolError):
            s.pool.try_connect()
        with pytest.raises(ConnPoolError):
            s.pool.try_connect()  # not even dialled
        s.clock.advance(100)
    assert s.works.dials == 5
    until(lambda: lines(log))
    assert [level for level, _ in lines(log)] == ["WARNING"]
    s.down.clear()
    s.pool.try_connect().release()
    until(lambda: len(lines(log)) == 2)
    level, line = lines(log)[1]
    assert level == "INFO"
    assert "a:1" in line
    assert "orders" in line
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line.replace("a:1", ""))]
    assert 500.0 in numbers, "the seconds it was down"
    assert 5.0 in numbers, "the dials that failed"


def test_each_outage_has_its_own_two_lines_and_its_own_count(stage, log):
    s = stage()
    for outage in range(1, 4):
        s.down.add(A)
        for _ in range(outage):
            with pytest.raises(ConnPoolError):
                s.pool.try_connect()
            s.clock.advance(100)
        s.down.clear()
        s.pool.try_connect().terminate()
        until(lambda n=2 * outage: len(lines(log)) == n)
        line = lines(log)[-1][1].replace("a:1", "").replace(f"{outage}00", "")
        assert re.search(rf"\b{outage}\b", line), line
    assert [level for level, _ in lines(log)] == ["WARNING", "INFO"] * 3


def test_many_callers_at_the_moment_of_the_fall_make_one_line(log):
    with ScriptedServer() as server:
        server.refuse()
        with ConnectionPool(server.endpoint, reap_interval=None, max_connecting=4) as pool:

            def ask():
                with pytest.raises(ConnPoolError):
                    pool.try_connect(timeout=5)

            together(*[ask] * 16)
            until(lambda: pool.stats().opening == 0)
            until(lambda: lines(log))
    assert [level for level, _ in lines(log)] == ["WARNING"]


def test_an_endpoint_taken_out_by_hand_is_a_line_and_so_is_its_return(stage, log):
    s = stage("a:1, b:1")
    s.pool.blacklist(A)
    s.pool.blacklist(A)
    s.pool.unblacklist(A)
    s.pool.unblacklist(A)
    assert [level for level, _ in lines(log)] == ["WARNING", "INFO"]
    assert all("a:1" in line for _, line in lines(log))


def test_an_endpoint_that_serves_is_not_worth_a_line(stage, log):
    s = stage("a:1, b:1")
    for _ in range(10):
        s.pool.try_connect().release()
    s.pool.try_connect().terminate()
    assert lines(log, logging.DEBUG) == []


def test_a_deadline_of_the_caller_is_no_line_about_the_endpoint(stage, log):
    s = stage()
    with door() as dial:
        s.works.opening = dial
        caller = Caller(s.pool, timeout=1)
        dial.until_entered()
        s.clock.until_waiting(1)
        s.clock.advance(1)
        caller.failure(ConnPoolError)
    s.ears.until("ConnectionOpened")
    assert lines(log) == []


def test_the_log_and_the_events_tell_the_same(stage, log):
    s = stage("a:1 || b:1")
    for _ in range(3):
        s.down.add(A)
        s.pool.try_connect().terminate()
        s.down.clear()
        s.pool.unblacklist(A)
        s.pool.try_connect().terminate()
    told = [
        {"EndpointDown": "WARNING", "EndpointUp": "INFO"}[name]
        for name in s.ears.kinds("EndpointDown", "EndpointUp")
    ]
    about_a = [level for level, line in lines(log) if "a:1" in line]
    assert about_a == told == ["WARNING", "INFO"] * 3


def test_no_lock_is_held_while_a_line_is_logged(stage):
    s = stage()
    seen = []

    class Handler(logging.Handler):
        def emit(self, record):
            if "a:1" in record.getMessage():
                together(lambda: seen.append((record.levelname, s.pool.stats(), s.pool.endpoints())), limit=5)

    handler = Handler()
    logger = logging.getLogger(ENDPOINT)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        s.pool.blacklist(A)
        s.pool.unblacklist(A)
        s.down.add(A)
        with pytest.raises(ConnPoolError):
            s.pool.try_connect()
        until(lambda: len(seen) == 3)
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
    assert [level for level, *_ in seen] == ["WARNING", "INFO", "WARNING"]
