"""The node image of the podman provider: the base system with every install half in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gridstead.cluster import halves
from gridstead.cluster.command import CommandError
from gridstead.cluster.images import kitchen
from gridstead.cluster.images.base import Images
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.podman.engine import HALVES, Podman, host_lock

_OURS = "localhost/gridstead/"
#: How many images of other checkouts, or earlier ones of this, a build leaves of each sort.
_NEWEST = 3


def node_tag(release: str, variables: Mapping[str, Any]) -> str:
    """The name of the node image of this checkout.

    Args:
        release: Debian's code name.
        variables: what the nodes are to their roles.
    """
    return f"{_OURS}node:{release}-{kitchen.recipe(release, variables)}"


class ContainerImages(Images):
    """The image that containers of one cluster boot from.

    Args:
        podman: where it is kept.
        release: Debian's code name.
        variables: what the nodes are to their roles.
    """

    def __init__(self, podman: Podman, release: str, variables: Mapping[str, Any]) -> None:
        self.podman, self.release, self.variables = podman, release, variables

    def space(self) -> int:
        """See :meth:`Images.space`."""
        there = self.podman.is_set_up and self.podman.exists("image", node_tag(self.release, self.variables))
        return 0 if there else kitchen.BYTES_TO_BUILD

    def ensure(self, progress: Progress, *, rebuild: bool = False) -> str:
        """See :meth:`Images.ensure`."""
        tag = node_tag(self.release, self.variables)
        # Looked for first: whoever finds it does not wait for one who builds another.
        if not rebuild and self.podman.exists("image", tag):
            return tag
        with host_lock("image"):
            if not rebuild and self.podman.exists("image", tag):
                return tag
            with (
                kitchen.kitchen(self.podman, self.release, progress, self.variables, rebuild=rebuild) as container,
                progress.step("commit image", tag.rpartition("/")[2]),
            ):
                self.podman("stop", container, timeout=60)
                label = f'LABEL {HALVES}="{halves.to_text(halves.current(self.variables))}"'
                change = ["--change", 'CMD ["/sbin/init"]', "--change", label]
                self.podman("commit", "--quiet", *change, container, tag, timeout=600)
            prune(self.podman, keep={kitchen.base_tag(self.release), tag}, newest=_NEWEST)
        return tag

    def remove(self) -> None:
        """See :meth:`Images.remove`."""
        self.podman.set_up()
        prune(self.podman, keep=set(), newest=0)


def prune(podman: Podman, *, keep: set[str], newest: int) -> None:
    """Remove images that the kit built and no node uses.

    Args:
        podman: where they are kept.
        keep: names to keep.
        newest: how many of each sort (base, node) stay besides, the newest ones: other checkouts share this machine's data, and
            each removing the other's would build for minutes every time.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for listed in podman.json("images", "--format", "json"):
        for name in listed.get("Names") or []:
            if name.startswith(_OURS) and name not in keep:
                found.setdefault(name.partition(":")[0], []).append((int(listed["Created"]), name))
    for images in found.values():
        for _, name in sorted(images, reverse=True)[newest:]:
            try:
                podman("rmi", name)
            except CommandError:
                continue  # a node still runs from it
