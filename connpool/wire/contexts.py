"""TLS contexts made of files."""

from __future__ import annotations

import ssl
from pathlib import Path

from connpool.errors import ConfigError

__all__ = ["make_context"]


def make_context(
    *,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    password: str | None = None,
    verifies: bool = True,
) -> ssl.SSLContext:
    """What TLS clients need to know.

    Args:
        ca: Certificates of authorities that vouch for servers; None: those the system trusts.
        certificate: The client's own, with its chain, for servers that ask for one.
        key: Belongs to *certificate*; None: it is in the same file.
        password: Opens *key*. Appears in no error.
        verifies: Whether servers must prove who they are. If not, anyone can pose as them.

    Raises:
        ConfigError: a file cannot be read, or does not hold what it should; a line for each names it.
    """
    problems = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to try the rest with, if it cannot be the default one
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:  # no path has a null byte
        problems.append(f"cannot use the authorities in {str(ca)!r}: {_why(error, 'it is not in PEM form')}")
    if not verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(certificate, key, password=password or "")
        except (OSError, ValueError) as error:  # or the password is longer than OpenSSL takes
            if key is None:
                files, flaw = repr(str(certificate)), "it is not in PEM form, or lacks its key"
            else:
                files = f"{str(certificate)!r} with the key {str(key)!r}"
                flaw = "one of them is not in PEM form"
            why = _why(error, f"{flaw}, or the password is wrong")
            problems.append(f"cannot use the certificate {files}: {why}")
    elif key is not None:
        problems.append(f"the key {str(key)!r} is of no use without its certificate")
    if problems:
        raise ConfigError("\n".join(problems))
    return context


def _why(error: OSError | ValueError, flaw: str) -> str:
    """Why a file is of no use; *flaw*: what may be wrong with it where OpenSSL does not tell."""
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, ssl.SSLError):
        return error.reason or flaw
    return error.strerror or type(error).__name__
