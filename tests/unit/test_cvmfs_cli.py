"""The command gridstead-cvmfs: what it prints, and what it says of wrong calls."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cvmfs_support import FQRN, grow, make
from gridstead.cvmfs.cli import main
from gridstead.cvmfs.publish import operations


class Command:
    """The command, on a host of its own."""

    def __init__(self, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.prefix = prefix
        self.capsys = capsys

    def __call__(self, *words: str | Path) -> tuple[int, str, str]:
        code = main([*map(str, words), "--prefix", str(self.prefix)])
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def json(self, *words: str | Path) -> Any:
        code, out, err = self(*words, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)


@pytest.fixture(name="published", scope="module")
def _published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("published")
    operations.publish(make(top / "host"), grow(top / "tree"))
    return top / "host"


@pytest.fixture(name="cvmfs")
def _cvmfs(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    shutil.copytree(published, tmp_path / "host")
    return Command(tmp_path / "host", capsys)


def test_create_and_publish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cvmfs = Command(tmp_path / "host", capsys)
    made = cvmfs.json("create", FQRN, "--ttl", "60", "--hash", "shake128", "--administrator", "root")
    assert Path(made["public_key"]).read_text().startswith("-----BEGIN PUBLIC KEY-----")
    report = cvmfs.json("publish", FQRN, grow(tmp_path / "tree"), "--tag", "v1", "-m", "first")
    assert (report["changed"], report["revision"]) == (True, 2)
    assert cvmfs.json("info", FQRN)["ttl"] == 60
    assert cvmfs("check", FQRN)[0] == 0
    assert cvmfs("list")[1] == f"{FQRN}\n"
    assert [tag["name"] for tag in cvmfs.json("list", FQRN)] == ["trunk", "v1", "trunk-previous"]


def test_a_day_with_transactions(cvmfs: Command) -> None:
    tree = Path(cvmfs.json("transaction", FQRN)["tree"])
    (tree / "new").write_text("new\n")
    assert cvmfs("publish", FQRN)[1].startswith("revision 3: ")
    assert cvmfs("cat", FQRN, "/new")[1] == "new\n"
    assert cvmfs("publish", FQRN)[0] == 1
    cvmfs("transaction", FQRN)
    (tree / "new").unlink()
    assert cvmfs("abort", FQRN)[0] == 0
    assert (tree / "new").exists()
    assert cvmfs("rollback", FQRN, "2")[1] == "revision 4 has the content of 2\n"
    assert [row["revision"] for row in cvmfs.json("list", FQRN, "--revisions")] == [4, 3, 2, 1]
    assert cvmfs("tag", FQRN, "good", "-m", "a good one")[0] == 0
    assert cvmfs.json("gc", FQRN, "--keep", "1")["objects"] > 0
    assert cvmfs("tag", FQRN, "good", "--remove")[0] == 0
    assert cvmfs("check", FQRN)[0] == 0
    assert "valid until" in cvmfs("resign", FQRN, "--days", "5")[1]


def test_ls_and_cat(cvmfs: Command) -> None:
    assert cvmfs("ls", FQRN, "nested/deep/")[1] == "data\nsetuid\n"
    assert cvmfs("cat", FQRN, "nested/deep/data")[1] == "deep\n"
    assert cvmfs("ls", FQRN, "/etc")[1] == "line\\nfeed\nnot utf-8 \\xff\\xfe\nünïcode name.txt\n", "a terminal is not played tricks on"
    rows = {row["name"]: row for row in cvmfs.json("ls", FQRN, "lib")}
    assert rows["link"]["symlink"] == "../bin/hello"
    assert rows["hello-from-afar"]["mode"] == "0755"
    assert cvmfs("ls", "-l", FQRN, "/empty")[1].startswith("-rw-r--r-- ")
    assert cvmfs("ls", FQRN, "/", "-r", "1")[1] == ""
    assert cvmfs.json("ls", FQRN, "/", "-r", "1") == []


def test_check_names_what_is_wrong(cvmfs: Command) -> None:
    objects = sorted((cvmfs.prefix / f"srv/cvmfs/{FQRN}/data").glob("??/*P"))
    for path in objects:
        path.write_bytes(b"garbage")
    code, out, err = cvmfs("check", FQRN)
    assert code == 1
    assert f"{len(objects)} problems" in out
    assert err.startswith("/big: object data/")
    assert cvmfs("cat", FQRN, "big")[:2] == (1, "")


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["publish", "other.test", "/tmp"], 2, "there is no repository other.test here"),
        (["publish", FQRN, "/nowhere"], 2, "/nowhere is no directory"),
        (["publish", FQRN], 1, "has no open transaction"),
        (["publish", "nodot", "/tmp"], 2, "'nodot' is no name for a repository"),
        (["create", FQRN], 2, "already"),
        (["create", "new.test", "--hash", "md5"], 2, "invalid choice: 'md5'"),
        (["create", "new.test", "--ttl", "0"], 2, "CVMFS_REPOSITORY_TTL is 0"),
        (["rollback", FQRN, "v9"], 2, "has no tag or revision 'v9'"),
        (["tag", FQRN, "a b"], 2, "'a b' is no name for a tag"),
        (["tag", FQRN, "v9", "--remove"], 2, "no tag 'v9'"),
        (["gc", FQRN, "--keep", "0"], 2, "1 or more"),
        (["resign", FQRN, "--days", "0"], 2, "--days is 0; 1 to 3650"),
        (["resign", FQRN, "--days", "-3"], 2, "--days is -3"),
        (["resign", FQRN, "--days", "3000000"], 2, "--days is 3000000"),
        (["resign", FQRN, "--unless", "-1"], 2, "--unless is -1; 0 to"),
        (["ls", FQRN, "/nowhere"], 1, "has no /nowhere"),
        (["ls", FQRN, "/empty/x"], 1, "has no /empty/x"),
        (["ls", FQRN, "a/../b"], 2, ".. is not understood"),
        (["cat", FQRN, "/bin"], 1, "/bin is no file"),
        (["cat", FQRN], 2, "required: PATH"),
        (["abort", FQRN], 1, "no open transaction"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        (["info", FQRN, "--frob"], 2, "unrecognized arguments: --frob"),
    ],
)
def test_wrong_calls_are_one_clear_error(cvmfs: Command, words: list[str], code: int, error: str) -> None:
    got, out, err = cvmfs(*words)
    assert (got, out) == (code, "")
    assert error in err
    assert err.startswith("gridstead-cvmfs: ")
    assert len(err.splitlines()) <= 2


def test_no_command_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "required: COMMAND" in capsys.readouterr().err


def test_help_of_mount_is_the_clients(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["mount", "--help"])
    assert caught.value.code == 0
    assert "mountpoint" in capsys.readouterr().out


def test_showconfig(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All parameters, those without a value and the defaults too; passwords are nobody's to see; what is wrong with them."""
    (tmp_path / "default.local").write_text("CVMFS_HTTP_PROXY=http://me:secret@p:3128\nCVMFS_SITE='a b'\nCVMFS_USE_GEOAPI=yes\n")
    assert main(["showconfig", FQRN, "--config", str(tmp_path)]) == 2
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert "# CVMFS_SERVER_URL is not set" in lines
    assert "CVMFS_HTTP_PROXY='http://me:***@p:3128'" in lines
    assert "CVMFS_SITE='a b'" in lines
    assert "CVMFS_TIMEOUT=5  # default" in lines
    assert f"CVMFS_FQRN={FQRN}" in lines
    assert "# CVMFS_USE_GEOAPI has no effect: servers are asked in the order given" in said.err.splitlines()
    assert "gridstead-cvmfs: CVMFS_SERVER_URL is not set for sw.grid.test" in said.err
    assert "secret" not in said.out + said.err


