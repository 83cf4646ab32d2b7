"""Extended attributes as catalogues have them (cvmfs/xattr.cc).

One byte version, one byte how many; then for each one byte length of its name, one byte length of its value, name, value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from gridstead.cvmfs.errors import FormatError

_VERSION = 1
#: What a byte can count.
LIMIT = 255


def parse(blob: bytes | None) -> dict[str, bytes]:
    """Names and values.

    Raises:
        FormatError: they are garbage.
    """
    if not blob:
        return {}
    if len(blob) < 2 or blob[0] != _VERSION:
        raise FormatError("extended attributes of an unknown version")
    found: dict[str, bytes] = {}
    at = 2
    for _ in range(blob[1]):
        if at + 2 > len(blob):
            raise FormatError("extended attributes are truncated")
        name_size, value_size = blob[at], blob[at + 1]
        name_end = at + 2 + name_size
        end = name_end + value_size
        name = blob[at + 2 : name_end]
        if end > len(blob):
            raise FormatError("extended attributes are truncated")
        if not name or b"\0" in name:
            raise FormatError(f"an extended attribute has the name {name!r}")
        found[os.fsdecode(name)] = blob[name_end:end]
        at = end
    if at != len(blob):
        raise FormatError("there are bytes behind the extended attributes")
    return found


def build(attributes: Mapping[str, bytes]) -> bytes | None:
    """The bytes of attributes, in the order of their names; None when there are none.

    Raises:
        FormatError: there are too many, or one is too long.
    """
    if not attributes:
        return None
    if len(attributes) > LIMIT:
        raise FormatError(f"{len(attributes)} extended attributes; CVMFS takes {LIMIT}")
    blob = bytes([_VERSION, len(attributes)])
    for name, value in sorted((os.fsencode(name), value) for name, value in attributes.items()):
        if not 0 < len(name) <= LIMIT or len(value) > LIMIT:
            raise FormatError(f"extended attribute {os.fsdecode(name)!r} is too long: CVMFS takes names and values of {LIMIT} bytes")
        blob += bytes([len(name), len(value)]) + name + value
    return blob
