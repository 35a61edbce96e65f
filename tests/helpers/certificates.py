"""A certificate authority of the test run's own."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import trustme


class Certificates:
    """TLS contexts that trust, or are trusted by, one authority made for this run.

    Each call gives a context of its own, so that a test may change it.
    """

    def __init__(self) -> None:
        self.authority = trustme.CA()

    def server(self, *names: str, expired: bool = False) -> ssl.SSLContext:
        """Context of a server that answers to *names* (``127.0.0.1`` and ``localhost`` if none)."""
        over = datetime.now(UTC) - timedelta(days=1) if expired else None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf = self.authority.issue_cert(*(names or ("127.0.0.1", "localhost")), not_after=over)
        leaf.configure_cert(context)
        return context

    def demanding_server(self, *names: str) -> ssl.SSLContext:
        """Context of a server that serves only clients with a certificate of the authority."""
        context = self.server(*names)
        context.verify_mode = ssl.CERT_REQUIRED
        self.authority.configure_trust(context)
        return context

    def client(self, common_name: str | None = None) -> ssl.SSLContext:
        """Context of a client that trusts the authority.

        Args:
            common_name: Of the certificate it shows; None: it has none.
        """
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if common_name is not None:
            self.authority.issue_cert(common_name=common_name).configure_cert(context)
        return context

    def stranger(self) -> ssl.SSLContext:
        """Context of a client that does not know the authority."""
        return ssl.create_default_context()
