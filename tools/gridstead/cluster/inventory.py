"""Ansible's dynamic inventory, built from what the provider observes."""

from __future__ import annotations

import shlex
from typing import Any

from gridstead.cluster import halves
from gridstead.cluster.node import Node
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers.base import Device, NodeAccess
from gridstead.cluster.services import SERVICES
from gridstead.cluster.spec import Cluster

#: In the environment: the inventory plugin gives the nodes that are declared, whether they are there or not.
DECLARED = "GRIDSTEAD_DECLARED"


def ssh_options(paths: SitePaths, access: NodeAccess) -> list[str]:
    """The ssh options that reach a node: the cluster's own key and host keys, nobody else's."""
    return [
        *("-o", f"UserKnownHostsFile={paths.known_hosts}", "-o", "GlobalKnownHostsFile=/dev/null"),
        *("-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
        *access.ssh_options,
    ]


def ssh_argv(paths: SitePaths, access: NodeAccess, *, connect_timeout: int = 5) -> list[str]:
    """The ssh command line up to and including the host."""
    return [
        *("ssh", "-F", "/dev/null", "-i", str(paths.ssh_key), "-p", str(access.port)),
        *("-o", f"ConnectTimeout={connect_timeout}", "-o", "LogLevel=ERROR"),
        *ssh_options(paths, access),
        f"{access.user}@{access.host}",
    ]


def root_argv(paths: SitePaths, access: NodeAccess, *words: str) -> list[str]:
    """The ssh command line that runs a program on a node as root, whoever the node lets in.

    Args:
        paths: where the cluster's key is.
        access: the node.
        words: the program and its arguments, each kept whole.
    """
    become = [] if access.user == "root" else ["sudo", "-n", "--"]
    return [*ssh_argv(paths, access), shlex.join([*become, *words])]


def _device(device: Device) -> dict[str, Any]:
    """What role block_volume is told of a volume's device."""
    names = list(device.paths)
    return {"device": names if len(names) > 1 else names[0], "uuid": device.filesystem, "format": device.format}


def host_variables(spec: Cluster, paths: SitePaths, node: str, access: NodeAccess) -> dict[str, Any]:
    """The inventory variables of one node."""
    kind = spec.nodes[Node.parse(node).kind]
    return {
        "ansible_host": access.host,
        "ansible_user": access.user,
        "ansible_port": access.port,
        "ansible_become": access.user != "root",
        "ansible_ssh_private_key_file": str(paths.ssh_key),
        "ansible_ssh_common_args": shlex.join(ssh_options(paths, access)),
        "ansible_python_interpreter": "/usr/bin/python3",
        "gridstead_address": access.address,
        "gridstead_flavor": kind.flavor.model_dump(include={"cpus", "memory"}),
        "gridstead_volumes": [
            {
                "name": volume.name,
                **_device(access.volumes[volume.name]),
                **volume.model_dump(include={"filesystem", "mount", "owner", "group", "mode"}),
            }
            for volume in kind.volumes
            if volume.name in access.volumes
        ],
        **access.variables,
        "gridstead_baked": halves.baked(access.halves, access.variables),
    }


def build(spec: Cluster, paths: SitePaths, nodes: dict[str, NodeAccess]) -> dict[str, Any]:
    """The inventory in the form of Ansible's ``--list`` contract.

    Args:
        spec: the cluster.
        paths: where its secrets are.
        nodes: the nodes that exist, from :meth:`Provider.nodes`.

    Returns:
        Groups for each node kind and each service, and ``_meta.hostvars``. A group without a node is there, empty:
        plays that name it need no conditions.
    """
    known = {node: access for node, access in nodes.items() if Node.parse(node).kind in spec.nodes}
    groups: dict[str, list[str]] = {kind: [] for kind in spec.nodes}
    groups |= {service: [] for service in (*SERVICES, *spec.extra_services)}
    for node in sorted(known):
        for group in (Node.parse(node).kind, *spec.services_of(node)):
            groups[group].append(node)
    shared = {
        "gridstead_cluster": spec.name,
        "gridstead_domain": spec.domain,
        "gridstead_provider": spec.provider,
        "gridstead_shares": [share.path for share in spec.shares],
        "gridstead_share_origins": spec.origins,
        "gridstead_secrets": str(paths.secrets),
    }
    return {
        **{group: {"hosts": hosts} for group, hosts in groups.items()},
        "all": {"children": sorted(groups), "vars": shared},
        "_meta": {"hostvars": {node: host_variables(spec, paths, node, access) for node, access in known.items()}},
    }


def declared(spec: Cluster) -> dict[str, NodeAccess]:
    """The declared nodes, as if they were there, with their names in place of addresses: to check variables before anything is made."""
    return {node: NodeAccess(node, node) for node in spec.node_names()}


def ssh_config(spec: Cluster, paths: SitePaths, nodes: dict[str, NodeAccess]) -> str:
    """Text for ssh's configuration with an entry a node, for ``ssh -F``, scp, rsync and editors."""
    lines = ["# Written by Gridstead at every `tools/cluster up`."]
    for node, access in sorted(nodes.items()):
        lines += [
            f"Host {node} {node}.{spec.domain}",
            f"  HostName {access.host}",
            f"  User {access.user}",
            f"  Port {access.port}",
            f'  IdentityFile "{paths.ssh_key}"',
        ]
        options = ssh_options(paths, access)
        lines += [f"  {option.replace('=', ' ', 1)}" for flag, option in zip(options[::2], options[1::2], strict=True) if flag == "-o"]
    return "\n".join(lines) + "\n"
