"""What each node is configured from, role by role; and so which roles have something to do where.

A role on a node has its files, the node's own variables, the site's, the secrets it reads, and what it has to know of other nodes.
All that has one digest: a node that remembers it (see ``seal``) needs the role again only when it differs. What a role has to
know of others stands in one table, :data:`KNOWLEDGE`; a node that comes or goes concerns those that know of it and nobody else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from gridstead.cluster import halves
from gridstead.cluster.files import below, digest, of_role
from gridstead.cluster.paths import ROOT, SitePaths

#: Raised when a digest is made in another way: every node is then configured once more, and none is made anew.
SCHEME = 2
#: The part of a node's inputs that is no role: the site's own tasks.
HOOKS = "hooks"
#: Task files beside a cluster.yml that run on all nodes.
_HOOKS = ("before.yml", "after.yml")
#: Directories beside a cluster.yml in which Ansible looks for what those name.
_HOOK_TREES = ("files", "templates", "tasks", "vars")
#: Directories beside a cluster.yml with variables of groups and hosts.
_VARIABLES = ("group_vars", "host_vars")
#: Python packages of the kit that a role takes to the nodes.
_CARRIED = {"gridstead_package": ("cvmfs", "pki"), "grid_ca": ("pki",)}
#: Roles that issue certificates, and the directory below the secrets where the authority keeps them (role grid_ca). What they put there is no input.
_ISSUERS = ("arc_ce", "arc_client")
_ISSUED = "ca"
#: As the role: who has a certificate with no more days left gets another one.
_RENEW_DAYS = 30
_ALL = "all"


@dataclass(frozen=True)
class Knowledge:
    """What a role has to know of other nodes.

    Args:
        role: the role.
        of: the nodes of these groups.
        variables: these of their variables; their names and groups it knows anyway.
        on: only on nodes of these groups.
    """

    role: str
    of: tuple[str, ...]
    variables: tuple[str, ...] = ("gridstead_address",)
    on: tuple[str, ...] = (_ALL,)


#: The nodes that others use: they know everybody, and everybody knows them (roles/base/vars/main.yml).
_SERVERS = ("frontend", "nfs_server", "slurm_controller", "slurm_accounting", "arc_ce")

#: Compared with what the roles say by tests/unit/test_configuration.py.
KNOWLEDGE = (
    Knowledge("base", of=_SERVERS),  # /etc/hosts
    Knowledge("base", of=(_ALL,), on=_SERVERS),
    Knowledge("nfs_server", of=("nfs_client",)),  # whom it exports to
    Knowledge("nfs_client", of=("nfs_server",), variables=("gridstead_address", "gridstead_volumes")),  # the markers of their volumes
    Knowledge("munge", of=("slurm_controller",), variables=(), on=("slurm_controller",)),  # who keeps the key
    Knowledge("slurm_accounting", of=("slurm_accounting",)),
    Knowledge("slurm_controller", of=("slurm_accounting", "slurm_client")),  # whom it tells of jobs that end
    Knowledge(
        "slurm_controller",
        of=("slurm_node", "slurm_controller"),
        variables=("gridstead_address", "gridstead_flavor", "gridstead_container"),
    ),
    Knowledge("slurm_node", of=("slurm_controller",)),
    Knowledge("slurm_client", of=("slurm_controller",)),
    Knowledge("cvmfs_squid", of=(_ALL,)),  # whom it answers; the stratum 0 is one of them
    Knowledge("cvmfs_client", of=("cvmfs_stratum0", "cvmfs_squid"), variables=("gridstead_address", "cvmfs_stratum0_listen")),
    Knowledge("arc_client", of=("arc_rest", "nfs_server"), variables=()),  # whether users need certificates, and where their homes are
    Knowledge("monitoring", of=("monitoring",), variables=()),  # whether there is a server
    Knowledge("monitoring", of=(_ALL,), on=("monitoring",)),  # its targets
)

# -- the plays ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Play:
    """One play of playbooks/site.yml.

    Args:
        file: the playbook it stands in.
        content: the play as it is written there.
    """

    file: Path
    content: dict[str, Any]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that it runs."""
        return roles_of(self.content)

    def on(self, groups: Iterable[str]) -> bool:
        """Whether it runs on a node of these groups: Ansible's patterns ``a:b``, ``a:&b`` and ``a:!b``."""
        mine = {_ALL, *groups}
        words = re.split(r"[:,]", self.content["hosts"])
        within = any(word in mine for word in words if word[0] not in "&!")
        return within and all((word[1:] in mine) is (word[0] == "&") for word in words if word[0] in "&!")


