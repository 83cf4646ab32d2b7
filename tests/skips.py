"""The skips that a whole run may have: one that tests/expected_skips.txt does not name is a check lost, and a failure."""

from __future__ import annotations

import fnmatch
import functools
import os
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("expected_skips.txt")
#: Set by the runner in a whole run.
VARIABLE = "GRIDSTEAD_TEST_STRICT_SKIPS"


class Expected(NamedTuple):
    """A skip that may be.

    Args:
        test: the node id, as a shell's pattern; brackets mean themselves.
        reason: the reason, as a shell's pattern.
    """

    test: str
    reason: str


def parse(text: str) -> list[Expected]:
    """Read the list: ``TEST | REASON`` a line, ``#`` for remarks.

    Raises:
        ValueError: a line is neither.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        test, bar, reason = (part.strip() for part in line.partition(" | "))
        if not (test and bar and reason):
            raise ValueError(f"{FILE.name}:{number}: {line!r}; right would be: TEST | REASON")
        found.append(Expected(test, reason))
    return found


@functools.cache
def listed() -> list[Expected]:
    """The list as it stands."""
    return parse(FILE.read_text())


def expected(test: str, reason: str, among: list[Expected] | None = None) -> bool:
    """Whether a test may be skipped for that reason."""
    return any(
        fnmatch.fnmatchcase(test, one.test.replace("[", "[[]")) and fnmatch.fnmatchcase(reason, one.reason)
        for one in (listed() if among is None else among)
    )


def strict() -> bool:
    """Whether this run is to have no others."""
    return bool(os.environ.get(VARIABLE))
