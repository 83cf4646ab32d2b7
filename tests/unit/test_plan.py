"""The plan: the difference between what should be there and what is; and how it is carried out."""

from __future__ import annotations

import io
import json
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gridstead.cluster.apply import apply
from gridstead.cluster.errors import GridsteadError, StepError
from gridstead.cluster.plan import Action, Plan, Step, make, teardown
from gridstead.cluster.progress import Progress
from gridstead.cluster.resources import Found, Key, Kind, Observed, Resource, Status

QUIET = Progress(quiet=True)


class Cloud:
    """A provider of the mind: it does at once what it is asked, and remembers it."""

    parallel = 4

    def __init__(self, observed: Observed | None = None) -> None:
        self.there = Observed(observed or {})
        self.log: list[tuple[str, Key]] = []
        self.fail: set[Key] = set()
        self.taken: set[Key] = set()
        self.lock = threading.Lock()

    def ensure(self, resource: Resource) -> None:
        with self.lock:
            self.log.append(("ensure", resource.key))
            if resource.key in self.fail:
                raise GridsteadError(f"the cloud refuses {resource.key}")
            missing = [key for key in resource.needs if key not in self.there]
            assert not missing, f"{resource.key} was made before {missing}"
            self.there[resource.key] = Found(resource.key, digest=resource.digest, needs=resource.needs)

    def delete(self, key: Key) -> None:
        with self.lock:
            self.log.append(("delete", key))
            if key in self.fail:
                raise GridsteadError(f"the cloud keeps {key}")
            held = [other for other, found in self.there.items() if key in found.needs and other in self.taken]
            assert not held, f"{key} was taken away before {held}"
            self.there.pop(key, None)


def site(nodes: int, volumes: int = 1) -> list[Resource]:
    network = Resource(Key(Kind.NETWORK, "net"), {"cidr": "10.0.0.0/24"})
    made = [network]
    for number in range(1, nodes + 1):
        needs = [network.key]
        for letter in range(volumes):
            volume = Resource(Key(Kind.VOLUME, f"n{number}-v{letter}"), {"bytes": 2**30})
            attachment = Resource(Key(Kind.ATTACHMENT, volume.key.name), {"node": f"n{number}"}, needs=(volume.key,))
            made += [volume, attachment]
            needs.append(attachment.key)
        made.append(Resource(Key(Kind.NODE, f"n{number}"), {"address": f"10.0.0.{number + 10}"}, needs=tuple(needs)))
    return made


def as_found(resources: list[Resource]) -> Observed:
    return Observed({resource.key: Found(resource.key, digest=resource.digest, needs=resource.needs) for resource in resources})


def carry_out(plan: Plan, cloud: Cloud) -> None:
    for step in plan.steps:
        if step.action is Action.REBOOT:  # repair does these
            cloud.there[step.key] = replace(cloud.there[step.key], status=Status.OK)
    cloud.taken = {step.key for step in plan.steps if step.action is Action.DELETE}
    apply(plan, cloud, QUIET)  # type: ignore[arg-type]


sites = st.builds(site, st.integers(1, 6), st.integers(0, 2))
statuses = st.sampled_from(list(Status))


@st.composite
def sites_in_any_state(draw: st.DrawFn) -> tuple[list[Resource], Observed]:
    """What is wanted, and any part of it, or of a larger site, found in any state."""
    wanted = draw(sites)
    found = Observed()
    for resource in draw(sites):
        if draw(st.booleans()):
            digest = draw(st.sampled_from([resource.digest, "0" * 16, None]))
            # In a cloud an attachment comes after its node and still goes with it; and some are there twice.
            needs = tuple(key for key in resource.needs if key.kind is not Kind.ATTACHMENT or draw(st.booleans()))
            found[resource.key] = Found(resource.key, draw(statuses), digest, needs=needs)
            if draw(st.integers(0, 9)) == 0:
                copy = replace(resource.key, copy=2)
                found[copy] = replace(found[resource.key], key=copy)
    return wanted, found


