"""The client's configuration: the official files, in the official order, and one clear error for what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gridstead.cvmfs.client.config import load
from gridstead.cvmfs.client.snapshot import Snapshot
from gridstead.cvmfs.digest import CATALOG, Hash
from gridstead.cvmfs.errors import InputError

KEY = "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n"
FQRN = "sw.grid.test"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A minimal configuration."""
    for name in ("config.d", "domain.d", "default.d", "keys"):
        (tmp_path / name).mkdir()
    (tmp_path / "keys" / f"{FQRN}.pub").write_text(KEY)
    (tmp_path / "default.local").write_text(f"CVMFS_HTTP_PROXY=DIRECT\nCVMFS_KEYS_DIR={tmp_path / 'keys'}\n")
    (tmp_path / "config.d" / f"{FQRN}.conf").write_text("CVMFS_SERVER_URL='http://a/@fqrn@'\n")
    return tmp_path


def test_defaults(directory: Path) -> None:
    found = load(FQRN, directory)
    assert found.servers == ["http://a/sw.grid.test"]
    assert found.proxies == [["DIRECT"]]
    assert found.cache == Path("/var/lib/cvmfs/shared")
    assert found.state == Path("/var/lib/cvmfs/state.sw.grid.test")
    assert found.quota == 4000 * 2**20
    assert found.mountpoint == Path("/cvmfs/sw.grid.test")
    assert found.keys == [KEY.encode()]
    assert found.max_ttl is None
    assert (found.timing.proxy, found.timing.direct) == (5, 10)
    assert found.user == "cvmfs"


def test_later_files_win(directory: Path) -> None:
    order = ["default.conf", "default.d/10-site.conf", "default.local"]
    order += [f"{kind}.{suffix}" for kind in ("domain.d/grid.test", f"config.d/{FQRN}") for suffix in ("conf", "local")]
    base = {name: (directory / name).read_text() if (directory / name).exists() else "" for name in order}
    for number, name in enumerate(order):
        (directory / name).write_text(f"{base[name]}\nCVMFS_QUOTA_LIMIT={number + 100}\n")
        assert load(FQRN, directory).quota == (number + 100) * 2**20, name
    (directory / "config.d/other.grid.test.local").write_text("CVMFS_QUOTA_LIMIT=1\n")
    assert load(FQRN, directory, {"CVMFS_QUOTA_LIMIT": "-1"}).quota is None


def test_they_are_shell(directory: Path) -> None:
    """What CERN's own configuration does: conditions, variables of others, quotes."""
    (directory / "domain.d/grid.test.conf").write_text(
        'CVMFS_USE_CDN=${CVMFS_USE_CDN:-yes}\nif [ "$CVMFS_USE_CDN" = "yes" ]; then\n  CVMFS_FALLBACK_PROXY="http://cdn:1"\nfi\n'
        'export GRID_ARCH="aarch64 \'s"\nNOT_EXPORTED=1\nreadonly CVMFS_BASE_ENV=1\n'
    )
    found = load(FQRN, directory)
    assert found.proxies == [["http://cdn:1"]], "the official client passes DIRECT over then"
    assert found.environment["GRID_ARCH"] == "aarch64 's"


def test_all_that_the_files_set_is_for_links(directory: Path) -> None:
    """Exported or not, with CVMFS_ before or not, and the repository's name, as the official client has it; but no password."""
    with (directory / "default.local").open("a") as file:
        file.write("CMS_LOCAL_SITE=T2_XX\nexport EXPORTED=2\nCVMFS_SITE_X='a  b'\nunset_again=1; unset unset_again\nPATH=/nowhere\n")
        file.write('CVMFS_HTTP_PROXY=http://us:secret@a:3128\nOWN="$CVMFS_FQRN"\n')
    found = load(FQRN, directory).environment
    assert found["CMS_LOCAL_SITE"] == "T2_XX"
    assert found["EXPORTED"] == "2"
    assert found["CVMFS_SITE_X"] == "a  b"
    assert found["CVMFS_FQRN"] == found["OWN"] == FQRN
    assert found["CVMFS_ARCH"] == os.uname().machine
    assert found["CVMFS_TIMEOUT"] == "5"
    assert found["CVMFS_SERVER_URL"] == "http://a/@fqrn@"
    assert found["CVMFS_HTTP_PROXY"] == "http://us:***@a:3128"
    assert {name for name in found if not name.startswith("CVMFS_")} == {"CMS_LOCAL_SITE", "EXPORTED", "OWN"}, (
        "and nothing of the shell's own"
    )


