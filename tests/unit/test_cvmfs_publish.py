"""Publishing: what comes out is what went in; only what has changed is read; old revisions stay as they were."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from cvmfs_support import CHUNK, FQRN, grow, make, read_back, root_of, shape_of, tree_of
from gridstead.cvmfs.digest import Hash
from gridstead.cvmfs.errors import CvmfsError, InputError, TrustError
from gridstead.cvmfs.history import Tag
from gridstead.cvmfs.publish import builder, operations
from gridstead.cvmfs.publish.check import check
from gridstead.cvmfs.publish.collect import collect
from gridstead.cvmfs.publish.dirtab import Dirtab
from gridstead.cvmfs.publish.index import TOO_FRESH_NS
from gridstead.cvmfs.publish.layout import Layout, repositories
from gridstead.cvmfs.publish.repository import Repository
from gridstead.cvmfs.publish.settings import Settings, read_settings


@pytest.fixture(name="repository")
def _repository(tmp_path: Path) -> Repository:
    return make(tmp_path / "host")


@pytest.fixture(name="tree")
def _tree(tmp_path: Path) -> Path:
    return grow(tmp_path / "tree")


def settle() -> None:
    """Wait until files just written are old enough to be known by their times."""
    time.sleep(2 * TOO_FRESH_NS / 1e9)


def tag(name: str, description: str = "") -> Tag:
    return Tag(name, Hash(bytes(20)), 0, 0, description)


def objects_of(repository: Repository) -> set[str]:
    return {str(path.relative_to(repository.store.web)) for path in repository.store.names()}


def right(repository: Repository) -> None:
    findings = check(repository)
    assert findings.problems == []
    assert findings.catalogs


def expected(tree: Path) -> dict[str, tuple[object, ...]]:
    """What is published of the tree: the directory that the dirtab gives a catalogue gets the marker for it."""
    found = tree_of(tree)
    _, uid, gid, mtime, _ = found["/packages/a"]
    found.setdefault("/packages/a/.cvmfscatalog", (stat.S_IFREG | 0o644, uid, gid, mtime, (b"", 1)))
    return found


# What comes out


@pytest.mark.parametrize(
    "how",
    [{}, {"hash_algorithm": "shake128"}, {"hash_algorithm": "rmd160"}, {"compression_algorithm": "none"}, {"use_file_chunking": False}],
    ids=str,
)
def test_what_is_published_is_read_back(tmp_path: Path, tree: Path, how: dict[str, object]) -> None:
    repository = make(tmp_path / "host", **how)
    report = operations.publish(repository, tree)
    assert report.changed
    assert report.revision == 2
    assert read_back(repository) == expected(tree)
    right(repository)


def test_large_files_are_cut(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree)
    with root_of(repository) as catalog:
        big, whole = catalog.lookup("/big"), catalog.lookup("/just-whole")
        assert big is not None
        assert whole is not None
        assert [chunk.size for chunk in catalog.chunks(big)] == [CHUNK] * 5 + [17]
        assert not whole.chunked


def test_catalogues_are_where_they_are_wanted(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree)
    with root_of(repository) as catalog:
        assert sorted(ref.path for ref in catalog.nested()) == ["/nested", "/packages/a"]
        assert catalog.statistics()["self_nested"] == 2
        assert catalog.statistics()["subtree_regular"] == 5


def test_hard_links_hold_within_a_directory(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree)
    with root_of(repository) as catalog:
        first, second, far = (catalog.lookup(path) for path in ("/bin/hello", "/bin/hello-again", "/lib/hello-from-afar"))
        assert first is not None
        assert second is not None
        assert far is not None
        assert (first.nlink, second.nlink, far.nlink) == (2, 2, 1)
        assert first.hardlink_group == second.hardlink_group != 0
        assert far.hardlink_group == 0
        assert first.hash == far.hash


def test_an_unpublished_directory_time_or_owner_counts(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree)
    (tree / "bin").chmod(0o700)
    assert operations.publish(repository, tree).changed
    os.utime(tree / "lib", (1, 1))
    assert operations.publish(repository, tree).changed
    assert read_back(repository) == expected(tree)


def test_attributes(tmp_path: Path, tree: Path) -> None:
    try:
        os.setxattr(tree / "empty", "user.note", b"a note")
    except OSError:
        pytest.skip("the file system of the tests has no extended attributes")
    os.setxattr(tree / "empty", "user.long", b"x" * 300)
    repository = make(tmp_path / "host", include_xattrs=True)
    operations.publish(repository, tree)
    with root_of(repository) as catalog:
        entry = catalog.lookup("/empty")
        assert entry is not None
        assert entry.xattrs() == {"user.note": b"a note"}
    right(repository)


def test_nothing_secret_is_in_the_web_directory(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree)
    layout = repository.layout
    for key in (layout.master_key, layout.repository_key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        secret = key.read_bytes().splitlines()[1]
        assert all(secret not in path.read_bytes() for path in layout.web.rglob("*") if path.is_file())
    assert stat.S_IMODE(layout.manifest.stat().st_mode) == 0o644
    # The mark for stratum 1s too: their servers read as anybody.
    assert {stat.S_IMODE(path.stat().st_mode) for path in (layout.master_replica, *repository.store.names())} == {0o644}


# Only what has changed


def test_nothing_changed_is_no_new_revision(repository: Repository, tree: Path) -> None:
    settle()
    first = operations.publish(repository, tree)
    before, objects = repository.layout.manifest.read_bytes(), objects_of(repository)
    again = operations.publish(repository, tree)
    assert (again.changed, again.read, again.objects, again.revision) == (False, 0, 0, first.revision)
    assert repository.layout.manifest.read_bytes() == before
    assert objects_of(repository) == objects


def test_only_changed_files_are_read_and_written(repository: Repository, tree: Path) -> None:
    settle()
    operations.publish(repository, tree)
    (tree / "nested/deep/data").write_text("changed\n")
    (tree / "nested/deep/new").write_text("new\n")
    (tree / "lib/python/mod.py").unlink()
    settle()
    report = operations.publish(repository, tree)
    # Two files, the nested catalogue, the root's.
    assert (report.read, report.objects) == (2, 4)
    assert read_back(repository) == expected(tree)
    right(repository)


def test_a_file_with_the_same_size_and_time_but_other_content_is_seen(repository: Repository, tree: Path) -> None:
    settle()
    operations.publish(repository, tree)
    file = tree / "lib/python/mod.py"
    before = file.stat()
    file.write_text("x=2\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    settle()
    operations.publish(repository, tree)
    assert read_back(repository) == expected(tree)


def test_a_chunk_changed_in_place_with_the_same_time_is_seen(repository: Repository, tree: Path) -> None:
    settle()
    operations.publish(repository, tree)
    before = (tree / "big").stat()
    with (tree / "big").open("r+b") as stream:
        stream.seek(3 * CHUNK)
        stream.write(b"another")
    os.utime(tree / "big", ns=(before.st_atime_ns, before.st_mtime_ns))
    settle()
    report = operations.publish(repository, tree)
    assert report.objects == 2, "a chunk and the catalogue"
    assert read_back(repository) == expected(tree)


def test_files_written_a_moment_ago_are_read_again(repository: Repository, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes within one tick of the file system's clock look alike."""
    monkeypatch.setattr(builder, "TOO_FRESH_NS", 3600 * 10**9)  # so that this is a moment ago on the slowest machine
    operations.publish(repository, tree)
    assert operations.publish(repository, tree).read


