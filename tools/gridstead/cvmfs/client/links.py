"""Variables in symbolic links: ``$(NAME)`` and ``$(NAME:-default)`` (doc-cvmfs, "Variant Symlinks")."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A name reaches to ``:-`` or to the bracket, as in the official client (cvmfs/catalog_sql.cc, ExpandSymlink).
_VARIABLE = re.compile(r"\$\(([^)]*?)(?::-([^)]*))?\)")


def expand(target: str, environment: Mapping[str, str]) -> str:
    """A link's target with its variables filled in. What has neither a value nor a default is left out."""

    def value(match: re.Match[str]) -> str:
        found = environment.get(match[1])
        return found if found is not None else match[2] or ""

    return _VARIABLE.sub(value, target)
