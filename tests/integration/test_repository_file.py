"""Pools that a file describes, and everything that can be wrong with one."""

from __future__ import annotations

import logging
import re
import socket
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from connpool import ConfigError, HandshakeError, PoolConfig, Repository, Route
from connpool.settings_file import INSECURE
from connpool.testing import ScriptedServer
from tests.helpers.architecture import ROOT
from tests.helpers.certificates import Certificates


@pytest.fixture(name="write")
def make_write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "pools.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems_of(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Repository.from_toml(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_pools_are_made_with_the_defaults_and_their_own(write) -> None:
    path = write(
        """
        [defaults]
        max_size = 4
        idle_timeout = "none"
        [pools.orders]
        route = "a:1, b:1 && c:1 || d:1"
        max_size = 8
        required_permissions = ["read", "write"]
        [pools."with a space"]
        route = "unix:/run/db"
        """
    )
    with Repository.from_toml(path, name="mine") as repo:
        assert (repo.name, [*repo]) == ("mine", ["orders", "with a space"])
        orders, other = repo["orders"], repo["with a space"]
        assert str(orders.route) == "a:1, b:1 && c:1 || d:1"
        assert (orders.config.max_size, other.config.max_size) == (8, 4)
        assert orders.config.idle_timeout is other.config.idle_timeout is None
        assert orders.config.required_permissions == {"read", "write"}


def test_every_setting_can_be_said(write) -> None:
    said = {
        "max_size": 7, "max_per_endpoint": 3, "min_idle": 2, "checkout_timeout": 1.5, "connect_timeout": 2,
        "max_waiters": 9, "max_connecting": 1, "idle_timeout": 60, "max_lifetime": 600,
        "lifetime_jitter": 0.5, "max_uses": 100, "revive": "force", "look_after_idle": 0,
        "keepalive_interval": 30,
        "blacklist_initial": 0.5, "blacklist_max": 5, "reconnect": False, "fail_fast": False,
        "sharable": True, "max_sharers": 4, "reap_interval": "none", "warn_after": 10, "track_origin": True,
        "dial_in_caller": True, "required_permissions": ["x"],
    }  # fmt: skip
    assert said.keys() == {field.name for field in attrs.fields(PoolConfig)}
    text = "\n".join(
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
        for name, value in said.items()
    )
    with Repository.from_toml(write(f"[pools.a]\nroute = 'a:1'\n{text}")) as repo:
        config = repo["a"].config
    for name, value in said.items():
        expected = {"none": None}.get(value, value) if isinstance(value, str) else value
        found = getattr(config, name)
        assert (sorted(found) if isinstance(found, frozenset) else found) == expected, name


def test_settings_that_go_together_may_each_be_beyond_the_default_of_the_other(write) -> None:
    path = write("""
        [defaults]
        min_idle = 20
        blacklist_max = 0.5

        [pools.orders]
        route = "a:1"
        max_size = 30
        blacklist_initial = 0.1
        reap_interval = "none"

        [pools.ledger]
        route = "b:1"
        max_size = 20
        blacklist_initial = 100
        blacklist_max = 200
        reap_interval = "none"
    """)
    with Repository.from_toml(path) as repo:
        assert (repo["orders"].config.min_idle, repo["orders"].config.blacklist_initial) == (20, 0.1)
        assert (repo["ledger"].config.min_idle, repo["ledger"].config.blacklist_initial) == (20, 100)


def test_all_problems_are_told_at_once_each_with_its_place(write) -> None:
    assert problems_of(
        write(
            """
            [default]
            [defaults]
            max_sise = 3
            [pools.orders]
            route = "a:1 &"
            max_size = "many"
            min_idle = -1
            [pools.orders.tls]
            cert = "x"
            [pools.users]
            connect_timeout = 0
            [pools.mixed]
            route = "a:1"
            max_size = 1
            min_idle = 2
            [pools.secure]
            route = "tls://a:1"
            tls.verify = false
            [pools.plain]
            route = "a:1"
            tls.server_hostname = "x"
            [pools]
            wrong = 3
            """
        )
    ) == [
        "the file: unknown table 'default' (the nearest known one is 'defaults')",
        "[defaults]: unknown key 'max_sise' (the nearest known one is 'max_size')",
        "[pools.orders] max_size: max_size must be a whole number of at least 1, got 'many'",
        "[pools.orders] min_idle: min_idle must be a whole number of at least 0, got -1",
        "[pools.orders.tls]: unknown key 'cert' (the nearest known one is 'certificate')",
        "[pools.orders] route: " + _message_of_route("a:1 &"),
        "[pools.users] connect_timeout: connect_timeout must be more than 0 seconds and finite, got 0",
        "[pools.users]: route is missing",
        "[pools.mixed]: min_idle (2) is more than max_size (1)",
        f"[pools.secure.tls] verify: it must be true, or {INSECURE!r} to let anyone pose as the server",
        "[pools.plain]: it has TLS settings, but none of its endpoints speaks TLS",
        "[pools]: wrong must be a table, got 3",
        "[pools.wrong]: route is missing",
    ]


