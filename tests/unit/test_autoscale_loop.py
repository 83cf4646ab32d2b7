"""Rounds of the autoscaler on a site of the mind: what it does with what, what it does about failures, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gridstead.cluster import slurm
from gridstead.cluster.autoscale import loop
from gridstead.cluster.autoscale.decision import Limits
from gridstead.cluster.autoscale.loop import Autoscaler, Event
from gridstead.cluster.errors import GridsteadError, InputError, PreflightError, RepairError
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.base import NodeAccess
from gridstead.cluster.slurm import Job, View, Worker
from gridstead.cluster.spec_file import load, write_count, write_removal

SPEC = """\
---
name: mind
nodes:
  frontend:
    count: 1
    services: [slurm_controller]
  compute:
    count: 2
    services: [slurm_node]
  disk:
    count: 1
    services: [slurm_node, nfs_server]
"""
MAIN = frozenset({"main"})


class World:
    """A site whose nodes are there as soon as they are declared, and a Slurm that knows them; what was done is in ``log``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_text(SPEC)
        self.log: list[str] = []
        self.waiting = 0
        #: Seconds for which a node is idle; of those that are not here jobs run.
        self.idle: dict[str, float] = {}
        self.interrupted = False
        #: What the next calls of a name raise.
        self.failing: dict[str, list[Exception]] = {}
        #: How many compute nodes the cloud has room for.
        self.room = 99
        self.there = {"frontend001", "compute001", "compute002"}
        self.provider = SimpleNamespace(release=lambda: None)
        self.paths = SitePaths(path, "mind")

    @property
    def spec(self) -> Any:
        return load(self.path)

    def open(self, *_: object) -> World:
        return self

    def first_node_with(self, _service: str) -> str:
        return "frontend001"

    def _do(self, what: str, *words: str) -> None:
        self.log.append(" ".join([what, *words]))
        if self.failing.get(what):
            raise self.failing[what].pop(0)

    def up(self) -> None:
        self._do("up")
        self.interrupted = False
        declared = [name for name in self.spec.node_names() if not name.startswith("disk")]
        if sum(name.startswith("compute") for name in declared) > self.room:
            raise PreflightError("quota: no more servers")
        self.there = set(declared)

    def scale(self, kind: str, count: int, *, refill: bool) -> None:
        self.log.append(f"scale {kind}={count}")
        write_count(self.path, kind, count, refill=refill)
        self.up()

    def remove(self, nodes: list[str], *, busy: bool = True) -> None:
        self.log.append(f"remove {' '.join(nodes)}{'' if busy else ' if idle'}")
        write_removal(self.path, nodes)
        self.up()

    def nodes(self) -> dict[str, NodeAccess]:
        self._do("nodes")
        return {name: NodeAccess(name, name) for name in self.there}

    def look(self, *_: object) -> View:
        self._do("look")
        full, nothing = {"cpu": 2.0}, {"cpu": 0.0}
        workers = {
            name: Worker(name, full, full if name in self.idle else nothing, MAIN, takes_jobs=name in self.idle, idle=self.idle.get(name))
            for name in self.there
            if name.startswith("compute")
        }
        return View(workers, tuple(Job(str(number), {"cpu": 2.0}) for number in range(self.waiting)), MAIN)

    def did(self) -> list[str]:
        """What was done since this was asked last, without looks."""
        done = [entry for entry in self.log if entry not in {"look", "nodes"}]
        self.log.clear()
        return done


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path / "cluster.yml")
    monkeypatch.setattr(loop, "Site", made)
    monkeypatch.setattr(slurm, "look", made.look)
    return made


def scaler(world: World, *, least: int = 1, most: int = 5, kind: str = "compute", emit: Callable[[Event], None] = print) -> Autoscaler:
    return Autoscaler(world.path, kind, Limits(least, most, idle=60), Progress(quiet=True), emit)


