"""The OpenStack provider's own thinking: marks, what a listing means, patience, host keys. The cloud itself is in tests/api_faults."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keystoneauth1 import exceptions as identity
from openstack import exceptions

from gridstead.cluster.command import CommandError
from gridstead.cluster.errors import GridsteadError, PreflightError
from gridstead.cluster.images import images_for
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.base import Device
from gridstead.cluster.providers.openstack import access, cloud, marks
from gridstead.cluster.providers.openstack.cloud import Cloud, CloudError, NotThereError
from gridstead.cluster.providers.openstack.listing import Listing, Sight
from gridstead.cluster.providers.openstack.provider import OpenStackProvider
from gridstead.cluster.providers.openstack.servers import Recipe, Servers
from gridstead.cluster.providers.openstack.turns import Turn, Turns, calls_of
from gridstead.cluster.providers.openstack.volumes import gibibytes
from gridstead.cluster.providers.openstack.watch import Watch
from gridstead.cluster.resources import Key, Kind, Resource, Status
from gridstead.cluster.spec import Cluster, OpenStack
from support import until

KEYS = """\
[   12.3] cloud-init: something
-----BEGIN SSH HOST KEY KEYS-----
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOlder root@worker001
-----END SSH HOST KEY KEYS-----
[  100.1] rebooted
<14>Nov 22 ec2: -----BEGIN SSH HOST KEY KEYS-----
<14>Nov 22 ec2: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINewer root@worker001
-----END SSH HOST KEY KEYS-----
worker001 login:
"""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(cloud, "LOST_ANSWER_PAUSES", (0.0, 0.0, 0.0))


def spec(**more: Any) -> Cluster:
    nodes = {"server": {"count": 1, "volumes": [{"name": "data", "size": "1G", "mount": "/data"}]}, "worker": {"count": 2}}
    return Cluster.model_validate({"name": "one", "provider": "openstack", "nodes": nodes, **more})


# -- marks -----------------------------------------------------------------------------------------------------------


def marker() -> marks.Marker:
    return marks.Marker("one", lambda: "me@here-12")


def test_what_an_earlier_release_marked_names_no_owner() -> None:
    assert marks.of_description("gridstead:one:port:worker001:abc") == ("one", Key(Kind.PORT, "worker001"), "abc", "")
    assert marks.of_metadata(Kind.VOLUME, {"gridstead.cluster": "one", "gridstead.name": "x", "gridstead.digest": "d"}) == (
        "one",
        Key(Kind.VOLUME, "x"),
        "d",
        "",
    )


@given(st.text())
def test_a_description_of_someone_else_is_no_mark(text: str) -> None:
    mark = marks.of_description(text)
    assert mark is None or text.startswith("gridstead:")


@pytest.mark.parametrize("kind", [Kind.NETWORK, Kind.PORT, Kind.ADDRESS, Kind.SECURITY_GROUP])
def test_a_mark_comes_back_as_it_went(kind: Kind) -> None:
    resource = Resource(Key(kind, "worker001"), {"a": 1})
    mark = marker().of(resource)
    assert marks.of_description(mark.description) == mark == ("one", resource.key, resource.digest, "me@here-12")
    node = marker().of(Resource(Key(Kind.NODE, "worker001"), {"a": 1}))
    assert marks.of_metadata(Kind.NODE, node.metadata) == node
    assert marks.of_metadata(Kind.NODE, {"owner": "someone"}) is None


# -- patience --------------------------------------------------------------------------------------------------------


def answers(*results: Any) -> Any:
    """A call that gives or raises one result after the other, and counts."""
    left = list(results)

    def call() -> Any:
        call.made += 1  # type: ignore[attr-defined]  # the count is the function's own
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    call.made = 0  # type: ignore[attr-defined]  # as above
    return call


def http(status: int, text: str = "no") -> exceptions.HttpException:
    return exceptions.HttpException(text, http_status=status)


@pytest.mark.parametrize("error", [http(503), http(429), http(500), identity.ConnectFailure("reset"), identity.ConnectTimeout("slow")])
def test_what_passes_is_tried_again(error: Exception) -> None:
    call = answers(error, error, "well")
    assert Cloud(OpenStack())(call, what="try") == "well"
    assert call.made == 3


@pytest.mark.parametrize("error", [http(400), http(403, "Quota exceeded"), http(409, "Quota exceeded for resources: ['port']")])
def test_what_does_not_pass_is_told_at_once(error: Exception) -> None:
    call = answers(error, "well")
    with pytest.raises(CloudError, match=r"try: 4\d\d: "):
        Cloud(OpenStack())(call, what="try", conflict=True)
    assert call.made == 1


def test_a_conflict_passes_only_where_it_may() -> None:
    assert Cloud(OpenStack())(answers(http(409), "well"), what="try", conflict=True) == "well"
    with pytest.raises(CloudError):
        Cloud(OpenStack())(answers(http(409), "well"), what="try")


def test_patience_ends() -> None:
    with pytest.raises(CloudError, match="try: 503"):
        Cloud(OpenStack())(answers(*[http(503)] * 3), what="try")


def test_a_creation_is_looked_for_before_it_is_tried_again() -> None:
    create = answers(identity.ConnectFailure("reset"), "a second one")
    assert Cloud(OpenStack()).make(lambda: "the first one", create, what="thing") == "the first one"
    assert create.made == 1
    create = answers(http(503), "made")
    assert Cloud(OpenStack()).make(lambda: None, create, what="thing") == "made"


@pytest.mark.parametrize("error", [http(502), http(504), identity.ConnectTimeout("slow")])
def test_what_a_gateway_gave_up_on_is_looked_for_again_and_again(error: Exception) -> None:
    """The service behind it may take its time, and be done after the first look."""
    create, find = answers(error, "a second one"), answers(None, None, "the first one")
    assert Cloud(OpenStack()).make(find, create, what="thing") == "the first one"
    assert (create.made, find.made) == (1, 3)
    create, find = answers(error, "made"), answers(None, None, None)
    assert Cloud(OpenStack()).make(find, create, what="thing") == "made"
    assert find.made == 3


def test_a_refusal_is_looked_for_once() -> None:
    create, find = answers(http(503), "made"), answers(None)
    assert Cloud(OpenStack()).make(find, create, what="thing") == "made"
    assert find.made == 1


def test_what_somebody_else_deleted_is_told_without_a_traceback() -> None:
    """Of a step, of a look at the cloud, of a change: whatever meets a 404 that it does not expect."""
    with pytest.raises(GridsteadError, match=r"start worker001: .*\n.*someone else deletes things here") as raised:
        Cloud(OpenStack())(answers(exceptions.NotFoundException("no such server", http_status=404)), what="start worker001")
    assert isinstance(raised.value, NotThereError)


def test_a_server_that_goes_while_its_fault_is_read() -> None:
    project = Cloud(OpenStack())
    missing = answers(exceptions.NotFoundException("gone", http_status=404))
    project.connection = SimpleNamespace(compute=SimpleNamespace(get_server=lambda _: missing()))
    found = Sight(spec(), project, Listing(servers=[server("worker001", "x", status="ERROR", launched_at=None)])).found
    assert found[Key(Kind.NODE, "worker001")].detail == "it is in ERROR, and has just been deleted"


def test_gone_already_is_well() -> None:
    def delete(identity_: str, *, ignore_missing: bool) -> None:
        assert not ignore_missing
        raise exceptions.NotFoundException(identity_)

    Cloud(OpenStack()).gone(delete, "id", what="thing")


def test_a_watch_lists_once_for_many_and_gives_up_without_undoing() -> None:
    listings = []

    def listing() -> list[Any]:
        listings.append(1)
        return [SimpleNamespace(id=str(number), status="BUILD" if len(listings) < 3 else "ACTIVE") for number in range(50)]

    watch = Watch(listing, interval=0.0)
    for number in range(50):
        assert watch.wait(str(number), lambda one: one.status == "ACTIVE", limit=5, what="server").id == str(number)
    with pytest.raises(GridsteadError, match=r"server x: still ACTIVE after 0 s\n.*left as it is"):
        watch.wait("7", lambda one: one.status == "GONE", limit=0, what="server x")


def test_many_threads_share_the_listings_of_a_watch() -> None:
    listings: list[int] = []
    together = threading.Barrier(40)

    def listing() -> list[Any]:
        listings.append(1)
        time.sleep(0.05)
        return [SimpleNamespace(id=str(number), status="BUILD" if len(listings) < 3 else "ACTIVE") for number in range(40)]

    watch = Watch(listing, interval=0.0)

    def one(number: int) -> str:
        together.wait()
        return str(watch.wait(str(number), lambda one: one.status == "ACTIVE", limit=60, what="server").id)

    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(one, range(40))) == [str(number) for number in range(40)]
    assert len(listings) < 10


def test_a_listing_that_fails_fails_one_wait_alone() -> None:
    tries: list[int] = []

    def listing() -> list[Any]:
        tries.append(1)
        if len(tries) == 1:
            raise CloudError("list servers", http(503))
        return [SimpleNamespace(id="1", status="ACTIVE")]

    watch = Watch(listing, interval=0.0)
    with pytest.raises(CloudError):
        watch.wait("1", bool, limit=5, what="server")
    assert watch.wait("1", bool, limit=5, what="server").id == "1"


def queue(turns: Turns, threads: list[threading.Thread]) -> None:
    """Have threads wait for their turn, in their order, and then let them go to their end."""
    with turns:
        for waiting, thread in enumerate(threads):
            thread.start()
            until("the thread to wait for its turn", lambda: len(turns._waiting) > waiting, pause=0.001)  # noqa: B023 - called here only
    for thread in threads:
        thread.join(60)


def test_turns_come_by_what_is_asked_then_by_node_and_then_in_the_order_of_those_who_wait() -> None:
    turns, came = Turns(1), []
    wanted = [(turn, node, number) for number in range(3) for node in (2, 0, 1) for turn in reversed(Turn)]

    def one(turn: Turn, node: int, number: int) -> None:
        with calls_of(turn, node), turns:
            came.append((turn, node, number))

    threads = [threading.Thread(target=one, args=arguments) for arguments in wanted]
    queue(turns, threads)
    assert came == sorted(wanted)


def test_a_listing_goes_before_the_calls_of_those_who_wait_for_it() -> None:
    turns, came = Turns(1), []

    def listing() -> list[Any]:
        with turns:
            came.append("listing")
        return [SimpleNamespace(id="1", status="ACTIVE")]

    def other() -> None:
        with calls_of(Turn.GROUND), turns:
            came.append("other")

    watch = Watch(listing, interval=0.0)
    threads = [threading.Thread(target=other), threading.Thread(target=watch.wait, args=["1", bool], kwargs={"limit": 5, "what": "server"})]
    queue(turns, threads)
    assert came == ["listing", "other"]


# -- waiting for servers ---------------------------------------------------------------------------------------------


class Nova:
    """The servers of a project: as nova lists them, by their last change, and deleted ones only among the changes."""

    def __init__(self) -> None:
        self.there: dict[str, SimpleNamespace] = {}
        self.asked: list[str | None] = []

    def put(self, identity_: str, second: int, status: str) -> None:
        at = f"2026-11-22T10:{second // 60:02}:{second % 60:02}Z"
        self.there[identity_] = SimpleNamespace(id=identity_, updated_at=at, created_at=at, status=status)

    def servers(self, *, details: bool, name: str, changes_since: str | None = None) -> list[SimpleNamespace]:
        assert details
        assert name == "^gridstead-one-"
        self.asked.append(changes_since)
        if changes_since is None:
            return [one for one in self.there.values() if one.status != "DELETED"]
        return [one for one in self.there.values() if one.updated_at >= changes_since]


@pytest.fixture
def nova() -> tuple[Nova, Servers]:
    project = Cloud(OpenStack())
    compute = Nova()
    project.services = SimpleNamespace(compute=compute)
    return compute, Servers(project, marker(), "test", str)


def test_servers_that_have_not_changed_are_not_asked_for_again(nova: tuple[Nova, Servers]) -> None:
    compute, servers = nova
    assert servers._looked_over() == []
    compute.put("a", 0, "ACTIVE")
    compute.put("b", 100, "BUILD")
    assert {one.id for one in servers._looked_over()} == {"a", "b"}
    compute.put("b", 130, "ACTIVE")
    compute.put("c", 90, "ACTIVE")  # its host's clock is behind
    assert {(one.id, one.status) for one in servers._looked_over()} == {("a", "ACTIVE"), ("b", "ACTIVE"), ("c", "ACTIVE")}
    compute.put("b", 140, "DELETED")
    assert {one.id for one in servers._looked_over() if one.status == "DELETED"} == {"b"}
    assert compute.asked == [None, None, "2026-11-22T10:01:25Z", "2026-11-22T10:01:55Z"]


def test_now_and_then_all_servers_are_listed(nova: tuple[Nova, Servers], monkeypatch: pytest.MonkeyPatch) -> None:
    compute, servers = nova
    monkeypatch.setattr("gridstead.cluster.providers.openstack.servers.WHOLE_LISTING_PAUSE", 0.0)
    compute.put("a", 0, "ACTIVE")
    servers._looked_over()
    del compute.there["a"]
    compute.put("b", 0, "ACTIVE")
    assert [one.id for one in servers._looked_over()] == ["b"]
    assert compute.asked == [None, None]


def test_a_server_that_someone_else_deletes_while_it_is_built(nova: tuple[Nova, Servers]) -> None:
    compute, servers = nova
    compute.put("a", 0, "BUILD")
    waiting = ThreadPoolExecutor(1).submit(servers._await, "a", "worker001")
    until("the first listing", lambda: compute.asked, pause=0.01)
    compute.put("a", 5, "DELETED")
    with pytest.raises(GridsteadError, match="server worker001 has disappeared"):
        waiting.result(30)


# -- what a listing means --------------------------------------------------------------------------------------------


def server(name: str, identity_: str, **more: Any) -> SimpleNamespace:
    data = {"gridstead.cluster": "one", "gridstead.name": name, "gridstead.digest": "d"}
    fields = {"metadata": data, "status": "ACTIVE", "created_at": "2026", "flavor": {}, "attached_volumes": [], "addresses": {}}
    return SimpleNamespace(id=identity_, **{**fields, **more})


def volume(name: str, identity_: str, **more: Any) -> SimpleNamespace:
    data = {"gridstead.cluster": "one", "gridstead.name": name, "gridstead.digest": "d"}
    return SimpleNamespace(id=identity_, **{"metadata": data, "status": "available", "created_at": "2026", "size": 1, **more})


def sight(**lists: Any) -> Any:
    return Sight(spec(), Cloud(OpenStack()), Listing(**lists)).found


def test_a_creation_done_twice_is_seen_as_two() -> None:
    found = sight(servers=[server("worker001", "late", created_at="2027"), server("worker001", "early")])
    assert {(key.name, key.copy): one.id for key, one in found.items()} == {("worker001", 1): "early", ("worker001", 2): "late"}
    assert {name: one.id for name, one in found.of(Kind.NODE).items()} == {"worker001": "early"}


def test_a_server_is_found_to_need_what_it_is_made_of_and_what_it_holds() -> None:
    description = marker().of(Resource(Key(Kind.PORT, "server001"))).description
    port = SimpleNamespace(
        id="p",
        description=description,
        created_at="2026",
        fixed_ips=[],
        network_id="n",
        security_group_ids=["g"],
        device_id="s",
        device_owner="",
    )
    described = {kind: marker().of(Resource(Key(kind, "x"))).description for kind in (Kind.NETWORK, Kind.SECURITY_GROUP)}
    network = SimpleNamespace(id="n", description=described[Kind.NETWORK], created_at="2026")
    group = SimpleNamespace(id="g", description=described[Kind.SECURITY_GROUP], created_at="2026", security_group_rules=[])
    held = server("server001", "s", attached_volumes=[{"id": "v"}])
    found = sight(networks=[network], security_groups=[group], ports=[port], servers=[held], volumes=[volume("server001-data", "v")])
    assert set(found[Key(Kind.PORT, "server001")].needs) == {Key(Kind.NETWORK, "x"), Key(Kind.SECURITY_GROUP, "x")}
    assert set(found[Key(Kind.NODE, "server001")].needs) == {
        Key(Kind.PORT, "server001"),
        Key(Kind.SERVER_GROUP, "server"),
        Key(Kind.KEYPAIR, "gridstead-one"),
        Key(Kind.ATTACHMENT, "server001-data"),
    }
    assert found[Key(Kind.ATTACHMENT, "server001-data")].needs == (Key(Kind.VOLUME, "server001-data"),)


def test_a_server_group_of_a_kind_that_was_renamed_is_found() -> None:
    names = ("gridstead-one-formerly", "gridstead-one-two-worker", "gridstead-two-worker", "mine")
    found = sight(server_groups=[SimpleNamespace(id=name, name=name) for name in names])
    assert list(found) == [Key(Kind.SERVER_GROUP, "formerly")]


def test_of_two_volumes_with_one_mark_the_one_that_a_server_has_is_taken() -> None:
    """The other one is older: it came of a creation whose answer was lost."""
    lists = {"servers": [server("server001", "s", attached_volumes=[{"id": "used"}])]}
    volumes = [volume("server001-data", "blank"), volume("server001-data", "used", created_at="2027", status="in-use")]
    seen = Sight(spec(), Cloud(OpenStack()), Listing(volumes=volumes, **lists))
    key = Key(Kind.VOLUME, "server001-data")
    assert seen.found[key].id == "used"
    assert seen.found[replace(key, copy=2)].id == "blank"
    assert seen.doubtful == {}


def test_of_two_volumes_that_no_server_has_none_is_taken() -> None:
    volumes = [volume("server001-data", "one"), volume("server001-data", "two"), volume("other", "three")]
    seen = Sight(spec(), Cloud(OpenStack()), Listing(volumes=volumes))
    assert seen.doubtful == {Key(Kind.VOLUME, "server001-data"): ["one", "two"]}


def test_of_two_networks_the_one_with_ports_is_taken() -> None:
    description = marker().of(Resource(Key(Kind.NETWORK, "x"))).description
    networks = [SimpleNamespace(id=name, description=description, created_at=name) for name in ("a", "b")]
    ports = [
        SimpleNamespace(id="dhcp", network_id="a", device_owner="network:dhcp", description="", created_at="", device_id="", fixed_ips=[]),
        SimpleNamespace(id="p", network_id="b", device_owner="", description="", created_at="", device_id="", fixed_ips=[]),
    ]
    assert sight(networks=networks, ports=ports)[Key(Kind.NETWORK, "x")].id == "b"


def test_a_server_in_error_that_never_ran_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sight, "fault", lambda *_: "No valid host")
    servers = [server("worker001", "a", status="ERROR", launched_at=None), server("worker002", "b", status="ERROR", launched_at="2026")]
    found = sight(servers=servers).of(Kind.NODE)
    assert [found[name].status for name in ("worker001", "worker002")] == [Status.UNMADE, Status.BROKEN]


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("ACTIVE", Status.OK),
        ("SHUTOFF", Status.STOPPED),
        ("BUILD", Status.STOPPED),
        ("PAUSED", Status.STOPPED),
        ("SHELVED", Status.STOPPED),
    ],
)
def test_states_of_a_server(state: str, status: Status) -> None:
    assert sight(servers=[server("worker001", "x", status=state)])[Key(Kind.NODE, "worker001")].status is status


def test_others_are_not_seen() -> None:
    other = server("worker001", "x")
    other.metadata["gridstead.cluster"] = "another"
    assert not sight(servers=[other, server("worker002", "y", status="SOFT_DELETED")])
    pair = SimpleNamespace(id="k", name="someone", public_key="ssh-ed25519 AAAA someone")
    assert not sight(keypairs=[pair])


def test_an_attachment_is_what_nova_and_cinder_both_say() -> None:
    held = server("server001", "s", attached_volumes=[{"id": "v"}])
    key = Key(Kind.ATTACHMENT, "server001-data")
    assert sight(servers=[held], volumes=[volume("server001-data", "v", status="in-use")])[key].status is Status.OK
    assert sight(servers=[held], volumes=[volume("server001-data", "v", status="detaching")])[key].status is Status.STOPPED
    assert key not in sight(servers=[server("server001", "s")], volumes=[volume("server001-data", "v")])


def test_half_made_networks_are_completed() -> None:
    description = marker().of(Resource(Key(Kind.NETWORK, "gridstead-one"))).description
    network = SimpleNamespace(id="n", description=description, created_at="2026")
    assert sight(networks=[network])[Key(Kind.NETWORK, "gridstead-one")].status is Status.STOPPED
    subnet = SimpleNamespace(id="s", network_id="n", cidr="10.0.0.0/24")
    assert sight(networks=[network], subnets=[subnet])[Key(Kind.NETWORK, "gridstead-one")].status is Status.OK


@given(st.integers(1, 2**45))
def test_cinder_counts_in_gibibytes_and_never_less(size: int) -> None:
    assert (gibibytes(size) - 1) * 2**30 < size <= gibibytes(size) * 2**30


# -- what needs no image ---------------------------------------------------------------------------------------------


class Empty:
    """A service that holds nothing; an image service in which the declared image is gone."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None if name == "find_image" else []


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenStackProvider:
    """Of a cluster whose declared image its cloud no longer has."""
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path))
    project = Cloud(OpenStack())
    empty = Empty()
    project.services = SimpleNamespace(image=empty, compute=empty, network=empty, block_storage=empty)
    project.connection = SimpleNamespace(current_project_id="p")
    declared = spec(image={"name": "debian-13"}, network={"name": "net"})
    made = OpenStackProvider(declared, SitePaths(tmp_path / "cluster.yml", "one"), cloud=project)
    monkeypatch.setattr(made.catalogue, "existing_subnet", lambda: (SimpleNamespace(id="n"), SimpleNamespace(id="s")))
    return made


