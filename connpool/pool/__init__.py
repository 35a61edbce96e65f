"""Lending: who holds which connection, who waits, and which endpoint is next."""