def test_without_the_index_everything_is_read_and_nothing_else_happens(repository: Repository, tree: Path) -> None:
    settle()
    operations.publish(repository, tree)
    repository.layout.index.write_bytes(b"no index at all" * 100)
    report = operations.publish(repository, tree)
    assert not report.changed
    assert report.read > 10


def test_after_a_rollback_the_index_does_not_lie(repository: Repository, tree: Path) -> None:
    settle()
    operations.publish(repository, tree, tag("old"))
    (tree / "lib/python/mod.py").write_text("x=3\n")
    settle()
    operations.publish(repository, tree)
    operations.rollback(repository, "old")
    operations.publish(repository, tree)
    assert read_back(repository) == expected(tree)


def test_step_by_step_is_the_same_as_from_nothing(tmp_path: Path, tree: Path) -> None:
    steps = make(tmp_path / "steps")
    operations.publish(steps, tree)
    for change in (
        (tree / "packages/c").mkdir,
        lambda: (tree / "packages/c/three").write_text("3"),
        lambda: shutil.rmtree(tree / "nested/deep"),
        (tree / "nested/.cvmfscatalog").unlink,
        lambda: (tree / "lib").rename(tree / "packages/lib"),
        lambda: (tree / "big").write_bytes(b"now small"),
        lambda: (tree / "just-whole").write_bytes(os.urandom(3 * CHUNK)),
        (tree / "etc/.cvmfscatalog").touch,
        lambda: (tree / ".cvmfsdirtab").write_text("/packages/?\n"),
        lambda: os.link(tree / "empty", tree / "void"),
        (tree / "bin/hello").unlink,
    ):
        change()
        operations.publish(steps, tree)
        assert read_back(steps) == {
            **tree_of(tree),
            **{path: row for path, row in read_back(steps).items() if path.endswith("/.cvmfscatalog")},
        }
    right(steps)
    whole = make(tmp_path / "whole")
    operations.publish(whole, tree)
    assert shape_of(steps) == shape_of(whole)


