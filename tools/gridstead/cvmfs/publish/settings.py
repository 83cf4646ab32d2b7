"""A repository's settings, in ``server.conf`` under the names that the official server gives them."""

from __future__ import annotations

import difflib
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from gridstead.cvmfs.digest import ALGORITHMS
from gridstead.cvmfs.errors import InputError
from gridstead.cvmfs.manifest import DEFAULT_TTL
from gridstead.cvmfs.objects import COMPRESSIONS

_MEBIBYTE = 1 << 20
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Settings:
    """How a repository is published.

    Attributes:
        repository_name: its fully qualified name.
        hash_algorithm: of new objects.
        compression_algorithm: of new files; all else is always compressed by zlib.
        repository_ttl: how long clients go by a manifest, seconds.
        use_file_chunking: whether large files are cut into chunks, so that clients need not fetch all of them.
        avg_chunk_size: how large chunks are, bytes. Files up to twice of it stay whole.
        garbage_collection: whether old revisions may be removed.
        include_xattrs: whether extended attributes are published.
        ignore_special_files: whether named pipes, sockets and devices are left out; otherwise they are an error.
    """

    repository_name: str
    hash_algorithm: str = "sha1"
    compression_algorithm: str = "zlib"
    repository_ttl: int = DEFAULT_TTL
    use_file_chunking: bool = True
    avg_chunk_size: int = 8 * _MEBIBYTE
    garbage_collection: bool = True
    include_xattrs: bool = False
    ignore_special_files: bool = False

    def __post_init__(self) -> None:
        for name, value, right in (
            ("hash_algorithm", self.hash_algorithm, ALGORITHMS),
            ("compression_algorithm", self.compression_algorithm, COMPRESSIONS),
        ):
            if value not in right:
                raise InputError(f"{_key(name)} is {value!r}; {' or '.join(right)} would be right")
        for name, number, least, most in (
            ("repository_ttl", self.repository_ttl, 1, 30 * 86400),
            ("avg_chunk_size", self.avg_chunk_size, _MEBIBYTE // 16, 256 * _MEBIBYTE),
        ):
            if not least <= number <= most:
                raise InputError(f"{_key(name)} is {number}; {least} to {most} would be right")

    def text(self) -> str:
        """The file."""
        lines = [f"{_key(item.name)}={_written(getattr(self, item.name))}\n" for item in fields(self)]
        return "# How this repository is published; names as in the official server's server.conf.\n" + "".join(lines)


def _key(name: str) -> str:
    return f"CVMFS_{name.upper()}"


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else shlex.quote(str(value))


def _converted(text: str, like: object, where: str) -> object:
    if isinstance(like, bool):
        if text.lower() not in _WORDS:
            raise InputError(f"{where} is {text!r}; true or false would be right")
        return _WORDS[text.lower()]
    if isinstance(like, int):
        if not (text.isascii() and text.isdigit() and len(text) < 13):
            raise InputError(f"{where} is {text!r}; a whole number would be right")
        return int(text)
    return text


def read_settings(file: Path) -> Settings:
    """Settings from a ``server.conf``: lines ``NAME=value``, comments and empty lines.

    Raises:
        InputError: it is not there, or something in it is wrong.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"there is no repository {file.parent.name} here ({file} is missing)", hint="create it first") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    known = {_key(item.name): item for item in fields(Settings)}
    values: dict[str, object] = {}
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise InputError(f"{file}:{number}: {error}") from None
        if not words:
            continue
        name, equals, value = words[0].partition("=")
        if not equals or len(words) > 1:
            raise InputError(f"{file}:{number}: {line!r} is no NAME=value")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise InputError(f"{file}:{number}: {name} is not known", hint=f"{near[0] if near else ', '.join(known)} would be right")
        item = known[name]
        values[item.name] = _converted(value, item.default, f"{file}:{number}: {name}")
    values.setdefault("repository_name", file.parent.name)
    if values["repository_name"] != file.parent.name:
        raise InputError(f"{file}: CVMFS_REPOSITORY_NAME is {values['repository_name']!r}; {file.parent.name} would be right")
    try:
        return Settings(**values)  # type: ignore[arg-type]  # each was converted to the type of its default
    except InputError as error:
        raise InputError(f"{file}: {error.message}") from None
