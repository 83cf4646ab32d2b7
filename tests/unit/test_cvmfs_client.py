"""The client on repositories of the publisher: what it shows, what it refuses, and that it recovers."""

from __future__ import annotations

import concurrent.futures
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cvmfs_support
from cvmfs_support import CHUNK, FQRN
from cvmfs_web import Answer, Web, serving
from gridstead.cvmfs.client import config
from gridstead.cvmfs.client.fetch import FetchError
from gridstead.cvmfs.client.files import OpenFile
from gridstead.cvmfs.client.links import expand
from gridstead.cvmfs.client.publication import StaleError
from gridstead.cvmfs.client.repository import NotFoundError, Repository
from gridstead.cvmfs.client.store import Reference
from gridstead.cvmfs.client.tree import ROOT
from gridstead.cvmfs.digest import CATALOG, Hash, path_key
from gridstead.cvmfs.entry import FLAG_BIND_MOUNTPOINT, FLAG_DIRECTORY, FLAG_EXTERNAL, Entry, file_flags
from gridstead.cvmfs.errors import CorruptObjectError, CvmfsError, ExpiredError, FormatError, RevokedError, TrustError
from gridstead.cvmfs.manifest import Manifest
from gridstead.cvmfs.publish import operations
from gridstead.cvmfs.publish.check import check
from gridstead.cvmfs.publish.collect import collect
from gridstead.cvmfs.publish.repository import Keys
from gridstead.cvmfs.publish.repository import Repository as Published
from gridstead.cvmfs.signing import Certificate

#: What fails is not tried again, and what is slow because the machine is busy has not failed.
TIMES = {"CVMFS_TIMEOUT_DIRECT": "60", "CVMFS_MAX_RETRIES": "0"}


@dataclass
class Bench:
    """A repository, a tree that is published in it, a web server, and clients."""

    published: Published
    tree: Path
    web: Web
    scratch: Path
    clients: list[Repository] = field(default_factory=list)

    def publish(self) -> int:
        return operations.publish(self.published, self.tree).revision

    def client(self, *servers: str, cache: str = "cache", **parameters: str) -> Repository:
        values = {
            "CVMFS_SERVER_URL": ";".join(servers or (f"{self.web.url}/@fqrn@",)),
            "CVMFS_HTTP_PROXY": "DIRECT",
            "CVMFS_PUBLIC_KEY": str(self.published.layout.public_key),
            "CVMFS_CACHE_BASE": str(self.scratch / cache),
            **TIMES,
            **parameters,
        }
        return self.track(Repository(config.load(FQRN, self.scratch / "no-config", values)))

    def track(self, client: Repository) -> Repository:
        """Have a client closed when the test ends."""
        self.clients.append(client)
        return client

    def close(self) -> None:
        """Close all clients; some have failed in the middle."""
        for client in self.clients:
            client.close()

    def mounted(self, *servers: str, cache: str = "cache", **parameters: str) -> Repository:
        client = self.client(*servers, cache=cache, **parameters)
        client.load()
        return client


