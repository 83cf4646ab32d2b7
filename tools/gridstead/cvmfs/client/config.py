"""The configuration, from the same files as the official client's.

They are shell files and are read by a shell, in the official order (doc-cvmfs, "Client Configuration"): default.conf,
default.d/*.conf, default.local, then domain.d/DOMAIN and config.d/REPOSITORY, each .conf before .local.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

from gridstead.cvmfs.client.parameters import DEFAULTS, NO, PARAMETERS, YES, remarks
from gridstead.cvmfs.client.routes import DIRECT, parse_proxies, parse_servers, public
from gridstead.cvmfs.client.snapshot import Snapshot
from gridstead.cvmfs.client.transfer import Timing
from gridstead.cvmfs.errors import InputError
from gridstead.cvmfs.manifest import is_fqrn

DIRECTORY = Path("/etc/cvmfs")

#: Prints what the files set: NAME=VALUE, ended by NUL. As in the official client all of it is for links (``$(VAR)``), exported or not.
_SCRIPT = """
__names=
__names=$'\\n'$(compgen -v)$'\\n'
set -e
for __file; do . "$__file"; done
set +e
for __name in $(compgen -v); do
  case $__name in
    CVMFS_*) ;;
    __file | __name | BASH* | PIPESTATUS | COLUMNS | LINES | _) continue ;;
    *) case $__names in *$'\\n'"$__name"$'\\n'*) continue ;; esac ;;
  esac
  printf '%s=%s\\0' "$__name" "${!__name}"