def test_jobs_make_nodes_and_idle_nodes_go(world: World) -> None:
    events: list[Event] = []
    one = scaler(world, emit=events.append)
    assert one.once() is False
    world.waiting = 2
    assert one.once() is True
    assert world.did() == ["scale compute=4", "up"]
    world.waiting, world.idle = 0, dict.fromkeys(["compute001", "compute003", "compute004"], 100)
    assert one.once() is True
    assert world.did() == ["remove compute001 compute003 compute004 if idle", "up"]
    assert set(world.there) == {"frontend001", "compute002"}
    assert [(it.event, it.count, it.nodes) for it in events] == [
        ("grow", 4, ("compute003", "compute004")),
        ("shrink", 1, ("compute001", "compute003", "compute004")),
    ]
    assert events[0].as_json().keys() == {"time", "event", "kind", "count", "why", "nodes", "seconds"}


def test_numbers_are_given_again(world: World) -> None:
    """Else names end at 999, and the volumes of nodes that were removed are never used again."""
    world.idle = {"compute001": 100}
    one = scaler(world)
    one.once()
    assert world.spec.nodes["compute"].without == (1,)
    world.waiting, world.idle = 2, {}
    one.once()
    assert set(world.there) == {"frontend001", "compute001", "compute002", "compute003"}
    assert world.spec.nodes["compute"].without == ()


def test_what_an_earlier_run_left_is_completed_and_then_the_jobs_are_looked_at(world: World) -> None:
    write_count(world.path, "compute", 3)
    world.waiting = 1
    scaler(world).once()
    assert world.did() == ["up", "scale compute=4", "up"]
    world.interrupted = True
    world.waiting = 0
    scaler(world).once()
    assert world.did() == ["up"]


def test_a_cloud_without_room_is_asked_for_less(world: World) -> None:
    world.room, world.waiting = 3, 5
    one = scaler(world, most=7)
    for tried, left in ((7, 2), (4, 2), (3, 3)):
        if left == 2:
            with pytest.raises(PreflightError):
                one.once()
        else:
            one.once()
        assert world.did()[0] == f"scale compute={tried}"
        assert world.spec.nodes["compute"].count == left


def test_where_room_is_gone_no_node_of_before_is_given_up(world: World) -> None:
    """The nodes that were declared and could not be made are taken out again, and those alone: others have jobs."""
    write_removal(world.path, ["compute001"])
    world.there -= {"compute001"}
    world.room, world.waiting = 1, 2
    with pytest.raises(PreflightError):
        scaler(world).once()
    assert list(world.spec.node_names())[1] == "compute002"
    assert "compute002" in world.there


def test_failures_are_told_and_tried_again_more_and_more_seldom(world: World) -> None:
    events: list[Event] = []
    waits: list[float] = []
    world.failing = {"look": [GridsteadError("no route"), OSError(28, "No space left"), *[GridsteadError("no route")] * 7]}
    world.failing["nodes"] = [GridsteadError("no cloud")]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scaler(world, emit=events.append).run(interval=10, sleep=sleep)
    assert waits == [10, 20, 40, 80, 160, 160, 160, 160, 160]
    assert [it.event for it in events] == ["start", *["error"] * 9]
    assert [(it.why, it.seconds) for it in events[1:4]] == [("no cloud", 10), ("no route", 20), ("[Errno 28] No space left", 40)]


def test_after_a_round_that_went_well_the_wait_is_short_again(world: World) -> None:
    waits: list[float] = []
    world.failing = {"look": [GridsteadError("no route")] * 2}

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scaler(world).run(interval=10, sleep=sleep)
    assert waits == [10, 20, 10, 10]


def test_the_way_to_the_controller_is_looked_for_again_when_it_is_shut(world: World) -> None:
    one = scaler(world)
    one.once()
    one.once()
    assert world.log == ["nodes", "look", "look"]
    world.failing = {"look": [GridsteadError("no route")]}
    world.log.clear()
    one.once()
    assert world.log == ["look", "nodes", "look"]


