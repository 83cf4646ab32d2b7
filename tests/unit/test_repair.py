"""Repair as a policy, whose a cluster is, and what is done one after another: on a provider of the mind."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gridstead.cluster import reach, seal, slurm
from gridstead.cluster.errors import GridsteadError, InputError, RepairError
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.plan import Plan
from gridstead.cluster.playbook import Recap
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.base import NodeAccess, Provider
from gridstead.cluster.repair import loss
from gridstead.cluster.resources import Found, Key, Kind, Observed, Resource, Status
from gridstead.cluster.site import Outcome, Site
from gridstead.cluster.spec import Cluster
from gridstead.cluster.spec_file import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SPEC: dict[str, Any] = {
    "name": "mind",
    "nodes": {
        "frontend": {"count": 1, "services": ["nfs_server", "slurm_controller", "arc_ce"]},
        "compute": {"count": 3, "services": ["nfs_client", "slurm_node"]},
    },
}


class Mind(Provider):
    """Nodes that are, boot and answer as a test says; it remembers what was done to them, in order."""

    lock: Any = None
    boot_limit = 1.0

    def __init__(self, spec: Cluster, directory: Path) -> None:
        self.spec, self.lock = spec, directory / "lock"
        self.there: dict[str, Found] = {}
        self.log: list[str] = []
        #: Nodes that do not answer, and what is seen of them; nodes that do again once rebooted; nodes that cannot be rebooted.
        self.silent: dict[str, str] = {}
        self.helped: set[str] = set()
        self.stuck: set[str] = set()
        self.stillborn: set[str] = set()
        self.way = ""
        self.owner: str | None = "me"
        self.key_fits = True
        self.size = "small"
        self.known: set[str] = set()

    def observe(self) -> Observed:
        return Observed({found.key: replace(found, owner=self.owner) for found in self.there.values()})

    def desired(self, _observed: Observed) -> list[Resource]:
        return [Resource(Key(Kind.NODE, node), {"size": self.size}) for node in self.spec.node_names()]

    def ensure(self, resource: Resource) -> None:
        node = resource.key.name
        self.log.append(f"{'start' if node in self.there else 'create'} {node}")
        self.there[node] = Found(resource.key, digest=resource.digest)
        self.known.discard(node)
        self.silent.pop(node, None)
        if node in self.stillborn:
            self.silent[node] = "refused"

    def delete(self, key: Key) -> None:
        self.log.append(f"delete {key.name}")
        self.there.pop(key.name, None)

    def reboot(self, node: str) -> None:
        self.log.append(f"reboot {node}")
        if node in self.stuck:
            raise GridsteadError("the cloud refuses")
        self.there[node] = replace(self.there[node], status=Status.OK)
        if node in self.helped:
            self.silent.pop(node)

    def nodes(self, observed: Observed) -> dict[str, NodeAccess]:
        return {
            node: NodeAccess(node, node, through=self.way if node != self.way else "", running=found.status is Status.OK)
            for node, found in observed.of(Kind.NODE).items()
        }

    def knows_key(self, _observed: Observed) -> bool:
        return self.key_fits

    def adopt(self, _observed: Observed) -> None:
        self.log.append("adopt")
        self.owner = "me"

    def preflight(self, resources: Sequence[Resource], *, spare: int = 0) -> None:
        pass

    def prepare(self, progress: Progress) -> None:
        pass

    def stop(self, node: str) -> None:
        self.log.append(f"stop {node}")
        if node in self.stuck:
            raise GridsteadError("the cloud refuses")

    def console(self, _node: str, _lines: int) -> str:
        return "the console"

    def grant_access(self, observed: Observed) -> None:
        self.known |= set(observed.of(Kind.NODE))

    def answer(self, node: str) -> str | None:
        """What is seen of a node that does not answer."""
        return self.silent.get(node) if node in self.known else "Host key verification failed."


class MindedSite(Site):
    """A site whose playbooks are entries of the provider's log."""

    def play(
        self,
        playbooks: Sequence[str | Path],
        *,
        what: str,
        limit: Sequence[str] = (),
        variables: dict[str, Any] | None = None,
    ) -> Recap:
        """Note it, with the nodes that it is about."""
        del playbooks, limit
        return self._note(what, next(iter((variables or {}).values()), ()))

    def play_roles(self, plays: Sequence[Mapping[str, Any]], groups: Mapping[str, Iterable[str]], *, skip: Sequence[str]) -> Recap:
        """Note it, with the nodes that it is about."""
        del groups, skip
        return self._note("configure", sorted({host for play in plays for host in play["hosts"]}))

    def _note(self, what: str, names: Iterable[str]) -> Recap:
        self.provider.log.append(f"{what} {' '.join(names)}".strip())  # type: ignore[attr-defined]  # it is a Mind
        return Recap()

    def check_variables(self) -> None:
        """There are none."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MindedSite:
    """A site that is up."""
    return made(tmp_path, monkeypatch, SPEC)


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: dict[str, Any]) -> MindedSite:
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path))
    spec = Cluster.model_validate({**declared, "repair": {"patience": 0, **declared.get("repair", {})}})
    mind = Mind(spec, tmp_path)
    paths = SitePaths(tmp_path / "cluster.yml", spec.name)
    opened = MindedSite(spec, paths, Progress(quiet=True), mind)
    monkeypatch.setattr(reach, "answer", lambda _, access, __: mind.answer(access.host))
    monkeypatch.setattr("gridstead.cluster.site.images_for", lambda *_: None)
    monkeypatch.setattr(seal, "put", lambda *_: None)
    monkeypatch.setattr(seal, "check", lambda _, nodes, *__: {node: seal.Verdict(sealed=False) for node in nodes if node in unsealed(mind)})
    paths.state.mkdir()
    paths.owner.write_text("me\n")
    opened.up()
    mind.log.clear()
    return opened


def unsealed(mind: Mind) -> set[str]:
    """The nodes that were made since they were configured last."""
    since: set[str] = set()
    for entry in mind.log:
        what, _, names = entry.partition(" ")
        since = since - set(names.split()) if what == "configure" else since | {names} if what == "create" else since
    return since


def mind(site: Site) -> Mind:
    """Its provider."""
    assert isinstance(site.provider, Mind)
    return site.provider


# -- silence is not death --------------------------------------------------------------------------------------------


def test_nothing_is_to_do_when_all_answer(site: MindedSite) -> None:
    assert site.up().nothing
    assert mind(site).log == []


def test_a_reboot_that_helps_is_all(site: MindedSite) -> None:
    mind(site).silent, mind(site).helped = {"compute002": "refused"}, {"compute002"}
    outcome = site.up()
    assert mind(site).log == ["drain compute002", "reboot compute002", "resume compute002"]
    assert [str(step) for step in outcome.plan.told()] == ["reboot node compute002"]
    assert not outcome.nothing


def test_a_node_without_state_that_no_reboot_helps_is_made_anew_alone(site: MindedSite) -> None:
    mind(site).silent = {"compute002": "refused"}
    site.up()
    assert mind(site).log == [
        *("drain compute002", "reboot compute002", "drain compute002", "delete compute002", "create compute002"),
        "configure compute002",
    ]


def test_a_node_with_state_is_left_to_the_operator_and_all_else_is_done(site: MindedSite) -> None:
    mind(site).silent = {"frontend001": "Connection refused", "compute002": "refused"}
    mind(site).helped = {"compute002"}
    del mind(site).there["compute003"]
    with pytest.raises(RepairError) as caught:
        site.up()
    assert "frontend001: no answer over ssh for 0 s (Connection refused), and none 1 s after a reboot either" in str(caught.value)
    assert "lost with its own disk: the shared directories, the queue of jobs, the jobs of the computing element" in str(caught.value)
    assert str(caught.value).endswith(f"tools/cluster up --site {site.paths.spec.parent} --replace frontend001")
    assert caught.value.exit_code == 1
    assert "delete frontend001" not in mind(site).log
    assert "reboot compute002" in mind(site).log
    assert mind(site).log[-1] == "create compute003", "nothing is configured while its controller does not answer"
    mind(site).log.clear()
    site.up(replace=["frontend001"])
    assert mind(site).log[:3] == ["stop frontend001", "delete frontend001", "create frontend001"], "who is asked for is not waited for"


@pytest.mark.parametrize("stuck", [False, True])
def test_a_node_with_state_comes_to_its_own_end_before_it_is_made_anew(site: MindedSite, stuck: bool) -> None:
    """Its services write what they told their users a moment ago; one that does not shut down is what is to be replaced."""
    mind(site).stuck = {"frontend001"} if stuck else set()
    site.up(replace=["frontend001", "compute001"])
    log = mind(site).log
    assert log.index("stop frontend001") < log.index("delete frontend001")
    assert "stop compute001" not in log, "it holds none"


def test_what_lies_behind_a_silent_way_in_is_unknown_and_left_alone(site: MindedSite) -> None:
    mind(site).way = "frontend001"
    mind(site).silent = dict.fromkeys(site.spec.node_names(), "timed out")
    with pytest.raises(RepairError) as caught:
        site.up()
    assert mind(site).log == ["reboot frontend001"]
    assert "compute003: nothing is known of it: it is reached through frontend001" in str(caught.value)
    assert str(caught.value).endswith("--replace frontend001")


def test_what_lies_behind_the_way_in_is_known_again_once_that_answers(site: MindedSite) -> None:
    mind(site).way, mind(site).helped = "frontend001", {"frontend001"}
    mind(site).silent = {"frontend001": "timed out", "compute001": "refused"}
    site.up()
    assert [entry for entry in mind(site).log if "frontend001" in entry] == ["reboot frontend001"]
    assert [entry for entry in mind(site).log if entry.startswith(("reboot", "create"))][1:] == ["reboot compute001", "create compute001"]


def test_what_others_depend_on_is_healed_first(site: MindedSite) -> None:
    mind(site).silent = dict.fromkeys(("compute001", "frontend001"), "refused")
    mind(site).helped = {"compute001", "frontend001"}
    site.up()
    assert mind(site).log == ["reboot frontend001", "drain compute001", "reboot compute001", "resume compute001"]


def test_what_cannot_be_emptied_is_left_as_it_is(site: MindedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> Recap:
        raise GridsteadError("squeue does not answer")

    mind(site).silent = {"compute001": "refused"}
    monkeypatch.setattr(site, "play", refused)
    with pytest.raises(
        RepairError, match=r"compute001: no answer .*; left as it is, since it could not be emptied: squeue does not answer"
    ):
        site.up(configure=False)
    assert mind(site).log == []


def test_where_no_node_answers_it_is_not_the_nodes(site: MindedSite) -> None:
    mind(site).silent = dict.fromkeys(site.spec.node_names(), "timed out")
    with pytest.raises(RepairError, match="like every other node"):
        site.up()
    assert mind(site).log == []


def test_a_node_that_only_does_not_let_us_in_is_not_rebooted(site: MindedSite) -> None:
    mind(site).silent = {"frontend001": "root@frontend001: Permission denied (publickey)."}
    with pytest.raises(RepairError, match="Permission denied"):
        site.up()
    assert mind(site).log == []


def test_several_silent_nodes_are_made_anew_one_after_another_until_one_does_not_help(site: MindedSite) -> None:
    mind(site).silent = {"compute001": "refused", "compute002": "refused"}
    mind(site).stillborn = {"compute001"}
    with pytest.raises(GridsteadError, match="compute001: refused; the last words of compute001"):
        site.up()
    assert "create compute001" in mind(site).log
    assert "delete compute002" not in mind(site).log


@pytest.mark.parametrize("node", ["frontend001", "compute001"])
def test_what_the_provider_calls_broken_is_rebooted_first(site: MindedSite, node: str) -> None:
    mind(site).there[node] = replace(mind(site).there[node], status=Status.BROKEN)
    assert [str(step) for step in site.plan()[0].told()] == [f"reboot node {node}"]
    site.up()
    assert [entry for entry in mind(site).log if not entry.startswith(("drain", "resume"))] == [f"reboot {node}"]


def test_what_is_broken_and_cannot_be_rebooted(site: MindedSite) -> None:
    for node in ("frontend001", "compute001"):
        mind(site).there[node] = replace(mind(site).there[node], status=Status.BROKEN, detail="it is in ERROR")
    mind(site).stuck = {"frontend001", "compute001"}
    with pytest.raises(RepairError, match=r"frontend001: it is in ERROR; it could not be rebooted \(the cloud refuses\)"):
        site.up()
    assert "create compute001" in mind(site).log
    assert "delete frontend001" not in mind(site).log


def test_what_never_ran_is_made_anew_whatever_it_was_to_hold(site: MindedSite) -> None:
    mind(site).there["frontend001"] = replace(mind(site).there["frontend001"], status=Status.UNMADE)
    site.up()
    assert mind(site).log[:2] == ["delete frontend001", "create frontend001"]


# -- what is made anew for a change ------------------------------------------------------------------------------------


def test_a_changed_kind_is_made_anew_node_by_node_each_emptied_first_and_back_before_the_next(site: MindedSite) -> None:
    mind(site).size = "large"
    with pytest.raises(RepairError, match="frontend001: declared differently: size: left as it is, since it holds state"):
        site.up()
    rounds = [
        [f"drain {node}", f"delete {node}", f"create {node}", f"configure {node}"] for node in ("compute001", "compute002", "compute003")
    ]
    assert mind(site).log == [entry for one in rounds for entry in one]
    assert [held.key.name for held in site.plan()[0].held] == ["frontend001"]


def test_as_many_at_once_as_the_site_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = made(tmp_path, monkeypatch, {**SPEC, "repair": {"at_once": 2}})
    mind(site).size = "large"
    with pytest.raises(RepairError):
        site.up()
    assert [entry for entry in mind(site).log if entry.startswith("drain")] == ["drain compute001 compute002", "drain compute003"]


def test_nobody_is_asked_for_anything_where_nobody_need_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--no-wait`, and no Slurm: to learn host keys takes as long as nodes take to show them."""
    site = made(tmp_path, monkeypatch, {"name": "mind", "nodes": {"server": {"count": 1, "services": ["nfs_server"]}}})
    mind(site).known.clear()
    site.provision(["server001"], wait=False)
    assert mind(site).log == ["stop server001", "delete server001", "create server001"]
    assert not mind(site).known


