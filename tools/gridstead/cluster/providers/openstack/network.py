"""Networks, routers, security groups, ports and floating addresses: making and taking away."""

from __future__ import annotations

from typing import Any

from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.providers.openstack import marks
from gridstead.cluster.providers.openstack.cloud import Cloud, NotThereError
from gridstead.cluster.providers.openstack.listing import marked
from gridstead.cluster.resources import Found, Kind, Resource

#: What makes a rule of a security group the rule it is.
_RULE = ("direction", "ethertype", "protocol", "port_range_min", "port_range_max", "remote_ip_prefix", "remote_group_id")


class Networking:
    """Neutron's side of one cluster.

    Args:
        cloud: the connection.
        marker: makes the cluster's marks.
    """

    def __init__(self, cloud: Cloud, marker: marks.Marker) -> None:
        self.cloud, self.marker, self.cluster = cloud, marker, marker.cluster

    @property
    def _network(self) -> Any:
        return self.cloud.services.network

    def _find(self, resource: Resource, listing: Any) -> Any:
        """The resource that a lost answer was about."""
        key = resource.key
        wanted = (one for mark, one in marked(self.cluster, key.kind, listing(project_id=self.cloud.project)) if mark.key == key)
        return next(wanted, None)

    def _marking(self, resource: Resource, name: str) -> dict[str, str]:
        return {"name": name, "description": self.marker.of(resource).description}

    def mark(self, found: Found, mark: marks.Mark) -> None:
        """Give a resource that is there another mark."""
        update = {
            Kind.NETWORK: self._network.update_network,
            Kind.ROUTER: self._network.update_router,
            Kind.SECURITY_GROUP: self._network.update_security_group,
            Kind.PORT: self._network.update_port,
            Kind.ADDRESS: self._network.update_ip,
        }[found.key.kind]
        self.cloud(lambda: update(found.id, description=mark.description), what=f"mark {found.key}")

    # -- the network -----------------------------------------------------------------------------------------------

    def ensure_network(self, resource: Resource, found: Found | None) -> tuple[str, str]:
        """The cluster's own network with its subnet.

        Returns:
            The ids of both.
        """
        name, properties = marks.name(self.cluster), resource.properties
        network = found.id if found else None
        if network is None:
            made = self.cloud.make(
                lambda: self._find(resource, self._network.networks),
                lambda: self._network.create_network(**self._marking(resource, name)),
                what=f"network {name}",
            )
            network = str(made.id)
        subnets = self.cloud(lambda: list(self._network.subnets(network_id=network)), what="list subnets") if found else []
        dns = list(properties["dns"])
        if subnets:
            subnet = subnets[0]
            if subnet.cidr != properties["cidr"]:
                raise GridsteadError(
                    f"the network has {subnet.cidr}, {properties['cidr']} is declared",
                    hint="a network keeps its addresses: take the cluster down first, or declare what it has",
                )
            if list(subnet.dns_nameservers or []) != dns:
                self.cloud(lambda: self._network.update_subnet(subnet, dns_nameservers=dns), what="change the subnet")
        else:
            subnet_attributes = {"name": name, "network_id": network, "cidr": properties["cidr"], "ip_version": 4, "dns_nameservers": dns}
            subnet = self.cloud.make(
                lambda: next(iter(self._network.subnets(network_id=network)), None),
                lambda: self._network.create_subnet(**subnet_attributes),
                what=f"subnet {name}",
            )
        if found and resource.differs(found.digest):
            self.cloud(lambda: self._network.update_network(network, **self._marking(resource, name)), what="change the network")
        return network, str(subnet.id)

    def delete_network(self, found: Found) -> None:
        """The network with its subnets."""
        self.cloud.gone(self._network.delete_network, found.id, what=f"network {found.key.name}")

    # -- the router ------------------------------------------------------------------------------------------------

    def ensure_router(self, resource: Resource, found: Found | None, subnet: str) -> str:
        """The router between the cluster's network and the outside; or the connection to an existing one."""
        name, properties = marks.name(self.cluster), resource.properties
        router = properties["existing"] or (found.id if found else None)
        if router is None:
            gateway = {"network_id": properties["external"]}
            made = self.cloud.make(
                lambda: self._find(resource, self._network.routers),
                lambda: self._network.create_router(**self._marking(resource, name), external_gateway_info=gateway),
                what=f"router {name}",
            )
            router = str(made.id)
        # Connected already is an error to neutron; so is the try that follows a lost answer.
        ports = self.cloud(lambda: list(self._network.ports(device_id=router)), what="list the router's ports")
        if subnet not in {fixed["subnet_id"] for port in ports for fixed in port.fixed_ips}:

            def connected() -> Any:
                listed = self._network.ports(device_id=router)
                return next((port for port in listed for fixed in port.fixed_ips if fixed["subnet_id"] == subnet), None)

            self.cloud.make(
                connected, lambda: self._network.add_interface_to_router(router, subnet=subnet), what=f"connection of router {name}"
            )
        return str(router)

    def delete_router(self, found: Found, subnets: list[str]) -> None:
        """Take the connection away, and the router if it is ours."""
        ports = self.cloud(lambda: list(self._network.ports(device_id=found.id)), what="list the router's ports")
        for port in ports:
            for fixed in port.fixed_ips or []:
                if "router_interface" in (port.device_owner or "") and (found.data["own"] or fixed["subnet_id"] in subnets):
                    self._disconnect(found.id, fixed["subnet_id"])
        if found.data["own"]:
            self.cloud.gone(self._network.delete_router, found.id, what=f"router {found.key.name}")

    def _disconnect(self, router: str, subnet: str) -> None:
        try:
            self.cloud(
                lambda: self._network.remove_interface_from_router(router, subnet=subnet), what="disconnect the router", conflict=True
            )
        except NotThereError:
            return

    # -- security groups -------------------------------------------------------------------------------------------

    def ensure_security_group(self, resource: Resource, found: Found | None) -> str:
        """A security group with exactly the declared rules of entry; leaving is free, as by Neutron's default."""
        name = marks.name(self.cluster, resource.key.name)
        group = found.id if found else None
        if group is None:
            made = self.cloud.make(
                lambda: self._find(resource, self._network.security_groups),
                lambda: self._network.create_security_group(**self._marking(resource, name)),
                what=f"security group {name}",
            )
            group = str(made.id)
        listed = self.cloud(lambda: list(self._network.security_group_rules(security_group_id=group)), what="list rules")
        present = {self._essence(rule.to_dict()): rule.id for rule in listed if rule.direction == "ingress"}
        wanted = {self._essence(self._rule(rule, group)): self._rule(rule, group) for rule in resource.properties["rules"]}
        for essence, rule in wanted.items():
            if essence not in present:
                self._add_rule(group, rule)
        for essence, identity in present.items():
            if essence not in wanted:
                self.cloud.gone(self._network.delete_security_group_rule, identity, what="a rule")
        if found and resource.differs(found.digest):
            self.cloud(lambda: self._network.update_security_group(group, **self._marking(resource, name)), what="change a security group")
        return group

    def _add_rule(self, group: str, rule: dict[str, Any]) -> None:
        def there() -> Any:
            listed = self._network.security_group_rules(security_group_id=group)
            return next((one for one in listed if self._essence(one.to_dict()) == self._essence(rule)), None)

        self.cloud.make(there, lambda: self._network.create_security_group_rule(**rule), what="a rule")

    @staticmethod
    def _rule(rule: dict[str, Any], group: str) -> dict[str, Any]:
        full: dict[str, Any] = {"security_group_id": group, "direction": "ingress", "ethertype": "IPv4"}
        if rule.get("inside"):
            return {**full, "remote_group_id": group}
        full |= {"protocol": rule["protocol"], "remote_ip_prefix": rule["source"]}
        low, high = rule["ports"]
        return {**full, "port_range_min": low, "port_range_max": high} if low else full

    @staticmethod
    def _essence(rule: dict[str, Any]) -> tuple[Any, ...]:
        values = {**rule, "ethertype": rule.get("ethertype") or rule.get("ether_type")}
        # Neutron keeps "from anywhere" as it was given or as none at all, by version.
        if values.get("remote_ip_prefix") == "0.0.0.0/0":
            values["remote_ip_prefix"] = None
        return tuple(values.get(name) for name in _RULE)

    def delete_security_group(self, found: Found) -> None:
        """A security group; ports that still have it are about to go."""
        self.cloud.gone(self._network.delete_security_group, found.id, what=f"security group {found.key.name}")

    # -- ports and floating addresses ------------------------------------------------------------------------------

    def ensure_port(
        self, resource: Resource, found: Found | None, network: str, groups: list[str], *, subnet: str | None = None
    ) -> tuple[str, str]:
        """A node's port: its address and its security groups.

        Args:
            resource: the port.
            found: as it is there.
            network: the network's id.
            groups: the ids of the security groups.
            subnet: where Neutron chooses the address, which subnet it is to be of.

        Returns:
            The port's id, and its address.
        """
        name, properties = marks.name(self.cluster, resource.key.name), resource.properties
        if found is None:
            attributes: dict[str, Any] = {"network_id": network, "security_group_ids": groups}
            if properties["address"]:
                attributes["fixed_ips"] = [{"ip_address": properties["address"]}]
            elif subnet:
                attributes["fixed_ips"] = [{"subnet_id": subnet}]
            port = self.cloud.make(
                lambda: self._find(resource, self._network.ports),
                lambda: self._network.create_port(**self._marking(resource, name), **attributes),
                what=f"port {name}",
            )
            return str(port.id), str(port.fixed_ips[0]["ip_address"])
        self.cloud(
            lambda: self._network.update_port(found.id, security_group_ids=groups, **self._marking(resource, name)),
            what=f"change port {name}",
        )
        return found.id, str(found.data["address"])

    def delete_port(self, found: Found) -> None:
        """A node's port."""
        self.cloud.gone(self._network.delete_port, found.id, what=f"port {found.key.name}")

    def ensure_address(self, resource: Resource, found: Found | None, port: str) -> tuple[str, str]:
        """A floating address that leads to a node.

        Returns:
            Its id, and the address.
        """
        if found is None:
            attributes = {"floating_network_id": resource.properties["external"], "port_id": port}
            description = self.marker.of(resource).description
            made = self.cloud.make(
                lambda: self._find(resource, self._network.ips),
                lambda: self._network.create_ip(**attributes, description=description),
                what=f"floating address of {resource.key.name}",
            )
            return str(made.id), str(made.floating_ip_address)
        self.cloud(lambda: self._network.update_ip(found.id, port_id=port), what=f"lead a floating address to {resource.key.name}")
        return found.id, str(found.data["address"])

    def delete_address(self, found: Found) -> None:
        """A floating address."""
        self.cloud.gone(self._network.delete_ip, found.id, what=f"floating address of {found.key.name}")
