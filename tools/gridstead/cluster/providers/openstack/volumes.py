"""Block volumes and their attachments."""

from __future__ import annotations

from typing import Any

from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.providers.openstack import marks
from gridstead.cluster.providers.openstack.cloud import Cloud, NotThereError
from gridstead.cluster.providers.openstack.watch import Watch
from gridstead.cluster.resources import Found, Kind, Resource

#: Seconds for a volume to be made, attached, let go or deleted.
LIMIT = 300.0
_GIB = 2**30
#: Not every driver of cinder makes a volume larger that a server has.
_GROW_FREE = "what is on it is as it was; `tools/cluster up --replace NODE`, the node that has it, makes it larger while it is free"


def gibibytes(size: int) -> int:
    """Cinder's unit for a size in bytes: whole GiB, rounded up."""
    return -(-size // _GIB)


def device_paths(identity: str) -> tuple[str, ...]:
    """What the guest may call a volume under /dev/disk/by-id, as glob patterns.

    The virtual disk's serial number is the volume's id. virtio's has room for 20 characters, and so had the others' of older
    QEMU; which bus a disk is on is a property of the image (hw_disk_bus) or the hypervisor's choice. udev's rules
    (60-persistent-storage.rules) make the names; VMware tells the id as the disk's World Wide Name.

    Args:
        identity: the volume's id.
    """
    names = []
    for serial in (identity[:20], identity):
        names += [f"virtio-{serial}", f"scsi-*QEMU_HARDDISK_{serial}", f"ata-*_{serial}", f"nvme-*_{serial}", f"nvme-*_{serial}_1"]
    return tuple(f"/dev/disk/by-id/{name}" for name in (*names, f"wwn-0x{identity.replace('-', '')}"))


class Volumes:
    """Cinder's side of one cluster.

    Args:
        cloud: the connection.
        marker: makes the cluster's marks.
    """

    def __init__(self, cloud: Cloud, marker: marks.Marker) -> None:
        self.cloud, self.marker, self.cluster = cloud, marker, marker.cluster
        self._watch = Watch(lambda: self.cloud(lambda: list(self._storage.volumes(details=True)), what="list volumes"))

    @property
    def _storage(self) -> Any:
        return self.cloud.services.block_storage

    def _find(self, resource: Resource) -> Any:
        for volume in self._storage.volumes(details=True):
            mark = marks.of_metadata(Kind.VOLUME, volume.metadata)
            if mark and mark.cluster == self.cluster and mark.key == resource.key:
                return volume
        return None

    def ensure(self, resource: Resource, found: Found | None) -> str:
        """A volume of the declared size that can serve.

        Returns:
            Its id.
        """
        name, properties = resource.key.name, resource.properties
        size = gibibytes(properties["bytes"])
        if found is None:
            attributes: dict[str, Any] = {
                "name": marks.name(self.cluster, name),
                "size": size,
                "metadata": self.marker.of(resource).metadata,
            }
            for ours, theirs in (("type", "volume_type"), ("zone", "availability_zone")):
                if properties[ours]:
                    attributes[theirs] = properties[ours]
            volume = self.cloud.make(lambda: self._find(resource), lambda: self._storage.create_volume(**attributes), what=f"volume {name}")
            identity = str(volume.id)
        else:
            identity = found.id
        if self._settled(identity, name).size < size:
            self._grow(identity, name, size)
        if found and resource.differs(found.digest):
            self.mark(found, self.marker.of(resource))
        return identity

    def mark(self, found: Found, mark: marks.Mark) -> None:
        """Give a volume that is there another mark."""
        self.cloud(lambda: self._storage.set_volume_metadata(found.id, **mark.metadata), what=f"mark {found.key}")

    def remember(self, found: Found, uuid: str) -> None:
        """Note in a volume's metadata what file system it has."""
        self.cloud(lambda: self._storage.set_volume_metadata(found.id, **{marks.FILESYSTEM: uuid}), what=f"mark volume {found.key.name}")

    def _grow(self, identity: str, name: str, size: int) -> None:
        """Make a volume larger, also while a server has it: cinder's API 3.42, and a matter of the driver.

        Args:
            identity: its id.
            name: what to call it.
            size: GiB.

        Raises:
            GridsteadError: the cloud does not do it.
        """
        # When the call returns, the volume is `extending` or beyond: its state before, at its size before, is a refusal.
        self.cloud(lambda: self._storage.extend_volume(identity, size), what=f"extend volume {name}", conflict=True)
        volume = self._settled(identity, name)
        if volume.size < size:
            raise GridsteadError(f"volume {name} ({identity}): the cloud leaves it at {volume.size}G", hint=_GROW_FREE)

    def _settled(self, identity: str, name: str) -> Any:
        def settled(volume: Any) -> bool:
            if volume is None:
                raise GridsteadError(f"volume {name} has disappeared", hint="someone else deletes volumes here")
            if volume.status == "error_extending":
                raise GridsteadError(
                    f"volume {name} ({identity}) is in state error_extending: the cloud could not make it larger", hint=_GROW_FREE
                )
            if volume.status.startswith("error"):
                raise GridsteadError(
                    f"volume {name} ({identity}) is in state {volume.status}",
                    hint=f"data may be on it, so it is left alone; when none is, delete it: openstack volume delete --force {identity}",
                )
            return volume.status in {"available", "in-use"}

        return self._watch.wait(identity, settled, limit=LIMIT, what=f"volume {name} ({identity})")

    def delete(self, found: Found) -> None:
        """A volume with all that is on it."""
        what = f"volume {found.key.name}"

        def free(volume: Any) -> bool:
            return volume is None or volume.status not in {"detaching", "attaching", "in-use", "creating", "reserved"}

        if self._watch.wait(found.id, free, limit=LIMIT, what=f"{what} ({found.id})") is None:
            return
        self.cloud.gone(self._storage.delete_volume, found.id, what=what)

        def gone(volume: Any) -> bool:
            if volume is not None and volume.status == "error_deleting":
                raise GridsteadError(
                    f"{what}: cinder could not delete it (error_deleting)", hint=f"openstack volume delete --force {found.id}"
                )
            return volume is None

        self._watch.wait(found.id, gone, limit=LIMIT, what=f"end of {what}")

    # -- attachments -----------------------------------------------------------------------------------------------

    def attach(self, name: str, volume: str, server: str) -> None:
        """Attach a volume to a server; attached already is well.

        Raises:
            GridsteadError: another server has it, or it does not come.
        """

        def free(one: Any) -> bool:
            if one is None:
                raise GridsteadError(f"volume {name}: the cloud has no volume {volume}")
            return one.status not in {"attaching", "detaching", "creating", "downloading", "extending", "reserved"}

        def attached(one: Any) -> bool:
            if one is not None and one.status in {"available", "error", "error_attaching"}:
                raise GridsteadError(f"volume {name} did not attach: it is {one.status}", hint="`tools/cluster up` tries again")
            return one is not None and one.status == "in-use"

        one = self._watch.seen(volume)
        if one is None or one.status != "available":
            # nova releases a volume of a server that has just gone a little later than the server.
            one = self._watch.wait(
                volume, lambda one: free(one) and not self._held_by_none_left(one, server), limit=LIMIT, what=f"volume {name} ({volume})"
            )
        holders = [str(one_["server_id"]) for one_ in one.attachments or []]
        if server in holders:
            return
        if holders:
            raise GridsteadError(f"volume {name} ({volume}) is attached to server {holders[0]}", hint="detach it there first")
        compute = self.cloud.services.compute
        self.cloud.make(
            lambda: next((one for one in compute.volume_attachments(server) if one.volume_id == volume), None),
            lambda: compute.create_volume_attachment(server, volume_id=volume),
            what=f"attachment {name}",
        )
        self._watch.wait(volume, attached, limit=LIMIT, what=f"attachment {name}")

    def _held_by_none_left(self, volume: Any, server: str) -> bool:
        """Whether cinder still names a server that nova no longer has."""
        for holder in volume.attachments or []:
            if holder["server_id"] != server:
                try:
                    self._server(holder["server_id"])
                except NotThereError:
                    return True
        return False

    def _server(self, identity: str) -> Any:
        return self.cloud(lambda: self.cloud.services.compute.get_server(identity), what="look for a server")

    def detach(self, found: Found) -> None:
        """Take a volume from its server; the node must have unmounted it."""
        compute = self.cloud.services.compute
        volume = str(found.data["volume"])
        self.cloud.gone(compute.delete_volume_attachment, str(found.data["server"]), volume, what=f"attachment {found.key.name}")
        self._watch.wait(
            volume,
            lambda one: one is None or one.status not in {"in-use", "detaching"},
            limit=LIMIT,
            what=f"end of attachment {found.key.name}",
        )
