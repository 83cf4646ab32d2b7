"""The rules that the test-suite keeps itself to: one run a machine, expected skips, evidence, which parts a change concerns."""

from __future__ import annotations

import ast
import doctest
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import evidence
import one_run
import parts
import scenarios
import selection
import skips
from support import until

ROOT = Path(__file__).resolve().parents[2]
WITH_PLUGIN = ("-c", str(ROOT / "pyproject.toml"), "-p", "gridstead_plugin", "-p", "no:cacheprovider", "-q")


# -- one run on a machine --------------------------------------------------------------------------------------------

HOLDS = """\
import pathlib, sys, time
sys.path.insert(0, {tests!r})
import one_run
here = pathlib.Path({here!r})
with one_run.holding(here / "data", directory=here / "locks"):
    (here / "held").touch()
    time.sleep(1000)
"""


def test_a_second_run_is_told_who_has_the_machine(tmp_path: Path) -> None:
    script = tmp_path / "first.py"
    script.write_text(HOLDS.format(tests=str(ROOT / "tests"), here=str(tmp_path)))
    with subprocess.Popen([sys.executable, script]) as first:
        until("the first run to hold it", (tmp_path / "held").exists)
        with (
            pytest.raises(one_run.TakenError, match=f"has {tmp_path}/data: process {first.pid} since .*first.py") as refused,
            one_run.holding(tmp_path / "data", directory=tmp_path / "locks"),
        ):
            pass
        assert "GRIDSTEAD_DATA" in str(refused.value)
        with one_run.holding(tmp_path / "other", directory=tmp_path / "locks"):
            pass  # nodes elsewhere do not meet
        first.send_signal(signal.SIGKILL)
        first.wait()
    with one_run.holding(tmp_path / "data", directory=tmp_path / "locks"):
        pass  # who was killed holds nothing


def test_the_same_place_by_another_name_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.setenv("GRIDSTEAD_DATA", str(tmp_path / "link"))
    assert one_run.data() == (tmp_path / "data").resolve()


# -- skips -----------------------------------------------------------------------------------------------------------


def run_pytest(where: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    """pytest with this project's plugin on one file."""
    where.write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *WITH_PLUGIN, where],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


SKIPS = """\
import pytest
def test_good():
    pass
def test_skips():
    pytest.skip("not today")
@pytest.mark.skipif(True, reason="by mark")
def test_marked():
    raise AssertionError
@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    raise AssertionError
"""


def test_a_skip_nobody_expects_fails_a_whole_run_and_no_other(tmp_path: Path) -> None:
    done = run_pytest(tmp_path / "test_it.py", SKIPS, **{skips.VARIABLE: "1"})
    assert done.returncode == 1
    assert "1 failed, 1 passed, 1 xfailed, 1 error" in done.stdout, done.stdout
    assert "not expected to be skipped: Skipped: not today" in done.stdout
    assert "not expected to be skipped: Skipped: by mark" in done.stdout
    done = run_pytest(tmp_path / "test_it.py", SKIPS, **{skips.VARIABLE: ""})
    assert done.returncode == 0, done.stdout
    assert "1 passed, 2 skipped, 1 xfailed" in done.stdout


def test_the_list_says_test_and_reason() -> None:
    listed = skips.parse("# a remark\n\ntests/a.py::test_b[*] | no *\n")
    assert skips.expected("tests/a.py::test_b[1]", "no network here", listed)
    assert not skips.expected("tests/a.py::test_b[1]", "another reason", listed)
    assert not skips.expected("tests/a.py::test_c", "no network here", listed)
    with pytest.raises(ValueError, match=r"expected_skips\.txt:2"):
        skips.parse("\ntests/a.py::test_b\n")


@pytest.mark.parametrize("expected", skips.listed(), ids=lambda expected: expected.test)
def test_every_listed_skip_can_happen(expected: skips.Expected) -> None:
    """What is listed and gone hides the next skip that looks like it."""
    name, _, test = expected.test.partition("::")
    text = (ROOT / name).read_text()
    if test != "*":
        assert re.search(rf"def {re.escape(test.partition('[')[0].rstrip('*'))}", text), "no such test"
    sources = [ROOT / name, *Path(ROOT / name).parents[0].glob("conftest.py")]
    words = max(expected.reason.split("*"), key=len).strip(" :")
    literal = re.escape(words).replace("podman", ".*")  # filled in from the site
    assert any(re.search(literal, source.read_text()) for source in sources), "nothing skips for that reason"


# -- evidence --------------------------------------------------------------------------------------------------------


def test_evidence_of_a_site_that_is_not_there_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_ARTIFACTS", str(tmp_path / "artifacts"))
    told = evidence.keep(str(tmp_path / "nowhere"), "test_x[a/b]")
    (where,) = (tmp_path / "artifacts").iterdir()
    assert told == f"kept in {where}"
    assert "no site" in (where / "status.txt").read_text()


def test_evidence_is_kept_before_the_fixture_takes_the_site_away(tmp_path: Path) -> None:
    test = (
        "import pytest\n"
        "@pytest.fixture\ndef small(tmp_path):\n"
        "    spec = tmp_path / 'cluster.yml'\n    spec.write_text('name: [')\n    yield spec\n    spec.unlink()\n"
        "def test_fails(small):\n    raise AssertionError\n"
        "def test_fails_without_a_site():\n    raise AssertionError\n"
    )
    done = run_pytest(tmp_path / "test_it.py", test, CI_ARTIFACTS=str(tmp_path / "artifacts"))
    (where,) = (tmp_path / "artifacts").iterdir()
    assert (where / "cluster.yml").read_text() == "name: ["
    assert f"kept in {where}" in done.stdout


