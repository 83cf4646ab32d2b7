"""The node image in the cloud: the one that is named, or the kit's own, built here and uploaded once."""

from __future__ import annotations

from typing import Any

from gridstead.cluster.errors import GridsteadError, PreflightError
from gridstead.cluster.host import Host
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.openstack import machine_image, preflight
from gridstead.cluster.providers.openstack.cloud import Cloud
from gridstead.cluster.providers.podman.engine import Podman
from gridstead.cluster.spec import Image

#: What the machine image wants of its virtual hardware (glance, useful image properties). Nothing of the config drive, which is
#: a CD-ROM where the machine type has them: libvirt knows none on virtio, and refuses such a server.
_HARDWARE = {"hw_disk_bus": "virtio", "hw_vif_model": "virtio", "hw_rng_model": "virtio", "os_distro": "debian"}
#: The property that names the install halves in an image: ``role=digest`` pairs.
HALVES = "gridstead_halves"
#: Uploads take as long as the line does.
_UPLOAD_PATIENCE = 3


class Images:
    """The images a cluster's nodes boot from.

    Args:
        cloud: the connection.
        declared: the declaration's image.
    """

    def __init__(self, cloud: Cloud, declared: Image) -> None:
        self.cloud, self.declared = cloud, declared

    def find(self) -> Any:
        """The image to boot from, or None when it is the kit's own and not uploaded yet."""
        if self.declared.name:
            return preflight.image(self.cloud, self.declared.name)
        return self._uploaded(machine_image.name(self.declared.release))

    def _uploaded(self, name: str) -> Any:
        # An upload that was killed stays "queued" or "saving" for ever.
        listed = self.cloud(lambda: list(self.cloud.services.image.images(name=name)), what=f"look for image {name}")
        return next((one for one in listed if one.status == "active"), None)

    def ensure(self, progress: Progress, *, rebuild: bool = False) -> Any:
        """The image to boot from, built and uploaded where it is missing."""
        found = self.find()
        if found is not None and (self.declared.name or not rebuild):
            return found
        host = Host()
        if not host.is_root:
            raise PreflightError(
                "building the node image needs root",
                hint="run this as root, or name an image of the cloud in cluster.yml: image: {name: …}",
            )
        host.ensure_packages(progress)
        podman = Podman(host)
        podman.set_up()
        built = machine_image.ensure(podman, self.declared.release, progress, rebuild=rebuild)
        with progress.step("upload", built.name):
            self._remove(built.name)
            return self._upload(built)

    def _upload(self, built: machine_image.MachineImage) -> Any:
        images = self.cloud.services.image
        properties = {**_HARDWARE, HALVES: " ".join(f"{role}={digest}" for role, digest in sorted(built.halves.items()))}
        image = self.cloud.make(
            lambda: None,
            lambda: images.create_image(
                built.name,
                container_format="bare",
                disk_format="qcow2" if built.path.suffix == ".qcow2" else "raw",
                min_disk=built.min_disk,
                visibility="private",
                allow_duplicates=True,
                **properties,
            ),
            what=f"image {built.name}",
        )
        for left in reversed(range(_UPLOAD_PATIENCE)):
            try:
                with built.path.open("rb") as stream:
                    images.put(f"/images/{image.id}/file", data=stream, headers={"Content-Type": "application/octet-stream"}, timeout=3600)
            except Exception as error:  # noqa: BLE001 - whatever broke the line; the last one is told
                if not left:
                    raise GridsteadError(f"upload of image {built.name}: {error}") from None
                continue
            break
        found = self._uploaded(built.name)
        if found is None:
            raise GridsteadError(f"upload of image {built.name}: glance did not take it", hint="`tools/cluster image build` tries again")
        return found

    def _remove(self, name: str) -> None:
        images = self.cloud.services.image
        for one in self.cloud(lambda: list(images.images(name=name)), what="list images"):
            self.cloud.gone(images.delete_image, one.id, what=f"image {name}")

    def remove_all(self, used: set[str]) -> None:
        """Remove the images the kit uploaded that no server boots from, and the files they came from."""
        images = self.cloud.services.image
        for one in self.cloud(lambda: list(images.images(owner=self.cloud.project)), what="list images"):
            if one.name.startswith("gridstead-node-") and one.id not in used:
                self.cloud.gone(images.delete_image, one.id, what=f"image {one.name}")
        machine_image.remove()

    @staticmethod
    def halves(image: Any) -> dict[str, str]:
        """The roles whose install half an image holds, each with the half's digest."""
        pairs = str((image.properties or {}).get(HALVES, "") if image is not None else "").split()
        return {role: digest for role, _, digest in (pair.partition("=") for pair in pairs)}