def test_what_was_drained_takes_jobs_again_though_the_run_was_killed(site: MindedSite) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    site.provider.delete = killed  # type: ignore[method-assign]  # a kill at this point
    with pytest.raises(KeyboardInterrupt):
        site.up(replace=["compute001"])
    del site.provider.delete
    assert mind(site).log == ["drain compute001"]
    site.up()
    assert mind(site).log == ["drain compute001", "resume compute001"]
    site.up()
    assert mind(site).log == ["drain compute001", "resume compute001"]


def test_nodes_do_not_leave_while_nobody_can_empty_them(site: MindedSite) -> None:
    mind(site).silent = {"frontend001": "refused"}
    smaller = {**SPEC["nodes"], "compute": {"count": 2, "services": ["nfs_client", "slurm_node"]}}
    site.spec = mind(site).spec = Cluster.model_validate({**SPEC, "nodes": smaller, "repair": {"patience": 0}})
    with pytest.raises(RepairError, match="frontend001"):
        site.up()
    assert mind(site).log == ["reboot frontend001"]


# -- nodes that leave only when they are empty ---------------------------------------------------------------------------


def test_of_nodes_that_may_leave_those_with_jobs_stay(site: MindedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job may have got there between the look and the word."""
    declared = "nodes:\n  frontend: {count: 1, services: [slurm_controller]}\n  compute: {count: 3, services: [slurm_node]}\n"
    site.paths.spec.write_text(f"name: mind\n{declared}")
    leaving = {"compute002"}

    def look(*_: object) -> slurm.View:
        assert mind(site).log[-1].startswith("vacate"), "asked after Slurm was told"
        return slurm.View({node: slurm.Worker(node, {}, {}, leaving=node in leaving) for node in site.spec.node_names()})

    monkeypatch.setattr(slurm, "look", look)
    monkeypatch.setattr(Site, "up", lambda it: Outcome(Plan(), nodes=dict.fromkeys(it.spec.node_names())))
    lines, outcome = site.remove(["compute002", "compute003"], busy=False)
    assert mind(site).log == ["vacate compute002 compute003"]
    assert (lines, list(outcome.nodes)) == ({"compute": 4}, ["frontend001", "compute001", "compute003"])
    assert site.paths.drained.read_text().split() == ["compute002", "compute003"], "should this end here, `up` puts them back"
    leaving.clear()
    assert site.remove(["compute003"], busy=False) == ({}, Outcome(Plan()))
    assert list(load(site.paths.spec).node_names()) == ["frontend001", "compute001", "compute003"]


def test_what_was_killed_in_the_middle_of_a_change_is_known(site: MindedSite) -> None:
    def killed(*_: object) -> None:
        assert site.interrupted, "it is at work"
        raise KeyboardInterrupt

    assert not site.interrupted
    site.provider.delete = killed  # type: ignore[method-assign]  # a kill at this point
    with pytest.raises(KeyboardInterrupt):
        site.up(replace=["compute001"])
    del site.provider.delete
    assert site.interrupted
    with pytest.raises(InputError), site.changing():
        raise InputError("no such thing")
    assert not site.interrupted, "what ended with an error was not killed"
    site.up()
    assert not site.interrupted


# -- what would be lost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mounts", "said"),
    [
        ([], "is lost with its own disk: the shared directories, the accounting database, what mine keeps"),
        (["/grid"], "stays: the shared directories (volume v0); is lost with its own disk: the accounting database, what mine keeps"),
        (
            ["/grid", "/var/lib/state"],
            "stays: the shared directories (volume v0), the accounting database (volume v1), what mine keeps (volume v1)",
        ),
    ],
)
def test_what_becomes_of_a_nodes_state(mounts: list[str], said: str) -> None:
    volumes = [{"name": f"v{number}", "size": "1G", "mount": mount} for number, mount in enumerate(mounts)]
    kind = {"count": 1, "services": ["nfs_server", "slurm_accounting", "mine"], "volumes": volumes}
    spec = Cluster.model_validate({"name": "one", "extra_services": ["mine"], "nodes": {"server": kind, "worker": {"count": 1}}})
    assert loss(spec, "server001") == said
    assert loss(spec, "worker001") == ""


# -- whose it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["up", "down", "stop"])
def test_anothers_cluster_is_refused(site: MindedSite, command: str) -> None:
    mind(site).owner = "root@elsewhere-1234"
    with pytest.raises(InputError, match=r"belongs to root@elsewhere-1234; this is me\n.* up --site .* --adopt"):
        getattr(site, command)()
    assert mind(site).log == []


def test_anothers_cluster_is_taken_over_when_asked(site: MindedSite) -> None:
    mind(site).owner = "root@elsewhere-1234"
    site.up(adopt=True)
    assert mind(site).log == ["adopt"]
    mind(site).owner = "root@elsewhere-1234"
    site.down(adopt=True)
    assert not mind(site).there


def test_what_an_earlier_release_made_is_ours_if_its_nodes_let_us_in(site: MindedSite) -> None:
    mind(site).owner = ""
    site.up()
    assert mind(site).log == ["adopt"]
    mind(site).owner, mind(site).key_fits = "", False
    with pytest.raises(InputError, match="was made from another state directory"):
        site.up()
    mind(site).owner = None
    assert site.up().nothing, "what has no mark is nobody's"


def test_without_nodes_an_earlier_releases_volumes_are_ours_if_there_was_a_key(site: MindedSite) -> None:
    volume = Key(Kind.VOLUME, "frontend001-data")
    mind(site).owner, mind(site).key_fits = "", False
    mind(site).there = {"data": Found(volume)}
    site.claim(site.provider.observe(), adopt=False, fresh=False)
    with pytest.raises(InputError, match="--adopt"):
        site.claim(site.provider.observe(), adopt=False, fresh=True)


def test_who_was_refused_once_is_refused_again(site: MindedSite) -> None:
    """A refused run must not leave the key by which the next one would be let in."""
    mind(site).owner = ""
    mind(site).there = {"data": Found(Key(Kind.VOLUME, "frontend001-data"))}
    shutil.rmtree(site.paths.state)
    for _ in range(2):
        with pytest.raises(InputError, match="this is a new one"):
            site.up()
    site.up(adopt=True)
    assert mind(site).log[0] == "adopt"


# -- data --------------------------------------------------------------------------------------------------------------


def test_data_are_deleted_only_when_somebody_says_so(site: MindedSite) -> None:
    site.confirm_loss(ask=None)
    mind(site).there["data"] = Found(Key(Kind.VOLUME, "frontend001-data"))
    for ask in (None, lambda _: False):
        with pytest.raises(InputError, match="cluster mind holds data: frontend001-data"):
            site.confirm_loss(ask=ask)
    site.confirm_loss(ask=lambda question: "frontend001-data" in question)


def test_with_nothing_to_do_the_cloud_is_asked_once(site: MindedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Observed] = []
    observe = site.provider.observe
    monkeypatch.setattr(site.provider, "observe", lambda: asked.append(observe()) or asked[-1])
    outcome = site.up()
    assert outcome.nothing
    assert sorted(outcome.nodes) == sorted(site.spec.node_names())
    assert len(asked) == 1


def test_clients_are_shut_down_before_the_servers_and_file_servers_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CE that mounts the shares cannot unmount them when their server has gone."""
    nodes = {
        "store": {"count": 1, "services": ["nfs_server"]},
        "ce": {"count": 1, "services": ["nfs_client", "slurm_client", "arc_ce"]},
        "ctl": {"count": 1, "services": ["slurm_controller"]},
        "worker": {"count": 1, "services": ["nfs_client", "slurm_node"]},
    }
    site = made(tmp_path, monkeypatch, {"name": "mind", "nodes": nodes})
    site.stop()
    log: list[str] = site.provider.log  # type: ignore[attr-defined]  # it is a Mind
    assert log[0] == "stop worker001"
    assert set(log[1:3]) == {"stop ce001", "stop ctl001"}
    assert log[3:] == ["stop store001"]
