"""Bad input and bad machines: one clear error each, the right exit code, nothing half-made left behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from leftovers import leftovers
from support import ROOT, cluster


def refused(spec: Path, *, code: int, says: list[str], command: tuple[str, ...] = ("up", "--no-configure"), **env: str) -> str:
    """Run a command that must be refused, and see that it is, clearly, and has made nothing."""
    done = cluster(*command, "--site", spec, check=False, env=env)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for words in says:
        assert words in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 12, done.stderr
    assert leftovers("faults") == []
    return done.stderr


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "services: [nfs_server]",
            "sevices: [nfs_server]",
            ["cluster.yml:6: nodes.server.sevices: unknown key", "did you mean 'services'?"],
        ),
        ("count: 2", "count: two", ["cluster.yml:10: nodes.worker.count:", "not 'two'"]),
        ("count: 2", "count: -1", ["cluster.yml:10: nodes.worker.count:", "greater than or equal to 0"]),
        ("count: 2", "count: 1000", ["cluster.yml:10: nodes.worker.count:", "less than or equal to 999"]),
        ("count: 1", "count: 2", ["cluster.yml:6: nodes.server.services:", "which of server001, server002 exports /grid?"]),
        (
            "[nfs_client]",
            "[nfs_clint]",
            ["cluster.yml:11: nodes.worker.services:", "unknown service 'nfs_clint'", "did you mean 'nfs_client'?"],
        ),
        ("provider: podman", "provider: podmn", ["cluster.yml:2: provider:", "'podman'"]),
        ("provider: podman", "provider: [podman", ["cluster.yml:", "not YAML"]),
        (
            "      - {name: data, size: 100M, mount: /data, filesystem: ext4}\n",
            "      - {name: data, size: 100M, mount: /data}\n      - {name: data, size: 100M, mount: /other}\n",
            ["cluster.yml:", "volume 'data' is declared twice"],
        ),
        ("size: 100M, mount: /data, filesystem: ext4", "size: 100M, mount: /data, filesystem: xfs", ["too small for xfs", "300M"]),
        ("size: 100M, mount: /data", "size: 100000T, mount: /data", ["MiB are needed", "MiB are free", "GRIDSTEAD_DATA"]),
    ],
)
def test_a_wrong_declaration(small: Path, old: str, new: str, says: list[str]) -> None:
    text = small.read_text()
    assert old in text
    small.write_text(text.replace(old, new, 1))
    refused(small, code=1 if "GRIDSTEAD_DATA" in says else 2, says=says)


def test_variables_that_do_not_fit(small: Path) -> None:
    """They stand beside cluster.yml, and only Ansible knows what comes of them: asked before there is a node."""
    variables = small.parent / "group_vars" / "all.yml"
    variables.parent.mkdir()
    variables.write_text("---\ngridstead_root: /elsewhere\n")
    refused(
        small,
        code=2,
        command=("up",),
        says=[f"{variables}:2: gridstead_root is /elsewhere, which compute nodes do not see", "below a share (/grid) is right"],
    )


def test_a_site_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", code=2, says=["no site", "known: "])


def test_a_subnet_that_clashes(small: Path) -> None:
    routes = json.loads(subprocess.run(["ip", "-j", "-4", "route"], capture_output=True, text=True, check=True).stdout)
    taken = next((route["dst"] for route in routes if "/" in route["dst"] and int(route["dst"].split("/")[1]) <= 28), None)
    if taken is None:
        pytest.skip("this machine has no route to a network of /28 or larger, so nothing can clash")
    small.write_text(small.read_text() + f"network: {{cidr: {taken}}}\n")
    refused(small, code=2, says=["clashes with", taken, "choose another network, or auto"])


def test_a_port_that_is_taken(small: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        small.write_text(
            small.read_text().replace("    services: [nfs_server]", f"    services: [nfs_server]\n    publish: ['127.0.0.1:{port}:9090']")
        )
        refused(small, code=2, says=[f"port {port}", "server001", "ss -ltnp"])


def test_without_privileges(small: Path, tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/") and str(path).startswith("/tmp/pytest"):
            path.chmod(0o755)
    # All is imported, by a first command, before the privileges go: the interpreter may lie where only root can read.
    script = (
        "import contextlib, os, sys; from gridstead.cluster.cli import app, main\n"
        "with contextlib.suppress(SystemExit): app(args=['plan', *sys.argv[2:4]])\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); main()"
    )
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", script, "up", "--site", str(small), "--no-configure"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools"), "GRIDSTEAD_STATE": str(tmp_path / "state"), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "needs root" in done.stderr
    assert leftovers("faults") == []


def test_no_podman(small: Path, tmp_path: Path) -> None:
    # A PATH that has everything but podman, and a package manager that cannot help.
    commands = tmp_path / "bin"
    commands.mkdir()
    for directory in os.environ["PATH"].split(os.pathsep):
        for program in Path(directory).glob("*") if Path(directory).is_dir() else ():
            if program.name not in ("podman", "apt-get", "dpkg-query") and not (commands / program.name).exists():
                (commands / program.name).symlink_to(program)
    for name in ("apt-get", "dpkg-query"):
        (commands / name).write_text("#!/bin/sh\necho 'E: no network here' >&2\nexit 100\n")
        (commands / name).chmod(0o755)
    refused(small, code=1, says=["podman"], PATH=str(commands))


def test_a_state_directory_that_is_a_file(small: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "faults").write_text("not a directory")
    refused(
        small, code=1, says=["cannot be the state directory", "move what is there out of the way"], GRIDSTEAD_STATE=str(tmp_path / "state")
    )


def test_a_key_that_is_no_key(small: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "state" / "faults" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "id_ed25519").write_text("garbage")
    refused(small, code=1, says=["no usable ssh key", "a new key is made"], GRIDSTEAD_STATE=str(tmp_path / "state"))


@pytest.mark.machine  # a layer of the one storage is away meanwhile
def test_a_broken_image_cache(small: Path) -> None:
    """A layer of the image is gone from podman's storage: it says so and what mends it."""
    name = cluster("image", "build").stdout.strip()
    storage = Path(os.environ.get("GRIDSTEAD_DATA", "/var/lib/gridstead/podman")) / "storage"
    images = json.loads((storage / "overlay-images" / "images.json").read_text())
    layer = storage / "overlay" / next(image["layer"] for image in images if name in image.get("names", []))
    hidden = layer.with_name(f"{layer.name}.hidden")
    layer.rename(hidden)
    try:
        done = cluster("up", "--no-configure", "--site", small, check=False)
    finally:
        if layer.exists():
            shutil.rmtree(layer)
        hidden.rename(layer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "tools/cluster image build --force" in done.stderr
    # The site runs no jobs, and has no volume for what it shares: it is up when a file goes from node to node, and goes as a whole.
    assert "first file: in /grid from server001 to worker001" in cluster("up", "--site", small).stdout
    assert "nothing to do" in cluster("up", "--site", small).stdout


@pytest.mark.parametrize("wanted", ["compute", "worker=x", "worker=-1", "nothing=3", "server=2"])
def test_a_wrong_scale(small: Path, wanted: str) -> None:
    before = small.read_text()
    refused(small, code=2, says=["error: "], command=("scale", wanted))
    assert small.read_text() == before


def test_an_unknown_node(small: Path) -> None:
    refused(small, code=2, says=["no node 'worker009'"], command=("ssh", "worker009", "--", "true"))
    refused(small, code=2, says=["no node worker009", "declared:"], command=("up", "--replace", "worker009"))
