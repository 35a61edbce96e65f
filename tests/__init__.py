"""The test suite. A package, so that tests share ``tests.helpers``."""
