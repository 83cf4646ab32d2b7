"""Reading and writing cluster.yml: every mistake is told with its file, line and key."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from gridstead.cluster.errors import InputError
from gridstead.cluster.spec import Cluster, Flavor, Image, Network, NodeKind, OpenStack, SecurityRule, Share, Volume, nearest


def _line_of(document: Any, location: tuple[str | int, ...]) -> int | None:
    """The line (from 1) of a key in a ruamel.yaml document: of its deepest part that is there."""
    line: int | None = None
    for part in location:
        try:
            position = document.lc.item(part) if isinstance(document, CommentedSeq) else document.lc.key(part)
            line = int(position[0]) + 1
            document = document[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _written(document: Any, location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The location as far as the document has keys: a plain value that stands for a mapping has none."""
    for number, part in enumerate(location):
        if not isinstance(document, CommentedMap | CommentedSeq):
            return location[:number]
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            break
    return location


def _fields_at(location: tuple[str | int, ...]) -> dict[str, Any]:
    """The keys known where ``location``'s last part stands, to suggest the nearest."""
    models: dict[tuple[str, ...], type[BaseModel]] = {
        (): Cluster,
        ("image",): Image,
        ("network",): Network,
        ("openstack",): OpenStack,
        ("security_rules", "*"): SecurityRule,
        ("shares", "*"): Share,
        ("nodes", "*"): NodeKind,
        ("nodes", "*", "flavor"): Flavor,
        ("nodes", "*", "volumes", "*"): Volume,
    }
    parent = location[:-1]
    shape = tuple("*" if isinstance(part, int) or (i == 1 and parent[0] == "nodes") else part for i, part in enumerate(parent))
    model = models.get(shape)
    return dict(model.model_fields) if model else {}


def _explain(error: Any, document: Any, path: Path) -> InputError:
    location = _written(document, (*(part for part in error["loc"] if part != "[key]"), *error.get("ctx", {}).get("at", ())))
    line, message, hint = _line_of(document, location), str(error["msg"]), None
    if error["type"] == "extra_forbidden":
        known = _fields_at(location)
        message = f"unknown key{nearest(str(location[-1]), known)}"
        hint = f"known keys here: {', '.join(known)}" if known else None
    elif error["type"] == "missing":
        message = "this key is missing"
        line = _line_of(document, location[:-1])
    elif error["type"] == "mistake":
        pass
    elif error["type"] == "value_error":
        message = message.removeprefix("Value error, ")
    else:
        message = f"{message[0].lower()}{message[1:]}, not {error['input']!r}"
    return InputError(message, file=path, line=line or 1, key=".".join(map(str, location)) or None, hint=hint)


def read_document(path: Path) -> CommentedMap:
    """The YAML document in a file, with line numbers and comments kept.

    Raises:
        InputError: the file is missing, unreadable, no YAML, or not a mapping.
    """
    try:
        document = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path, hint="give --site a name under inventories/ or a path") from None
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text: {error.reason} at byte {error.start}", file=path) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        raise InputError(f"not YAML: {error.problem}", file=path, line=mark.line + 1 if mark else None) from None
    except YAMLError as error:
        raise InputError(f"not YAML: {error}", file=path) from None
    if not isinstance(document, CommentedMap):
        raise InputError("must be a mapping with the keys name, provider, nodes, …", file=path, line=1)
    return document


def load(path: Path) -> Cluster:
    """Read and check a cluster.yml.

    Args:
        path: the file.

    Raises:
        InputError: with file, line, key and what would be right; the first mistake of the file.
    """
    document = read_document(path)
    try:
        return Cluster.model_validate(document)
    except ValidationError as failure:
        # An unknown key first: a misspelt key is also reported as a missing one, further up.
        errors = sorted(failure.errors(), key=lambda error: error["type"] != "extra_forbidden")
        mistakes = [_explain(error, document, path) for error in errors]
        first = mistakes[0]
        if len(mistakes) > 1:
            first.hint = f"{first.hint + '; ' if first.hint else ''}{len(mistakes) - 1} more mistake(s) after this one"
        raise first from None


def write_count(path: Path, kind: str, count: int, *, refill: bool = False) -> int:
    """Set ``nodes.KIND.count`` in a cluster.yml, keeping everything else as it is written.

    Args:
        path: the file.
        kind: the node kind.
        count: the number of nodes wanted.
        refill: nodes are only added, and get the lowest of the numbers that ``without`` keeps free before new ones.

    Returns:
        The line (from 1) that holds the count.

    Raises:
        InputError: no such kind, or the file with that count is not valid, or its count is not there to be set alone; the file is
            untouched.
    """
    spec = load(path)
    if kind not in spec.nodes:
        raise InputError(
            f"no node kind {kind!r}{nearest(kind, spec.nodes)}", file=path, key="nodes", hint=f"kinds: {', '.join(spec.nodes)}"
        )
    keys: dict[str, Any] = {"count": count}
    added, without = count - spec.nodes[kind].count, spec.nodes[kind].without
    if refill and added < 0:
        raise InputError(f"has {spec.nodes[kind].count} nodes by now, not fewer than {count}", file=path, key=f"nodes.{kind}.count")
    if refill and without:
        keys["without"] = sorted(without)[added:]
    return _write(path, {kind: keys})[kind]


