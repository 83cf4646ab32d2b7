"""The errors of keys and certificates."""

from __future__ import annotations


class PkiError(Exception):
    """A key, certificate or signature is unusable or wrong (exit code 1)."""

    exit_code = 1