def asked(*keys: Key) -> dict[Key, str]:
    """What somebody wants to be made anew."""
    return dict.fromkeys(keys, "asked for")


def names(plan: Plan) -> list[str]:
    """The steps as people are told of them."""
    return [str(step) for step in plan.told()]


# ---------------------------------------------------------------------------------------------- the difference


def test_nothing_is_to_do_when_all_is_as_declared() -> None:
    assert not make(site(3), as_found(site(3)))


def test_from_nothing_everything_is_created_after_what_it_needs() -> None:
    wanted = site(2)
    plan = make(wanted, Observed())
    assert [step.key for step in plan.steps] == [resource.key for resource in wanted]
    assert {step.action for step in plan.steps} == {Action.CREATE}
    assert plan.steps[-1].after == {f"create {key}" for key in wanted[-1].needs}


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({"status": Status.STOPPED}, Action.START),
        ({"status": Status.BROKEN, "detail": "container is dead"}, Action.REBOOT),
        ({"status": Status.UNMADE}, Action.REPLACE),
        ({"digest": "another"}, Action.REPLACE),
        ({"digest": None}, None),
    ],
)
def test_one_node_that_differs_is_one_step(change: dict[str, object], action: Action | None) -> None:
    wanted, key = site(3), Key(Kind.NODE, "n2")
    found = as_found(wanted)
    found[key] = replace(found[key], **change)
    steps = make(wanted, found).told()
    assert [(step.action, step.key) for step in steps] == ([(action, key)] if action else [])


def test_what_is_spared_is_started_as_it_is_and_told() -> None:
    wanted, key = site(3), Key(Kind.NODE, "n2")
    for status, steps in ((Status.OK, []), (Status.STOPPED, ["start node n2"]), (Status.UNMADE, ["replace node n2"])):
        found = as_found(wanted)
        found[key] = replace(found[key], status=status, digest="another")
        plan = make(wanted, found, spare={key})
        assert names(plan) == steps
        assert [held.key for held in plan.held] == ([] if status is Status.UNMADE else [key])
        assert names(make(wanted, found, spare={key}, replace=asked(key))) == ["replace node n2"]


def test_a_volume_is_grown_in_place_and_never_replaced() -> None:
    wanted, key = site(1), Key(Kind.VOLUME, "n1-v0")
    for status in Status:
        found = as_found(wanted)
        found[key] = Found(key, status, digest="another")
        plan = make(wanted, found, replace=asked(key))
        assert [(step.action, step.key) for step in plan.steps] == [(Action.UPDATE, key)]


def test_a_volume_grows_once_the_node_that_is_made_anew_has_let_go_of_it() -> None:
    node, volume = Key(Kind.NODE, "n1"), Resource(Key(Kind.VOLUME, "n1-v0"), {"bytes": 2**30})
    attachment = Resource(Key(Kind.ATTACHMENT, "n1-v0"), {"node": "n1"}, needs=(volume.key, node))
    wanted = [Resource(node), volume, attachment]
    found = as_found(wanted)
    found[volume.key] = replace(found[volume.key], digest="another")
    found[attachment.key] = replace(found[attachment.key], needs=(volume.key,))
    found[node] = replace(found[node], needs=(attachment.key,))
    assert [step.after for step in make(wanted, found).steps] == [set()]
    after = {str(step): step.after for step in make(wanted, found, replace=asked(node)).steps}
    assert after == {
        "delete node n1": set(),
        "delete attachment n1-v0": {"delete node n1"},
        "create node n1": {"delete node n1"},
        "update volume n1-v0": {"delete attachment n1-v0"},
        "create attachment n1-v0": {"create node n1", "update volume n1-v0", "delete attachment n1-v0", "delete node n1"},
    }


def test_a_node_no_longer_declared_goes_and_its_volume_stays() -> None:
    plan = make(site(1), as_found(site(2)))
    assert [(step.action, step.key) for step in plan.steps] == [
        (Action.DELETE, Key(Kind.NODE, "n2")),
        (Action.DELETE, Key(Kind.ATTACHMENT, "n2-v0")),
    ]
    assert plan.steps[1].after == {"delete node n2"}


