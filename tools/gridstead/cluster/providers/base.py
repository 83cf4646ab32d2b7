"""The interface between the engine and a cloud.

Every provider passes the one test-suite in tests/conformance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gridstead.cluster.progress import Progress
from gridstead.cluster.resources import Key, Observed, Resource


@dataclass(frozen=True)
class Device:
    """A volume as its node finds and treats it.

    Args:
        paths: what it may be called under /dev/disk/by-id, as glob patterns: which names there are depends on the cloud's
            virtual disks and on the node's udev, so the node looks.
        filesystem: the UUID of the file system it was seen with; such a volume is never formatted again, blank as it may look.
        format: whether it may be formatted when it is blank.
    """

    paths: tuple[str, ...]
    filesystem: str = ""
    format: bool = True


@dataclass(frozen=True)
class NodeAccess:
    """How a node is reached and what Ansible should know of it.

    Args:
        address: the node's address in the cluster's network.
        host: the address to open ssh to.
        user: the ssh user; Ansible becomes root where it is not root.
        port: the ssh port.
        running: whether the provider says the node is up.
        variables: the provider's own inventory variables (``gridstead_container``, ``gridstead_share``, …).
        volumes: volume name to the device in the node.
        ssh_options: more options for ssh, such as a jump host.
        halves: the install halves the node was made with, by role: of what it was booted from, not of this checkout.
        through: the node that it is reached through; empty when it is reached directly.
    """

    address: str
    host: str
    user: str = "root"
    port: int = 22
    running: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)
    volumes: Mapping[str, Device] = field(default_factory=dict)
    ssh_options: tuple[str, ...] = ()
    halves: Mapping[str, str] = field(default_factory=dict)
    through: str = ""


class Provider(ABC):
    """One cloud, seen by one cluster: everything it makes carries the cluster's tag."""

    #: How many steps may be under way at once.
    parallel: int = 8
    #: Seconds in which a node that was just started must answer.
    boot_limit: float = 180.0
    #: What new nodes boot from, as this cloud knows it. Whoever has nodes made says it first (see ``gridstead.cluster.images``).
    image: str = ""

    @property
    @abstractmethod
    def lock(self) -> Path:
        """The file that is locked while the cluster is changed; it lies with the cluster's data, where they are on this machine."""

    @abstractmethod
    def preflight(self, resources: Sequence[Resource], *, spare: int = 0) -> None:
        """Check, before anything is made, that what is missing can be made.

        Args:
            resources: the resources that the plan creates or replaces.
            spare: bytes of this machine's disk that are wanted besides.

        Raises:
            PreflightError: naming every shortfall.
            InputError: the declaration cannot hold here (a subnet that clashes, a port that is taken).
        """

    @abstractmethod
    def observe(self) -> Observed:
        """All that exists of the cluster, found by its tag alone; each with what it needs as it is (:attr:`Found.needs`)."""

    @abstractmethod
    def desired(self, observed: Observed) -> list[Resource]:
        """The resources the cluster should have, each after those it needs.

        What was once chosen (a free subnet, a node's address) is taken from ``observed``, so it stays.
        """

    @abstractmethod
    def ensure(self, resource: Resource) -> None:
        """Make a resource be there, as declared and running; returns when the provider agrees.

        What was observed last is taken to be there still; it is made again only after another look.
        """

    @abstractmethod
    def delete(self, key: Key) -> None:
        """Make a resource be gone; returns when the provider agrees. Gone already is well."""

    @abstractmethod
    def stop(self, node: str) -> None:
        """Shut a node down; its volumes, address and name stay."""

    @abstractmethod
    def reboot(self, node: str) -> None:
        """Boot a node anew, whatever it does; returns when the provider says that it runs."""

    @abstractmethod
    def knows_key(self, observed: Observed) -> bool:
        """Whether the nodes found were made to let the present ssh key in."""

    @abstractmethod
    def adopt(self, observed: Observed) -> None:
        """Have the marks of all that was found name the present state directory as the owner."""

    @abstractmethod
    def nodes(self, observed: Observed) -> dict[str, NodeAccess]:
        """How each found node is reached, by name."""

    @abstractmethod
    def console(self, node: str, lines: int) -> str:
        """The last lines of what a node said at boot and since."""

    @abstractmethod
    def grant_access(self, observed: Observed) -> None:
        """Know the host keys of all found nodes that run; where nodes take keys from outside, let the present ssh key in too.

        Containers do; a cloud gives a server its key once, with its creation: a server made with another key stays shut.
        """

    def remember(self, node: str, filesystems: Mapping[str, str]) -> None:  # noqa: B027 - a provider may have no volumes
        """Note beside the volumes what file systems they were seen with on their node, for as long as the volumes are there.

        Args:
            node: the node.
            filesystems: volume name, as in the declaration, to UUID.
        """

    def prepare(self, progress: Progress) -> None:  # noqa: B027 - most clouds are ready
        """Make this machine ready to make nodes. Called before the first change, after the checks."""

    def settle(self) -> None:  # noqa: B027 - most clouds end what they were told by themselves
        """Wait for what an earlier run, killed since, has left under way on this machine. Called before a change looks at what is there.

        What a cloud was asked for it ends by itself, and whoever needs the result waits for it there.
        """

    def finish(self, *, last: bool) -> None:  # noqa: B027 - a cloud may have nothing to do here
        """Take away what making nodes has left on this machine. Called after ``down``.

        Args:
            last: also what all clusters share, if no other one uses it.
        """

    def release(self) -> None:  # noqa: B027 - a cloud may have nothing to do here
        """Hold nothing on this machine any more. Called by a process that has read what it wanted and goes on for long."""

    def notices(self) -> list[str]:
        """What an operator should know about how this machine or cloud was adapted to, a line each."""
        return []
