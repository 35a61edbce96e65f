"""``python -m connpool check FILE``: can every endpoint of a pools file be reached?"""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs

from connpool.clock import now
from connpool.errors import ConfigError, ConnPoolError
from connpool.model.config import PoolConfig
from connpool.model.endpoint import Endpoint
from connpool.settings_file import WantedPool, read_pools
from connpool.wire.connector import SocketConnector
from connpool.wire.full_connector import adapt

__all__ = ["check"]

AT_A_TIME: Final = 16


@attrs.frozen
class Finding:
    """What one dial brought.

    Attributes:
        seconds: How long it took.
        details: What to say of it, if it succeeded.
        error: Why it did not; None: it did.
    """

    pool: str
    endpoint: Endpoint
    seconds: float
    details: str = ""
    error: str | None = None

    def __str__(self) -> str:
        took = f"{self.seconds * 1000:.1f} ms"
        if self.error is not None:
            return f"FAILED after {took}: {self.error}"
        return f"ok in {took}{self.details}"


def check(path: Path) -> int:
    """Dial every endpoint that *path* names, and report each. Returns the exit status: 1 if any fails."""
    try:
        pools = read_pools(path)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    jobs = [(pool, endpoint) for pool in pools for endpoint in dict.fromkeys(pool.route.endpoints)]
    width = max(len(f"{pool.name}  {endpoint}") for pool, endpoint in jobs)
    cancel = threading.Event()
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="connpool-check") as crew:
        try:
            findings = list(crew.map(partial(_dial, cancel), *zip(*jobs, strict=True)))
        except BaseException:  # Ctrl-C: no dial outlasts it
            cancel.set()
            raise
    for finding in findings:
        print(f"{f'{finding.pool}  {finding.endpoint}':{width}}  {finding}")
    n_good = sum(finding.error is None for finding in findings)
    print(f"{n_good} of {len(findings)} endpoints can be reached.")
    return 0 if n_good == len(findings) else 1


def _dial(cancel: threading.Event, pool: WantedPool, endpoint: Endpoint) -> Finding:
    connector = adapt(SocketConnector() if pool.connector is None else pool.connector)
    timeout = pool.settings.get("connect_timeout", PoolConfig().connect_timeout)
    began = now()
    try:
        raw = connector.open(endpoint, timeout, cancel)
    except ConnPoolError as error:
        return Finding(pool.name, endpoint, now() - began, error=str(error))
    seconds = now() - began
    details = _describe_tls(raw)
    connector.close(raw)
    return Finding(pool.name, endpoint, seconds, details)


def _describe_tls(raw: Any) -> str:
    if not isinstance(raw, ssl.SSLSocket):
        return ""
    certificate = raw.getpeercert()
    if not certificate:
        return f", {raw.version()}, certificate NOT VERIFIED"
    until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    return f", {raw.version()}, certificate of {_names(certificate)}, valid until {until:%Y-%m-%d}"


def _names(certificate: Any) -> str:
    """Whom it is made out to."""
    names: Sequence[str] = [value for _, value in certificate.get("subjectAltName", ())]
    if not names:
        names = [
            value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"
        ]
    return ", ".join(names) or "nobody"