def test_what_comes_waits_for_what_leaves() -> None:
    # A new node may want the address, the port or the device that a leaving one still holds.
    renamed = [replace(resource, key=Key(Kind.NODE, "m1")) if resource.key.name == "n1" else resource for resource in site(1)]
    steps = make(renamed, as_found(site(1))).steps
    assert [str(step) for step in steps] == ["delete node n1", "create node m1"]
    assert steps[1].after == {"delete node n1"}


@given(sites_in_any_state())
@settings(deadline=None)
def test_a_plan_carried_out_leaves_nothing_to_do(case: tuple[list[Resource], Observed]) -> None:
    wanted, found = case
    cloud = Cloud(found)
    volumes = {key for key in found if key.kind is Kind.VOLUME}
    carry_out(make(wanted, found, replace=asked(*(key for key in found if key.name == "n1"))), cloud)
    assert not make(wanted, cloud.there)
    assert not {key for what, key in cloud.log if what == "delete"} & volumes, "data was deleted"
    assert set(cloud.there) == {resource.key for resource in wanted} | volumes


@given(sites_in_any_state())
@settings(deadline=None)
def test_no_step_waits_for_one_that_is_not_planned_or_comes_later(case: tuple[list[Resource], Observed]) -> None:
    wanted, found = case
    seen: set[str] = set()
    for step in make(wanted, found).steps:
        assert step.after <= seen
        assert str(step) not in seen
        seen.add(str(step))


@given(sites_in_any_state(), st.booleans())
@settings(deadline=None)
def test_down_takes_all_away_but_what_is_kept(case: tuple[list[Resource], Observed], with_volumes: bool) -> None:
    _, found = case
    cloud = Cloud(found)
    keep = () if with_volumes else (Kind.VOLUME,)
    carry_out(teardown(found, keep=keep), cloud)
    assert set(cloud.there) == {key for key in found if key.kind in keep}


def test_a_deletion_does_not_wait_for_what_another_node_holds() -> None:
    steps = {step.key: step for step in teardown(as_found(site(3))).steps}
    assert steps[Key(Kind.ATTACHMENT, "n2-v0")].after == {"delete node n2"}
    assert steps[Key(Kind.VOLUME, "n2-v0")].after == {"delete attachment n2-v0"}
    assert steps[Key(Kind.NETWORK, "net")].after == {f"delete node n{number}" for number in (1, 2, 3)}


def test_what_leaves_is_taken_away_once_what_stays_has_been_changed_not_to_need_it() -> None:
    old, new = Resource(Key(Kind.SECURITY_GROUP, "old")), Resource(Key(Kind.SECURITY_GROUP, "new"))
    port = Resource(Key(Kind.PORT, "n1"), {"groups": ["new"]}, needs=(new.key,))
    rule = Key(Kind.SHARE, "a part of the old group")
    found = Observed({rule: Found(rule), old.key: Found(old.key, needs=(rule,)), port.key: Found(port.key, digest="x", needs=(old.key,))})
    steps = {str(step): step.after for step in make([new, port], found).steps}
    assert list(steps) == ["create security group new", "update port n1", "delete security group old", f"delete {rule}"]
    assert steps["delete security group old"] == {"update port n1"}
    assert steps[f"delete {rule}"] == {"delete security group old"}


def with_users(found: Observed) -> Observed:
    """Every node but the first uses the first."""
    first = Key(Kind.NODE, "n1")
    uses = {key: replace(one, needs=(*one.needs, first)) for key, one in found.items() if key.kind is Kind.NODE and key != first}
    return Observed({**found, **uses})


def test_what_uses_a_node_is_taken_away_before_it() -> None:
    found = with_users(as_found(site(3)))
    steps = {step.key: step for step in teardown(found).steps}
    assert steps[Key(Kind.NODE, "n1")].after == {"delete node n2", "delete node n3"}
    assert steps[Key(Kind.NODE, "n2")].after == set()
    cloud = Cloud(found)
    carry_out(teardown(found), cloud)
    assert not cloud.there