def with_other_keys(bench: Bench, prefix: Path) -> Published:
    """A repository of the same name, of somebody else."""
    mine = bench.published.layout.public_key.read_bytes()
    made = (cvmfs_support.make(prefix / str(number)) for number in range(4))
    return next(other for other in made if other.layout.public_key.read_bytes() != mine)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published repository, to be copied: keys take time."""
    prefix = tmp_path_factory.mktemp("pristine")
    repository = cvmfs_support.make(prefix)
    operations.publish(repository, cvmfs_support.grow(prefix / "tree"))
    return prefix


@pytest.fixture
def bench(pristine: Path, tmp_path: Path) -> Iterator[Bench]:
    prefix = tmp_path / "stratum0"
    subprocess.run(["cp", "--archive", pristine, prefix], check=True)  # hard links and times as they are
    tree = prefix / "tree"
    published = Published(cvmfs_support.Layout(FQRN, prefix))
    with serving(published.layout.web.parent) as web:
        found = Bench(published, tree, web, tmp_path)
        yield found
        found.close()


def shown(client: Repository) -> dict[str, tuple[object, ...]]:
    """All that a client shows, as cvmfs_support.tree_of tells it."""
    found: dict[str, tuple[object, ...]] = {}
    for inode, entry in client.walk():
        content: object = None
        if stat.S_ISREG(entry.mode):
            file = client.open(inode)
            content = (b"".join(file.read(at, 50_000) for at in range(0, entry.size, 50_000)), entry.nlink)
        elif stat.S_ISLNK(entry.mode):
            content = entry.symlink
        found[entry.path] = (entry.mode, entry.uid, entry.gid, entry.mtime * 10**9 + entry.mtime_ns, content)
    return found


def test_shows_what_was_published(bench: Bench) -> None:
    client = bench.mounted()
    assert shown(client) == cvmfs_support.read_back(bench.published)
    client.close()


@pytest.mark.parametrize("algorithm", ["sha1", "shake128", "rmd160"])
@pytest.mark.parametrize("compression", ["zlib", "none"])
def test_all_hashes_and_compressions(tmp_path: Path, algorithm: str, compression: str) -> None:
    published = cvmfs_support.make(tmp_path, hash_algorithm=algorithm, compression_algorithm=compression)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "small").write_bytes(os.urandom(1000))
    (tree / "large").write_bytes(os.urandom(5 * CHUNK))
    operations.publish(published, tree)
    with serving(published.layout.web.parent) as web:
        client = Bench(published, tree, web, tmp_path).mounted()
        assert client.read("/small") == (tree / "small").read_bytes()
        assert client.read("/large") == (tree / "large").read_bytes()
        client.close()


@given(offset=st.integers(0, 7 * CHUNK), size=st.integers(0, 3 * CHUNK))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_any_range_of_a_chunked_file(bench: Bench, offset: int, size: int) -> None:
    content = (bench.tree / "big").read_bytes()
    client = bench.mounted()
    inode, entry = client.find("/big")
    assert entry.chunked
    assert client.open(inode).read(offset, size) == content[offset : offset + size]
    client.close()


def test_only_the_chunks_that_are_read_are_fetched(bench: Bench) -> None:
    client = bench.mounted()
    inode, _ = client.find("/big")
    chunks = client.tree.run(lambda: client.tree.chunks(inode))
    file = client.open(inode)
    bench.web.requests.clear()
    file.read(chunks[2].offset, 10)
    assert bench.web.requests == [f"/{FQRN}/{chunks[2].hash.path}"]
    ahead = file.ahead(chunks[2].offset + 10)
    assert ahead is not None
    assert ahead.hash == chunks[3].hash
    assert file.ahead(chunks[2].offset + 20) is None, "it is asked for once"
    client.close()


def test_nested_catalogues_come_when_they_are_needed(bench: Bench) -> None:
    client = bench.mounted()
    client.find("/bin/hello")
    client.find("/nested")
    assert client.tree.open_catalogs() == 1
    client.find("/nested/deep/data")
    assert client.tree.open_catalogs() == 2
    client.close()


def test_hardlinks_are_one_inode(bench: Bench) -> None:
    client = bench.mounted()
    one, other = client.find("/bin/hello"), client.find("/bin/hello-again")
    assert one[0] == other[0]
    assert one[1].nlink == other[1].nlink == 2
    assert client.find("/lib/hello-from-afar")[0] != one[0]
    client.close()


@pytest.mark.parametrize(
    ("target", "expanded"),
    [
        ("plain", "plain"),
        ("$(GRID_ARCH:-x86_64)/lib", "aarch64/lib"),
        ("$(NONE:-x86_64)/lib", "x86_64/lib"),
        ("a/$(NONE)/b", "a//b"),
        ("$(GRID_ARCH)$(GRID_ARCH)", "aarch64aarch64"),
        ("$(EMPTY:-x)", ""),
        ("$(NONE:-)", ""),
        ("$(unfinished", "$(unfinished"),
        ("$(NONE:-a:-b)", "a:-b"),
        ("$(NOT:SET)x", "x"),
        ("$(WITH:COLON)", "colon"),
        ("$(NOT:SET:-d)", "d"),
        ("$(a(b:-c)", "c"),
        ("$()", ""),
    ],
)
def test_variables_in_links(target: str, expanded: str) -> None:
    assert expand(target, {"GRID_ARCH": "aarch64", "EMPTY": "", "WITH:COLON": "colon"}) == expanded


def test_attributes(bench: Bench) -> None:
    client = bench.mounted()
    manifest = client.publication.current
    assert manifest is not None

    def get(path: str, name: str) -> str | None:
        inode, entry = client.find(path)
        value = client.attributes.get(entry, inode, name)
        return None if value is None else value.decode()

    assert get("", "user.revision") == "2"
    assert get("", "user.root_hash") == str(manifest.catalog)
    assert get("", "user.fqrn") == FQRN
    assert get("", "user.host") == f"{bench.web.url}/{FQRN}"
    assert get("", "user.proxy") == "DIRECT"
    assert get("", "user.pubkeys") == bench.published.layout.public_key.read_text()
    assert get("", "user.repo_metainfo") == '{"description": "of a test"}\n'
    assert get("", "user.hash") is None
    assert get("/bin/hello", "user.hash") == str(client.find("/bin/hello")[1].hash)
    assert get("/bin/hello", "user.lhash") == "Not in cache"
    assert get("/bin/hello", "user.chunks") == "1"
    assert get("/big", "user.chunks") == str(len((get("/big", "user.chunk_list") or "").splitlines()) - 1) != "1"
    assert get("/lib/variant", "user.rawlink") == "$(GRID_ARCH:-x86_64)/lib"
    assert "catalog_mountpoint: /nested\n" in (get("/nested/deep", "user.catalog_counters") or "")
    assert f"regular,{sum(stat.S_ISREG(entry.mode) for _, entry in client.walk())}\n" in (get("", "user.repo_counters") or "")
    assert get("", "user.tag") == ""


@pytest.mark.parametrize(
    ("parameters", "listed"),
    [({}, [""]), ({"CVMFS_MAGIC_XATTRS_VISIBILITY": "always"}, ["", "/big"]), ({"CVMFS_HIDE_MAGIC_XATTRS": "yes"}, [])],
)
def test_where_the_clients_own_attributes_are_listed(bench: Bench, parameters: dict[str, str], listed: list[str]) -> None:
    """At the root, unless it is said otherwise: whoever copies a file would copy them. They can be asked for everywhere."""
    client = bench.mounted(**parameters)
    for path in ("", "/big"):
        inode, entry = client.find(path)
        names = client.attributes.names(entry)
        assert ("user.fqrn" in names) == (path in listed), path
        for name in names:
            assert client.attributes.get(entry, inode, name) is not None, name
        assert client.attributes.get(entry, inode, "user.fqrn") == FQRN.encode()


# A new revision


def test_a_new_revision_is_shown_at_once(bench: Bench) -> None:
    client = bench.mounted()
    assert client.refresh() is None
    before = {path: client.find(path)[0] for path in ("/bin", "/bin/hello", "/etc/ünïcode name.txt", "/nested/deep/data", "/big", "/lib")}
    for inode in before.values():
        client.tree.remember(inode)  # as the kernel does
    (bench.tree / "etc/ünïcode name.txt").write_text("changed\n")
    (bench.tree / "lib/new").write_text("new\n")
    (bench.tree / "empty").unlink()
    bench.publish()
    old = client.open(before["/etc/ünïcode name.txt"])
    changed = client.refresh()
    assert changed is not None
    assert {"etc", "lib", "empty"} <= set(changed)
    assert "nested" not in changed, "its catalogue is the same"
    assert shown(client) == cvmfs_support.read_back(bench.published)
    assert old.read(0, 100) == b"umlauts\n", "an open file keeps its content"
    after = {path: client.find(path)[0] for path in before}
    assert after["/etc/ünïcode name.txt"] != before["/etc/ünïcode name.txt"]
    del before["/etc/ünïcode name.txt"], after["/etc/ünïcode name.txt"]
    assert after == before, "what has not changed keeps its inode, and every directory does"
    client.close()


def test_a_directory_known_before_shows_what_is_there_now(bench: Bench) -> None:
    client = bench.mounted()
    inode, entry = client.tree.run(lambda: client.tree.lookup(ROOT, b"lib"))
    (bench.tree / "lib/new").write_text("new\n")
    bench.publish()
    client.refresh()
    new, _ = client.tree.run(lambda: client.tree.lookup(inode, b"new"))
    assert client.open(new).read(0, 10) == b"new\n"
    shutil.rmtree(bench.tree / "lib")
    bench.publish()
    client.refresh()
    with pytest.raises(NotFoundError):
        client.tree.run(lambda: client.tree.lookup(inode, b"new"))
    assert client.tree.run(lambda: client.tree.entry(inode)).mode == entry.mode, "a process may still stand in it"
    client.close()


def test_inodes_over_many_revisions(bench: Bench) -> None:
    """Neither do old catalogues pile up once the kernel has forgotten them, nor does a file get another one's content."""
    client = bench.mounted()
    for number in range(12):
        (bench.tree / "counter").write_text(f"{number}\n")
        bench.publish()
        client.refresh()
        inode, _ = client.tree.run(lambda: client.tree.lookup(ROOT, b"counter"))
        hello, _ = client.tree.run(lambda: client.tree.lookup(ROOT, b"bin"))
        assert client.open(inode).read(0, 10) == f"{number}\n".encode()
        client.tree.forget(inode, 1)
        client.tree.forget(hello, 1)
    assert all(slot.lookups == 0 for slot in client.tree._slots.values())
    assert client.tree.open_catalogs() <= 48
    client.close()


