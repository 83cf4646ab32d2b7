"""tools/test itself: a failing check must never pass for a good one, nothing may hang, and what is ended cleans up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import lanes
import parts
import runner
import runs
import scenarios
from support import until

ROOT = Path(__file__).resolve().parents[2]
WITH_PLUGIN = ("-c", str(ROOT / "pyproject.toml"), "-p", "gridstead_plugin", "-p", "no:cacheprovider", "-q")


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("======= 3 failed, 12 passed, 1 skipped in 4.20s =======", (12, 3, 1)),
        ("82 passed in 4.16s", (82, 0, 0)),
        ("\x1b[32m\x1b[1m5 passed\x1b[0m, \x1b[33m1 warning\x1b[0m\x1b[32m in 61.00s (0:01:01)\x1b[0m", (5, 0, 0)),
        ("== 1 passed, 2 errors in 0.10s ==", (1, 2, 0)),
        ("2 xfailed, 1 xpassed in 0.10s", (2, 1, 0)),
        ("no tests ran in 0.01s", None),
        ("12 passed, they said, in 4 days", None),
        ("FAILED tests/x.py::test - assert 1 failed in 3.0s", None),
    ],
)
def test_pytests_closing_line_is_understood(line: str, counts: tuple[int, int, int] | None) -> None:
    got = runs.count_of(line)
    assert (got and (got.passed, got.failed, got.skipped)) == counts


@pytest.mark.parametrize(
    ("script", "good", "counts"),
    [
        ("true", True, (1, 0, 0)),
        ("exit 3", False, (0, 1, 0)),
        ("echo 4 passed in 1.0s", True, (4, 0, 0)),
        ("echo 2 failed, 4 passed in 1.0s; exit 1", False, (4, 2, 0)),
        ("echo 4 passed in 1.0s; exit 1", False, (4, 1, 0)),
        ("kill -9 $$", False, (0, 1, 0)),
    ],
)
def test_a_command_counts_as_it_ended(script: str, good: bool, counts: tuple[int, int, int]) -> None:
    run = runs.Run("trial")
    assert run("sh", "-c", script) is good
    assert (run.count.passed, run.count.failed, run.count.skipped) == counts
    assert bool(run.failures) is not good


def test_a_clean_up_counts_only_when_it_fails() -> None:
    run = runs.Run("trial")
    run.clean("true", title="clean up")
    assert (run.count.passed, run.count.failed) == (0, 0)
    run.clean("false", title="clean up")
    assert (run.count.passed, run.count.failed) == (0, 1)


def test_a_daemon_left_behind_does_not_hang_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    # The daemon holds the pipe until this test lets it go: a run that waited for it would wait for ever.
    holder = os.open(tmp_path / "held", os.O_RDWR)
    try:
        assert runs.Run("trial")("sh", "-c", f"(read line <{tmp_path}/held; echo late) & echo started")
    finally:
        os.write(holder, b"\n")
        os.close(holder)


def test_silence_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.5)
    runs.Run("trial")("sleep", "3", title="quiet one")
    assert "trial: quiet one: running for" in capsys.readouterr().out


# -- ends that come from outside -------------------------------------------------------------------------------------


def test_a_test_that_hangs_is_ended_with_its_stack_and_its_fixtures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The part's time is over: where the test is must be told, and what it had made must go."""
    (tmp_path / "test_hangs.py").write_text(
        "import threading, pathlib, pytest\nhere = pathlib.Path(__file__).parent\n"
        "@pytest.fixture\ndef made():\n    (here / 'made').touch()\n    yield\n    (here / 'made').unlink()\n"
        "def test_good():\n    pass\n"
        "def test_hangs(made):\n    where_it_hangs()\n"
        "def where_it_hangs():\n    (here / 'reached').touch()\n    threading.Event().wait()\n"
    )
    run = runs.Run("trial")

    def end_it() -> None:
        until("the test to hang", (tmp_path / "reached").exists)
        run.limit_s = 0.0

    timer = threading.Thread(target=end_it)
    timer.start()
    with pytest.raises(runs.TimeIsUpError):
        run(sys.executable, "-m", "pytest", *WITH_PLUGIN, tmp_path / "test_hangs.py", env={"PYTHONPATH": str(ROOT / "tests")})
    timer.join()
    out = capsys.readouterr().out
    assert "in where_it_hangs" in out
    assert not (tmp_path / "made").exists()
    assert (run.count.passed, run.count.failed) == (1, 1)
    assert run.failures[0].endswith("(ended: the time of part trial was over)")


def test_who_does_not_end_when_asked_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "STACKS_S", 0.1)
    monkeypatch.setattr(runs, "END_PATIENCE_S", 0.5)
    run = runs.Run("trial", limit_s=0.5)
    with pytest.raises(runs.TimeIsUpError):
        run("sh", "-c", "trap '' TERM; sleep 1000 & wait; wait")
    assert run.count.failed == 1