def test_the_essential_lines_of_a_journal() -> None:
    journal = """\
Nov 26 05:00:01 n slurmd[12]: started
Nov 26 05:00:02 n slurmd[12]: error: Unable to register: Zero Bytes
Nov 26 05:00:03 n slurmd[13]: error: Unable to register: Zero Bytes
Nov 26 05:00:04 n systemd[1]: munge.service: Failed with result 'exit-code'.
Nov 26 05:00:05 n x[1]: counted, error=0
"""
    assert [line[:15] for line in evidence.essential(journal)] == ["Nov 26 05:00:03", "Nov 26 05:00:04"]


# -- scenarios and examples ------------------------------------------------------------------------------------------


def test_every_role_has_tests_in_a_scenario() -> None:
    assert scenarios.complaints() == []


def role(root: Path, name: str, *files: str) -> None:
    for path in ("tasks/main.yml", *files):
        target = root / "roles" / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("")


def test_a_role_without_scenario_or_a_scenario_without_tests_is_a_complaint(tmp_path: Path) -> None:
    tests = "molecule/default/tests"
    role(tmp_path, "good", "molecule/default/molecule.yml", f"{tests}/test_good.py", f"{tests}/test_inner.py", f"{tests}/test_other.py")
    role(tmp_path, "empty", "molecule/default/molecule.yml")
    for name in ("bare", "inner", "other"):
        role(tmp_path, name)
    (tmp_path / "roles/good/molecule/default/converge.yml").write_text("- role: good\n")
    (tmp_path / "roles/good/tasks/main.yml").write_text("- include_role:\n    name: inner\n")
    assert scenarios.complaints(tmp_path) == [
        "role bare has no tests: no scenario has a test_bare.py (roles/ROLE/molecule/default/tests)",
        "role empty has no tests: no scenario has a test_empty.py (roles/ROLE/molecule/default/tests)",
        "the scenario of role empty has no role's tests",
        "role other has tests in the scenario of role good, which does not run it",
    ]


@pytest.mark.parametrize("module", scenarios.ansible_modules(), ids=lambda path: path.name)
def test_every_ansible_module_has_examples_that_are_run(module: Path) -> None:
    """pytest says nothing of a module without any."""
    tree = ast.parse(module.read_text())
    nodes = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef))]
    texts = [ast.get_docstring(node) or "" for node in nodes]  # type: ignore[arg-type]
    has = any(doctest.DocTestParser().get_examples(text) for text in texts)
    assert has is not (module.stem in scenarios.WITHOUT_EXAMPLES), f"{module}: no doctest, or one and listed to have none"


# -- what a change concerns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        ([], set()),
        (["README.md"], {"lint"}),
        (["tests/unit/test_spec.py"], {"lint", "unit"}),
        (["tests/e2e/test_arc.py", "README.md"], {"lint", "e2e", "openstack", "image"}),
        (["tests/faults/test_repair.py"], {"lint", "faults", "machine", "image"}),
        (["tests/cloud/config/nova.conf"], {"lint", "unit", "openstack", "image"}),
        (["tools/gridstead/cluster/providers/openstack/servers.py"], {"lint", "unit", "openstack", "image"}),
    ],
)
def test_a_change_and_its_parts(paths: list[str], wanted: set[str]) -> None:
    assert set(selection.select(paths)) == wanted


@pytest.mark.parametrize(
    "path",
    ["tools/gridstead/cluster/site.py", "tests/runner.py", "tests/support.py", "pyproject.toml", "playbooks/site.yml", "new/thing.txt"],
)
def test_what_may_concern_anything_concerns_everything(path: str) -> None:
    assert set(selection.select(["README.md", path])) == {part.name for part in parts.PARTS.values() if part.lane}


def test_a_role_concerns_the_scenarios_that_run_it() -> None:
    known = scenarios.of_roles()
    assert selection.select(["roles/monitoring/molecule/default/cluster.yml"])["molecule"] == ["monitoring"]
    for name in ("munge", "gridstead_package"):
        chosen = selection.select([f"roles/{name}/tasks/main.yml"])["molecule"]
        assert {known[role] for role in chosen} == {where for where in known.values() if name in scenarios.exercised(where.name)}
    assert {"cvmfs_client", "cvmfs_stratum0"} <= set(selection.select(["roles/gridstead_package/tasks/main.yml"])["molecule"])
    assert selection.select(["roles/munge/tasks/main.yml", "tests/molecule/config.yml"])["molecule"] == [], "all of them"


def test_every_committed_path_is_known_or_concerns_everything() -> None:
    """A rule that no path fits is out of date."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for pattern, _ in selection._RULES:
        assert any(re.match(pattern, path) for path in listed), pattern


def git(where: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=where, check=True, capture_output=True, text=True).stdout


def test_changes_since_the_branch_was_made(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    git(tmp_path, "switch", "--quiet", "-c", "work")
    (tmp_path / "a").write_text("2")
    git(tmp_path, "commit", "--quiet", "-am", "two")
    (tmp_path / "new file").write_text("")
    (tmp_path / "b").unlink()
    found = selection.changed(None, tmp_path)
    assert found
    assert found[0] == ["a", "b", "new file"]
    assert selection.changed("HEAD", tmp_path) == (["b", "new file"], git(tmp_path, "rev-parse", "HEAD").strip())
    with pytest.raises(LookupError):
        selection.changed("nothing", tmp_path)
    git(tmp_path, "switch", "--quiet", "--orphan", "apart")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "another")
    assert selection.changed(None, tmp_path) is None