def test_a_route_is_no_default(write) -> None:
    (problem,) = problems_of(write("[defaults]\nroute = 'a:1'\n[pools.a]\nroute = 'a:1'\n"))
    assert problem.startswith("[defaults]: unknown key 'route'")


def _message_of_route(text: str) -> str:

    with pytest.raises(ConfigError) as caught:
        Route.parse(text)
    return str(caught.value)


def test_what_is_no_toml_is_told_with_its_line(write) -> None:
    (problem,) = problems_of(write("[pools.a]\nroute = a:1\n"))
    assert problem.startswith("it is no TOML: ")
    assert "line 2" in problem
    (problem,) = problems_of(write(""))
    assert problem == "the file: it has no [pools.NAME]"
    path = write("")
    path.write_bytes("[pools.café]".encode("latin-1"))
    (problem,) = problems_of(path)
    assert problem.startswith("it is no TOML: ")
    (problem,) = problems_of(write(f'[pools.a]\nroute = "a:1"\nmax_size = {"1" * 5000}\n'))
    assert problem.startswith("it is no TOML: ")


def test_a_file_that_is_not_there_is_what_the_system_says(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Repository.from_toml(tmp_path / "none.toml")


def test_the_environment_is_asked_and_its_secrets_are_never_shown(
    write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("DB_HOST", "db.example")
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.delenv("MISSING", raising=False)
    with Repository.from_toml(
        write('[pools.a]\nroute = "${DB_HOST}:1 && $${x}:2"\n'.replace("$${x}", "b"))
    ) as repo:
        assert str(repo["a"].route) == "db.example:1 && b:2"
    problems = problems_of(
        write(
            """
            [pools.a]
            route = "${SECRET}:x"
            max_size = "${SECRET}"
            required_permissions = ["${MISSING}", "$$5"]
            """
        )
    )
    assert not [problem for problem in problems if "hunter2" in problem]
    assert "[pools.a] max_size: max_size must be a whole number of at least 1, got '${SECRET}'" in problems
    assert "[pools.a] required_permissions: the environment variable 'MISSING' is not set" in problems
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("secret", ["hunter2 secret", "hunter2:\\x", "hunter2\n"])
def test_a_secret_is_not_shown_in_pieces_or_in_disguise_either(
    secret: str, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", secret)
    problems = problems_of(write('[pools.a]\nroute = "${SECRET}"\nmax_size = "${SECRET}"\n'))
    assert sorted(problems) == [
        "[pools.a] max_size: max_size must be a whole number of at least 1, got '${SECRET}'",
        "[pools.a] route: it is no route with what the environment says: '${SECRET}'",
    ]


def test_of_a_secret_with_another_in_it_nothing_is_shown(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "hush")
    monkeypatch.setenv("LONG", "hush hush")
    problems = problems_of(write('[pools.a]\nroute = "a:1"\nmax_size = "${SHORT}"\nmin_idle = "${LONG}"\n'))
    assert problems == [
        "[pools.a] max_size: max_size must be a whole number of at least 1, got '${SHORT}'",
        "[pools.a] min_idle: min_idle must be a whole number of at least 0, got '${LONG}'",
    ]


def test_a_variable_that_is_empty_or_not_set_is_no_riddle(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("MISSING", raising=False)
    assert problems_of(write('[pools.a]\nroute = "a:1"\nmax_size = "${EMPTY}"\n')) == [
        "[pools.a] max_size: max_size must be a whole number of at least 1, got ''"
    ]
    problems = problems_of(write('[pools.a]\nroute = "${MISSING}:1, ${MISSING}:2"\n'))
    assert problems.count("[pools.a] route: the environment variable 'MISSING' is not set") == 1


def test_tls_is_made_of_files_beside_it(write, tmp_path: Path, certificates: Certificates) -> None:
    (tmp_path / "ca.pem").write_bytes(certificates.authority.cert_pem.bytes())
    with ScriptedServer(tls=certificates.server()) as server:
        text = f"[pools.a]\nroute = 'tls://localhost:{server.port}'\n"
        trusting = write(text + "tls.ca = 'ca.pem'\n")
        with Repository.from_toml(trusting) as repo, repo["a"].try_connect(timeout=5) as conn:
            assert conn.ssl_socket is not None
            assert conn.ssl_socket.getpeercert()
        with Repository.from_toml(write(text)) as repo, pytest.raises(HandshakeError):
            repo["a"].try_connect(timeout=5)
        text += "tls.verify = 'insecure-accept-any-certificate'\n"
        with Repository.from_toml(write(text)) as repo, repo["a"].try_connect(timeout=5) as conn:
            conn.sendall(b"x")


def test_what_all_say_of_tls_and_what_one_adds_hold_together(
    write, tmp_path: Path, certificates: Certificates
) -> None:
    (tmp_path / "ca.pem").write_bytes(certificates.authority.cert_pem.bytes())
    with ScriptedServer(tls=certificates.server()) as server:
        path = write(
            f"""
            [defaults]
            tls.ca = "ca.pem"
            [pools.a]
            route = "tls://127.0.0.1:{server.port}"
            tls.server_hostname = "localhost"
            """
        )
        with Repository.from_toml(path) as repo, repo["a"].try_connect(timeout=5) as conn:
            assert conn.ssl_socket is not None
            assert conn.ssl_socket.server_hostname == "localhost"


def test_files_that_do_not_hold_what_they_should_are_named(
    write, tmp_path: Path, certificates: Certificates
) -> None:
    (tmp_path / "noise.pem").write_text("nothing of the kind")
    certificates.authority.issue_cert("client").cert_chain_pems[0].write_to_path(tmp_path / "keyless.pem")
    (tmp_path / "torn.pem").write_bytes(certificates.authority.cert_pem.bytes()[:300])
    problems = problems_of(
        write(
            """
            [pools.a]
            route = "tls://a:1"
            tls = {ca = "none.pem"}
            [pools.b]
            route = "tls://a:1"
            tls = {certificate = "noise.pem", key_password = "hunter2"}
            [pools.c]
            route = "tls://a:1"
            tls = {key = "noise.pem"}
            [pools.d]
            route = "tls://a:1"
            tls = {ca = 3}
            [pools.e]
            route = "tls://a:1"
            tls = {certificate = "keyless.pem"}
            [pools.f]
            route = "tls://a:1"
            tls = {ca = "torn.pem"}
            """
        )
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "[pools.a.tls]", "[pools.b.tls]", "[pools.c.tls]", "[pools.d.tls] ca",
        "[pools.e.tls]", "[pools.f.tls]"
    ]  # fmt: skip
    assert "none.pem" in problems[0]
    assert problems[0].endswith(": No such file or directory")
    assert "noise.pem" in problems[1]
    assert "lacks its key" in problems[4]
    assert "password" not in problems[5]
    assert "hunter2" not in "".join(problems)


def test_all_that_is_wrong_with_the_tls_of_one_pool_is_told_at_once(write) -> None:
    problems = problems_of(
        write(
            """
            [pools.a]
            route = "tls://a:1"
            tls = {verify = false, ca = "none-1.pem", certificate = "none-2.pem", server_hostname = 3}
            """
        )
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "[pools.a.tls] verify", "[pools.a.tls] server_hostname", "[pools.a.tls]", "[pools.a.tls]"
    ]  # fmt: skip
    assert "none-1.pem" in problems[2]
    assert "none-2.pem" in problems[3]


def test_of_what_the_environment_does_not_tell_nothing_else_is_said(
    write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MISSING", raising=False)
    path = write(
        """
        [pools.a]
        route = "${MISSING}"
        max_size = "${MISSING}"
        nodelay = "${MISSING}"
        [pools.a.tls]
        ca = "${MISSING}"
        certificate = "judged-with-its-password-only.pem"
        key_password = "${MISSING}"
        server_hostname = "${MISSING}"
        verify = "${MISSING}"
        """
    )
    own, tls = ["max_size", "nodelay", "route"], ["ca", "key_password", "server_hostname", "verify"]
    places = [f"[pools.a] {name}" for name in own] + [f"[pools.a.tls] {name}" for name in tls]
    wanted = [f"{place}: the environment variable 'MISSING' is not set" for place in places]
    assert sorted(problems_of(path)) == sorted(wanted)


def test_texts_that_the_system_cannot_take_are_told_with_their_place(
    write, tmp_path: Path, certificates: Certificates
) -> None:
    issued = certificates.authority.issue_cert("client")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))
    (tmp_path / "client.pem").write_bytes(locked + issued.cert_chain_pems[0].bytes())
    problems = problems_of(
        write(
            rf"""
            [pools.a]
            route = "a:1"
            source_address = ["127.0.0.1\u0000", 0]
            [pools.b]
            route = "tls://a:1"
            tls = {{ca = "authority\u0000.pem"}}
            [pools.c]
            route = "tls://a:1"
            tls = {{certificate = "client\u0000.pem"}}
            [pools.d]
            route = "tls://a:1"
            tls = {{certificate = "client.pem", key_password = "{"hunter2" * 200}"}}
            [pools.e]
            route = "tls://a:1"
            tls = {{server_hostname = "a\u0000b"}}
            """
        )
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "[pools.a] source_address", "[pools.b.tls]", "[pools.c.tls]", "[pools.d.tls]",
        "[pools.e.tls]",
    ]  # fmt: skip
    assert "hunter2" not in "".join(problems)


def test_socket_options_reach_the_socket(write) -> None:
    with ScriptedServer() as server:
        text = f"[pools.a]\nroute = '{server.endpoint}'\nnodelay = false\nkeepalive = [60, 10, 3]\n"
        with (
            Repository.from_toml(write(text + "source_address = ['127.0.0.1', 0]\n")) as repo,
            repo["a"].try_connect(timeout=5) as conn,
        ):
            assert not conn.raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert conn.raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    (problem,) = problems_of(write("[pools.a]\nroute = 'a:1'\nkeepalive = 'often'\n"))
    assert problem.startswith("[pools.a] keepalive: keepalive must be")


def test_the_file_on_the_page_makes_its_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    page = (ROOT / "docs" / "repository.md").read_text(encoding="utf-8")
    found = re.search(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    (tmp_path / "pools.toml").write_text(found[1], encoding="utf-8")
    leaf = certificates.authority.issue_cert("client")
    (tmp_path / "authority.pem").write_bytes(certificates.authority.cert_pem.bytes())
    (tmp_path / "client.pem").write_bytes(leaf.cert_chain_pems[0].bytes())
    (tmp_path / "client.key").write_bytes(leaf.private_key_pem.bytes())
    monkeypatch.setenv("LEDGER_HOST", "ledger.example")
    monkeypatch.setenv("LEDGER_KEY_PASSWORD", "secret")
    with Repository.from_toml(tmp_path / "pools.toml") as repo:
        assert (repo["orders"].config.max_size, repo["ledger"].config.max_size) == (16, 8)
        assert str(repo["ledger"].route) == "tls://ledger.example:7443"
        assert repo["ledger"].config.max_lifetime is None


def test_what_stands_for_no_limit_is_told_in_the_words_of_the_file(write) -> None:
    problems = problems_of(write('[pools.a]\nroute = "a:1"\nmax_lifetime = "None"\nmax_waiters = "None"\n'))
    assert problems[0].endswith("max_lifetime must be more than 0 seconds and finite, or 'none', got 'None'")
    assert problems[1].endswith("max_waiters must be a whole number of at least 0 or 'none', got 'None'")


@pytest.mark.parametrize("wrong", [None, 5, b"pools.toml", ""])
def test_a_path_that_is_none_is_refused_with_its_value(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"path must be the path of a file, as a text, got {wrong!r}"):
        Repository.from_toml(wrong)