def roles_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The roles that a play runs, as it is written in a playbook."""
    return tuple(role if isinstance(role, str) else role.get("role") or role["name"] for role in content.get("roles", ()))


def is_hook(content: Mapping[str, Any]) -> bool:
    """Whether a play is one that runs the site's own tasks."""
    return _stands_in(content, _HOOKS)


def is_question(content: Mapping[str, Any]) -> bool:
    """Whether a play is the one that compares what all nodes say, and changes nothing."""
    return _stands_in(content, ("validate.yml",))


def _stands_in(content: Mapping[str, Any], files: Collection[str]) -> bool:
    return any(play.content["name"] == content["name"] for play in plays() if play.file.name in files)


@cache
def plays(playbook: Path = ROOT / "playbooks" / "site.yml") -> tuple[Play, ...]:
    """The plays of a playbook and of those that it imports, in order."""
    found: list[Play] = []
    for entry in yaml().load(playbook.read_text(encoding="utf-8")):
        imported = entry.get("import_playbook") or entry.get("ansible.builtin.import_playbook")
        found += plays(playbook.parent / imported) if imported else [Play(playbook, entry)]
    return tuple(found)


def yaml() -> YAML:
    """YAML as Ansible reads and writes it: of version 1.1."""
    made = YAML(typ="safe", pure=True)
    made.version = (1, 1)
    made.default_flow_style = False
    made.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None, read as a bool
    return made


def roles_on(groups: Iterable[str]) -> list[str]:
    """The roles that playbooks/site.yml runs on a node of these groups, in order."""
    given = list(groups)
    return list(dict.fromkeys(role for play in plays() if play.on(given) for role in play.roles))


def selected(paths: SitePaths, groups: Mapping[str, Iterable[str]], todo: Mapping[str, Iterable[str]]) -> list[dict[str, Any]]:
    """The plays that have something to do, each kept to the nodes where it has.

    Args:
        paths: the site.
        groups: each node's groups.
        todo: each node's roles that have something to do.

    Returns:
        Plays as in a playbook. Those without a role run on all nodes of ``todo``, the site's hooks only where it has them.
    """
    wanted = {node: set(roles) for node, roles in todo.items()}
    kept = []
    for play in plays():
        if play.file.name in _HOOKS and not (paths.spec.parent / play.file.name).is_file():
            continue
        hosts = [node for node, roles in wanted.items() if play.on(groups[node]) and (not play.roles or roles.intersection(play.roles))]
        if hosts:
            kept.append({**play.content, "hosts": hosts})
    return kept


def unbaked(listing: Mapping[str, Any], todo: Mapping[str, Iterable[str]]) -> bool:
    """Whether a node is to get the install half of a role: its image has another or none.

    Args:
        listing: the inventory.
        todo: each node's roles that have something to do.
    """
    known = set(halves.current({}))
    return any(known.intersection(roles).difference(listing["_meta"]["hostvars"][node]["gridstead_baked"]) for node, roles in todo.items())


# -- the files ---------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    """What is in a file; nothing when it goes meanwhile."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError):
        return ""


@dataclass(frozen=True)
class RoleFiles:
    """What a role and those that it calls consist of.

    Args:
        digest: of all of it.
        text: all YAML and templates of it, but for what it declares.
    """

    digest: str
    text: str


