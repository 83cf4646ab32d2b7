"""tools/test itself: a failing check must never pass for a good one, and nothing may hang."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runner", ROOT / "tests/runner.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["runner"] = module
    spec.loader.exec_module(module)
    return module


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
def test_pytests_closing_line_is_understood(runner: ModuleType, line: str, counts: tuple[int, int, int] | None) -> None:
    got = runner.count_of(line)
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
def test_a_command_counts_as_it_ended(runner: ModuleType, script: str, good: bool, counts: tuple[int, int, int]) -> None:
    run = runner.Run("trial")
    assert run("sh", "-c", script) is good
    assert (run.count.passed, run.count.failed, run.count.skipped) == counts
    assert bool(run.failures) is not good


def test_a_daemon_left_behind_does_not_hang_the_run(runner: ModuleType) -> None:
    began = time.monotonic()
    assert runner.Run("trial")("sh", "-c", "(sleep 30; echo late) & echo started")
    assert time.monotonic() - began < 10


def test_silence_is_broken(runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runner, "HEARTBEAT_S", 0.5)
    runner.Run("trial")("sleep", "3", title="quiet one")
    assert "trial: quiet one: running for" in capsys.readouterr().out


def test_a_part_that_checks_nothing_has_not_passed(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(runner.PARTS, "empty", runner.Part(lambda _: None))
    assert runner.run_parts(["empty"], ()) == 1
    assert "FAILED" in capsys.readouterr().out


def test_parts_that_need_the_image_fail_at_once_without_it(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def image(run: object) -> None:
        run("false")  # type: ignore[operator]

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setitem(runner.PARTS, "image", runner.Part(image, nodes=True))
    monkeypatch.setitem(runner.PARTS, "e2e", runner.Part(lambda _: ran.append("e2e"), nodes=True))
    assert runner.run_parts(["image", "e2e"], ()) == 1
    out = capsys.readouterr().out.splitlines()
    assert not ran
    assert out[-1] == "0 passed, 2 failed, 0 skipped", "CI reads this line"


def test_unknown_parts_and_roles_are_bad_input() -> None:
    for arguments, word in ((["no-such-part"], "molecule"), (["molecule", "no-such-role"], "slurm_node")):
        done = subprocess.run(
            [sys.executable, ROOT / "tests/runner.py", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        if "need root" not in done.stdout:
            assert done.returncode == 2, done.stdout
            assert word in done.stderr


def test_an_interrupted_run_ends_its_children_and_says_so(tmp_path: Path) -> None:
    script = tmp_path / "trial.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import runner\n"
        f"def trial(run):\n    try:\n        run('sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 60')\n"
        f"    finally:\n        open('{tmp_path}/cleaned', 'w').close()\n"
        "runner.PARTS = {'trial': runner.Part(trial)}\nsys.exit(runner.main())\n"
    )
    with subprocess.Popen([sys.executable, script, "trial"], stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=40)
    assert process.returncode == 130
    assert (tmp_path / "cleaned").exists()
    assert "FAILED   trial" in out
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