def write_removal(path: Path, nodes: Sequence[str]) -> dict[str, int]:
    """Take single nodes out of a cluster.yml: their kind's count falls, and ``without`` keeps their numbers free.

    Args:
        path: the file.
        nodes: names of declared nodes.

    Returns:
        The line (from 1) of each kind's new count.

    Raises:
        InputError: no such node is declared, or the file without them is not valid, or cannot be edited; it is untouched.
    """
    spec = load(path)
    declared = spec.node_names()
    if unknown := next((node for node in nodes if node not in declared), None):
        raise InputError(f"no node {unknown!r} is declared{nearest(unknown, declared)}", file=path, hint=f"declared: {', '.join(declared)}")
    changes: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(declared[node].kind for node in nodes):
        gone = {declared[node].number for node in nodes if declared[node].kind == kind}
        left = [number for number in spec.nodes[kind].numbers if number not in gone]
        # What is above the last node is free without being named.
        without = sorted(number for number in gone.union(spec.nodes[kind].without) if number < max(left, default=0))
        changes[kind] = {"count": len(left), "without": without}
    return _write(path, changes)


def _write(path: Path, changes: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Write keys of node kinds, and make sure that the file then says this and nothing else anew."""
    document, text = read_document(path), path.read_text(encoding="utf-8")
    nodes = {kind: {**it, **changes.get(kind, {})} for kind, it in document["nodes"].items()}
    try:
        wanted = Cluster.model_validate({**document, "nodes": nodes})
    except ValidationError as failure:
        said = ", ".join(f"{kind}={keys['count']}" for kind, keys in changes.items())
        raise InputError(f"{said}: {_explain(failure.errors()[0], document, path).message}") from None
    lines = {}
    for kind, keys in changes.items():
        text, lines[kind] = _edited(text, path, kind, keys)
    try:
        written: Cluster | None = Cluster.model_validate(YAML(typ="rt").load(text))
    except (ValidationError, YAMLError):
        written = None
    if written != wanted:
        kind = next(iter(changes))
        raise _by_hand(path, document, kind, changes[kind])
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text, encoding="utf-8")
    shutil.copymode(path, scratch)
    scratch.replace(path)
    return lines


def _by_hand(path: Path, document: Any, kind: str, keys: dict[str, Any]) -> InputError:
    said = ", ".join(f"{key}: {value}" for key, value in keys.items())
    return InputError(
        "cannot be set for this kind alone: it is not a plain value in a line of its kind (an anchor, an alias, a merge key?)",
        file=path,
        line=_line_of(document, ("nodes", kind, "count")),
        key=f"nodes.{kind}.count",
        hint=f"write {said} for it by hand, then run `tools/cluster up`",
    )


#: A key with a plain value behind it, on one line: ``count: 3``, ``"count" : *few``, ``without: [2, 5]``.
_ENTRY = r"""(?P<quote>["']?){key}(?P=quote)\s*:\s+(?P<value>\[[^\]]*\]|[^\s,}}\]#]+)"""


def _own(mapping: CommentedMap, key: str) -> tuple[int, int]:
    """Where a key of a mapping stands, line and column from 0; (-1, 0) when it does not, or came by a merge key."""
    try:
        line, column = mapping.lc.key(key)
    except (KeyError, TypeError):
        return -1, 0
    return int(line), int(column)


def _edited(text: str, path: Path, kind: str, keys: dict[str, Any]) -> tuple[str, int]:
    """The text with keys of a kind written, and the line (from 1) of its count."""
    document = YAML(typ="rt").load(text)
    declared = document["nodes"][kind]
    lines = text.splitlines(keepends=True)
    count_at: tuple[int, int] | None = None
    for key, value in keys.items():
        line, column = _own(declared, key)
        if line < 0:
            if count_at is None:
                raise _by_hand(path, document, kind, keys)
            if not value:
                continue
            # Behind the count, in the way that the kind is written.
            line, end = count_at
            if declared.fa.flow_style():
                lines[line] = f"{lines[line][:end]}, {key}: {value}{lines[line][end:]}"
            else:
                indent = " " * _own(declared, "count")[1]
                lines[line] = f"{lines[line].rstrip()}\n{indent}{key}: {value}\n"
            continue
        found = re.compile(_ENTRY.format(key=key)).match(lines[line], column)
        if found is None:
            raise _by_hand(path, document, kind, keys)
        lines[line] = f"{lines[line][: found.start('value')]}{value}{lines[line][found.end('value') :]}"
        if key == "count":
            count_at = (line, found.start("value") + len(str(value)))
    assert count_at is not None  # noqa: S101 - every change of a kind sets its count
    return "".join(lines), count_at[0] + 1