@cache
def role_files(name: str, roles: Path = ROOT / "roles") -> RoleFiles:
    """A role's own files, those of its dependencies and of the roles that its tasks include."""
    closure, waiting, files, texts = {name}, [name], [], []
    while waiting:
        role = waiting.pop()
        own = of_role(roles / role)
        files += own
        # What a role declares in its meta/ it does not therefore use.
        said = "\n".join(_text(path) for path in own if path.suffix in (".yml", ".j2") and path.parent.name != "meta")
        texts.append(said)
        _, _, dependencies = f"\n{_text(roles / role / 'meta' / 'main.yml')}".partition("\ndependencies:")
        called = {
            other for other in (*_CALLED.findall(said), *_DEPENDENCY.findall(dependencies)) if (roles / other / "meta").is_dir()
        } - closure
        closure |= called
        waiting += sorted(called)
    # Of the collection's modules and filters, those that they name.
    plugins = [path for plugin in set(_PLUGIN.findall("\n".join(texts))) for path in (roles.parent / "plugins").glob(f"*/{plugin}.py")]
    carried = [ROOT / "tools" / "gridstead" / part for role in closure for part in _CARRIED.get(role, ())]
    code = [path for directory in carried for path in below(directory) if path.suffix == ".py"]
    return RoleFiles(digest([*files, *plugins], roles.parent) + digest(code, ROOT), "\n".join(texts))


_PLUGIN = re.compile(r"\bgridstead\.site\.(\w+)")
#: A role that tasks include, and one in the list of those that come first.
_CALLED = re.compile(r"_role:\s*\n(?:\s+\w+:.*\n)*?\s+name:\s*[\"']?(\w+)")
_DEPENDENCY = re.compile(r"(?:\brole:|^\s*-(?:\s*role:)?|[\[,])\s*[\"']?([a-z]\w*)", re.MULTILINE)


class SiteFiles:
    """What stands beside a cluster.yml and counts: hooks with what they name, variables of groups and hosts; nothing else.

    Args:
        paths: the site.
    """

    def __init__(self, paths: SitePaths) -> None:
        self.base = base = paths.spec.parent
        hooks = [base / name for name in _HOOKS if (base / name).is_file()]
        text = "\n".join(_text(path) for path in hooks)
        named = [base / word for word in set(re.findall(r"[\w./-]+", text)) if word.strip("./")]
        self.hooks = [*hooks, *(path for path in named if path.is_file() and path.is_relative_to(base))]
        if hooks:
            self.hooks += [path for tree in _HOOK_TREES for path in below(base / tree)]
        self.variables: dict[str, list[Path]] = {}
        for directory in _VARIABLES:
            for path in below(base / directory):
                # group_vars/NAME, group_vars/NAME.yml or group_vars/NAME/any.yml
                top = path.relative_to(base / directory).parts[0]
                self.variables.setdefault(top if (base / directory / top).is_dir() else Path(top).stem, []).append(path)
        said = "\n".join(_text(path) for files in self.variables.values() for path in files) + text
        #: Whether they speak of other nodes: then any node may have to know all of any other.
        self.worldly = re.search(r"\b(groups|hostvars|vars\[)", said) is not None
        #: Whether they read the cluster's secrets.
        self.confided = "gridstead_secrets" in said

    def hooks_digest(self) -> str:
        """A digest of the hooks; empty when there are none."""
        return digest(set(self.hooks), self.base) if self.hooks else ""

    def variables_digest(self, names: Iterable[str]) -> str:
        """A digest of the variables that groups and hosts of these names have."""
        return digest({path for name in {_ALL, *names} for path in self.variables.get(name, ())}, self.base)


# -- the nodes ---------------------------------------------------------------------------------------------------------


