"""Ansible action: what roles say of themselves and of each other, compared before anything is changed."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ansible._internal._datatag._tags import Origin
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

Hosts = Mapping[str, Mapping[str, Any]]
Groups = Mapping[str, list[str]]
Services = Mapping[str, Mapping[str, Any]]

#: The roles: beside the plugins, in the checkout as in the collection.
ROLES = Path(__file__).resolve().parents[2] / "roles"
#: What each service needs where, as the engine checks cluster.yml.
SERVICES = ROLES.parent / "playbooks" / "vars" / "services.yml"
#: How a host sees the shared directories.
SHARING = ("nfs_server", "nfs_client")
#: Directories that must be the same on all nodes: variables, and the role whose hosts set them.
SHARED_DIRECTORIES = {"arc_ce": ("arc_ce_session_dir", "arc_ce_cache_dir", "arc_ce_runtime_dir")}
#: What is compared besides the shared variables.
COMPARED = (
    *("base_users", "arc_ce_queues", "arc_ce_user", "arc_client_submission_type", "slurm_controller_partitions", "cvmfs_squid_port"),
    *("cvmfs_client_repositories", "cvmfs_client_domains", "cvmfs_client_stratum0", "cvmfs_stratum0_repositories"),
    *(name for names in SHARED_DIRECTORIES.values() for name in names),
)


class Mistake(NamedTuple):
    """What does not fit.

    Args:
        text: what, and what would be right.
        host: one that has it.
        variable: the variable that says so; empty where none does.
    """

    text: str
    host: str = ""
    variable: str = ""


def below(path: str, roots: Iterable[str]) -> bool:
    """Whether a path is one of the roots or lies below one.

    >>> below("/grid/home/alice", ["/grid"]), below("/gridiron", ["/grid"])
    (True, False)
    """
    path = posixpath.normpath(path)
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in map(posixpath.normpath, roots))


def contract(hosts: Hosts, options: Mapping[str, Any]) -> Iterator[Mistake]:
    """The shared variables, against their argument specs."""
    validator = ArgumentSpecValidator(options)
    for host, variables in hosts.items():
        given = {name: variables[name] for name in options if variables.get(name) is not None}
        for message in validator.validate(given).error_messages:
            yield Mistake(f"{host}: {message}", host, next((name for name in options if name in message), ""))


def systems(hosts: Hosts) -> Iterator[Mistake]:
    """Nodes whose system the roles never ran on."""
    for host, variables in hosts.items():
        family = variables.get("ansible_facts", {}).get("os_family")
        families = variables["gridstead_os_families"]
        if family is not None and family not in families:
            yield Mistake(f"{host}: its OS family is {family}; the roles were run on {' and '.join(families)} only", host)


def shares(hosts: Hosts, groups: Groups) -> Iterator[Mistake]:
    """Directories that all nodes must see: below a share, where somebody shares."""
    shared = {host for name in SHARING for host in groups.get(name, ())}
    # What a path is called, the path and the variable that says so; each once, with the first host that has it.
    named: dict[tuple[str, str, str], str] = {}
    for host in sorted(shared):
        variables = hosts[host]
        users = [user for user in variables["base_users"] if not user.get("system")]
        homes = [(f"the home of {user['name']} in base_users", user["home"], "base_users") for user in users]
        for what in (("gridstead_root", variables["gridstead_root"], "gridstead_root"), *homes):
            named.setdefault(what, host)
    for group, names in SHARED_DIRECTORIES.items():
        for host in groups.get(group, []) if shared else ():
            for name in names:
                named.setdefault((name, hosts[host][name], name), host)
    for (name, path, variable), host in named.items():
        exports = hosts[host]["gridstead_shares"]
        if not below(path, exports):
            text = f"{name} is {path}, which compute nodes do not see: a directory below a share ({', '.join(exports)}) is right"
            yield Mistake(text, host, variable)
    for host, variables in hosts.items():
        state, exports = variables["gridstead_state"], variables["gridstead_shares"]
        if below(state, exports):
            text = (
                f"{host}: gridstead_state is {state}, on a share: databases and keys belong on the node's own disk or a volume of its own"
            )
            yield Mistake(text, host, "gridstead_state")


def needs(groups: Groups, services: Services) -> Iterator[Mistake]:
    """What services need of each other."""
    members = {name: set(groups.get(name, ())) for name in services}
    sharing = set[str]().union(*(members[name] for name in SHARING))
    for name, service in services.items():
        for need in service.get("needs", ()):
            offering = set[str]().union(*(members[other] for other in need["of"]))
            words = " or ".join(need["of"])
            for host in sorted(members[name]):
                if need["where"] == "site" and not offering:
                    yield Mistake(f"{host}: {name} needs {words} on one host, for {need['for']}: no host is in that group", host)
                elif need["where"] == "node" and host not in offering:
                    yield Mistake(f"{host}: {name} needs {words} on the same host, for {need['for']}: {need['of'][0]} is right", host)
                # Where nobody has these services the site shares in its own way.
                elif need["where"] == "share" and sharing and offering - {host}:
                    for blind in sorted({host, *offering} - sharing):
                        text = f"it sees no shared directories, but {name} and {words} need them, for {need['for']}: nfs_client is right"
                        yield Mistake(f"{blind}: {text}", blind)


def computing(hosts: Hosts, groups: Groups) -> Iterator[Mistake]:
    """The CE against Slurm, and its clients against the CE."""
    controllers = groups.get("slurm_controller", [])
    for host in groups.get("arc_client", []):
        if hosts[host]["arc_client_submission_type"] == "internal" and host not in groups.get("arc_ce", []):
            text = f"{host}: arc_client_submission_type is internal, which reaches a CE on the same host only: arc_ce is not there"
            yield Mistake(text, host, "arc_client_submission_type")
    for host in groups.get("arc_ce", []):
        for controller in controllers:
            partitions = list(hosts[controller]["slurm_controller_partitions"])
            for queue in hosts[host]["arc_ce_queues"]:
                if queue not in partitions:
                    text = (
                        f"{host}: arc_ce_queues has {queue!r}, which is no partition: "
                        f"one of slurm_controller_partitions ({', '.join(partitions)}) is right"
                    )
                    yield Mistake(text, host, "arc_ce_queues")
        names = {user["name"]: user for user in hosts[host]["base_users"]}
        if hosts[host]["arc_ce_user"] not in names:
            text = (
                f"{host}: arc_ce_user is {hosts[host]['arc_ce_user']!r}, whom base_users does not have: one of {', '.join(names)} is right"
            )
            yield Mistake(text, host, "arc_ce_user")


def ports(hosts: Hosts, groups: Groups) -> Iterator[Mistake]:
    """The port of the caches, where they listen and where clients ask. That of the stratum 0 is the server's own to say."""
    for host in groups.get("cvmfs_squid", []):
        listens = hosts[host]["cvmfs_squid_port"]
        for asker in groups.get("cvmfs_client", []):
            asks = hosts[asker]["cvmfs_squid_port"]
            if int(listens) != int(asks):
                text = f"{host}: cvmfs_squid_port is {listens}, and {asker} asks at port {asks}: set gridstead_squid_port for all hosts"
                yield Mistake(text, host, "cvmfs_squid_port")
                break


