"""``cluster.yml``: what a site is made of.

The models are the schema (``tools/cluster schema`` exports it for editors); :func:`load` reads a
file and turns every mistake into an :class:`InputError` that names file, line and key.
"""

from __future__ import annotations

import difflib
import re
import shutil
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from gridstead.cluster.errors import InputError

#: Services a node kind can offer; each is an inventory group, mapped to roles in playbooks/site.yml.
SERVICES: dict[str, str] = {
    "nfs_server": "exports the shared file system",
    "nfs_client": "mounts the shared file system",
    "slurm_accounting": "slurmdbd on MariaDB",
    "slurm_controller": "slurmctld",
    "slurm_node": "slurmd",
    "arc_ce": "the ARC computing element (A-REX, INTERNAL interface)",
    "arc_client": "ARC's command line clients",
    "monitoring": "Prometheus and its dashboard",
}

#: Services that exactly one node of a site may offer.
SINGLE_SERVICES = ("nfs_server", "slurm_accounting", "slurm_controller", "monitoring")

#: What a service cannot work without, anywhere in the site.
NEEDED_SERVICES = {
    "nfs_client": "nfs_server",
    "slurm_node": "slurm_controller",
    "arc_ce": "slurm_controller",
}

_SIZE = re.compile(r"^(?P<number>[1-9][0-9]*)(?P<unit>[MGT])(i?B)?$")
_UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}
#: Smallest volume each mkfs accepts, bytes (mkfs.xfs 6: 300 MiB; mkfs.ext4 with a journal: 8 MiB).
_SMALLEST = {"xfs": 300 * 2**20, "ext4": 8 * 2**20}

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
KindName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,20}$")]
MountPoint = Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./-]+$")]
PublishedPort = Annotated[str, Field(pattern=r"^(\d{1,3}(\.\d{1,3}){3}:)?\d{1,5}:\d{1,5}$")]


def parse_size(text: str) -> int:
    """Bytes in a size such as ``500M``, ``2G`` or ``1T`` (powers of 1024).

    Raises:
        ValueError: if the text is no such size.
    """
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write a whole number and M, G or T, such as 10G")
    return int(match["number"]) * _UNITS[match["unit"]]


def _mistake(message: str, *at: str) -> PydanticCustomError:
    """A mistake that spans several keys, with the key to point at."""
    return PydanticCustomError("mistake", "{message}", {"message": message, "at": at})


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Volume(_Model):
    """A block volume each node of the kind gets."""

    name: Name
    size: str = Field(description="Size: a whole number and M, G or T, such as 10G.")
    mount: MountPoint = Field(description="Where the node mounts it.")
    filesystem: Literal["ext4", "xfs"] = "ext4"
    owner: str = "root"
    group: str = "root"
    mode: str = Field(default="0755", pattern=r"^[0-7]{4}$")

    @field_validator("size")
    @classmethod
    def _size(cls, value: str) -> str:
        parse_size(value)
        return value

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        smallest = _SMALLEST[self.filesystem]
        if self.bytes < smallest:
            raise ValueError(f"volume {self.name!r}: {self.size} is too small for {self.filesystem}; it needs {smallest // 2**20}M or more")
        return self

    @property
    def bytes(self) -> int:
        """The size in bytes."""
        return parse_size(self.size)


class Flavor(_Model):
    """How large a node is."""

    cpus: int = Field(default=2, ge=1, le=1024)
    memory: int = Field(default=1024, ge=256, description="Memory in MiB.")


class NodeKind(_Model):
    """A kind of node: ``count`` nodes that are alike."""

    count: int = Field(ge=0, le=999, description="How many nodes; 999 at most (names have three digits).")
    flavor: Flavor = Flavor()
    services: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    publish: tuple[PublishedPort, ...] = Field(
        default=(), description="Ports of the first node published on the host: [ADDRESS:]HOSTPORT:NODEPORT."
    )

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for what, values in (
            ("volume", [volume.name for volume in self.volumes]),
            ("mount point", [volume.mount.rstrip("/") for volume in self.volumes]),
            ("service", list(self.services)),
            ("published port", [port.rsplit(":", 2)[-2] for port in self.publish]),
        ):
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{what} {value!r} is declared twice")
        return self


class Network(_Model):
    """The network the nodes live in."""

    cidr: str = Field(default="auto", description="An IPv4 network such as 10.42.0.0/24, or auto: a free one is chosen.")

    @field_validator("cidr")
    @classmethod
    def _cidr(cls, value: str) -> str:
        if value == "auto":
            return value
        try:
            network = IPv4Network(value)
        except ValueError as error:
            raise ValueError(f"{error}; write auto or a network such as 10.42.0.0/24") from None
        if not network.is_private or network.prefixlen > 28:
            raise ValueError(f"{value} is not a private IPv4 network of /28 or larger, such as 10.42.0.0/24")
        return value


class Image(_Model):
    """What the nodes boot from."""

    release: Literal["trixie", "bookworm"] = Field(default="trixie", description="Debian release, by its code name.")


class Cluster(_Model):
    """A whole cluster.yml."""

    name: Name
    provider: Literal["podman"] = "podman"
    domain: str = Field(default="grid.test", pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$")
    image: Image = Image()
    network: Network = Network()
    shares: tuple[MountPoint, ...] = Field(
        default=("/grid",), description="Directories of the nfs_server node that all nfs_client nodes see at the same path."
    )
    extra_services: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...] = Field(
        default=(), description="Services of the site's own, for its before.yml and after.yml."
    )
    nodes: dict[KindName, NodeKind] = Field(min_length=1)

    @model_validator(mode="after")
    def _services(self) -> Self:
        known = {**SERVICES, **dict.fromkeys(self.extra_services, "")}
        hosts: dict[str, int] = {}
        for kind_name, kind in self.nodes.items():
            for service in kind.services:
                if service not in known:
                    raise _mistake(
                        f"unknown service {service!r}{_nearest(service, known)}; known: {', '.join(sorted(known))}",
                        *("nodes", kind_name, "services"),
                    )
                hosts[service] = hosts.get(service, 0) + kind.count
        for service in SINGLE_SERVICES:
            if hosts.get(service, 0) > 1:
                kind_name = next(name for name, kind in self.nodes.items() if service in kind.services and kind.count)
                raise _mistake(f"{hosts[service]} nodes would offer {service}; one node may", "nodes", kind_name, "count")
        for service, needed in NEEDED_SERVICES.items():
            if hosts.get(service) and not hosts.get(needed):
                kind_name = next(name for name, kind in self.nodes.items() if service in kind.services)
                raise _mistake(f"service {service} needs {needed} on one node; no node offers it", "nodes", kind_name, "services")
        if not any(kind.count for kind in self.nodes.values()):
            raise _mistake("every count is 0; a site has at least one node", "nodes")
        return self

    def node_names(self) -> dict[str, str]:
        """Every node's name and its kind's, in the order of the file: ``{"frontend001": "frontend", ...}``."""
        return {f"{kind}{number:03d}": kind for kind, it in self.nodes.items() for number in range(1, it.count + 1)}

    def services_of(self, node: str) -> tuple[str, ...]:
        """The services a node offers."""
        return self.nodes[node[:-3]].services


def _nearest(word: str, known: Any) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


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
        message = f"unknown key{_nearest(str(location[-1]), known)}"
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
            f"no node kind {kind!r}{_nearest(kind, spec.nodes)}", file=path, key="nodes", hint=f"kinds: {', '.join(spec.nodes)}"
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