def test_rollback_by_the_publisher_is_a_new_revision(bench: Bench) -> None:
    client = bench.mounted()
    before = shown(client)
    (bench.tree / "bin/hello").unlink()
    bench.publish()
    client.refresh()
    operations.rollback(bench.published, "2")
    assert client.refresh() is not None
    assert shown(client) == before
    client.close()


def test_an_older_revision_is_refused(bench: Bench) -> None:
    web = bench.published.layout.web
    old = (web / ".cvmfspublished").read_bytes()
    (bench.tree / "new").touch()
    bench.publish()
    new = (web / ".cvmfspublished").read_bytes()
    client = bench.mounted()
    (web / ".cvmfspublished").write_bytes(old)
    with pytest.raises(StaleError, match="revision 2, but revision 3 was seen"):
        client.refresh()
    assert client.read("/new") == b"", "the newer one stays"
    client.close()
    again = bench.mounted()
    assert again.publication.current is not None
    assert again.publication.current.revision == 3, "also after a new mount: it was seen before"
    (web / ".cvmfspublished").write_bytes(new)
    again.refresh()
    again.close()
    (web / ".cvmfspublished").write_bytes(old)
    other = bench.mounted(cache="never-seen")
    assert other.publication.current is not None
    assert other.publication.current.revision == 2, "who has seen nothing cannot know"
    other.close()