def test_what_uses_a_node_is_replaced_before_it_only_where_both_are() -> None:
    found = with_users(as_found(site(3)))
    anew = [Key(Kind.NODE, "n1"), Key(Kind.NODE, "n3")]
    steps = {str(step): step for step in make(site(3), found, replace=asked(*anew)).steps}
    assert steps["delete node n1"].after == {"delete node n3"}
    assert "delete node n2" not in steps
    carry_out(make(site(3), found, replace=asked(*anew)), Cloud(found))


def test_a_plan_as_data_names_action_kind_name_and_reason() -> None:
    step = make(site(1, 0), Observed()).steps[0]
    assert step.as_json() == {"action": "create", "kind": "network", "name": "net", "why": "not there yet"}


# ---------------------------------------------------------------------------------------------- carrying it out


def test_a_failed_step_holds_back_only_what_needs_it() -> None:
    cloud = Cloud()
    cloud.fail = {Key(Kind.VOLUME, "n1-v0")}
    with pytest.raises(StepError) as caught:
        carry_out(make(site(3), Observed()), cloud)
    assert {key.name for key in cloud.there if key.kind is Kind.NODE} == {"n2", "n3"}
    assert str(caught.value).splitlines() == [
        "create volume n1-v0: the cloud refuses volume n1-v0",
        "  not tried, because they need what failed: create attachment n1-v0, create node n1",
    ]
    cloud.fail, cloud.log = set(), []
    carry_out(make(site(3), cloud.there), cloud)
    assert [key.name for _, key in cloud.log] == ["n1-v0", "n1-v0", "n1"], "a second run does only what is left"


def test_an_interrupt_starts_no_further_step_and_waits_for_none() -> None:
    cloud, began, go_on = Cloud(), [], threading.Event()

    def interrupted(_: object, step: Step) -> None:
        began.append(step)
        if len(began) == cloud.parallel:
            raise KeyboardInterrupt
        go_on.wait(60)

    wanted = [Resource(Key(Kind.NODE, f"n{number}")) for number in range(20)]
    with pytest.raises(KeyboardInterrupt):
        apply(make(wanted, Observed()), cloud, QUIET, do=interrupted)  # type: ignore[arg-type]
    go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("step "):
            thread.join(10)
    assert len(began) == cloud.parallel


def test_what_needs_a_failed_step_indirectly_is_held_back_too() -> None:
    cloud = Cloud()
    cloud.fail = {Key(Kind.NETWORK, "net")}
    with pytest.raises(StepError, match="not tried"):
        carry_out(make(site(2, 0), Observed()), cloud)
    assert not cloud.there


def test_a_bug_is_not_dressed_up_as_a_failed_step() -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        apply(make(site(1), Observed()), Cloud(), QUIET, do=broken)  # type: ignore[arg-type]


def test_independent_steps_run_at_once_and_no_more_than_allowed() -> None:
    cloud, running, most = Cloud(), 0, 0
    lock, full = threading.Lock(), threading.Event()

    def slow(_: object, __: Step) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == cloud.parallel:
                full.set()
        assert full.wait(10), "fewer steps ran at once than may"
        time.sleep(0.01)
        with lock:
            running -= 1

    wanted = [Resource(Key(Kind.NODE, f"n{number}")) for number in range(12)]
    apply(make(wanted, Observed()), cloud, QUIET, do=slow)  # type: ignore[arg-type]
    assert most == cloud.parallel


def test_replacing_deletes_first() -> None:
    wanted = site(1, 0)
    cloud = Cloud(as_found(wanted))
    carry_out(make(wanted, cloud.there, replace=asked(Key(Kind.NODE, "n1"))), cloud)
    assert [what for what, _ in cloud.log] == ["delete", "ensure"]


# ---------------------------------------------------------------------------------------------- progress


