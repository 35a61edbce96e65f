"""The commands of ``python -m connpool``."""
