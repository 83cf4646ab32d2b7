"""What every cloud of this kind has from the start: users, catalog, flavors, networks, volume type, zones, an image.

Each function makes what is missing and changes nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloud.passwords import SERVICES
from cloud.settings import FAKE_HOSTS, REAL_HOST, REGION, Settings

if TYPE_CHECKING:
    from openstack.connection import Connection

#: Name: virtual CPUs, memory in MiB, disk in GB.
FLAVORS = {
    "fake.small": (1, 512, 5),
    "fake.large": (4, 4096, 5),
    "real.small": (1, 1024, 5),
    "real.large": (2, 2560, 5),
}
#: For fake servers; what is in it never runs.
IMAGE = "fake"
_IMAGE_BYTES = 2**20
#: The project of cloud `gridstead-test`, and its only user.
PROJECT = USER = "gridstead"


def clouds(settings: Settings, passwords: dict[str, str]) -> dict[str, Any]:
    """The contents of clouds.yaml: the project's member, and the administrator."""
    return {
        "clouds": {
            name: {
                "auth": {
                    "auth_url": settings.auth_url,
                    "username": user,
                    "password": password,
                    "project_name": project,
                    "user_domain_name": "Default",
                    "project_domain_name": "Default",
                },
                "region_name": REGION,
                "identity_api_version": 3,
            }
            for name, user, password, project in (
                ("gridstead-test", USER, passwords["member"], PROJECT),
                ("gridstead-test-admin", "admin", passwords["admin"], "admin"),
            )
        }
    }


def connect(settings: Settings, passwords: dict[str, str], cloud: str = "gridstead-test-admin") -> Connection:
    """A connection to the cloud; none of the caller's OS_* variables or clouds.yaml has a say."""
    import openstack

    entry = clouds(settings, passwords)["clouds"][cloud]
    return openstack.connect(load_yaml_config=False, load_envvars=False, api_timeout=60, **entry)


def identity(settings: Settings, passwords: dict[str, str]) -> None:
    """Users, projects, roles and the catalog."""
    keystone: Any = connect(settings, passwords).identity  # its types leave open whether it speaks v2 or v3
    roles = {role.name: role for role in keystone.roles()}
    if "service" not in roles:
        roles["service"] = keystone.create_role(name="service")
    projects = {project.name: project for project in keystone.projects()}
    for name in ("service", PROJECT):
        if name not in projects:
            projects[name] = keystone.create_project(name=name, domain_id="default")
    users = {user.name: user for user in keystone.users()}
    wanted: dict[str, tuple[str, str, tuple[str, ...]]] = {
        name: ("service", passwords[name], ("admin", "service")) for name in SERVICES if name != "keystone"
    }
    wanted[USER] = (PROJECT, passwords["member"], ("member",))
    for name, (project, password, granted) in wanted.items():
        if name not in users:
            users[name] = keystone.create_user(name=name, password=password, domain_id="default", default_project_id=projects[project].id)
        for role in granted:
            keystone.assign_project_role_to_user(projects[project], users[name], roles[role])
    host = f"http://{settings.address}"
    have = {service.type for service in keystone.services()}
    for kind, name, url in (
        ("image", "glance", f"{host}:9292"),
        ("placement", "placement", f"{host}:8778"),
        ("compute", "nova", f"{host}:8774/v2.1"),
        ("network", "neutron", f"{host}:9696"),
        ("volumev3", "cinderv3", f"{host}:8776/v3/%(project_id)s"),
        ("block-storage", "cinder", f"{host}:8776/v3/%(project_id)s"),
    ):
        if kind not in have:
            service = keystone.create_service(type=kind, name=name)
            for interface in ("public", "internal", "admin"):
                keystone.create_endpoint(service_id=service.id, interface=interface, url=url, region_id=REGION)


def resources(settings: Settings, passwords: dict[str, str]) -> None:
    """Flavors, the external network, the volume type, the image for fake servers."""
    admin = connect(settings, passwords)
    have = {flavor.name for flavor in admin.compute.flavors()}
    for name, (cpus, memory, disk) in FLAVORS.items():
        if name not in have:
            admin.compute.create_flavor(name=name, vcpus=cpus, ram=memory, disk=disk)
    public = admin.network.find_network("public") or admin.network.create_network(
        name="public", is_router_external=True, provider_network_type="flat", provider_physical_network="public"
    )
    if not public.subnet_ids:
        admin.network.create_subnet(
            network_id=public.id,
            name="public",
            ip_version=4,
            cidr=str(settings.floating),
            gateway_ip=str(settings.gateway),
            enable_dhcp=False,
            allocation_pools=[{"start": str(settings.floating[10]), "end": str(settings.floating[-6])}],
        )
    if not admin.block_storage.find_type("nfs"):
        admin.block_storage.create_type(name="nfs", extra_specs={"volume_backend_name": "nfs"})
    images = list(admin.image.images(name=IMAGE))
    if not any(image.status == "active" for image in images):
        for image in images:  # whose upload was interrupted
            admin.image.delete_image(image.id)
        admin.image.create_image(name=IMAGE, data=bytes(_IMAGE_BYTES), disk_format="raw", container_format="bare", visibility="public")


def zones(settings: Settings, passwords: dict[str, str], wanted: frozenset[str]) -> set[str]:
    """Put compute hosts that nova knows into their availability zones.

    Args:
        settings: of the cloud.
        passwords: by name.
        wanted: the zones.

    Returns:
        Hosts of the wanted zones that nova does not know yet.
    """
    from openstack.exceptions import NotFoundException

    compute = connect(settings, passwords).compute
    hosts = {"fake": FAKE_HOSTS, "real": (REAL_HOST,)}
    aggregates = {aggregate.name: aggregate for aggregate in compute.aggregates()}
    missing = set()
    for zone in sorted(wanted):
        if zone not in aggregates:
            aggregates[zone] = compute.create_aggregate(name=zone, availability_zone=zone)
        for host in hosts[zone]:
            if host in (aggregates[zone].hosts or ()):
                continue
            try:
                compute.add_host_to_aggregate(aggregates[zone], host)
            except NotFoundException:
                missing.add(host)
    return missing