def test_a_repository_made_anew_with_other_keys(bench: Bench) -> None:
    """It begins at revision 1. What was seen before was another one: whoever configures the new key gets the new repository."""
    bench.mounted().close()
    anew = with_other_keys(bench, bench.scratch / "anew")
    with serving(anew.layout.web.parent) as web:
        client = bench.mounted(f"{web.url}/@fqrn@", CVMFS_PUBLIC_KEY=str(anew.layout.public_key))
        assert client.publication.current is not None
        assert client.publication.current.revision == 1
        client.close()


def test_a_server_that_is_behind(bench: Bench) -> None:
    """The next one is asked."""
    behind = bench.scratch / "behind"
    shutil.copytree(bench.published.layout.web.parent, behind)
    client = bench.mounted()
    client.close()
    (bench.tree / "new").touch()
    bench.publish()
    with serving(behind) as other:
        client = bench.mounted(f"{bench.web.url}/@fqrn@")
        client.close()
        client = bench.mounted(f"{other.url}/@fqrn@", f"{bench.web.url}/@fqrn@")
        assert client.read("/new") == b""
        client.close()


# What cannot be trusted


def test_wrong_key(bench: Bench, tmp_path: Path) -> None:
    other = with_other_keys(bench, tmp_path / "other")
    with pytest.raises(TrustError, match="not signed by any of the 1 master keys"):
        bench.mounted(CVMFS_PUBLIC_KEY=str(other.layout.public_key))


def test_a_repository_of_another_name(bench: Bench) -> None:
    with pytest.raises(TrustError, match=r"of repository sw\.grid\.test, not of"):
        bench.track(Repository(replace(bench.client().configuration, fqrn="other.grid.test"))).load()


def test_expired_whitelist(bench: Bench) -> None:
    client = bench.mounted()
    manifest = client.publication.current
    operations.resign(bench.published, days=-1)
    with pytest.raises(ExpiredError, match="expired at"):
        bench.mounted(cache="other")
    (bench.tree / "new").touch()
    bench.publish()
    with pytest.raises(ExpiredError):
        client.refresh()
    assert client.publication.current == manifest
    assert client.read("/bin/hello"), "what is mounted stays as it is"
    operations.resign(bench.published)
    assert client.refresh() is not None
    client.close()


def fingerprints(bench: Bench, algorithm: str = "sha1") -> str:
    """The fingerprint of the certificate that signs."""
    return Certificate(Keys.read(bench.published.layout).certificate_pem, "the certificate").fingerprint(algorithm)


