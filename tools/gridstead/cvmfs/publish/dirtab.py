"""``.cvmfsdirtab``: which directories get catalogues of their own (cvmfs/path_filters/dirtab.cc, cvmfs/pathspec).

One pattern a line, such as ``/software/*``; ``*`` and ``?`` do not match a slash. ``! pattern`` takes directories out again; there they
do, and the pattern need not begin with a slash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gridstead.cvmfs.errors import InputError

DIRTAB_NAME = ".cvmfsdirtab"
MARKER_NAME = ".cvmfscatalog"
#: Bytes that are taken.
LARGEST = 1 << 20


def _pattern(text: str, *, relaxed: bool) -> re.Pattern[str]:
    wildcards = {"*": ".*", "?": "."} if relaxed else {"*": "[^/]*", "?": "[^/]"}
    out, escaped = "", False
    for place, letter in enumerate(text):
        if escaped or letter not in "*?\\":
            out += re.escape(letter)
            escaped = False
        elif letter == "\\":
            escaped = True
        else:
            # Like the shell, a wildcard at the beginning of a name matches no dot.
            out += ("" if relaxed or text[place - 1] != "/" else r"(?!\.)") + wildcards[letter]
    return re.compile(out, re.DOTALL)


@dataclass(frozen=True)
class Dirtab:
    """The patterns of a dirtab.

    Attributes:
        wanted: of directories that get a catalogue.
        unwanted: of those that do not, whatever ``wanted`` says.
    """

    wanted: tuple[re.Pattern[str], ...] = ()
    unwanted: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Dirtab:
        """From the text of the file.

        Raises:
            InputError: a pattern does not begin with a slash.
        """
        wanted, unwanted = [], []
        for number, line in enumerate(text.split("\n"), 1):
            rule = line.strip()
            if not rule or rule.startswith("#"):
                continue
            if rule.startswith("!"):
                unwanted.append(_pattern(rule[1:].strip().rstrip("/"), relaxed=True))
            elif not rule.startswith("/"):
                raise InputError(f"{DIRTAB_NAME}:{number}: {rule!r} does not begin with a slash, as a directory in the repository does")
            else:
                wanted.append(_pattern(rule.rstrip("/"), relaxed=False))
        return cls(tuple(wanted), tuple(unwanted))

    def wants(self, path: str) -> bool:
        """Whether a directory gets a catalogue."""
        return any(rule.fullmatch(path) for rule in self.wanted) and not any(rule.fullmatch(path) for rule in self.unwanted)