def software(hosts: Hosts, groups: Groups) -> Iterator[Mistake]:
    """The repositories that are mounted, against those who have them."""
    seen = set()
    for host in groups.get("cvmfs_client", []):
        variables = hosts[host]
        server, domain = variables["cvmfs_client_stratum0"], f".{variables['gridstead_domain']}"
        published = [one["name"] for one in hosts[server]["cvmfs_stratum0_repositories"]] if server in hosts else []
        wanted = variables["cvmfs_client_repositories"]
        if not wanted and "" not in seen:
            seen.add("")
            text = "cvmfs_client has no repository to mount: a node with cvmfs_stratum0, or cvmfs_client_repositories with their servers, is right"
            yield Mistake(f"{host}: {text}", host, "cvmfs_client_repositories")
        for one in wanted:
            name = one["name"]
            elsewhere = "servers" in one or name.partition(".")[2] in variables["cvmfs_client_domains"]
            if elsewhere or name in published or name in seen:
                continue
            seen.add(name)
            if server and name.endswith(domain):
                right = f"{server} publishes {', '.join(published) or 'none'}: a name of cvmfs_stratum0_repositories is right"
            elif name.endswith(domain):
                right = "no node publishes the site's own: one with cvmfs_stratum0 is right, or servers of its own"
            else:
                right = "servers of the repository, or of its domain in cvmfs_client_domains, are right"
            yield Mistake(
                f"{host}: cvmfs_client_repositories has {name}, of which nobody knows a server; {right}", host, "cvmfs_client_repositories"
            )