@pytest.mark.parametrize(
    "form",
    [
        "{sha1}",
        "{sha1} stolen",
        "{sha1}#stolen",
        "{sha1}\t# stolen",
        "{bare}",
        "{lower}",
        "{shake128}",
        "{rmd160}",
        "# revoked\n\n{sha1}\nnonsense",
    ],
)
def test_a_revoked_certificate(bench: Bench, form: str) -> None:
    """In each form that the official client takes; what was seen before of the repository is not mounted either."""
    bench.mounted().close()
    sha1 = fingerprints(bench)
    forms = {"sha1": sha1, "bare": sha1.replace(":", ""), "lower": sha1.lower()}
    forms |= {name: fingerprints(bench, name) for name in ("shake128", "rmd160")}
    blacklist = bench.scratch / "blacklist"
    blacklist.write_text(form.format(**forms) + "\n")
    with pytest.raises(TrustError, match=f"is on this node's blacklist, {blacklist}"):
        bench.mounted(CVMFS_BLACKLIST=str(blacklist))
    bench.web.stop()
    with pytest.raises(FetchError):
        bench.mounted(CVMFS_BLACKLIST=str(blacklist))
    blacklist.write_text(f"{sha1[:-1]}{'0' if sha1[-1] != '0' else '1'}\n<{FQRN} 2\n<other.grid.test 99\n")
    assert bench.mounted(CVMFS_BLACKLIST=str(blacklist)).find("/bin/hello"), "another's fingerprint and name revoke nothing"


def test_a_certificate_revoked_while_it_is_mounted(bench: Bench) -> None:
    blacklist = bench.scratch / "blacklist"
    client = bench.mounted(CVMFS_BLACKLIST=str(blacklist))
    assert client.refresh() is None
    blacklist.write_text(f"{fingerprints(bench)}\n")
    for _ in range(2):
        with pytest.raises(TrustError, match="blacklist"):
            client.refresh()
        (bench.tree / "new").touch()
        bench.publish()
    assert client.read("/bin/hello"), "what is mounted stays as it is"


def test_a_revoked_revision(bench: Bench) -> None:
    blacklist = bench.scratch / "blacklist"
    client = bench.mounted(CVMFS_BLACKLIST=str(blacklist))
    blacklist.write_text(f"<{FQRN} 3\n")
    for _ in range(2):
        with pytest.raises(RevokedError, match=r"revision 2 of sw\.grid\.test is on this node's blacklist, .*: revisions from 3 on"):
            client.refresh()
        bench.web.stop()
    with pytest.raises(RevokedError, match="revision 2"):
        bench.mounted(CVMFS_BLACKLIST=str(blacklist))
    bench.web.start()
    (bench.tree / "new").touch()
    bench.publish()
    assert client.refresh() is not None, "a newer one may be shown"
    assert bench.mounted(CVMFS_BLACKLIST=str(blacklist)).read("/new") == b""


# A certain revision


def test_the_revision_that_is_configured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By tag, by date, by hash: it is shown whatever is published, also from the cache alone."""
    first = str(bench.published.manifest.catalog)
    moment = bench.published.manifest.published
    operations.add_tag(bench.published, "pinned", "of a test", None)
    (bench.tree / "bin/hello").write_text("changed\n")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    bench.publish()
    ways = {
        "CVMFS_REPOSITORY_TAG": "pinned",
        "CVMFS_REPOSITORY_DATE": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment + 3600)),
        "CVMFS_ROOT_HASH": first.upper(),
    }
    for name, value in ways.items():
        client = bench.mounted(cache=name, **{name: value})
        assert client.read("/bin/hello") == b"#!/bin/sh\necho hello\n", name
        inode, root = client.find("")
        assert client.attributes.get(root, inode, "user.revision") == b"2"
        assert client.attributes.get(root, inode, "user.root_hash") == first.encode()
        assert client.attributes.get(root, inode, "user.tag") == (b"pinned" if name.endswith("TAG") else b"")
        (bench.tree / "new").write_text(name)
        bench.publish()
        assert client.refresh() is None
        with pytest.raises(NotFoundError):
            client.find("/new")
        assert client.schedule.wait() > 0
    bench.web.stop()
    for name, value in ways.items():
        assert bench.mounted(cache=name, **{name: value}).read("/bin/hello") == b"#!/bin/sh\necho hello\n", name
    bench.web.start()
    assert bench.mounted(cache="head").read("/bin/hello") == b"changed\n"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"CVMFS_REPOSITORY_TAG": "v9"}, "has no tag 'v9'"),
        ({"CVMFS_REPOSITORY_DATE": "2001-01-01T00:00:00Z"}, "no tag as old as 2001-01-01T00:00:00Z"),
        ({"CVMFS_ROOT_HASH": 40 * "5"}, "does not have it"),
    ],
)
def test_a_revision_that_is_not_there(bench: Bench, parameters: dict[str, str], message: str) -> None:
    with pytest.raises(CvmfsError, match=message):
        bench.mounted(**parameters)


def test_the_revision_at_the_mount(bench: Bench) -> None:
    client = bench.mounted(CVMFS_AUTO_UPDATE="no")
    (bench.tree / "new").touch()
    bench.publish()
    assert client.refresh() is None
    with pytest.raises(NotFoundError):
        client.find("/new")


def bind_the_root(bench: Bench, path: str) -> None:
    """Publish the root catalogue once more with itself, as it was, bound at a directory: what official snapshots are."""
    old = bench.published.manifest
    columns = "md5path_1, md5path_2, parent_1, parent_2, hardlinks, size, mode, mtime, flags, name, symlink, uid, gid"
    row = (*path_key(path), *path_key(""), 2, 0, 0o40755, 0, FLAG_DIRECTORY | FLAG_BIND_MOUNTPOINT, path[1:].encode(), b"", 0, 0)
    changed_catalogue(
        bench,
        (f"INSERT INTO catalog ({columns}) VALUES ({', '.join('?' * len(row))})", row),  # noqa: S608  columns, from above
        ("INSERT INTO bind_mountpoints (path, sha1, size) VALUES (?, ?, ?)", (path, str(old.catalog), old.catalog_size)),
        ("UPDATE catalog SET hardlinks = hardlinks + 1 WHERE md5path_1 = ? AND md5path_2 = ?", path_key("")),
        ("UPDATE statistics SET value = value + 1 WHERE counter = 'self_dir'", ()),
    )


def test_everything_below_a_bind_mountpoint(bench: Bench) -> None:
    """Catalogues nested in a bound one too: in the client, in check, in a transaction's tree, and in what garbage collection keeps."""
    before = shown(bench.mounted())
    bind_the_root(bench, "/snap")
    client = bench.mounted()
    assert client.read("/snap/nested/deep/data") == client.read("/nested/deep/data") == b"deep\n"
    now = shown(client)
    del now["/snap"]
    assert now == {**before, **{f"/snap{path}": found for path, found in before.items()}}
    assert check(bench.published).problems == []
    collect(bench.published, 1)
    assert check(bench.published).problems == []
    tree = operations.transaction(bench.published)
    assert (tree / "snap/nested/deep/data").read_text() == (tree / "nested/deep/data").read_text() == "deep\n"
    operations.abort(bench.published)
    digest = client.find("/nested/deep/data")[1].hash
    assert digest is not None
    (bench.published.layout.web / digest.path).write_bytes(b"damaged")
    assert [problem.partition(":")[0] for problem in check(bench.published).problems] in (["/nested/deep/data"], ["/snap/nested/deep/data"])