def test_default_domain(directory: Path) -> None:
    with (directory / "default.local").open("a") as file:
        file.write("CVMFS_DEFAULT_DOMAIN=grid.test\n")
    assert load("sw", directory).fqrn == FQRN


def test_cache_of_its_own(directory: Path) -> None:
    assert load(FQRN, directory, {"CVMFS_SHARED_CACHE": "no", "CVMFS_CACHE_BASE": "/scratch"}).cache == Path("/scratch/sw.grid.test")
    assert load(FQRN, directory, {"CVMFS_CACHE_DIR": "/scratch/x"}).cache == Path("/scratch/x")


def test_keys_of_a_domain(directory: Path) -> None:
    keys = directory / "keys/grid.test"
    keys.mkdir()
    for number in (2, 1):
        (keys / f"{number}.pub").write_text(KEY.replace("MIIB", f"MII{number}"))
    found = load(FQRN, directory, {"CVMFS_KEYS_DIR": str(keys)}).keys
    assert [b"MII1" in key for key in found] == [True, False]
    assert load(FQRN, directory, {"CVMFS_PUBLIC_KEY": f"{keys}/2.pub:{keys}/1.pub"}).keys == found[::-1]


def test_blacklist(directory: Path) -> None:
    assert load(FQRN, directory).blacklist == directory / "blacklist"
    assert load(FQRN, directory, {"CVMFS_BLACKLIST": "/etc/other"}).blacklist == Path("/etc/other")


def test_a_certain_revision(directory: Path) -> None:
    assert load(FQRN, directory).snapshot is None
    assert load(FQRN, directory, {"CVMFS_REPOSITORY_TAG": "v1"}).snapshot == Snapshot(tag="v1")
    assert load(FQRN, directory, {"CVMFS_REPOSITORY_DATE": "1970-01-02T00:00:01Z"}).snapshot == Snapshot(moment=86401)
    assert load(FQRN, directory, {"CVMFS_ROOT_HASH": 40 * "A"}).snapshot == Snapshot(Hash(20 * b"\xaa", suffix=CATALOG))


def test_external_servers_have_their_own_patience(directory: Path) -> None:
    found = load(FQRN, directory, {"CVMFS_EXTERNAL_TIMEOUT": "7"})
    assert (found.timing.proxy, found.external_timing.proxy, found.external_timing.direct) == (5, 7, 10)


@pytest.mark.parametrize(
    ("values", "listed"),
    [
        ({}, "rootonly"),
        ({"CVMFS_MAGIC_XATTRS_VISIBILITY": "Never"}, "never"),
        ({"CVMFS_HIDE_MAGIC_XATTRS": "yes"}, "never"),
        ({"CVMFS_HIDE_MAGIC_XATTRS": "no"}, "always"),
        ({"CVMFS_HIDE_MAGIC_XATTRS": "no", "CVMFS_MAGIC_XATTRS_VISIBILITY": "never"}, "never"),
    ],
)
def test_where_attributes_are_listed(directory: Path, values: dict[str, str], listed: str) -> None:
    assert load(FQRN, directory, values).magic == listed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CVMFS_ALIEN_CACHE", "/scratch"),
        ("CVMFS_UID_MAP", "/etc/map"),
        ("CVMFS_CONFIG_REPOSITORY", "cvmfs-config.cern.ch"),
        ("CVMFS_WORLD_READABLE", "yes"),
        ("CVMFS_SUID", "yes"),
        ("CVMFS_NFS_SOURCE", "yes"),
    ],
)
def test_what_this_client_does_not_do_is_refused(directory: Path, name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"{name} is '{value}', but this client does not do"):
        load(FQRN, directory, {name: value})
    assert load(FQRN, directory, {name: "no"}).remarks == ()
    assert load(FQRN, directory, {name: ""}).remarks == ()