def test_mount_without_its_user(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It never runs as root because the user is missing."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "default.local").write_text("CVMFS_HTTP_PROXY=DIRECT\nCVMFS_SERVER_URL=http://127.0.0.1:9/@fqrn@\nCVMFS_USER=nosuchuser\n")
    (tmp_path / "key.pub").write_text("-----BEGIN PUBLIC KEY-----\n")
    words = ["--set", f"CVMFS_PUBLIC_KEY={tmp_path}/key.pub", "--set", f"CVMFS_CACHE_BASE={tmp_path}/cache"]
    assert main(["mount", "--check", FQRN, "--config", str(tmp_path), *words]) == 2
    assert "CVMFS_USER is 'nosuchuser', but there is no such user" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists(), "nothing was done"


def test_what_cannot_be_written_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "host").write_text("a file")
    code, _, err = Command(tmp_path / "host", capsys)("create", FQRN)
    assert code == 1
    assert err.startswith(f"gridstead-cvmfs: {tmp_path}/host")
    assert len(err.splitlines()) == 1


def test_a_reader_that_goes_away(cvmfs: Command) -> None:
    """As `gridstead-cvmfs cat ... | head -c 1`."""
    import subprocess
    import sys

    root = Path(__file__).resolve().parent.parent.parent
    words = [sys.executable, "-m", "gridstead.cvmfs", "cat", FQRN, "just-whole", "--prefix", str(cvmfs.prefix)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root / "tools")}
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1