def told(**options: bool) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(console=Console(file=out, force_terminal=False, width=200, soft_wrap=True), **options), out


def test_progress_says_what_ran_where_and_for_how_long() -> None:
    progress, out = told()
    with progress, progress.step("create", "node n1"):
        pass
    with pytest.raises(ValueError, match="no"), progress.step("create", "node n2"):
        raise ValueError("no")
    first, second = out.getvalue().splitlines()
    assert first.endswith("✓ create node n1 (0.0 s)")
    assert second.endswith("✗ create node n2 (0.0 s)")


def test_progress_is_silent_when_asked() -> None:
    progress, out = told(quiet=True)
    with progress, progress.step("create", "node n1"):
        progress.say("hello")
    assert not out.getvalue()


def test_a_long_step_gives_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridstead.cluster.progress.HEARTBEAT", 0.0)
    progress, out = told()
    with progress, progress.step("build", "image"):
        deadline = time.monotonic() + 10
        while "so far" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "… build image (" in out.getvalue()


def test_markup_in_what_is_said_is_text() -> None:
    progress, out = told()
    progress.say("node [red]n1[/red] at [10.0.0.1]")
    assert "node [red]n1[/red] at [10.0.0.1]" in out.getvalue()


def test_what_hangs_on_a_replaced_node_is_made_anew_with_it() -> None:
    """Where attachments come after the node, as in a cloud."""
    node = Resource(Key(Kind.NODE, "n1"))
    attachment = Resource(Key(Kind.ATTACHMENT, "n1-v"), {"node": "n1"}, needs=(node.key,))
    rules = Resource(Key(Kind.SECURITY_GROUP, "inside"), {"rules": 2})
    observed = Observed({one.key: Found(one.key, digest=one.digest) for one in (node, attachment)})
    observed[rules.key] = Found(rules.key, digest="before")
    plan = make([rules, node, attachment], observed, replace=asked(node.key))
    assert names(plan) == ["update security group inside", "replace node n1", "replace attachment n1-v"]
    assert "create node n1" in plan.steps[-1].after
    assert names(make([rules, node, attachment], observed)) == ["update security group inside"]


# ---------------------------------------------------------------------------------------------- digests

#: The properties of a server, and the digest that commit d568e2a made of them.
SERVER = {"flavor": {"cpus": 2, "memory": 2048}, "zone": None, "root_volume": None, "image": None, "config_drive": True}
SERVER_THEN = "a08aa268c53ad67e"


def server(**more: object) -> Resource:
    return Resource(Key(Kind.NODE, "n1"), {**SERVER, **more})


def test_what_an_earlier_release_made_is_as_declared() -> None:
    assert not server().differs(SERVER_THEN)
    assert not server(a_key_of_later=None, another=[]).differs(SERVER_THEN)
    assert server(a_key_of_later="says something").differs(SERVER_THEN)
    assert server(zone="north").differs(SERVER_THEN)


properties = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([None, False, True, "", "x", "y:z;", [], [1], {"a": 1}]))


@given(properties, properties)
def test_a_digest_tells_which_properties_differ(before: dict[str, object], now: dict[str, object]) -> None:
    made = Resource(Key(Kind.NODE, "n1"), before).digest
    differ = {name for name in now if json.dumps(now[name] or None) != json.dumps(before.get(name) or None)}
    assert set(Resource(Key(Kind.NODE, "n1"), now).differs(made)) == differ
    assert not Resource(Key(Kind.NODE, "n1"), before).differs(made)
    assert ":" not in made


def test_a_property_that_says_nothing_replaces_nothing() -> None:
    wanted = site(2)
    found = as_found(wanted)
    later = [Resource(one.key, {**one.properties, "a_key_of_later": None}, one.needs) for one in wanted]
    assert not make(later, found)


def test_a_change_is_told_by_name() -> None:
    found = Observed({server().key: Found(server().key, digest=server().digest)})
    assert [step.why for step in make([server(zone="north")], found).told()] == ["declared differently: zone"]