def test_what_has_no_effect_is_told(directory: Path) -> None:
    """And a name that is nearly one of the known ones; but not whatever sites have for links and other programs."""
    with (directory / "default.local").open("a") as file:
        file.write("CVMFS_USE_GEOAPI=yes\nCVMFS_STRICT_MOUNT=yes\nCVMFS_MAX_RETRYS=7\nCVMFS_SITE_X=1\nCVMFS_IGNORE_SIGNATURE=no\n")
    assert load(FQRN, directory).remarks == (
        "CVMFS_MAX_RETRYS is no parameter that is known; CVMFS_MAX_RETRIES would be one",
        "CVMFS_USE_GEOAPI has no effect: servers are asked in the order given",
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"CVMFS_SERVER_URL": ""}, "CVMFS_SERVER_URL is not set for sw.grid.test"),
        ({"CVMFS_HTTP_PROXY": ""}, "CVMFS_HTTP_PROXY is not set"),
        ({"CVMFS_QUOTA_LIMIT": "much"}, "CVMFS_QUOTA_LIMIT is 'much'; a number"),
        ({"CVMFS_TIMEOUT": "0"}, "CVMFS_TIMEOUT is '0'"),
        ({"CVMFS_TIMEOUT": "nan"}, "CVMFS_TIMEOUT is 'nan'"),
        ({"CVMFS_SHARED_CACHE": "perhaps"}, "CVMFS_SHARED_CACHE is 'perhaps'; yes or no"),
        ({"CVMFS_CACHE_BASE": "cache"}, "CVMFS_CACHE_BASE is 'cache'; an absolute path"),
        ({"CVMFS_PUBLIC_KEY": "/nowhere.pub"}, "public key /nowhere.pub cannot be read"),
        ({"CVMFS_PUBLIC_KEY": "/etc/passwd"}, "/etc/passwd is no public key"),
        ({"CVMFS_KEYS_DIR": "/nowhere"}, "there is no \\*.pub in /nowhere"),
        ({"CVMFS_NFILES": "1"}, "CVMFS_NFILES is '1'"),
        ({"CVMFS_USER": ""}, "CVMFS_USER is ''; the name of the user"),
        ({"CVMFS_REPOSITORY_TAG": "a b"}, "CVMFS_REPOSITORY_TAG is 'a b', which is no name"),
        ({"CVMFS_REPOSITORY_DATE": "yesterday"}, "CVMFS_REPOSITORY_DATE is 'yesterday'; YYYY-MM-DDTHH:MM:SSZ"),
        ({"CVMFS_ROOT_HASH": "abc"}, "CVMFS_ROOT_HASH is 'abc'; the hash of a root catalogue"),
        ({"CVMFS_MAGIC_XATTRS_VISIBILITY": "sometimes"}, "rootonly, always or never"),
        ({"CVMFS_HTTP_PROXY": "auto;DIRECT"}, "CVMFS_HTTP_PROXY has 'auto': proxies are not looked for"),
        ({"CVMFS_EXTERNAL_URL": "x"}, "CVMFS_EXTERNAL_URL has 'x'"),
    ],
)
def test_wrong_values(directory: Path, values: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(FQRN, directory, values)


@pytest.mark.parametrize("name", ["", "sw", "../etc", "a/b.c", "sw.grid.test/..", ".grid.test"])
def test_wrong_names(directory: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no repository"):
        load(name, directory)


@pytest.mark.parametrize("text", ["CVMFS_X='unfinished\n", "no-such-program\n", "exit 3\n"])
def test_broken_files(directory: Path, text: str) -> None:
    (directory / "default.conf").write_text(text)
    with pytest.raises(InputError, match="the configuration cannot be read"):
        load(FQRN, directory)


def test_secrets_in_the_environment_do_not_reach_links(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    assert "TOKEN" not in load(FQRN, directory).environment