def mistakes(hosts: Hosts, groups: Groups, options: Mapping[str, Any], services: Services) -> list[Mistake]:
    """All that does not fit.

    Args:
        hosts: every host's variables, with the roles' defaults filled in.
        groups: the inventory's groups.
        options: argument specs of the shared variables.
        services: what each service needs.
    """
    found = list(contract(hosts, options))
    if not found:
        found = [*systems(hosts), *needs(groups, services), *shares(hosts, groups), *computing(hosts, groups)]
        found += [*software(hosts, groups), *ports(hosts, groups)]
    return found


def defaults_of(roles: Path, loader: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The defaults of all roles, and the argument specs of the shared variables."""
    defaults: dict[str, Any] = {}
    for file in sorted(roles.glob("*/defaults/main.yml")):
        defaults |= loader.load_from_file(str(file), trusted_as_template=True) or {}
    specs = loader.load_from_file(str(roles / "gridstead" / "meta" / "argument_specs.yml"))
    return defaults, specs["argument_specs"]["contract"]["options"]


def seen_by_roles(
    given: Mapping[str, Any], defaults: Mapping[str, Any], options: Mapping[str, Any], templar: Any, groups: Groups
) -> dict[str, Any]:
    """A host's variables as its roles would see them: those that are compared, templates resolved."""
    merged = {**defaults, "groups": groups, **given}
    own = templar.copy_with_new_env(available_variables=merged)
    values = {name: own.template(merged[name]) for name in (*options, *COMPARED) if name in merged}
    return {**values, "ansible_facts": given.get("ansible_facts", {})}


def told(mistake: Mistake, given: Mapping[str, Mapping[str, Any]]) -> str:
    """A mistake in words, with the file and line of the variable that says so, where a file of the site does.

    Args:
        mistake: what does not fit.
        given: every host's variables as they were given, without the roles' defaults.
    """
    origin = Origin.get_tag(given.get(mistake.host, {}).get(mistake.variable))
    if origin is None or not origin.path:
        return mistake.text
    return f"{origin.path}:{origin.line_num}: {mistake.text}"


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core has no type information
    """Compares the variables of all hosts of the inventory; runs on the controller, once for all."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS: ClassVar[frozenset[str]] = frozenset()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Fail with all mistakes at once."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        defaults, options = defaults_of(ROLES, self._loader)
        services = self._loader.load_from_file(str(SERVICES))["services"]
        groups = {name: list(hosts) for name, hosts in variables["groups"].items()}
        try:
            given = {host: variables["hostvars"].raw_get(host) for host in groups["all"]}
            seen = {host: seen_by_roles(it, defaults, options, self._templar, groups) for host, it in given.items()}
            found = [told(mistake, given) for mistake in mistakes(seen, groups, options, services)]
        except AnsibleError as error:
            found = [str(error)]
        if found:
            result |= {"failed": True, "msg": "nothing was changed; the site's variables do not fit:\n" + "\n".join(found)}
        return result | {"changed": False}