def test_what_may_come_in_to_which_nodes(tmp_path: Path) -> None:
    """A port for a service is open where that is offered: with the service it comes and goes."""
    rules = [{"ports": "22"}, {"ports": "80", "kinds": ["worker"]}, {"ports": "8443", "services": ["arc_rest"]}]

    def ports(services: list[str]) -> dict[str, list[int]]:
        nodes = {
            "server": {"count": 1, "public": True, "services": services},
            "worker": {"count": 2, "services": ["nfs_client", "slurm_node"]},
        }
        made = OpenStackProvider(
            spec(nodes=nodes, security_rules=rules), SitePaths(tmp_path / "cluster.yml", "one"), cloud=Cloud(OpenStack())
        )
        return {kind: [rule["ports"][0] for rule in made._rules(kind)] for kind in nodes}

    assert ports(["nfs_server", "slurm_controller", "arc_ce"]) == {"server": [22], "worker": [80]}
    assert ports(["nfs_server", "slurm_controller", "arc_ce", "arc_rest"]) == {"server": [22, 8443], "worker": [80]}


def test_a_running_site_does_without_its_image(provider: OpenStackProvider) -> None:
    """Clouds rotate images under one name: that is no matter of servers that are there."""
    names = ["server001", "worker001", "worker002"]
    observed = Sight(provider.spec, provider.cloud, Listing(servers=[server(name, name) for name in names])).found
    assert sorted(provider.nodes(observed)) == names
    assert {resource.key.name for resource in provider.desired(observed) if resource.key.kind is Kind.NODE} == set(names)
    assert images_for(provider.spec, provider).space() == 0
    provider.preflight([])