def test_when_the_time_is_over_nothing_more_starts_but_the_clean_up(tmp_path: Path) -> None:
    run = runs.Run("trial", limit_s=-1.0)
    with pytest.raises(runs.TimeIsUpError):
        run("sleep", "1000")
    run.clean("touch", tmp_path / "cleaned", title="clean up")
    assert (tmp_path / "cleaned").exists()


TRIAL = """\
import pathlib, sys, time
sys.path.insert(0, {tests!r})
import lanes, parts, runner
from parts import Part
here = pathlib.Path({here!r})
def waits(run):
    try:
        run("sh", "-c", f"echo $$ > {{here}}/pid; exec sleep 1000")
    finally:
        (here / "cleaned").touch()
def other(run):
    try:
        run("sh", "-c", f"echo $$ > {{here}}/other.pid; exec sleep 1000")
    finally:
        (here / "other.cleaned").touch()
def image(run):
    run("false")
def nodes(run):
    run("touch", here / "nodes")
def good(run):
    run("echo", "7 passed, 1 skipped in 1.0s")
def dies(run):
    import os
    os._exit(9)
def meets(run):
    run("sh", "-c", f"echo x > {{here}}/fifo")
def met(run):
    run("sh", "-c", f"read x < {{here}}/fifo")
{body}
sys.exit(runner.main())
"""


@contextlib.contextmanager
def trial(tmp_path: Path, body: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The runner with parts of the test's own."""
    script = tmp_path / "trial.py"
    script.write_text(TRIAL.format(tests=str(ROOT / "tests"), here=str(tmp_path), body=body))
    env = {**os.environ, "CI_ARTIFACTS": str(tmp_path / "artifacts")}
    with subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def table(*listed: str) -> str:
    return f"parts.PARTS.clear(); parts.PARTS.update({{part.name: part for part in ({', '.join(listed)},)}})"


def pid_in(path: Path) -> int:
    return int(until(str(path), lambda: path.exists() and path.read_text().strip()))


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_run_ends_its_children_and_says_so(tmp_path: Path, sign: signal.Signals) -> None:
    with trial(tmp_path, table("Part(waits)"), "waits") as process:
        child = pid_in(tmp_path / "pid")
        process.send_signal(sign)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "cleaned").exists()
    assert "FAILED   waits" in out
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_an_interrupted_run_of_lanes_ends_each_by_its_own_way_out(tmp_path: Path) -> None:
    with trial(tmp_path, table('Part(waits, "cloud")', 'Part(other, "containers")', 'Part(good, "containers")')) as process:
        children = [pid_in(tmp_path / name) for name in ("pid", "other.pid")]
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert (tmp_path / "cleaned").exists(), out
    assert (tmp_path / "other.cleaned").exists(), out
    assert "=== good:" not in out, "nothing more starts"
    assert out.splitlines()[-2].split()[0] == "0"
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


# -- lanes -----------------------------------------------------------------------------------------------------------


def test_lanes_run_side_by_side_and_are_added_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # each end waits for the other: one after the other they would never end
    with trial(tmp_path, table('Part(meets, "cloud")', 'Part(met, "containers")', 'Part(good, "containers")')) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert out.splitlines()[-1] == "9 passed, 0 failed, 1 skipped", "CI reads this line"
    assert "good: 7 passed, 1 skipped in 1.0s" in out.splitlines()
    assert "7 passed, 1 skipped in 1.0s" in (tmp_path / "artifacts/good.log").read_text()


def test_stages_and_the_parts_of_a_lane_come_one_after_the_other(tmp_path: Path) -> None:
    """Each part ends when it has seen those before it end, and fails when one after it has begun."""
    body = """
def step(name, before, after):
    def part(run):
        ready = all((here / one).exists() for one in before) and not any((here / one).exists() for one in after)
        run("true" if ready else "false")
        (here / name).touch()
    part.__name__, part.__doc__ = name, name
    return part
""" + table(
        'Part(step("a", "", "bcd"), "quick")',
        'Part(step("b", "a", "cd"), "quick")',
        'Part(step("c", "ab", "d"), "containers")',
        'Part(step("d", "abc", ""), "alone")',
    )
    with trial(tmp_path, body) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out


def test_parts_that_need_the_image_fail_at_once_without_it(tmp_path: Path) -> None:
    body = "parts.os.geteuid = lambda: 0\nrunner._places = lambda wanted: []\n"
    body += table('Part(image, "image", nodes=True)', 'Part(nodes, "containers", nodes=True)', 'Part(good, "quick")')
    with trial(tmp_path, body) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert not (tmp_path / "nodes").exists()
    assert "=== nodes: FAILED in 0 s: the image part failed" in out
    assert out.splitlines()[-1] == "7 passed, 2 failed, 1 skipped", "CI reads this line"


