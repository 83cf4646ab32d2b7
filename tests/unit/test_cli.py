"""The command's outside: exit codes, one message an error, JSON, completion. Nothing here needs root or a node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from ruamel.yaml import YAML

from gridstead.cluster import cli
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.paths import site_argument
from gridstead.cluster.spec_file import load

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
        "autoscale",
        "remove",
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--min 3 --max 2 compute", "--min 3 is more than --max 2"),
        ("--min 1 --max 2 computes", "did you mean 'compute'?"),
        ("--min 1 --max 2 compute", "nodes.compute: its nodes run no jobs"),
        ("--min 1 --max 2 --idle soon compute", "--idle soon: is no time"),
        ("--min 1 --max 2 --interval 1d compute", "--interval 1d: is no time"),
    ],
)
def test_autoscale_refuses_what_cannot_be(run: Run, tmp_path: Path, words: str, said: str) -> None:
    (tmp_path / "cluster.yml").write_text(TINY)
    for more in ([], ["--once"], ["--json"]):
        assert said in one_error(run("autoscale", *words.split(), *more, "--site", tmp_path), 2)
    assert (tmp_path / "cluster.yml").read_text() == TINY


def test_autoscale_wants_its_limits(run: Run) -> None:
    assert run("autoscale", "compute").returncode == 2


def test_remove_of_an_unknown_node_changes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cluster.yml").write_text(TINY)
    assert "did you mean 'compute002'?" in one_error(run("remove", "compute02", "--site", tmp_path), 2)
    assert (tmp_path / "cluster.yml").read_text() == TINY


def test_a_file_that_ansible_would_take_for_a_list_of_hosts_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a,b.yml").write_text(TINY)
    assert "a,b.yml: a path with a comma" in one_error(run("plan", "--site", tmp_path / "a,b.yml"), 2)


@pytest.mark.parametrize(
    ("declaration", "argument"),
    [
        (ROOT / "inventories" / "local" / "cluster.yml", ""),
        (ROOT / "inventories" / "openstack" / "cluster.yml", "openstack"),
        (Path("/some/where/cluster.yml"), "/some/where"),
        (Path("/some/local/cluster.yml"), "/some/local"),
        (Path("/some/where/my.yml"), "/some/where/my.yml"),
    ],
)
def test_what_the_site_is_called_works_from_anywhere(declaration: Path, argument: str) -> None:
    assert site_argument(declaration) == argument


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cluster.yml").write_text(TINY)
    state = tmp_path / "state"
    # In a mount namespace of its own, so that nothing of it is left.
    script = (
        f"mkdir {state} && mount -t tmpfs -o size=64k none {state} && mkdir -p {state}/tiny && {{ dd if=/dev/zero of={state}/fill bs=1k || :; }} "
        f"2>/dev/null; exec {sys.executable} -m gridstead.cluster up --quiet --site {tmp_path}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, "GRIDSTEAD_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    message = one_error(done, 1)
    assert "no space left on device" in message
    assert f"free are 0 MiB at {state}" in message


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


@pytest.mark.parametrize("arguments", [["schema"], ["--help"]])
def test_a_closed_pipe_is_no_traceback(tmp_path: Path, arguments: list[str]) -> None:
    """Whoever reads is gone before the first word, as `| true` may be or not."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gridstead.cluster", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


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
    # A place of root's own, into which another user cannot even look.
    data = state.parent / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    settings = {**os.environ, "GRIDSTEAD_STATE": str(state), "GRIDSTEAD_DATA": str(data)}
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


def test_list_shows_every_site_though_one_cloud_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(declaration: Path, _progress: object) -> SimpleNamespace:
        def nodes() -> dict[str, None]:
            if load(declaration).provider == "openstack":
                raise GridsteadError("the cloud does not answer\nand more")
            return {"frontend001": None}

        return SimpleNamespace(nodes=nodes)

    monkeypatch.setattr(cli.Site, "open", opened)

    def call(*arguments: str) -> str:
        assert cli.run(list(arguments), lambda argv: cli.app(args=argv, standalone_mode=False)) == 0
        return capsys.readouterr().out

    rows = {row["site"]: row for row in json.loads(call("list", "--json"))}
    assert set(rows) == {path.parent.name for path in ROOT.glob("inventories/*/cluster.yml")}
    assert rows["local"] == {"site": "local", "provider": "podman", "declared": 3, "nodes": ["frontend001"], "error": None}
    assert (rows["openstack"]["nodes"], rows["openstack"]["error"]) == (None, "the cloud does not answer")
    lines = {line.split()[0]: line for line in call("list").splitlines()}
    assert "frontend001" in lines["local"]
    assert "? the cloud does not answer" in lines["arc-local"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_site_that_may_not_be_read_is_one_clear_error(tmp_path: Path, open_directory: Path) -> None:
    (tmp_path / "cluster.yml").write_text(TINY)
    for site in (tmp_path, tmp_path / "cluster.yml"):
        assert "Permission denied" in one_error(as_nobody("plan", "--site", str(site), state=open_directory), 2)
