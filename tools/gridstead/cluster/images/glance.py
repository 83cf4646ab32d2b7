"""The node image in the cloud: the one that is named, or the kit's own, built here and uploaded once."""

from __future__ import annotations

from typing import Any

from gridstead.cluster import halves
from gridstead.cluster.errors import GridsteadError, PreflightError
from gridstead.cluster.host import Host
from gridstead.cluster.images import kitchen, machine_image
from gridstead.cluster.images.base import Images
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.openstack import preflight
from gridstead.cluster.providers.openstack.cloud import Cloud
from gridstead.cluster.providers.openstack.marks import HALVES
from gridstead.cluster.providers.podman.engine import Podman
from gridstead.cluster.spec import Image

#: What the machine image wants of its virtual hardware (glance, useful image properties). Nothing of the config drive, which is
#: a CD-ROM where the machine type has them: libvirt knows none on virtio, and refuses such a server.
_HARDWARE = {"hw_disk_bus": "virtio", "hw_vif_model": "virtio", "hw_rng_model": "virtio", "os_distro": "debian"}
#: Uploads take as long as the line does.
_UPLOAD_PATIENCE = 3


class GlanceImages(Images):
    """The image that servers of one cluster boot from.

    Args:
        cloud: the connection.
        declared: the declaration's image.
    """

    def __init__(self, cloud: Cloud, declared: Image) -> None:
        self.cloud, self.declared = cloud, declared

    def space(self) -> int:
        """See :meth:`Images.space`."""
        if self.declared.name or self._uploaded(machine_image.name(self.declared.release)):
            return 0
        return 0 if machine_image.find(self.declared.release) else kitchen.BYTES_TO_BUILD

    def _uploaded(self, name: str) -> Any:
        # An upload that was killed stays "queued" or "saving" for ever.
        listed = self.cloud(lambda: list(self.cloud.services.image.images(name=name)), what=f"look for image {name}")
        return next((one for one in listed if one.status == "active"), None)

    def ensure(self, progress: Progress, *, rebuild: bool = False) -> str:
        """See :meth:`Images.ensure`. One that the declaration names is only looked for."""
        if self.declared.name:
            return str(preflight.image(self.cloud, self.declared.name).id)
        found = None if rebuild else self._uploaded(machine_image.name(self.declared.release))
        if found is not None:
            return str(found.id)
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
            return str(self._upload(built).id)

    def _upload(self, built: machine_image.MachineImage) -> Any:
        images = self.cloud.services.image
        properties = {**_HARDWARE, HALVES: halves.to_text(built.halves)}
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

    def remove(self) -> None:
        """See :meth:`Images.remove`; the files they came from go too."""
        servers = self.cloud(lambda: list(self.cloud.services.compute.servers(details=True)), what="list servers")
        used = {str((server.image or {}).get("id")) for server in servers}
        images = self.cloud.services.image
        for one in self.cloud(lambda: list(images.images(owner=self.cloud.project)), what="list images"):
            if one.name.startswith("gridstead-node-") and one.id not in used:
                self.cloud.gone(images.delete_image, one.id, what=f"image {one.name}")
        machine_image.remove()