done
"""


@dataclass(frozen=True)
class Configuration:
    """What a mount goes by.

    Attributes:
        fqrn: the repository.
        servers: its URL on each server, in order.
        proxies: groups of proxies or DIRECT.
        external_servers: servers of external files.
        external_proxies: the proxies to them.
        timing: how patient downloads are.
        keys: public master keys, PEM.
        cache: the directory of the objects.
        state: the directory of what is known of this repository: last manifest, whitelist.
        quota: bytes that the cache may hold; None for no limit.
        mountpoint: where official names have it.
        max_ttl: seconds after which a manifest is looked at again, however long its own TTL is; None for no limit.
        kernel_timeout: how long the kernel goes by names and attributes without asking, seconds.
        claim_ownership: everything belongs to the user that the client runs as.
        check_permissions: whether the kernel checks modes.
        user: whom the client runs as.
        open_files: how many files the client may have open.
        blacklist: the file of what is not trusted any more.
        external_timing: how patient downloads from external servers are.
        snapshot: which revision; None for the newest one.
        follow: whether new revisions are shown when they come.
        magic: where the client's own attributes are listed: rootonly, always or never.
        environment: variables for links.
        remarks: what is to be said of parameters that have no effect.
    """

    fqrn: str
    servers: list[str]
    proxies: list[list[str]]
    external_servers: list[str]
    external_proxies: list[list[str]]
    timing: Timing
    keys: list[bytes]
    cache: Path
    state: Path
    quota: int | None
    mountpoint: Path
    max_ttl: float | None
    kernel_timeout: float
    claim_ownership: bool
    check_permissions: bool
    user: str
    open_files: int
    blacklist: Path
    external_timing: Timing
    snapshot: Snapshot | None = None
    follow: bool = True
    magic: str = "rootonly"
    environment: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def load(fqrn: str, directory: Path = DIRECTORY, settings: dict[str, str] | None = None) -> Configuration:
    """The configuration of a repository.

    Args:
        fqrn: its fully qualified name; without a domain, CVMFS_DEFAULT_DOMAIN is added.
        directory: where the files are.
        settings: what is to have precedence over the files.

    Raises:
        InputError: a file or a value is wrong or missing.
    """
    fqrn, found = effective(fqrn, directory, settings)
    return _Values(found, directory).configuration(fqrn)


def effective(fqrn: str, directory: Path = DIRECTORY, settings: dict[str, str] | None = None) -> tuple[str, dict[str, str]]:
    """The repository's full name, and everything that is set for it: by defaults, by the files, by ``settings``; arguments as of ``load``.

    Raises:
        InputError: a file cannot be read, or the name is none.
    """
    base = [directory / "default.conf", *sorted((directory / "default.d").glob("*.conf")), directory / "default.local"]
    if "." not in fqrn:
        domain = {**_read(base, ""), **(settings or {})}.get("CVMFS_DEFAULT_DOMAIN")
        fqrn = f"{fqrn}.{domain}" if domain else fqrn
    if not is_fqrn(fqrn) or "." not in fqrn:
        raise InputError(f"'{fqrn}' is no repository; a name with its domain, such as sw.grid.test, would be right")
    parts = [("domain.d", fqrn.partition(".")[2]), ("config.d", fqrn)]
    files = [directory / kind / f"{name}.{suffix}" for kind, name in parts for suffix in ("conf", "local")]
    own = {"CVMFS_FQRN": fqrn, "CVMFS_ARCH": os.uname().machine}
    return fqrn, {**DEFAULTS, **_read([*base, *files], fqrn), **(settings or {}), **own}


def _read(files: list[Path], fqrn: str) -> dict[str, str]:
    """What shell files set."""
    there = [str(file) for file in files if file.is_file()]
    if not there:
        return {}
    inherited = {name: value for name, value in os.environ.items() if name.startswith("CVMFS_")}
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **inherited, "CVMFS_FQRN": fqrn}
    try:
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-c", _SCRIPT, "bash", *there],
            stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{there[-1]} cannot be read: {error}") from None
    message = done.stderr.decode(errors="replace").strip()
    if done.returncode or message:
        raise InputError(f"the configuration cannot be read: {message.splitlines()[0] if message else f'exit {done.returncode}'}")
    pairs = (item.partition("=") for item in done.stdout.decode(errors="surrogateescape").split("\0"))
    return {name: value for name, _, value in pairs if name}


class _Values:
    """Values by name, each checked when it is asked for."""

    def __init__(self, found: dict[str, str], directory: Path) -> None:
        self._found = found
        self._directory = directory

    def text(self, name: str) -> str:
        return self._found.get(name, "").strip()

    def number(self, name: str) -> float:
        low = PARAMETERS[name].low
        try:
            value = float(self.text(name))
        except ValueError:
            value = low - 1
        if not low <= value < 1e15:
            raise InputError(f"{name} is '{self.text(name)}'; a number from {low:g} on would be right")
        return value

    def optional(self, name: str) -> float | None:
        return self.number(name) if self.text(name) else None

    def yes(self, name: str) -> bool:
        value = self.text(name).lower()
        if value not in YES + NO:
            raise InputError(f"{name} is '{self.text(name)}'; yes or no would be right")
        return value in YES

    def path(self, name: str) -> Path:
        if not self.text(name).startswith("/"):
            raise InputError(f"{name} is '{self.text(name)}'; an absolute path would be right")
        return Path(self.text(name))

    def configuration(self, fqrn: str) -> Configuration:
        said = remarks(self._found)
        if not self.text("CVMFS_SERVER_URL"):
            raise InputError(
                f"CVMFS_SERVER_URL is not set for {fqrn}",
                hint=f"set it in {self._directory / 'config.d' / fqrn}.conf or for its domain, such as http://server/cvmfs/@fqrn@",
            )
        if not self.text("CVMFS_HTTP_PROXY"):
            raise InputError(
                "CVMFS_HTTP_PROXY is not set", hint=f"set it in {self._directory / 'default.local'}: http://proxy:3128, or DIRECT for none"
            )
        external = self.text("CVMFS_EXTERNAL_URL")
        base = self.path("CVMFS_CACHE_BASE")
        directory = self.path("CVMFS_CACHE_DIR") if self.text("CVMFS_CACHE_DIR") else None
        shared = self.yes("CVMFS_SHARED_CACHE") and directory is None
        quota = self.number("CVMFS_QUOTA_LIMIT")
        timing = self._timing()
        return Configuration(
            fqrn=fqrn,
            servers=parse_servers(self.text("CVMFS_SERVER_URL"), fqrn),
            proxies=parse_proxies(self.text("CVMFS_HTTP_PROXY"), self.text("CVMFS_FALLBACK_PROXY")),
            external_servers=parse_servers(external, fqrn, "CVMFS_EXTERNAL_URL") if external else [],
            external_proxies=parse_proxies(
                self.text("CVMFS_EXTERNAL_HTTP_PROXY") or DIRECT, self.text("CVMFS_EXTERNAL_FALLBACK_PROXY"), "CVMFS_EXTERNAL_HTTP_PROXY"
            ),
            timing=timing,
            external_timing=replace(
                timing,
                proxy=self.optional("CVMFS_EXTERNAL_TIMEOUT") or timing.proxy,
                direct=self.optional("CVMFS_EXTERNAL_TIMEOUT_DIRECT") or timing.direct,
            ),
            keys=self._keys(fqrn),
            cache=directory or base / ("shared" if shared else fqrn),
            state=(directory or base) / f"state.{fqrn}",
            quota=None if quota < 0 else int(quota * 2**20),
            mountpoint=self.path("CVMFS_MOUNT_DIR") / fqrn,
            max_ttl=(self.optional("CVMFS_MAX_TTL") or 0) * 60 or None,
            kernel_timeout=self.number("CVMFS_KCACHE_TIMEOUT"),
            claim_ownership=self.yes("CVMFS_CLAIM_OWNERSHIP"),
            check_permissions=self.yes("CVMFS_CHECK_PERMISSIONS"),
            user=self._user(),
            open_files=int(self.number("CVMFS_NFILES")),
            blacklist=self.path("CVMFS_BLACKLIST") if self.text("CVMFS_BLACKLIST") else self._directory / "blacklist",
            snapshot=Snapshot.parse(self.text("CVMFS_ROOT_HASH"), self.text("CVMFS_REPOSITORY_TAG"), self.text("CVMFS_REPOSITORY_DATE")),
            follow=self.yes("CVMFS_AUTO_UPDATE"),
            magic=self._magic(),
            # What users can read in links is no place for a proxy's password.
            environment={name: public(value) for name, value in self._found.items()},
            remarks=tuple(said),
        )

    def _user(self) -> str:
        user = self.text("CVMFS_USER")
        if not user:
            raise InputError("CVMFS_USER is ''; the name of the user that the client runs as would be right")
        return user

    def _magic(self) -> str:
        """Where the client's own attributes are listed; the older parameter says yes, never, or no, always."""
        hide = self.text("CVMFS_HIDE_MAGIC_XATTRS")
        value = self.text("CVMFS_MAGIC_XATTRS_VISIBILITY").lower()
        if hide and value == PARAMETERS["CVMFS_MAGIC_XATTRS_VISIBILITY"].default:
            return "never" if self.yes("CVMFS_HIDE_MAGIC_XATTRS") else "always"
        if value not in ("rootonly", "always", "never"):
            raise InputError(f"CVMFS_MAGIC_XATTRS_VISIBILITY is '{value}'; rootonly, always or never would be right")
        return value

    def _timing(self) -> Timing:
        return Timing(
            proxy=self.number("CVMFS_TIMEOUT"),
            direct=self.number("CVMFS_TIMEOUT_DIRECT"),
            retries=int(self.number("CVMFS_MAX_RETRIES")),
            backoff_first=self.number("CVMFS_BACKOFF_INIT"),
            backoff_most=self.number("CVMFS_BACKOFF_MAX"),
            low_speed=int(self.number("CVMFS_LOW_SPEED_LIMIT")),
            proxy_reset=self.number("CVMFS_PROXY_RESET_AFTER"),
            host_reset=self.number("CVMFS_HOST_RESET_AFTER"),
        )

    def _keys(self, fqrn: str) -> list[bytes]:
        """The master keys: of CVMFS_PUBLIC_KEY, else all in CVMFS_KEYS_DIR or, as the official packages have it, one named like the repository or domain."""
        named = self.text("CVMFS_PUBLIC_KEY")
        if named:
            files = [Path(part) for part in named.split(":") if part]
        else:
            directory = self.path("CVMFS_KEYS_DIR")
            own = directory / f"{fqrn}.pub"
            files = [own] if own.is_file() else sorted(directory.glob("*.pub"))
            if not files:
                raise InputError(
                    f"no public key of {fqrn}: there is no *.pub in {directory}", hint=f"put the master key there as {own.name}"
                )
        keys = []
        for file in files:
            try:
                text = file.read_bytes()
            except OSError as error:
                raise InputError(f"public key {file} cannot be read: {error.strerror}") from None
            if b"-----BEGIN PUBLIC KEY-----" not in text:
                raise InputError(f"{file} is no public key; PEM that begins with -----BEGIN PUBLIC KEY----- would be right")
            keys.append(text)
        return keys
