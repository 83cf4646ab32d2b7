"""How long a cluster takes on OpenStack, against the bare API calls: `tools/test bench openstack_api`, on the test cloud's fake zone.

The bare run makes and deletes the same things with openstacksdk alone: no plan, no marks, no search for what is there, every
call as soon as what it needs has come, as many at once as the provider makes. What it takes longer than that is the
provider's own. Prints a Markdown table and writes all values to .cache/bench-openstack-api.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import openstack  # noqa: E402  the path comes first

from bench_results import keep  # noqa: E402
from support import ROOT  # noqa: E402

#: What was measured: row, then value.
Round = dict[str, dict[str, float]]
#: As many calls at once as the provider makes (providers/openstack/cloud.py).
AT_ONCE = 8
#: Seconds between two looks at a server or volume.
POLL_S = 1.0
SPEC = """\
name: bench
provider: openstack
openstack: {{availability_zone: fake}}
image: {{name: fake}}
nodes:
  server:
    count: 1
    public: true
    flavor: {{name: fake.small}}
    services: [nfs_server]
    volumes:
      - {{name: data, size: 1G, mount: /data, filesystem: ext4}}
  worker:
    count: {workers}
    flavor: {{name: fake.small}}
    services: [nfs_client]
    volumes:
      - {{name: scratch, size: 1G, mount: /scratch, filesystem: ext4}}
"""


class Bare:
    """The same cluster by API calls alone.

    Args:
        nodes: how many, each with a port and a volume; the first with a floating address.
    """

    def __init__(self, nodes: int) -> None:
        self.cloud: Any = openstack.connect()
        for service in ("compute", "network", "block_storage", "image"):
            getattr(self.cloud, service).get_endpoint()
        self.names = [f"bare-{number:03}" for number in range(nodes)]
        self._bound = threading.BoundedSemaphore(AT_ONCE)
        self._looks: dict[str, tuple[float, dict[str, str]]] = {}
        self._looking = threading.Lock()
        self.made: dict[str, Any] = {}

    def __call__(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """One call, when there is room for it."""
        with self._bound:
            return call(*arguments, **options)

    def _wait(self, kind: str, identity: str, wanted: Iterable[str]) -> None:
        """Until a server or volume is in a wanted state; one listing serves all who wait."""
        listing = {"server": self.cloud.compute.servers, "volume": self.cloud.block_storage.volumes}[kind]
        while True:
            asked = time.monotonic()
            with self._looking:
                taken, states = self._looks.get(kind, (0.0, {}))
                if taken < asked:
                    states = {one.id: one.status for one in self(lambda: list(listing()))}
                    self._looks[kind] = (time.monotonic(), states)
            state = states.get(identity, "gone")
            if state in wanted:
                return
            if state.lower().startswith("error"):
                raise RuntimeError(f"{kind} {identity}: {state}")
            time.sleep(POLL_S)

    def up(self) -> None:
        """Make everything."""
        network, made = self.cloud.network, self.made
        image = self.cloud.image.find_image("fake").id
        flavor = self.cloud.compute.find_flavor("fake.small").id
        outside = network.find_network("public").id
        made["keypair"] = self.cloud.compute.create_keypair(name="bare")
        made["group"] = network.create_security_group(name="bare").id
        network.create_security_group_rule(
            security_group_id=made["group"], direction="ingress", ether_type="IPv4", remote_group_id=made["group"]
        )
        made["network"] = network.create_network(name="bare").id
        made["subnet"] = network.create_subnet(network_id=made["network"], cidr="10.56.0.0/22", ip_version=4).id
        made["nodes"] = {}

        def way_out() -> None:
            made["router"] = network.create_router(name="bare", external_gateway_info={"network_id": outside}).id
            self(network.add_interface_to_router, made["router"], subnet=made["subnet"])

        def server(name: str) -> str:
            port = self(network.create_port, network_id=made["network"], name=name, security_group_ids=[made["group"]]).id
            identity = str(
                self(
                    self.cloud.compute.create_server,
                    name=name,
                    image_id=image,
                    flavor_id=flavor,
                    networks=[{"port": port}],
                    availability_zone="fake",
                    key_name="bare",
                ).id
            )
            made["nodes"].setdefault(name, {}).update(port=port, server=identity)
            self._wait("server", identity, ["ACTIVE"])
            return identity

        def volume(name: str) -> str:
            identity = str(self(self.cloud.block_storage.create_volume, name=name, size=1).id)
            made["nodes"].setdefault(name, {}).update(volume=identity)
            self._wait("volume", identity, ["available"])
            return identity

        def address() -> None:
            made["address"] = self(network.create_ip, floating_network_id=outside, port_id=made["nodes"][self.names[0]]["port"]).id

        with ThreadPoolExecutor(max_workers=3 * len(self.names) + 2) as pool:
            way = pool.submit(way_out)
            volumes = {name: pool.submit(volume, name) for name in self.names}
            servers = {name: pool.submit(server, name) for name in self.names}

            def attach(name: str) -> None:
                identity, holder = volumes[name].result(), servers[name].result()
                self(self.cloud.compute.create_volume_attachment, holder, volume_id=identity)
                self._wait("volume", identity, ["in-use"])

            attachments = [pool.submit(attach, name) for name in self.names]
            way.result()
            servers[self.names[0]].result()
            address()
            for one in attachments:
                one.result()

    def down(self) -> None:
        """Delete everything that was made."""
        network, compute, made = self.cloud.network, self.cloud.compute, self.made

        def node(name: str) -> None:
            ids = made["nodes"][name]
            if "server" in ids:
                self(compute.delete_server, ids["server"])
                self._wait("server", ids["server"], ["gone"])
            if "port" in ids:
                self(network.delete_port, ids["port"])
            if "volume" in ids:
                self._wait("volume", ids["volume"], ["available", "gone"])
                self(self.cloud.block_storage.delete_volume, ids["volume"])
                self._wait("volume", ids["volume"], ["gone"])

        if "address" in made:
            network.delete_ip(made["address"])
        with ThreadPoolExecutor(max_workers=len(self.names)) as pool:
            list(pool.map(node, made.get("nodes", {})))
        if "router" in made:
            network.remove_interface_from_router(made["router"], subnet=made["subnet"])
            network.delete_router(made["router"])
        if "network" in made:
            network.delete_network(made["network"])
        if "group" in made:
            network.delete_security_group(made["group"])
        if "keypair" in made:
            compute.delete_keypair("bare")


def timed(action: Callable[[], Any]) -> dict[str, float]:
    """Seconds of an action."""
    began = time.monotonic()
    action()
    return {"seconds": time.monotonic() - began}


def command(*words: str | Path, limit: float) -> dict[str, float]:
    """Seconds, the processor's seconds and peak memory in MiB of one `tools/cluster`."""
    process = subprocess.Popen([ROOT / "tools/cluster", *words], stdout=subprocess.DEVNULL)
    began = time.monotonic()
    stopper = threading.Timer(limit, process.kill)
    stopper.start()
    _, status, used = os.wait4(process.pid, 0)
    stopper.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{words[0]} ended with {process.returncode}")
    return {"seconds": time.monotonic() - began, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1024}


