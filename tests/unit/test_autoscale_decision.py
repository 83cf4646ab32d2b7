"""How many nodes there should be: never outside the limits, never at a running job's cost, never back and forth."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridstead.cluster.autoscale.decision import Decision, Limits, Move, decide
from gridstead.cluster.node import Node
from gridstead.cluster.slurm import Job, View, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

MAIN = frozenset({"main"})
CPUS = 4
MODEL = {"cpu": CPUS, "mem": 2048}


def worker(name: str, *, free: float = CPUS, idle: float | None = None, **more: object) -> Worker:
    """A node: in use as far as it is not free, idle for some time when nothing is in use."""
    resting = idle if free == CPUS else None
    plain = Worker(name, {"cpu": CPUS}, {"cpu": free}, MAIN, takes_jobs=free > 0, idle=resting)
    return replace(plain, **more)  # type: ignore[arg-type]


def busy(count: int, kind: str = "compute") -> list[Worker]:
    return [worker(f"{kind}{number:03d}", free=0) for number in range(1, count + 1)]


def idle(count: int, seconds: float = 1000) -> list[Worker]:
    return [worker(f"compute{number:03d}", idle=seconds) for number in range(1, count + 1)]


def jobs(count: int, cpus: float = 1, **more: object) -> list[Job]:
    return [Job(f"{number}", {"cpu": cpus}, **more) for number in range(count)]  # type: ignore[arg-type]


def decided(
    workers: Sequence[Worker],
    waiting: Sequence[Job] = (),
    *,
    least: int = 1,
    most: int = 10,
    declared: Sequence[str] | None = None,
    limits: Limits | None = None,
    **more: object,
) -> Decision:
    view = View({it.name: it for it in workers}, tuple(waiting), everywhere=MAIN, shared=frozenset({"cpu"}))
    names = [it.name for it in workers if it.name.startswith("compute")] if declared is None else declared
    return decide(view, "compute", names, limits or Limits(least, most, idle=600), MODEL, **more)  # type: ignore[arg-type]


def moved(decision: Decision) -> tuple[Move, int]:
    return decision.move, decision.count


@pytest.mark.parametrize(
    ("waiting", "count"),
    [
        (jobs(6), 4),  # six processors are two nodes of four
        (jobs(6, whole=True), 8),
        (jobs(1, cpus=3) + jobs(1, cpus=2) + jobs(1, cpus=1), 4),  # the third goes beside the first
        (jobs(1, nodes=3), 5),
        (jobs(100), 10),  # the limit
        (jobs(1, cpus=5), 2),  # no node has five
        (jobs(1, nodes=9), 2),  # the limit leaves room for eight, which would wait for a ninth
        (jobs(1, nodes=9) + jobs(1), 3),  # and what is behind it is not held up
        (jobs(1, partitions=frozenset({"other"})), 2),
        (jobs(1, partitions=frozenset({"other", "main"})), 3),
        (jobs(1, features=frozenset({"big"})), 2),
        (jobs(1, only=frozenset({"compute001"})), 2),
        (jobs(1, never=frozenset({"compute001"})), 3),
    ],
)
def test_waiting_jobs_make_as_many_nodes_as_they_could_use_at_once(waiting: list[Job], count: int) -> None:
    assert moved(decided(busy(2), waiting)) == (Move.GROW if count > 2 else Move.STAY, count)


def test_what_is_free_is_used_first() -> None:
    part = worker("compute003", free=2)
    assert moved(decided([*busy(2), part], jobs(2))) == (Move.STAY, 3)
    assert moved(decided([*busy(2), part], jobs(3))) == (Move.GROW, 4)
    assert moved(decided([*busy(2), part], jobs(1, whole=True))) == (Move.GROW, 4)
    other = worker("spare001", idle=5)
    assert moved(decided([*busy(2), other], jobs(4))) == (Move.STAY, 2), "of another kind, and as good"
    shut = worker("compute003", idle=5000, takes_jobs=False)
    assert moved(decided([*busy(2), shut], jobs(1))) == (Move.GROW, 4), "an operator drained it"


def test_what_slurm_counts_besides() -> None:
    gpus = [replace(it, has={"cpu": 4, "gres/gpu": 2}, free={"cpu": 0, "gres/gpu": 0}) for it in busy(2)]
    wanting = [Job(str(number), {"cpu": 1, "gres/gpu": 1}) for number in range(5)]
    assert moved(decided(gpus, wanting)) == (Move.GROW, 5)
    assert moved(decided(busy(2), wanting)) == (Move.STAY, 2), "nodes of this kind have none"
    featured = [replace(it, features=frozenset({"big"})) for it in busy(2)]
    assert moved(decided(featured, jobs(1, features=frozenset({"big"})))) == (Move.GROW, 3)


def test_the_first_node_of_a_kind_is_as_declared() -> None:
    others = busy(1, kind="spare")
    assert moved(decided(others, jobs(6), least=0)) == (Move.GROW, 2)
    assert moved(decided(others, jobs(1, partitions=frozenset({"gpu"})), least=0)) == (Move.STAY, 0)


def test_idle_nodes_go_and_the_lowest_numbers_stay() -> None:
    decision = decided(idle(5), least=2)
    assert (moved(decision), decision.nodes) == ((Move.SHRINK, 2), ("compute003", "compute004", "compute005"))
    assert moved(decided(idle(5), least=5)) == (Move.STAY, 5)


def test_a_node_in_use_stays_whatever_its_number() -> None:
    decision = decided([*idle(2), worker("compute003", free=3), worker("compute004", free=0)], least=1)
    assert decision.nodes == ("compute001", "compute002")


def test_a_node_that_was_idle_for_a_short_while_stays() -> None:
    assert moved(decided(idle(3, seconds=599))) == (Move.STAY, 3)
    assert moved(decided(idle(3, seconds=600))) == (Move.SHRINK, 1)


def test_idle_nodes_that_waiting_jobs_may_use_stay() -> None:
    decision = decided(idle(4), jobs(1, nodes=2))
    assert decision.nodes == ("compute003", "compute004")


def test_what_an_operator_drained_stays() -> None:
    assert moved(decided([*busy(1), worker("compute002", idle=5000, takes_jobs=False)])) == (Move.STAY, 2)


def test_what_was_drained_to_leave_goes_or_is_put_back() -> None:
    """A run was killed between draining a node and removing it."""
    left = worker("compute002", idle=5000, takes_jobs=False, leaving=True)
    assert decided([*busy(1), left]).nodes == ("compute002",)
    assert moved(decided([*busy(1), left], least=2)) == (Move.COMPLETE, 2)
    assert moved(decided([*busy(1), left], jobs(1))) == (Move.COMPLETE, 2), "one is enough"
    assert moved(decided([*busy(1), left], jobs(8))) == (Move.GROW, 3)
    assert moved(decided([*busy(1), left], least=2, tried=["compute002"])) == (Move.STAY, 2)


def test_what_is_half_done_is_completed_first() -> None:
    assert decided(busy(2), jobs(9), declared=["compute001", "compute002", "compute003"]).nodes == ("compute003",)
    assert decided(busy(3), jobs(9), declared=["compute001", "compute002"]).nodes == ("compute003",)
    silent = worker("compute003", registered=False, takes_jobs=False)
    assert decided([*busy(2), silent]).move is Move.COMPLETE


def test_what_could_not_be_completed_holds_nothing_up() -> None:
    silent = worker("compute003", registered=False, takes_jobs=False)
    assert moved(decided([*busy(2), silent], jobs(4), tried=["compute003"])) == (Move.GROW, 4)
    assert moved(decided(busy(3), jobs(4), declared=["compute001", "compute002"], tried=["compute003"])) == (Move.GROW, 3)


def test_steps_are_as_large_as_allowed() -> None:
    assert moved(decided(busy(2), jobs(40), limits=Limits(1, 10, 600, step=3))) == (Move.GROW, 5)


def test_many_jobs_are_no_burden() -> None:
    """Ten thousand of them on hundreds of nodes: what did not fit once is not tried again."""
    assert decided(busy(300), jobs(10_000) + jobs(10_000, cpus=2), most=900).count == 900


# -- whatever there is ---------------------------------------------------------------------------------------------

SHAPES = st.builds(
    Job,
    id=st.just("1"),
    needs=st.builds(lambda cpus: {"cpu": float(cpus)}, st.integers(1, CPUS + 1)),
    nodes=st.integers(1, 5),
    partitions=st.sampled_from([MAIN, MAIN, frozenset({"other"}), frozenset({"main", "other"})]),
    whole=st.booleans(),
)
STATES = st.one_of(
    st.builds(lambda free: {"free": free}, st.integers(0, CPUS - 1)),
    st.builds(lambda seconds: {"idle": seconds}, st.sampled_from([0, 599, 600, 10_000])),
    st.builds(
        lambda seconds, leaving: {"idle": seconds, "takes_jobs": False, "leaving": leaving}, st.sampled_from([0, 700]), st.booleans()
    ),
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Worker], list[Job], Limits]:
    """Nodes of the kind and of another one, waiting jobs, and limits that hold the kind's count."""
    least, count, most = sorted(draw(st.tuples(*[st.integers(0, 8)] * 3)))
    numbers = draw(st.lists(st.integers(1, 12), min_size=count, max_size=count, unique=True))
    own = [worker(f"compute{number:03d}", **draw(STATES)) for number in numbers]
    others = [worker(f"spare{number:03d}", **draw(STATES)) for number in range(1, draw(st.integers(0, 2)) + 1)]
    return own + others, draw(st.lists(SHAPES, max_size=12)), Limits(least, max(1, most), idle=600)