def test_a_nested_catalogue_whose_name_is_not_utf8(bench: Bench) -> None:
    directory = bench.tree / os.fsdecode(b"caf\xe9")
    directory.mkdir()
    (directory / ".cvmfscatalog").touch()
    (directory / "file").write_text("coffee\n")
    bench.publish()
    assert bench.mounted().read("/caf\udce9/file") == b"coffee\n"
    assert check(bench.published).problems == []


def test_a_repository_for_members_only(bench: Bench) -> None:
    """The official client asks who somebody is; this one does not, and so shows it to nobody."""
    client = bench.mounted()
    changed_catalogue(bench, ("INSERT INTO properties (key, value) VALUES ('voms_authz', ?)", ("cms:/cms/Role=production",)))
    with pytest.raises(CvmfsError, match="only members of 'cms:/cms/Role=production' may read"):
        client.refresh()
    with pytest.raises(CvmfsError, match="only members"):
        bench.mounted(cache="other")


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_damaged_manifests_and_whitelists(bench: Bench, data: st.DataObject) -> None:
    """Flipped or cut anywhere: no mount, one clear error; or, where the damage is without meaning, the right repository."""
    name = data.draw(st.sampled_from([".cvmfspublished", ".cvmfswhitelist"]))
    right = (bench.published.layout.web / name).read_bytes()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(right) - 1))
        wrong = right[:at] + bytes([right[at] ^ 1 << data.draw(st.integers(0, 7))]) + right[at + 1 :]
    else:
        wrong = right[: data.draw(st.integers(0, len(right) - 1))]
    bench.web.spoil(name, lambda _: Answer(wrong))
    client = bench.client(cache=f"cache{time.monotonic_ns()}")
    try:
        manifest = client.load()
    except CvmfsError:
        pass
    else:
        assert manifest == Manifest.parse((bench.published.layout.web / ".cvmfspublished").read_bytes()).manifest
    finally:
        client.close()


