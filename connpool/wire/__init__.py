"""The wire: the only code that touches sockets and TLS, and the only code that catches ``OSError``."""
