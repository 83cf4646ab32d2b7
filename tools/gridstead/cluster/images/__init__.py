"""The images that nodes boot from: built here, above the providers, which learn no more of one than its name."""

from __future__ import annotations

from gridstead.cluster.images.base import Images
from gridstead.cluster.providers.base import Provider
from gridstead.cluster.spec import Cluster


def images_for(spec: Cluster, provider: Provider) -> Images:
    """The images for a cluster's nodes.

    Imported only when asked for, so that one cloud's library is not needed to use another.

    Args:
        spec: the cluster.
        provider: where its nodes are made.
    """
    from gridstead.cluster.providers.podman.provider import PodmanProvider

    if isinstance(provider, PodmanProvider):
        from gridstead.cluster.images.containers import ContainerImages

        return ContainerImages(provider.podman, spec.image.release, provider.variables)
    from gridstead.cluster.images.glance import GlanceImages
    from gridstead.cluster.providers.openstack.provider import OpenStackProvider

    if isinstance(provider, OpenStackProvider):
        return GlanceImages(provider.cloud, spec.image)
    raise TypeError(f"no images for {type(provider).__name__}")
