"""Images of checkouts that share one machine's data, and a build that nobody has to wait for."""

from __future__ import annotations

from typing import Any

import pytest

from gridstead.cluster.command import CommandError
from gridstead.cluster.images import containers, kitchen
from gridstead.cluster.images.containers import ContainerImages, node_tag, prune
from gridstead.cluster.progress import Progress

VARIABLES = {"gridstead_container": True, "gridstead_share": "directory"}


class Podman:
    """Keeps images by name, with the second they were made in; one of them is in use."""

    is_set_up = True

    def __init__(self, images: dict[str, int], used: str = "") -> None:
        self.images, self.used = dict(images), used

    def json(self, *_: str) -> list[dict[str, Any]]:
        return [{"Names": [name], "Created": second} for name, second in self.images.items()] + [{"Names": None, "Created": 0}]

    def exists(self, what: str, name: str) -> bool:
        assert what == "image"
        return name in self.images

    def __call__(self, verb: str, name: str) -> str:
        assert verb == "rmi"
        if name == self.used:
            raise CommandError(["podman", "rmi"], 2, "image is in use by a container")
        del self.images[name]
        return ""


def test_a_build_leaves_the_newest_images_of_others() -> None:
    images = {f"localhost/gridstead/{sort}:trixie-{number}": number for sort in ("base", "node") for number in range(1, 7)}
    podman: Any = Podman({**images, "localhost/someone/else:1": 1}, used="localhost/gridstead/node:trixie-2")
    prune(podman, keep={"localhost/gridstead/node:trixie-1"}, newest=2)
    left = sorted(podman.images)
    assert left == [
        *("localhost/gridstead/base:trixie-5", "localhost/gridstead/base:trixie-6"),
        *(f"localhost/gridstead/node:trixie-{number}" for number in (1, 2, 5, 6)),
        "localhost/someone/else:1",
    ]
    prune(podman, keep=set(), newest=0)
    assert sorted(podman.images) == ["localhost/gridstead/node:trixie-2", "localhost/someone/else:1"]


def test_who_finds_the_image_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else builds another one at that moment, and holds the lock for minutes."""

    def locked(name: str) -> None:
        raise AssertionError(f"waits for the lock {name!r}")

    monkeypatch.setattr(containers, "host_lock", locked)
    monkeypatch.setattr(kitchen, "base_tag", lambda release: f"base:{release}")
    tag = node_tag("trixie", VARIABLES)
    podman: Any = Podman({tag: 1})
    images = ContainerImages(podman, "trixie", VARIABLES)
    assert images.space() == 0
    assert images.ensure(Progress(quiet=True)) == tag
    with pytest.raises(AssertionError, match="waits for the lock 'image'"):
        images.ensure(Progress(quiet=True), rebuild=True)
    podman.images.clear()
    assert images.space() == kitchen.BYTES_TO_BUILD


def test_an_image_is_of_what_its_nodes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kitchen, "base_tag", lambda release: f"base:{release}")
    tags = {node_tag("trixie", VARIABLES), node_tag("bookworm", VARIABLES), node_tag("trixie", {**VARIABLES, "gridstead_share": "nfs"})}
    assert len(tags) == 3