def groups_of(listing: Mapping[str, Any]) -> dict[str, list[str]]:
    """The groups of each node of an inventory (:func:`gridstead.cluster.inventory.build`)."""
    groups: dict[str, list[str]] = {node: [] for node in listing["_meta"]["hostvars"]}
    for group, content in listing.items():
        for node in content.get("hosts", ()):
            groups[node].append(group)
    return groups


def known_to(role: str, groups: Mapping[str, Sequence[str]], node: str) -> dict[str, set[str]]:
    """The nodes that a role on a node has to know of, and which of their variables.

    Args:
        role: the role.
        groups: each node's groups.
        node: the node that it runs on.
    """
    known: dict[str, set[str]] = {}
    for entry in KNOWLEDGE:
        if entry.role == role and _meets(entry.on, groups[node]):
            for other in groups:
                if _meets(entry.of, groups[other]):
                    known.setdefault(other, set()).update(entry.variables)
    return known


def _meets(wanted: Iterable[str], groups: Iterable[str]) -> bool:
    return not {_ALL, *groups}.isdisjoint(wanted)


def serves(groups: Iterable[str]) -> bool:
    """Whether other nodes use a node of these groups: it stops after them, and when it is new they look at it again."""
    return _meets((*_SERVERS, "cvmfs_stratum0", "cvmfs_squid"), groups)


def inputs(paths: SitePaths, listing: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The digest of what each node is configured from, by role; that of the site's own tasks as :data:`HOOKS`.

    Args:
        paths: the site; what counts beside its cluster.yml, and its secrets.
        listing: its inventory.
    """
    groups, site = groups_of(listing), SiteFiles(paths)
    shared = {name: value for name, value in listing[_ALL]["vars"].items() if name != "gridstead_secrets"}
    # How a node is reached is nothing that it is configured from.
    own = {
        node: {name: value for name, value in variables.items() if not name.startswith("ansible_")}
        for node, variables in listing["_meta"]["hostvars"].items()
    }
    world = {node: [groups[node], own[node]] for node in own} if site.worldly else None
    issued = paths.secrets / _ISSUED
    read = [path for path in below(paths.secrets) if not path.name.startswith("id_") and not path.is_relative_to(issued)]
    secrets = digest(read, paths.secrets)
    found: dict[str, dict[str, str]] = {}
    for node, mine in groups.items():
        found[node] = {}
        for role in roles_on(mine):
            files, known = role_files(role), known_to(role, groups, node)
            names = {*mine, node, *known, *(group for other in known for group in groups[other])}
            content = [
                *(SCHEME, files.digest, [play.content for play in plays() if role in play.roles], shared, mine, own[node]),
                *(
                    site.variables_digest(site.variables if world else names),
                    secrets if site.confided or "gridstead_secrets" in files.text else None,
                ),
                world or {other: [groups[other], {name: own[other].get(name) for name in known[other]}] for other in sorted(known)},
            ]
            found[node][role] = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
        if hooks := site.hooks_digest():
            variables = site.variables_digest(site.variables if world else {*mine, node})
            content = [SCHEME, hooks, shared, mine, own[node], variables, secrets if site.confided else None, world]
            found[node][HOOKS] = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return found


def renewals(paths: SitePaths, groups: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """The roles that have certificates to issue, by node: where one of the site is about to expire, or the authority is gone.

    Args:
        paths: the site.
        groups: each node's groups.
    """
    if not any("arc_rest" in mine for mine in groups.values()):
        return {}
    issued = paths.secrets / _ISSUED
    certificates = sorted(issued.glob("*.pem"))
    if (issued / "ca.pem") in certificates and not any(_expires_soon(path) for path in certificates):
        return {}
    wanted = {node: set(roles_on(mine)).intersection(_ISSUERS) for node, mine in groups.items()}
    return {node: roles for node, roles in wanted.items() if roles}


def _expires_soon(path: Path) -> bool:
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return True  # the role issues another one
    return certificate.not_valid_after_utc <= datetime.now(UTC) + timedelta(days=_RENEW_DAYS)
