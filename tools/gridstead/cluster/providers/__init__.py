"""Where nodes come from: one small interface, one module for each kind of cloud."""

from __future__ import annotations

from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers.base import Provider
from gridstead.cluster.spec import Cluster


def provider_for(spec: Cluster, paths: SitePaths) -> Provider:
    """The provider that a cluster names.

    Imported only when asked for, so that one cloud's library is not needed to use another.
    """
    match spec.provider:
        case "podman":
            from gridstead.cluster.providers.podman.provider import PodmanProvider

            return PodmanProvider(spec, paths)
        case "openstack":
            from gridstead.cluster.providers.openstack.provider import OpenStackProvider

            return OpenStackProvider(spec, paths)