def test_a_new_server_wants_its_image(provider: OpenStackProvider) -> None:
    with pytest.raises(PreflightError, match="no image 'debian-13'"):
        images_for(provider.spec, provider).ensure(Progress(quiet=True))


def test_servers_say_themselves_which_halves_they_were_made_with(provider: OpenStackProvider) -> None:
    """Also when this checkout, or the image of its name, has others by now."""
    old, new = server("worker001", "old"), server("worker002", "new")
    old.metadata |= marks.server_halves({"base": "1", "munge": "2"})
    new.metadata |= marks.server_halves({"base": "3"})
    observed = Sight(provider.spec, provider.cloud, Listing(servers=[old, new, server("server001", "before it was noted")])).found
    found = {name: dict(node.halves) for name, node in provider.nodes(observed).items()}
    assert found == {"worker001": {"base": "1", "munge": "2"}, "worker002": {"base": "3"}, "server001": {}}


def test_a_server_is_made_with_the_halves_of_its_image(nova: tuple[Nova, Servers]) -> None:
    compute, servers = nova
    made: dict[str, Any] = {}

    def create(**attributes: Any) -> SimpleNamespace:
        made.update(attributes)
        compute.put("s", 0, "ACTIVE")
        return SimpleNamespace(id="s")

    compute.create_server = create  # type: ignore[attr-defined]  # nova's own
    properties = {"flavor": "f", "zone": None, "root_volume": None, "image": None, "config_drive": True}
    halves = marks.halves_of({"gridstead_halves": "base=1 munge=2"})
    servers.ensure(Resource(Key(Kind.NODE, "worker001"), properties), None, lambda: Recipe("i", "f", None, halves), "p")
    assert marks.halves_of_server(made["metadata"]) == {"base": "1", "munge": "2"}
    assert all(len(value) <= 255 for value in made["metadata"].values())