# What is refused


def test_special_files_are_refused_or_left_out(repository: Repository, tree: Path) -> None:
    os.mkfifo(tree / "lib/pipe")
    before = repository.layout.manifest.read_bytes()
    with pytest.raises(CvmfsError, match="lib/pipe is no file, directory or link"):
        operations.publish(repository, tree)
    assert repository.layout.manifest.read_bytes() == before
    conf = repository.layout.settings
    conf.write_text(conf.read_text().replace("IGNORE_SPECIAL_FILES=false", "IGNORE_SPECIAL_FILES=true"))
    report = operations.publish(Repository(repository.layout), tree)
    assert report.left_out == ("/lib/pipe",)
    assert "/lib/pipe" not in read_back(repository)
    right(repository)


def test_files_that_change_while_they_are_read_are_an_error(repository: Repository, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gridstead.cvmfs.publish import content

    real = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        data = real(descriptor, size, offset)
        if data == b"x=1\n":
            (tree / "lib/python/mod.py").write_text("x=9\n")
        return data

    monkeypatch.setattr(content.os, "pread", pread)
    with pytest.raises(CvmfsError, match="was changed while it was being published"):
        operations.publish(repository, tree)
    monkeypatch.undo()
    assert repository.manifest.revision == 1
    right(repository)


def test_a_full_disk_is_one_clear_error(repository: Repository, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from gridstead.cvmfs.publish import store

    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "write", full)
    with pytest.raises(CvmfsError, match="No space left"):
        operations.publish(repository, tree)
    monkeypatch.undo()
    assert repository.manifest.revision == 1
    operations.publish(repository, tree)
    right(repository)


def test_two_publishers_do_not_meet(repository: Repository, tree: Path) -> None:
    with repository.layout.locked(), pytest.raises(CvmfsError, match=f"being changed by process {os.getpid()}"):
        operations.publish(repository, tree)
    operations.publish(repository, tree)


def test_what_cannot_be_published(repository: Repository, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no directory"):
        operations.publish(repository, tree / "empty")
    with pytest.raises(InputError, match="is no directory"):
        operations.publish(repository, tmp_path / "nowhere")
    (tree / ".cvmfsdirtab").write_text("packages/*\n")
    with pytest.raises(InputError, match=r"dirtab:1: 'packages/\*' does not begin with a slash"):
        operations.publish(repository, tree)


def test_keys_that_do_not_belong_together_are_refused(repository: Repository, tree: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    repository.layout.repository_key.write_bytes(other.layout.repository_key.read_bytes())
    with pytest.raises(TrustError, match="is not the key of"):
        operations.publish(repository, tree)


@pytest.mark.parametrize("name", ["", "nodot", "a/b.test", "../x.test", "a..test", ".test", "a.test\n"])
def test_names_of_repositories(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name for a repository"):
        Layout(name, tmp_path)


# Transactions


def test_a_transaction(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree)
    work = operations.transaction(repository)
    assert tree_of(work) == expected(tree)
    (work / "added").write_text("added\n")
    (work / "empty").unlink()
    with pytest.raises(CvmfsError, match="has an open transaction"):
        operations.transaction(repository)
    with pytest.raises(CvmfsError, match="has an open transaction"):
        operations.publish(repository, tree)
    with pytest.raises(CvmfsError, match="has an open transaction"):
        operations.rollback(repository, "1")
    report = operations.publish(repository)
    assert report.read == 1, "what was checked out need not be read again"
    assert read_back(repository) == tree_of(work)
    assert not repository.in_transaction
    with pytest.raises(CvmfsError, match="no open transaction"):
        operations.publish(repository)
    right(repository)


def test_a_transaction_given_up_leaves_nothing(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree)
    work = operations.transaction(repository)
    before = tree_of(work)
    big = (work / "big").stat()
    with (work / "big").open("r+b") as stream:
        stream.write(b"sneaky")
    os.utime(work / "big", ns=(big.st_atime_ns, big.st_mtime_ns))
    shutil.rmtree(work / "lib")
    (work / "lib").symlink_to("/etc")
    (work / "bin/hello").unlink()
    (work / "bin/hello").mkdir()
    (work / "bin/hello/x").touch()
    (work / "etc/added").mkdir()
    (work / "empty").chmod(0o777)
    operations.abort(repository)
    assert tree_of(work) == before
    with pytest.raises(CvmfsError, match="no open transaction"):
        operations.abort(repository)
    assert operations.transaction(repository) == work
    assert not operations.publish(repository).changed


def test_a_failed_publication_keeps_the_transaction(repository: Repository) -> None:
    work = operations.transaction(repository)
    os.mkfifo(work / "pipe")
    with pytest.raises(CvmfsError, match="pipe"):
        operations.publish(repository)
    assert repository.in_transaction
    (work / "pipe").unlink()
    (work / "file").touch()
    assert operations.publish(repository).changed


# Tags, rollback, garbage


def test_tags(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree, tag("v1", "first"))
    (tree / "empty").write_text("no more")
    operations.publish(repository, tree)
    with repository.reading() as scratch:
        tags = {item.name: (item.revision, item.description) for item in repository.tags(repository.manifest, scratch)}
    assert tags == {"trunk": (3, "current HEAD"), "trunk-previous": (2, "default undo target"), "v1": (2, "first")}
    added = operations.add_tag(repository, "one", "of old", "1")
    assert added.revision == 1
    operations.remove_tag(repository, "v1")
    with repository.reading() as scratch:
        assert {item.name for item in repository.tags(repository.manifest, scratch)} == {"trunk", "trunk-previous", "one"}
        assert [number for number, _, _ in repository.revisions(repository.manifest, scratch)] == [3, 2, 1]
    assert repository.manifest.revision == 3
    right(repository)
    # A tag alone is no new revision.
    report = operations.publish(repository, tree, tag("same"))
    assert (report.changed, report.revision) == (False, 3)
    with repository.reading() as scratch:
        assert repository.revision("same", scratch) == repository.revision(None, scratch)


@pytest.mark.parametrize("name", ["trunk", "trunk-previous", "", "a b", "7", "x" * 256, "a\n", "v1"])
def test_names_that_tags_cannot_have(repository: Repository, tree: Path, name: str) -> None:
    operations.publish(repository, tree, tag("v1"))
    (tree / "empty").write_text("no more")
    for attempt in (lambda: operations.add_tag(repository, name, "", None), lambda: operations.publish(repository, tree, tag(name))):
        with pytest.raises(InputError):
            attempt()
    assert repository.manifest.revision == 2


def test_rollback_is_a_new_revision_with_old_content(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree, tag("v1"))
    first = read_back(repository)
    shutil.rmtree(tree / "packages")
    operations.publish(repository, tree)
    manifest = operations.rollback(repository, "v1")
    assert manifest.revision == 4
    assert read_back(repository) == first
    operations.rollback(repository, "1")
    assert read_back(repository) == {}
    right(repository)
    with pytest.raises(InputError, match="no tag or revision 'v9'"):
        operations.rollback(repository, "v9")


def test_garbage_collection_keeps_what_can_be_reached(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree, tag("kept"))
    kept = read_back(repository)
    contents = []
    for number in range(5):
        (tree / "etc/number").write_bytes(bytes([number]) * 1000)
        operations.publish(repository, tree)
        contents.append(read_back(repository))
    before = objects_of(repository)
    looked = collect(repository, 2, dry_run=True)
    assert objects_of(repository) == before
    done = collect(repository, 2)
    assert (done.objects, done.bytes) == (looked.objects, looked.bytes)
    assert done.objects > 0
    assert len(objects_of(repository)) == len(before) - done.objects
    right(repository)
    assert read_back(repository) == contents[4]
    assert read_back(repository, "6") == contents[3]
    assert read_back(repository, "kept") == kept
    with pytest.raises(InputError, match="no tag or revision '4'"):
        read_back(repository, "4")
    assert collect(repository, 2).objects == 0
    (tree / "etc/number").write_bytes(bytes(1000))
    operations.publish(repository, tree)
    assert read_back(repository)["/etc/number"][-1] == (bytes(1000), 1), "what was removed is there again when it is needed"
    right(repository)


def test_garbage_collection_refuses(repository: Repository, tree: Path) -> None:
    with pytest.raises(InputError, match="1 or more"):
        collect(repository, 0)
    operations.publish(repository, tree, tag("v1"))
    (tree / "empty").write_text("x")
    operations.publish(repository, tree)
    with repository.reading() as scratch:
        catalog = repository.store.web / repository.revision("v1", scratch).hash.path
    catalog.write_bytes(catalog.read_bytes()[:-1])
    before = objects_of(repository)
    with pytest.raises(CvmfsError, match="corrupt"):
        collect(repository, 1)
    assert objects_of(repository) == before
    conf = repository.layout.settings
    conf.write_text(conf.read_text().replace("GARBAGE_COLLECTION=true", "GARBAGE_COLLECTION=false"))
    with pytest.raises(InputError, match="CVMFS_GARBAGE_COLLECTION=false"):
        collect(Repository(repository.layout), 1)


# Check


def test_check_finds_every_damaged_object(repository: Repository, tree: Path) -> None:
    operations.publish(repository, tree, tag("v1"))
    manifest = repository.manifest
    assert manifest.history is not None
    for path in sorted(repository.store.names()):
        good = path.read_bytes()
        name = str(path.relative_to(repository.store.web))
        # All but the history of the first revision; its catalogue has the tag trunk-previous.
        reachable = not name.endswith("H") or name == manifest.history.path
        for bad in (good[:-1], bytes([good[0] ^ 1]) + good[1:], b""):
            path.write_bytes(bad)
            assert bool(check(repository).problems) is reachable, name
        path.unlink()
        assert bool(check(repository).problems) is reachable, name
        path.write_bytes(good)
    assert repository.manifest == manifest
    right(repository)


def test_check_finds_wrong_counters_and_mountpoints(repository: Repository, tree: Path) -> None:
    import sqlite3

    from gridstead.cvmfs.digest import CATALOG
    from gridstead.cvmfs.entry import ROOT_PLACE, NestedRef

    operations.publish(repository, tree)
    manifest = repository.manifest
    for statement, problem in (
        ("UPDATE statistics SET value = 99 WHERE counter = 'subtree_dir'", "the counter subtree_dir is 99"),
        ("UPDATE catalog SET hardlinks = 9 WHERE name = 'lib'", "link count 9"),
        ("UPDATE catalog SET hardlinks = 3 WHERE name = 'empty'", "3 names, but belongs to no group"),
        ("UPDATE catalog SET hardlinks = hardlinks + 1 WHERE name = 'hello'", "names of a file, which differ"),
        ("UPDATE catalog SET size = 99 WHERE name = 'link'", "link of 99 bytes"),
        ("UPDATE catalog SET mode = 16832 WHERE name = 'nested'", "mountpoint and the root of its nested catalogue differ"),
        ("DELETE FROM nested_catalogs WHERE path = '/nested'", "disagree at /nested"),
        ("UPDATE catalog SET parent_1 = 7 WHERE name = 'empty'", "of which"),
    ):
        with repository.layout.locked(), repository.reading() as scratch:
            staging = repository.staging()
            file = repository.store.extract(manifest.catalog, scratch / "catalog")
            connection = sqlite3.connect(file)
            connection.execute(statement)
            connection.commit()
            connection.close()
            size = file.stat().st_size
            ref = NestedRef(ROOT_PLACE, staging.put_file(file, CATALOG), size)
            repository.next_revision(staging, ref, repository.manifest.revision + 1, int(time.time()), None)
        assert any(problem in found for found in check(repository).problems), (statement, check(repository).problems)


def test_check_finds_what_is_wrong_with_trust(repository: Repository, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    good = repository.layout.whitelist.read_bytes()
    repository.layout.whitelist.write_bytes(other.layout.whitelist.read_bytes())
    assert any("not signed by any" in problem for problem in check(repository).problems)
    repository.layout.whitelist.write_bytes(good)
    right(repository)
    repository.layout.manifest.write_bytes(other.layout.manifest.read_bytes())
    assert any("not on its whitelist" in problem or "missing" in problem for problem in check(repository).problems)


# The rest


def test_creating_again_is_refused_and_finishing_is_not(tmp_path: Path) -> None:
    repository = make(tmp_path / "host")
    with pytest.raises(InputError, match="already"):
        make(tmp_path / "host")
    assert repositories(tmp_path / "host") == [FQRN]
    keys = repository.layout.master_key.read_bytes()
    # As if it had been killed before the end.
    repository.layout.manifest.unlink()
    again = make(tmp_path / "host")
    assert again.layout.master_key.read_bytes() == keys
    right(again)


def test_resign(repository: Repository) -> None:
    before = repository.layout.whitelist.read_bytes()
    assert operations.resign(repository, unless=20)[0] is False
    assert repository.layout.whitelist.read_bytes() == before
    signed, whitelist = operations.resign(repository, days=10)
    assert signed
    assert whitelist.expires < time.time() + 11 * 86400
    assert operations.resign(repository, unless=20)[0] is True
    repository.layout.whitelist.write_bytes(b"garbage")
    assert operations.resign(repository, unless=20)[0] is True
    right(repository)


def test_an_expired_whitelist_does_not_stop_publishing(repository: Repository, tree: Path) -> None:
    operations.resign(repository, days=-1)
    assert operations.publish(repository, tree).changed
    assert any("expired" in problem for problem in check(repository).problems)


def test_settings_round_trip(tmp_path: Path) -> None:
    settings = Settings(FQRN, "shake128", "none", 77, False, 1 << 20, False, True, True)
    file = tmp_path / FQRN / "server.conf"
    file.parent.mkdir()
    file.write_text(settings.text())
    assert read_settings(file) == settings


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("CVMFS_HASH_ALGORITM=sha1", "CVMFS_HASH_ALGORITM is not known\n  CVMFS_HASH_ALGORITHM would be right"),
        ("CVMFS_HASH_ALGORITHM=md5", "is 'md5'; sha1 or rmd160 or shake128 would be right"),
        ("CVMFS_REPOSITORY_TTL=soon", "server.conf:1: CVMFS_REPOSITORY_TTL is 'soon'; a whole number"),
        ("CVMFS_REPOSITORY_TTL=0", "is 0; 1 to"),
        ("CVMFS_INCLUDE_XATTRS=perhaps", "true or false would be right"),
        ("CVMFS_REPOSITORY_NAME=other.test", "'other.test'; sw.grid.test would be right"),
        ("nonsense", "is no NAME=value"),
        ("CVMFS_REPOSITORY_TTL='60", "server.conf:1: No closing quotation"),
    ],
)
def test_wrong_settings(tmp_path: Path, line: str, error: str) -> None:
    file = tmp_path / FQRN / "server.conf"
    file.parent.mkdir()
    file.write_text(line + "\n")
    with pytest.raises(InputError) as caught:
        read_settings(file)
    assert error in str(caught.value)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/sw/a", True), ("/sw/a/b", False), ("/sw", False), ("/sw/.a", False), ("/sw/skip", False), ("/x/1/lib", True), ("/x/12/lib", False),
        ("/a*b", True), ("/acb", False), ("/deep/x.old", False), ("/one", True),
    ],
)  # fmt: skip
def test_dirtab(path: str, wanted: bool) -> None:
    dirtab = Dirtab.parse("# all\n  /sw/*\n! /sw/skip\n/x/?/lib/\n/a\\*b\n/one\n/deep/*\n!*.old\n\n")
    assert dirtab.wants(path) is wanted