def measure(nodes: int, scratch: Path) -> Round:
    """One round of one size: bare, then the provider, up and down."""
    rows: Round = {}
    bare = Bare(nodes)
    try:
        rows["bare up"] = timed(bare.up)
    finally:
        rows["bare down"] = timed(bare.down)
    spec = scratch / "cluster.yml"
    spec.write_text(SPEC.format(workers=nodes - 1))
    try:
        rows["up"] = command("up", "--site", spec, "--no-wait", limit=7200)
        rows["plan"] = command("plan", "--site", spec, limit=600)
        rows["inventory"] = command("inventory", "--site", spec, limit=600)
    finally:
        rows["down"] = command("down", "--site", spec, "--volumes", "--yes", limit=7200)
    return rows


def middle(rounds: Sequence[Round], row: str, value: str) -> float:
    """The median of a value over all rounds."""
    return statistics.median(rows[row][value] for rows in rounds)


def table(nodes: int, rounds: Sequence[Round]) -> str:
    """The medians of all rounds of one size as Markdown, with the ratio of each."""
    lines = ["| nodes | what | seconds | bare calls, s | ratio of each round | own CPU, s | peak, MiB |", "|---|---|---|---|---|---|---|"]
    for what in ("up", "down", "plan", "inventory"):
        floor, ratios, bare = "", "", f"bare {what}"
        if bare in rounds[0]:
            floor = f"{middle(rounds, bare, 'seconds'):.1f}"
            ratios = ", ".join(f"{rows[what]['seconds'] / rows[bare]['seconds']:.2f}" for rows in rounds)
        seconds, cpu, peak = (middle(rounds, what, value) for value in ("seconds", "cpu", "peak"))
        lines.append(f"| {nodes} | {what} | {seconds:.1f} | {floor} | {ratios} | {cpu:.1f} | {peak:.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("sizes", nargs="*", type=int, default=[10, 100], help="how many nodes (10 and 100)")
    parser.add_argument("--rounds", type=int, default=1, help="how often, one after the other: a cloud's times vary (1)")
    options = parser.parse_args()
    sizes: dict[int, list[Round]] = {}
    with tempfile.TemporaryDirectory(prefix="gridstead-bench-openstack-") as scratch:
        os.environ["GRIDSTEAD_STATE"] = f"{scratch}/state"
        for nodes in options.sizes:
            sizes[nodes] = [measure(nodes, Path(scratch)) for _ in range(options.rounds)]
            print(table(nodes, sizes[nodes]), flush=True)
    keep("openstack-api", sizes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