def test_a_volume_remembers_its_file_system(provider: OpenStackProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[tuple[str, dict[str, str]]] = []
    storage = SimpleNamespace(set_volume_metadata=lambda identity_, **data: noted.append((identity_, data)))
    monkeypatch.setattr(provider.cloud.services, "block_storage", storage)
    held = server("server001", "s", attached_volumes=[{"id": "v"}])

    def look() -> Device:
        listing = Listing(servers=[held], volumes=[disk])
        provider._seen = Sight(provider.spec, provider.cloud, listing).found
        return provider.nodes(provider._seen)["server001"].volumes["data"]

    disk = volume("server001-data", "v", status="in-use")
    assert (look().filesystem, look().format) == ("", True)
    provider.remember("server001", {"data": "ab-cd"})
    assert [identity_ for identity_, _ in noted] == ["v"]
    disk.metadata |= noted[0][1]
    assert look().filesystem == "ab-cd"
    provider.remember("server001", {"data": "ab-cd"})
    assert len(noted) == 1


@pytest.mark.parametrize("format_", [False, True])
def test_an_existing_volume_is_formatted_only_when_it_is_said(tmp_path: Path, format_: bool) -> None:
    theirs = {"name": "data", "size": "1G", "mount": "/data", "id": "2b1f0c7e-5d3a-4e6b-9c8d-0123456789ab", "format": format_}
    declared = spec(nodes={"server": {"count": 1, "volumes": [theirs]}})
    made = OpenStackProvider(declared, SitePaths(tmp_path / "cluster.yml", "one"), cloud=Cloud(OpenStack()))
    held = server("server001", "s", attached_volumes=[{"id": theirs["id"]}])
    disk = SimpleNamespace(id=theirs["id"], metadata={}, status="in-use", created_at="2026", size=1)
    observed = Sight(declared, made.cloud, Listing(servers=[held], volumes=[disk])).found
    assert made.nodes(observed)["server001"].volumes["data"].format is format_


# -- access ----------------------------------------------------------------------------------------------------------


def test_host_keys_are_those_of_the_last_boot() -> None:
    assert access.keys_on_console(KEYS) == ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINewer"]
    assert access.keys_on_console("nothing yet") == []


def test_known_hosts_belong_to_servers(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    keys = access.HostKeys(path)
    assert keys.learn({"id-1": lambda: KEYS, "id-2": lambda: ""}, limit=0.0) == ["id-2"]
    keys.write({"id-1": ["10.0.0.1", "worker001"]})
    assert path.read_text() == "10.0.0.1,worker001 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINewer id-1\n"
    assert path.stat().st_mode & 0o777 == 0o600
    again = access.HostKeys(path)
    assert again.knows("id-1")
    # The same node, made anew, is another server: its key must be learnt.
    assert not again.knows("id-3")
    again.write({"id-3": ["10.0.0.1"]})
    assert path.read_text() == ""


def test_keys_are_asked_for_until_every_server_has_told_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_PAUSE", 0.01)
    # As ssh-keyscan: what it finds out on stdout, one line a key, exit 1 when that is nothing. One host comes up a call.
    scanner = tmp_path / "scan"
    scanner.write_text(
        f"""#!/bin/sh
        echo "$@" >> {tmp_path}/calls
        n=$(wc -l < {tmp_path}/calls)
        echo "# 10.0.0.$n:22 SSH-2.0-OpenSSH_9.2p1"
        [ "$n" -gt 1 ] || exit 1
        echo "10.0.0.$n ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI$n"
        """
    )
    scanner.chmod(0o755)
    keys = access.HostKeys(tmp_path / "known_hosts")
    silent = keys.scan({"id-2": "10.0.0.2", "id-3": "10.0.0.3", "id-9": "192.0.2.9"}, [str(scanner), "-T", "5"], limit=0.5)
    assert silent == ["id-9"]
    assert (tmp_path / "calls").read_text().splitlines()[:4] == [
        "-T 5 10.0.0.2 10.0.0.3 192.0.2.9",
        "-T 5 10.0.0.2 10.0.0.3 192.0.2.9",
        "-T 5 10.0.0.3 192.0.2.9",
        "-T 5 192.0.2.9",
    ]
    keys.write({"id-2": ["10.0.0.2", "server001"], "id-3": ["10.0.0.3"]})
    assert (tmp_path / "known_hosts").read_text() == (
        "10.0.0.2,server001 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI2 id-2\n10.0.0.3 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI3 id-3\n"
    )
    with pytest.raises(CommandError, match="ssh-keyscan"):
        keys.scan({"id-9": "10.0.0.9"}, [str(tmp_path / "ssh-keyscan")], limit=0.5)


def test_inner_nodes_are_reached_through_the_public_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path / "with space"))
    flag, option = access.jump(SitePaths(tmp_path / "cluster.yml", "one"), "debian", "192.0.2.7")
    assert flag == "-o"
    assert option.startswith("ProxyCommand=ssh ")
    assert option.endswith("-W %h:%p debian@192.0.2.7 2>/dev/null")
    assert f"'{tmp_path}/with space/one/secrets/id_ed25519'" in option
    assert "StrictHostKeyChecking=yes" in option
