"""``python -m connpool check``: what a pools file leads to, dialled once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from connpool.cli.check import _names
from connpool.cli.main import main
from connpool.testing import ScriptedServer
from tests.helpers.architecture import ROOT
from tests.helpers.certificates import Certificates


@pytest.fixture(name="run")
def make_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "pools.toml"

    def run(text: str) -> tuple[int, list[str], str]:
        path.write_text(text, encoding="utf-8")
        status = main(["check", str(path)])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.replace(str(path), "FILE")

    return run


def test_every_endpoint_is_dialled_once_and_reported(run) -> None:
    with ScriptedServer() as one, ScriptedServer() as other:
        status, lines, err = run(
            f"[pools.a]\nroute = '{one.endpoint} && {other.endpoint} || {one.endpoint}'\n"
            f"[pools.longer]\nroute = '{other.endpoint}'\n"
        )
        assert (status, err) == (0, "")
        assert len(lines) == 4
        assert lines[0].startswith(f"a  {one.endpoint}")
        assert " ok in " in lines[0]
        assert lines[0].index(" ok in ") == lines[2].index(" ok in ")
        assert lines[2].startswith(f"longer  {other.endpoint}")
        assert lines[3] == "3 of 3 endpoints can be reached."
        one.until_accepts(1)
        other.until_accepts(2)


def test_one_that_fails_is_told_with_its_cause_and_the_status(run) -> None:
    with ScriptedServer() as good, ScriptedServer() as bad, ScriptedServer() as hole:
        bad.refuse()
        hole.black_hole()
        status, lines, _ = run(
            f"[defaults]\nconnect_timeout = 0.3\n"
            f"[pools.a]\nroute = '{good.endpoint} || {bad.endpoint} || {hole.endpoint}'\n"
        )
    assert status == 1
    assert " ok in " in lines[0]
    assert "FAILED after " in lines[1]
    assert "Connection refused" in lines[1]
    assert "FAILED after 3" in lines[2]
    assert lines[3] == "1 of 3 endpoints can be reached."


def test_of_tls_the_names_and_the_end_of_the_certificate_are_told(
    run, tmp_path: Path, certificates: Certificates
) -> None:
    (tmp_path / "ca.pem").write_bytes(certificates.authority.cert_pem.bytes())
    with ScriptedServer(tls=certificates.server()) as server:
        route = f"route = 'tls://localhost:{server.port}'"
        insecure = "tls.verify = 'insecure-accept-any-certificate'"
        status, lines, _ = run(
            f"[pools.a]\n{route}\ntls.ca = 'ca.pem'\n[pools.b]\n{route}\n[pools.c]\n{route}\n{insecure}\n"
        )
    assert status == 1
    assert ", TLSv1.3, certificate of " in lines[0]
    assert "localhost" in lines[0].partition("certificate of ")[2]
    assert ", valid until " in lines[0]
    assert "FAILED after" in lines[1]
    assert "CERTIFICATE_VERIFY_FAILED" in lines[1]
    assert lines[2].endswith("TLSv1.3, certificate NOT VERIFIED")


def test_a_file_that_is_wrong_or_missing_is_told_and_nothing_is_dialled(run, tmp_path: Path, capsys) -> None:
    with ScriptedServer() as server:
        status, lines, err = run(f"[pools.a]\nroute = '{server.endpoint}'\nmax_sise = 3\n")
        assert (status, lines) == (1, [])
        assert err == "FILE: [pools.a]: unknown key 'max_sise' (the nearest known one is 'max_size')\n"
        assert server.accepts == 0
    assert main(["check", str(tmp_path / "none.toml")]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        ({"subjectAltName": (("DNS", "a"), ("IP Address", "::1"))}, "a, ::1"),
        ({"subject": ((("organizationName", "o"),), (("commonName", "c"),))}, "c"),
        ({}, "nobody"),
    ],
)
def test_whom_a_certificate_is_made_out_to(certificate: dict[str, object], names: str) -> None:
    assert _names(certificate) == names


def test_it_is_a_command_and_says_how_it_is_used() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "connpool", "check", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)

    assert run("none.toml").returncode == 1
    assert run().returncode == 2
    assert "TOML" in run("--help").stdout


def test_ctrl_c_waits_for_no_dial(tmp_path: Path) -> None:
    with ScriptedServer() as hole:
        hole.black_hole()
        path = tmp_path / "pools.toml"
        path.write_text(f"[pools.a]\nroute = '{hole.endpoint}'\nconnect_timeout = 60\n", encoding="utf-8")
        program = (
            "import os, signal, sys, threading, time\n"
            "from connpool.cli.main import main\n"
            "from connpool.wire.connector import SocketConnector\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "real = SocketConnector.open\n"
            "def opening(*args):\n"
            "    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
            "    return real(*args)\n"
            "SocketConnector.open = opening\n"
            f"sys.exit(main(['check', {str(path)!r}]))\n"
        )
        ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=20, check=False)
    assert ran.returncode == 130