def test_a_part_that_dies_without_a_word_has_failed(tmp_path: Path) -> None:
    with trial(tmp_path, table('Part(dies, "quick")', 'Part(good, "quick")')) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "=== dies: FAILED" in out
    assert "left no result" in out
    assert out.splitlines()[-1] == "7 passed, 1 failed, 1 skipped"


def test_a_run_of_lanes_ends_in_time(tmp_path: Path) -> None:
    body = table('Part(waits, "cloud")', 'Part(good, "containers")')
    body += "\nrunner.Whole = lambda wanted: lanes.Whole(wanted, limit_s=3.0)"
    with trial(tmp_path, body) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert (tmp_path / "cleaned").exists()
    assert "=== waits: FAILED" in out


def test_a_part_that_checks_nothing_has_not_passed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(parts.PARTS, "empty", parts.Part(lambda _: None))
    assert runner.run_all({"empty": ()}) == 1
    out = capsys.readouterr().out.splitlines()
    assert any(line.startswith("FAILED   ") for line in out)
    assert out[-1] == "0 passed, 1 failed, 0 skipped"


def test_every_part_has_a_limit_and_every_lane_a_stage() -> None:
    staged = {lane for stage in lanes.STAGES for lane in stage}
    for part in parts.PARTS.values():
        assert part.lane is None or part.lane in staged
        assert part.limit_s or part.name == "bench", "what is measured may take what it takes"
    assert lanes.LIMIT_S + lanes.GRACE_S < 90 * 60, "CI's own limit"


@pytest.mark.parametrize("others", [0, 1])
def test_a_second_scenario_runs_only_where_no_other_lane_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int) -> None:
    (tmp_path / "containers").touch()
    if others:
        (tmp_path / "cloud").touch()
    at_once, both, most = [], threading.Event(), []

    def scenario(_run: runs.Run, where: Path) -> None:
        at_once.append(where)
        most.append(len(at_once))
        if len(at_once) == 2:
            both.set()
        elif not others:
            assert both.wait(60), "the other one never came"
        at_once.remove(where)

    monkeypatch.setattr(parts, "_scenario", scenario)
    monkeypatch.setattr(scenarios, "of_roles", lambda: {name: Path(name) for name in "abc"})
    parts.molecule(runs.Run("molecule", ("a", "b", "c"), lanes=tmp_path, lane="containers"))
    assert len(most) == 3
    assert max(most) == (1 if others else 2)


@pytest.mark.parametrize("crashing", ["a", "b"])
def test_a_crash_in_either_scenario_fails_the_part(monkeypatch: pytest.MonkeyPatch, crashing: str) -> None:
    together = threading.Barrier(2)

    def scenario(_run: runs.Run, where: Path) -> None:
        together.wait(60)
        if where.name == crashing:
            raise OSError("no space left")

    monkeypatch.setattr(parts, "_scenario", scenario)
    monkeypatch.setattr(scenarios, "of_roles", lambda: {name: Path(name) for name in "ab"})
    run = runs.Run("molecule", ("a", "b"))
    outcomes: list[runs.Outcome] = []
    with contextlib.suppress(OSError):
        runner.run_part(parts.Part(lambda _: parts.molecule(run)), (), outcomes)
    assert run.failures or outcomes[0].failures


# -- input -----------------------------------------------------------------------------------------------------------


def test_unknown_parts_are_bad_input() -> None:
    for arguments, word in (
        (["no-such-part"], "molecule"),
        (["--changed=main", "unit"], "exclude each other"),
        (["--changed", "no-such-commit"], "no commit"),
    ):
        done = subprocess.run(
            [sys.executable, ROOT / "tests/runner.py", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2, done.stdout
        assert word in done.stderr


def test_unknown_roles_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parts.molecule(runs.Run("molecule", ("no-such-role",)))
    assert ended.value.code == 2
    assert "slurm_node" in capsys.readouterr().err


def test_the_listing_tells_lanes() -> None:
    rows = {line.split()[0]: line.split()[1] for line in runner.listing().splitlines() if line}
    assert (rows["openstack"], rows["molecule"], rows["long"]) == ("cloud", "containers", "-")
    assert set(parts.PARTS) < set(rows)


def test_a_worker_is_waited_for_through_an_interruption() -> None:
    go = threading.Event()
    worker = runs.Worker(target=go.wait)
    worker.start()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            worker.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
        threading.Timer(0.3, go.set).start()
        worker.wait()
    assert go.is_set()