def after(workers: list[Worker], decision: Decision) -> list[Worker]:
    """The nodes when a decision was carried out and nothing else happened: no job started, and long after."""
    match decision.move:
        case Move.GROW:
            taken = {Node.parse(it.name).number for it in workers if it.name.startswith("compute")}
            fresh = [number for number in range(1, 100) if number not in taken][: decision.count - len(taken)]
            workers = [*workers, *(worker(f"compute{number:03d}", idle=0) for number in fresh)]
        case Move.SHRINK:
            workers = [it for it in workers if it.name not in decision.nodes]
        case Move.COMPLETE:
            workers = [replace(it, takes_jobs=True, leaving=False) if it.leaving else it for it in workers]
    return [replace(it, idle=10_000) if it.idle is not None else it for it in workers]


@given(worlds())
def test_the_limits_hold_and_no_busy_node_goes(world: tuple[list[Worker], list[Job], Limits]) -> None:
    workers, waiting, limits = world
    there = {it.name: it for it in workers}
    decision = decided(workers, waiting, limits=limits)
    assert limits.least <= decision.count <= limits.most
    if decision.move is Move.SHRINK:
        assert decision.count == sum(name.startswith("compute") for name in there) - len(decision.nodes)
        for name in decision.nodes:
            assert name.startswith("compute")
            seconds = there[name].idle
            assert seconds is not None, "something runs there"
            assert seconds >= limits.idle
            assert there[name].takes_jobs or there[name].leaving, "somebody else drained it"


@given(worlds())
def test_it_comes_to_rest(world: tuple[list[Worker], list[Job], Limits]) -> None:
    """Where nothing changes but by its own doing, nothing that was made is taken away, nor made again what was taken away."""
    workers, waiting, limits = world
    moves = []
    for _ in range(4):
        decision = decided(workers, waiting, limits=limits)
        if decision.move is Move.STAY:
            break
        moves.append(decision.move)
        made = {it.name for it in workers}
        workers = after(workers, decision)
        if decision.move is Move.GROW:
            again = decided(workers, waiting, limits=limits)
            assert not {it.name for it in workers}.difference(made).intersection(again.nodes), "made, and taken away again"
    else:
        pytest.fail(f"no rest: {moves}")
    assert [move for move in moves if move is Move.GROW] in ([], [Move.GROW])
    assert Move.GROW not in moves[moves.index(Move.SHRINK) :] if Move.SHRINK in moves else True


@given(worlds())
def test_without_jobs_nothing_is_made(world: tuple[list[Worker], list[Job], Limits]) -> None:
    workers, _, limits = world
    assert decided(workers, limits=limits).move is not Move.GROW
