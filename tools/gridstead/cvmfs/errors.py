"""The errors of CVMFS: one clear message each, with the exit code that goes with it."""

from __future__ import annotations


class CvmfsError(Exception):
    """Something failed while it was being done (exit code 1).

    Args:
        message: what went wrong, with the values seen.
        hint: what to do about it, one sentence.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class InputError(CvmfsError):
    """An argument, a name or a setting is wrong; nothing was changed (exit code 2)."""

    exit_code = 2


class FormatError(CvmfsError):
    """A manifest, whitelist, catalogue, history or hash is not what the format says."""


class CorruptObjectError(FormatError):
    """Stored bytes do not match their hash, or do not decompress to what was promised."""


class TrustError(CvmfsError):
    """A signature, a certificate's fingerprint or a repository's name is wrong."""


class ExpiredError(TrustError):
    """A whitelist's time is over."""


class RevokedError(TrustError):
    """This node's blacklist forbids the revision that is shown."""