def test_an_edited_manifest_on_one_server(bench: Bench) -> None:
    """Text and printed hash fit, the signature does not: the next server is asked."""
    spoiled = bench.scratch / "spoiled"
    shutil.copytree(bench.published.layout.web.parent, spoiled)
    signed = Manifest.parse((spoiled / FQRN / ".cvmfspublished").read_bytes())
    text = replace(signed.manifest, revision=99).text()
    letter = replace(signed.letter, text=text, printed=str(Hash.of(text)).encode())
    (spoiled / FQRN / ".cvmfspublished").write_bytes(letter.data())
    with serving(spoiled) as other:
        with pytest.raises(TrustError, match="wrong signature"):
            bench.mounted(f"{other.url}/@fqrn@", cache="other")
        client = bench.mounted(f"{other.url}/@fqrn@", f"{bench.web.url}/@fqrn@")
        assert client.publication.current is not None
        assert client.publication.current.revision == 2
        client.close()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_damaged_objects(bench: Bench, data: st.DataObject) -> None:
    """Wrong bytes in any object, on all servers: an error, and never another content; all is well when the servers are."""
    kind = data.draw(st.sampled_from(["file", "chunk", "catalogue", "certificate"]))
    pattern = {"file": r"data/../\w{38}$", "chunk": "P$", "catalogue": "C$", "certificate": "X$"}[kind]
    seed, way = data.draw(st.integers(0, 2**32)), data.draw(st.sampled_from(["flip", "cut", "grow", "swap", "empty"]))

    def wrong(body: bytes) -> Answer:
        dice = random.Random(seed)  # noqa: S311
        at = dice.randrange(len(body))
        if way == "flip":
            return Answer(body[:at] + bytes([body[at] ^ 1 << dice.randrange(8)]) + body[at + 1 :])
        if way == "cut":
            return Answer(body[:at])
        return Answer({"grow": body + b"x", "swap": dice.randbytes(len(body)), "empty": b""}[way])

    bench.web.spoil(pattern, wrong)
    client = bench.client(cache=f"cache{time.monotonic_ns()}")
    path = {"file": "/bin/hello", "chunk": "/big"}.get(kind, "/nested/deep/data")

    def mount_and_read() -> None:
        client.load()
        client.read(path)

    with pytest.raises(CvmfsError):
        mount_and_read()
    bench.web.heal()
    if kind not in {"file", "chunk"}:
        client.load()
    assert client.read(path) == (bench.tree / path[1:]).read_bytes()
    client.close()


def test_a_damaged_cache_is_repaired(bench: Bench) -> None:
    client = bench.mounted()
    right = {path: client.read(path) for path in ("/bin/hello", "/big", "/just-whole")}
    client.close()
    for path in (bench.scratch / "cache").glob("shared/??/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 0x10
        path.write_bytes(data)
    client = bench.mounted()
    assert {path: client.read(path) for path in right} == right
    client.close()


def test_damage_while_a_file_is_open(bench: Bench) -> None:
    client = bench.mounted()
    inode, _ = client.find("/just-whole")
    file = client.open(inode)
    right = file.read(0, 2 * CHUNK)
    for path in (bench.scratch / "cache").glob("shared/??/*"):
        if path.stat().st_size > CHUNK and path.suffix != "C":
            path.write_bytes(bytes(path.stat().st_size))
    assert file.now(0, 2 * CHUNK) is None
    assert file.read(0, 2 * CHUNK) == right
    client.close()


def changed_catalogue(bench: Bench, *statements: tuple[str, tuple[object, ...]]) -> None:
    """Publish the root catalogue with something changed in it, as revision 7."""
    staging = bench.published.staging()
    file = bench.scratch / "catalogue"
    client = bench.mounted()
    found = client.store.cache.open(client.tree.root.hash)
    assert found is not None
    file.write_bytes(found.read(0, found.size))
    client.close()
    with sqlite3.connect(file) as database:
        for statement, values in statements:
            database.execute(statement, values)
    database.close()
    size = file.stat().st_size
    manifest = replace(bench.published.manifest, catalog=staging.put_file(file, CATALOG), catalog_size=size, revision=7)
    bench.published.release(staging, manifest, Keys.read(bench.published.layout), [])


def test_a_catalogue_with_a_trick_in_it(bench: Bench) -> None:
    """A signed catalogue that says impossible things: errors for what is wrong, and nothing outside of the repository."""
    changed_catalogue(
        bench,
        ("UPDATE catalog SET name = '../../../etc/passwd' WHERE name = 'mod.py'", ()),
        ("UPDATE catalog SET symlink = '/etc/shadow' || char(0) WHERE name = 'variant'", ()),
        ("UPDATE catalog SET flags = flags | 0x700 WHERE name = 'just-whole'", ()),
    )
    client = bench.mounted()
    assert client.read("/bin/hello") == b"#!/bin/sh\necho hello\n"
    for path in ("/lib/python/mod.py", "/lib/variant", "/just-whole"):
        with pytest.raises(FormatError):
            client.find(path)
    with pytest.raises((FormatError, NotFoundError)):
        client.find("/lib/python/../../../etc/passwd")
    with pytest.raises(FormatError):
        list(client.walk("/lib/python"))
    client.close()


# Servers away, disks full


def test_server_away_and_back(bench: Bench) -> None:
    client = bench.mounted()
    assert client.read("/bin/hello") == b"#!/bin/sh\necho hello\n"
    bench.web.stop()
    assert client.read("/bin/hello") == b"#!/bin/sh\necho hello\n"
    for _ in range(20):
        with pytest.raises(FetchError):
            client.read("/etc/line\nfeed")
    with pytest.raises(FetchError):
        client.refresh()
    assert client.schedule.wait() <= 15
    bench.web.start()
    assert client.read("/etc/line\nfeed") == b"a line feed\n", "at once"
    (bench.tree / "new").touch()
    bench.publish()
    assert client.refresh() is not None
    client.close()


def test_one_object_that_cannot_be_had(bench: Bench) -> None:
    """A server that forbids one file, as S3 does for a missing key, takes no other away."""
    client = bench.mounted()
    digest = client.find("/just-whole")[1].hash
    assert digest is not None
    bench.web.spoil(digest.path, lambda body: Answer(body, status=403))
    for path in ("/bin/hello", "/etc/line\nfeed", "/lib/python/mod.py"):
        with pytest.raises(FetchError, match="answers 403"):
            client.read("/just-whole")
        assert client.read(path) == (bench.tree / path[1:]).read_bytes()


def test_mount_without_a_server(bench: Bench) -> None:
    """What was seen before is mounted from the cache; what was never seen is not."""
    client = bench.mounted()
    client.read("/bin/hello")
    client.close()
    bench.web.stop()
    client = bench.mounted()
    assert client.read("/bin/hello") == b"#!/bin/sh\necho hello\n"
    client.close()
    with pytest.raises(FetchError):
        bench.mounted(cache="other")


def test_empty_files_need_no_server(bench: Bench) -> None:
    client = bench.mounted()
    bench.web.stop()
    assert client.read("/empty") == b""
    client.close()


def test_many_threads_one_download(bench: Bench) -> None:
    client = bench.mounted()
    bench.web.requests.clear()
    bench.web.fault = lambda _, body: Answer(body, delay=0.2)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: client.read("/just-whole"), range(16))) == {(bench.tree / "just-whole").read_bytes()}
    assert len(bench.web.requests) == 1
    client.close()


