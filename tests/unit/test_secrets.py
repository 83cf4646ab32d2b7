"""The cluster's secrets: minted once, private, whole or not there."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from gridstead.cluster import secrets
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.paths import SitePaths


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SitePaths:
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path / "state"))
    return SitePaths(tmp_path / "cluster.yml", "trial")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_private_and_minted_once(paths: SitePaths) -> None:
    secrets.ensure(paths)
    first = {path.name: path.read_bytes() for path in paths.secrets.iterdir()}
    assert {"id_ed25519", "munge.key"} <= set(first)
    assert 32 <= len(first["munge.key"]) <= 1024, "munged refuses other sizes"
    for path in (paths.state, paths.secrets, paths.logs, paths.facts):
        assert mode(path) == 0o700, path
    for path in paths.secrets.iterdir():
        assert mode(path) == 0o600, path
    secrets.ensure(paths)
    assert {path.name: path.read_bytes() for path in paths.secrets.iterdir()} == first


def test_every_cluster_has_its_own(paths: SitePaths) -> None:
    other = SitePaths(paths.spec, "other")
    secrets.ensure(paths)
    secrets.ensure(other)
    for name in ("id_ed25519", "munge.key"):
        assert (paths.secrets / name).read_bytes() != (other.secrets / name).read_bytes()


def test_opened_up_secrets_directory_is_closed_again(paths: SitePaths) -> None:
    secrets.ensure(paths)
    paths.state.chmod(0o755)
    paths.secrets.chmod(0o777)
    secrets.ensure(paths)
    assert (mode(paths.state), mode(paths.secrets)) == (0o700, 0o700)


def test_openssh_accepts_the_key(paths: SitePaths) -> None:
    secrets.ensure(paths)
    done = subprocess.run(["ssh-keygen", "-y", "-f", str(paths.ssh_key)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == secrets.public_of(paths.ssh_key).split()[:2]


@pytest.mark.parametrize(
    "content", [b"", b"not a key\n", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_one_clear_error_and_is_not_overwritten(paths: SitePaths, content: bytes) -> None:
    secrets.ensure(paths)
    paths.ssh_key.write_bytes(content)
    with pytest.raises(GridsteadError, match="no usable ssh key") as caught:
        secrets.ensure(paths)
    assert str(paths.ssh_key) in str(caught.value)
    assert paths.ssh_key.read_bytes() == content


def test_an_empty_munge_key_of_a_killed_run_is_minted_again(paths: SitePaths) -> None:
    secrets.ensure(paths)
    (paths.secrets / "munge.key").write_bytes(b"")
    secrets.ensure(paths)
    assert len((paths.secrets / "munge.key").read_bytes()) == 128


def test_a_file_where_the_state_directory_should_be_is_one_clear_error(paths: SitePaths) -> None:
    paths.state.parent.mkdir(parents=True)
    paths.state.write_text("in the way")
    with pytest.raises(GridsteadError, match="cannot be the state directory"):
        secrets.ensure(paths)
    assert paths.state.read_text() == "in the way"


def test_a_mint_that_is_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gridstead.cluster.secrets.os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        secrets.mint(tmp_path / "key", b"secret")
    assert not (tmp_path / "key").exists(), "half a secret passes for a whole one"


def test_a_state_directory_has_an_id_of_its_own_that_says_whose_it_is(paths: SitePaths) -> None:
    assert secrets.owner(paths) == ""
    secrets.ensure(paths)
    mine = secrets.owner(paths)
    assert re.fullmatch(r"[A-Za-z0-9@.-]+-[0-9a-f]{12}", mine)
    assert "@" in mine
    secrets.ensure(paths)
    assert secrets.owner(paths) == mine
    paths.owner.unlink()
    secrets.ensure(paths)
    assert secrets.owner(paths) != mine