def test_a_failure_of_one_round_is_no_other_rounds(world: World) -> None:
    """What `up` leaves to the operator does not keep jobs from having nodes."""
    write_count(world.path, "compute", 3)
    world.failing = {"up": [RepairError("frontend001 is held")]}
    one = scaler(world)
    with pytest.raises(RepairError):
        one.once()
    world.did()
    world.waiting = 1
    one.once()
    assert world.did() == ["scale compute=4", "up"]


def test_a_node_that_broke_is_no_node_without_room(world: World) -> None:
    """It has jobs, as far as Slurm knows: that is for `up` to see to."""
    world.room, world.waiting = 2, 2
    nodes = world.nodes

    def broken() -> dict[str, NodeAccess]:
        return {name: replace(access, running=name != "compute001") for name, access in nodes().items()}

    world.nodes = broken  # type: ignore[method-assign]
    with pytest.raises(PreflightError):
        scaler(world).once()
    assert list(world.spec.node_names())[1:3] == ["compute001", "compute002"]
    assert world.spec.nodes["compute"].count == 2


def test_nodes_that_got_jobs_first_are_no_event(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    world.idle = {"compute002": 100}
    monkeypatch.setattr(world, "remove", lambda *_, **__: None)
    assert scaler(world, emit=events.append).once() is True
    assert events == []


def test_whoever_read_the_events_is_gone(world: World) -> None:
    def gone(_event: Event) -> None:
        if world.waiting:
            raise BrokenPipeError
        world.waiting = 2

    with pytest.raises(BrokenPipeError):
        scaler(world, emit=gone).run(interval=1, sleep=pytest.fail)


def test_once_a_failure_is_the_commands(world: World) -> None:
    world.failing = {"nodes": [GridsteadError("no cloud")]}
    with pytest.raises(GridsteadError, match="no cloud"):
        scaler(world).once()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least": 3, "most": 2}, "--min 3 is more than --max 2"),
        ({"kind": "computes"}, "no node kind 'computes', did you mean 'compute'?"),
        ({"kind": "frontend"}, "nodes.frontend: its nodes run no jobs"),
        ({"kind": "disk"}, "nodes.disk.services: its nodes are no mere compute nodes: they offer nfs_server"),
        ({"least": 3}, "nodes.compute.count: 2 is not within 3 and 5"),
        ({"most": 1}, "nodes.compute.count: 2 is not within 1 and 1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(world: World, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        scaler(world, **options).run(interval=1, sleep=pytest.fail)
    assert message in str(caught.value)
    assert world.log == []
    assert world.path.read_text() == SPEC


def test_none_at_all_is_refused_where_slurm_would_have_no_node(world: World) -> None:
    world.path.write_text(SPEC.replace("  disk:\n    count: 1\n", "  disk:\n    count: 0\n"))
    with pytest.raises(InputError, match=r"--min 0: .* refuses every job"):
        scaler(world, least=0).once()
    world.path.write_text(SPEC)
    scaler(world, least=0).once()


def test_a_kind_with_a_volume_of_the_cloud_is_one_node(world: World) -> None:
    volume = "[{name: data, size: 1G, mount: /data, id: 00000000-0000-0000-0000-000000000000}]"
    text = SPEC.replace("name: mind", "name: mind\nprovider: openstack").replace("count: 2", f"count: 1\n    volumes: {volume}")
    world.path.write_text(text)
    with pytest.raises(InputError, match=r"--max 5: .*one existing volume"):
        scaler(world).once()


def test_a_count_that_somebody_else_wrote_meanwhile_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the lock."""
    world.waiting = 1
    one = scaler(world, most=9)
    look = world.look

    def and_then(*given: object) -> View:
        seen = look(*given)
        write_count(world.path, "compute", 7)
        return seen

    monkeypatch.setattr(slurm, "look", and_then)
    with pytest.raises(InputError, match="has 7 nodes by now, not fewer than 3"):
        one.once()
    assert world.spec.nodes["compute"].count == 7