def test_a_quota_smaller_than_what_is_read(bench: Bench) -> None:
    rng = random.Random(3)  # noqa: S311
    for number in range(40):
        (bench.tree / f"f{number}").write_bytes(rng.randbytes(60_000))
    bench.publish()
    client = bench.mounted(CVMFS_QUOTA_LIMIT="1")
    for _ in range(2):
        for number in range(40):
            assert client.read(f"/f{number}") == (bench.tree / f"f{number}").read_bytes()
    assert client.store.cache.usage() < 1_300_000
    assert client.store.cache.cleanups
    client.close()


def test_a_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    client = bench.mounted()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert shown(client) == cvmfs_support.read_back(bench.published), "everything can be read, nested catalogues too"
    client.close()


def test_catalogues_stay_when_the_cache_is_cleaned(bench: Bench) -> None:
    client = bench.mounted()
    client.find("/nested/deep/data")
    client.store.cache.quota = 0
    client.store.cache.make_room()
    bench.web.stop()
    assert client.find("/nested/deep/data")
    assert [path.name[-1] for path in (bench.scratch / "cache/shared").glob("??/*C")] == ["C", "C"]
    client.close()


def test_external_files(bench: Bench) -> None:
    """Under their path, on a server of their own."""
    content = os.urandom(3000)
    (bench.scratch / "data").mkdir()
    (bench.scratch / "data/some file").write_bytes(content)
    entry = Entry("/data/some file", 0o100644, size=3000, hash=Hash.of(content), flags=file_flags("sha1", "none") | FLAG_EXTERNAL)
    with serving(bench.scratch) as web:
        client = bench.mounted(CVMFS_EXTERNAL_URL=web.url)
        assert OpenFile(client.store, entry, 7).read(0, 5000) == content
        client.close()
    client = bench.mounted(cache="other")
    with pytest.raises(CvmfsError, match="external server"):
        OpenFile(client.store, entry, 7).read(0, 5000)
    with pytest.raises(CorruptObjectError, match="has 3000 bytes; the catalogue says 2999"):
        bench.mounted().store.at_hand(Reference(Hash.of(content), 2999, "none"))
