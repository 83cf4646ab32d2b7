"""The command's outside: exit codes, one message an error, JSON, completion. Nothing here needs root or a node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
TINY = "---\nname: tiny\nnodes:\n  compute: {count: 2}\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        settings = {**os.environ, "GRIDSTEAD_STATE": str(tmp_path / "state"), "NO_COLOR": "1", "COLUMNS": "200", **env}
        settings.pop("GRIDSTEAD_SITE", None)
        command = [sys.executable, "-m", "gridstead.cluster", *map(str, arguments)]
        return subprocess.run(
            command, env=settings, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )

    return call


def one_error(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one message on standard error; nothing on standard output, no traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert not done.stdout
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_help_names_every_command(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    commands = [
        "up",
        "plan",
        "down",
        "status",
        "list",
        "ssh",
        "scale",
        "stop",
        "start",
        "verify",
        "inventory",
        "logs",
        "image",
        "doctor",
        "schema",
    ]
    for command in commands:
        assert f" {command} " in done.stdout, command


def test_an_unknown_command_or_option_is_bad_input(run: Run) -> None:
    for arguments in (["pu"], ["up", "--sote", "x"], ["scale"]):
        done = run(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_an_unknown_site_names_the_known_ones(run: Run) -> None:
    assert "known: arc-local, local, openstack" in one_error(run("plan", "--site", "nowhere"), 2)


@pytest.mark.parametrize(
    "command", [["up"], ["plan"], ["down"], ["status"], ["inventory", "--list"], ["scale", "compute=1"], ["verify"], ["image", "build"]]
)
def test_every_command_tells_a_bad_file_the_same_way(run: Run, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "cluster.yml").write_text(TINY.replace("count", "cuont"))
    message = one_error(run(*command, "--site", tmp_path), 2)
    assert "cluster.yml:4: nodes.compute.cuont: unknown key, did you mean 'count'?" in message
    assert not (tmp_path / "state").exists(), "nothing half-made is left behind"


def test_the_site_may_stand_before_the_command_and_in_the_environment(run: Run, tmp_path: Path) -> None:
    for arguments in (["--site", tmp_path / "no", "plan"], ["-s", tmp_path / "no", "plan"], ["plan", "-s", tmp_path / "no"]):
        assert f"no site '{tmp_path / 'no'}'" in one_error(run(*arguments), 2)


@pytest.mark.parametrize("wanted", ["compute", "compute=", "compute=-1", "compute=x", "=3"])
def test_scale_wants_kind_and_number(run: Run, tmp_path: Path, wanted: str) -> None:
    (tmp_path / "cluster.yml").write_text(TINY)
    done = run("scale", "--site", tmp_path, "--", wanted)
    assert done.returncode == 2, done.stderr
    assert (tmp_path / "cluster.yml").read_text() == TINY


def test_scale_of_an_unknown_kind_changes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cluster.yml").write_text(TINY)
    assert "did you mean 'compute'?" in one_error(run("scale", "computes=3", "--site", tmp_path), 2)
    assert (tmp_path / "cluster.yml").read_text() == TINY


def test_the_schema_accepts_this_repositorys_sites_and_refuses_mistakes(run: Run) -> None:
    schema = json.loads(run("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    for path in [*ROOT.glob("inventories/*/cluster.yml"), *ROOT.glob("roles/*/molecule/*/cluster.yml")]:
        check.validate(YAML(typ="safe").load(path))
    for wrong in (
        {"name": "x", "nodes": {"compute": {"cuont": 2}}},
        {"name": "x", "nodes": {"compute": {"count": 1000}}},
        {"name": "X!", "nodes": {}},
    ):
        assert not check.is_valid(wrong), wrong


def test_completion_offers_commands_and_sites(run: Run) -> None:
    done = run(_CLUSTER_COMPLETE="complete_bash", COMP_WORDS="cluster st", COMP_CWORD="1")
    assert {"status", "start", "stop"} <= set(done.stdout.split())
    done = run(_CLUSTER_COMPLETE="complete_bash", COMP_WORDS="cluster plan --site lo", COMP_CWORD="3")
    assert "local" in done.stdout.split()


def test_completion_offers_the_sites_nodes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cluster.yml").write_text(TINY)
    done = run(_CLUSTER_COMPLETE="complete_bash", COMP_WORDS=f"cluster ssh --site {tmp_path} comp", COMP_CWORD="4")
    assert {"compute001", "compute002"} <= set(done.stdout.split())


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m gridstead.cluster schema | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert "Traceback" not in done.stderr


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user of this machine can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="gridstead-unit-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user who may do nothing."""
    # The checkout and its environment may lie where another user cannot look, and much is imported where it is used: the
    # command runs once as root on a site that it refuses, then the user is changed.
    (state / "wrong.yml").write_text(TINY.replace("count", "cuont"))
    script = f"""
import contextlib, io, os, sys
from gridstead.cluster import cli
import gridstead.cluster.providers.podman.provider
sys.argv = {["cluster", arguments[0], "--site", str(state / "wrong.yml"), *arguments[3:]]!r}
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    cli.main()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.argv = {["cluster", *arguments]!r}
cli.main()
"""
    settings = {**os.environ, "GRIDSTEAD_STATE": str(state)}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, env=settings, stdin=subprocess.DEVNULL
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("command", ["up", "plan", "down", "status", "inventory"])
def test_without_root_it_says_so(open_directory: Path, command: str) -> None:
    (open_directory / "cluster.yml").write_text(TINY)
    state = open_directory / "state"
    state.mkdir()
    os.chown(state, 65534, 65534)
    assert "root" in one_error(as_nobody(command, "--site", str(open_directory), state=state), 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_site_that_may_not_be_read_is_one_clear_error(tmp_path: Path, open_directory: Path) -> None:
    (tmp_path / "cluster.yml").write_text(TINY)
    for site in (tmp_path, tmp_path / "cluster.yml"):
        assert "Permission denied" in one_error(as_nobody("plan", "--site", str(site), state=open_directory), 2)
