"""A node's name: its kind and its number, said and read in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

_NAME = re.compile(r"^(?P<kind>[a-z][a-z0-9]*?)(?P<number>[0-9]{3})$")


@dataclass(frozen=True, order=True)
class Node:
    """One node of a site.

    Args:
        kind: its kind in cluster.yml.
        number: which of them, counted from 1.

    >>> Node("compute", 7).name
    'compute007'
    >>> Node.parse("gpu2013")
    Node(kind='gpu2', number=13)
    """

    kind: str
    number: int

    @property
    def name(self) -> str:
        """Its name, which is its host name too."""
        return f"{self.kind}{self.number:03d}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """The node of a name.

        Raises:
            ValueError: no node is called so.
        """
        match = _NAME.match(name)
        if match is None:
            raise ValueError(f"{name!r} is no node's name; they are a kind and three digits, such as compute001")
        return cls(match["kind"], int(match["number"]))
