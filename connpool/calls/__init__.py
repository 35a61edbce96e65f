"""Calls queued on channels: each does one thing at a time, and any thread may call."""
