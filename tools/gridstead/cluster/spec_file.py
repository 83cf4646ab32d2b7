"""Reading and writing cluster.yml: every mistake is told with its file, line and key."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from gridstead.cluster.errors import InputError
from gridstead.cluster.spec import Cluster, Flavor, Image, Network, NodeKind, OpenStack, SecurityRule, Volume, nearest


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


def _fields_at(location: tuple[str | int, ...]) -> dict[str, Any]:
    """The keys known where ``location``'s last part stands, to suggest the nearest."""
    models: dict[tuple[str, ...], type[BaseModel]] = {
        (): Cluster,
        ("image",): Image,
        ("network",): Network,
        ("openstack",): OpenStack,
        ("security_rules", "*"): SecurityRule,
        ("nodes", "*"): NodeKind,
        ("nodes", "*", "flavor"): Flavor,
        ("nodes", "*", "volumes", "*"): Volume,
    }
    parent = location[:-1]
    shape = tuple("*" if isinstance(part, int) or (i == 1 and parent[0] == "nodes") else part for i, part in enumerate(parent))
    model = models.get(shape)
    return dict(model.model_fields) if model else {}


def _explain(error: Any, document: Any, path: Path) -> InputError:
    location = (*(part for part in error["loc"] if part != "[key]"), *error.get("ctx", {}).get("at", ()))
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


def write_count(path: Path, kind: str, count: int) -> int:
    """Set ``nodes.KIND.count`` in a cluster.yml, keeping everything else as it is written.

    Args:
        path: the file.
        kind: the node kind.
        count: the number of nodes wanted.

    Returns:
        The line (from 1) that holds the count.

    Raises:
        InputError: no such kind, or the file with that count is not valid; the file is untouched.
    """
    spec = load(path)
    if kind not in spec.nodes:
        raise InputError(
            f"no node kind {kind!r}{nearest(kind, spec.nodes)}", file=path, key="nodes", hint=f"kinds: {', '.join(spec.nodes)}"
        )
    document = read_document(path)
    line, column = document["nodes"][kind].lc.value("count")
    try:
        Cluster.model_validate({**document, "nodes": {**document["nodes"], kind: {**document["nodes"][kind], "count": count}}})
    except ValidationError as failure:
        raise InputError(f"{kind}={count}: {_explain(failure.errors()[0], document, path).message}") from None
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[line] = lines[line][:column] + re.sub(r"^\d+", str(count), lines[line][column:])
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text("".join(lines), encoding="utf-8")
    shutil.copymode(path, scratch)
    scratch.replace(path)
    return int(line) + 1
