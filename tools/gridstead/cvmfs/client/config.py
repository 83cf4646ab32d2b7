"""The configuration, from the same files as the official client's.

They are shell files and are read by a shell, in the official order (doc-cvmfs, "Client Configuration"): default.conf,
default.d/*.conf, default.local, then domain.d/DOMAIN and config.d/REPOSITORY, each .conf before .local.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from gridstead.cvmfs.client.routes import parse_proxies, parse_servers
from gridstead.cvmfs.client.transfer import Timing
from gridstead.cvmfs.errors import InputError
from gridstead.cvmfs.manifest import is_fqrn

DIRECTORY = Path("/etc/cvmfs")

#: The official default.conf's values, where they mean something here.
_DEFAULTS = {
    "CVMFS_CACHE_BASE": "/var/lib/cvmfs",
    "CVMFS_QUOTA_LIMIT": "4000",
    "CVMFS_TIMEOUT": "5",
    "CVMFS_TIMEOUT_DIRECT": "10",
    "CVMFS_SHARED_CACHE": "yes",
    "CVMFS_CHECK_PERMISSIONS": "yes",
    "CVMFS_CLAIM_OWNERSHIP": "yes",
    "CVMFS_KEYS_DIR": "/etc/cvmfs/keys",
    "CVMFS_PROXY_RESET_AFTER": "300",
    "CVMFS_HOST_RESET_AFTER": "1800",
    "CVMFS_MAX_RETRIES": "1",
    "CVMFS_BACKOFF_INIT": "2",
    "CVMFS_BACKOFF_MAX": "10",
    "CVMFS_LOW_SPEED_LIMIT": "1024",
    "CVMFS_KCACHE_TIMEOUT": "60",
    "CVMFS_NFILES": "65536",
    "CVMFS_USER": "cvmfs",
    "CVMFS_MOUNT_DIR": "/cvmfs",
}
_YES, _NO = ("yes", "on", "1", "true"), ("no", "off", "0", "false", "")
#: Prints what the files set: NAME=VALUE, ended by NUL. Variables that a file exports are for links (``$(VAR)``).
_SCRIPT = """
set -e
for file; do . "$file"; done
set +e
for name in $(compgen -A variable CVMFS_; compgen -e); do printf '%s=%s\\0' "$name" "${!name}"; done
"""
_OURS = frozenset({"PATH", "PWD", "OLDPWD", "SHLVL", "_"})


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
        user: whom the client runs as; root when there is no such user.
        open_files: how many files the client may have open.
        environment: variables for links.
        blacklist: fingerprints of certificates that are not trusted any more.
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
    environment: dict[str, str] = field(default_factory=dict)
    blacklist: frozenset[str] = frozenset()


def load(fqrn: str, directory: Path = DIRECTORY, settings: dict[str, str] | None = None) -> Configuration:
    """The configuration of a repository.

    Args:
        fqrn: its fully qualified name; without a domain, CVMFS_DEFAULT_DOMAIN is added.
        directory: where the files are.
        settings: what is to have precedence over the files.

    Raises:
        InputError: a file or a value is wrong or missing.
    """
    first = _read([directory / "default.conf", *sorted((directory / "default.d").glob("*.conf")), directory / "default.local"])
    if "." not in fqrn and first.get("CVMFS_DEFAULT_DOMAIN"):
        fqrn = f"{fqrn}.{first['CVMFS_DEFAULT_DOMAIN']}"
    if not is_fqrn(fqrn) or "." not in fqrn:
        raise InputError(f"'{fqrn}' is no repository; a name with its domain, such as sw.grid.test, would be right")
    parts = [("domain.d", fqrn.partition(".")[2]), ("config.d", fqrn)]
    files = [directory / kind / f"{name}.{suffix}" for kind, name in parts for suffix in ("conf", "local")]
    base = [directory / "default.conf", *sorted((directory / "default.d").glob("*.conf")), directory / "default.local"]
    found = {**_DEFAULTS, **_read([*base, *files]), **(settings or {})}
    return _Values(found, directory).configuration(fqrn)


def _read(files: list[Path]) -> dict[str, str]:
    """What shell files set."""
    there = [str(file) for file in files if file.is_file()]
    if not there:
        return {}
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **{k: v for k, v in os.environ.items() if k.startswith("CVMFS_")}}
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
    return {name: value for name, _, value in pairs if name and name not in _OURS}


class _Values:
    """Values by name, each checked when it is asked for."""

    def __init__(self, found: dict[str, str], directory: Path) -> None:
        self._found = found
        self._directory = directory

    def text(self, name: str) -> str:
        return self._found.get(name, "").strip()

    def number(self, name: str, low: float = 0) -> float:
        try:
            value = float(self.text(name))
        except ValueError:
            value = low - 1
        if not low <= value < 1e15:
            raise InputError(f"{name} is '{self.text(name)}'; a number from {low:g} on would be right")
        return value

    def yes(self, name: str) -> bool:
        value = self.text(name).lower()
        if value not in _YES + _NO:
            raise InputError(f"{name} is '{self.text(name)}'; yes or no would be right")
        return value in _YES

    def path(self, name: str) -> Path:
        if not self.text(name).startswith("/"):
            raise InputError(f"{name} is '{self.text(name)}'; an absolute path would be right")
        return Path(self.text(name))

    def configuration(self, fqrn: str) -> Configuration:
        if not self.text("CVMFS_SERVER_URL"):
            raise InputError(
                f"CVMFS_SERVER_URL is not set for {fqrn}",
                hint=f"set it in {self._directory / 'config.d' / fqrn}.conf or for its domain, such as http://server/cvmfs/@fqrn@",
            )
        if not self.text("CVMFS_HTTP_PROXY"):
            raise InputError(
                "CVMFS_HTTP_PROXY is not set", hint=f"set it in {self._directory / 'default.local'}: http://proxy:3128, or DIRECT for none"
            )
        fallback = self.text("CVMFS_FALLBACK_PROXY")
        proxies = parse_proxies(self.text("CVMFS_HTTP_PROXY"), fallback)
        external = self.text("CVMFS_EXTERNAL_URL")
        base = self.path("CVMFS_CACHE_BASE")
        directory = self.path("CVMFS_CACHE_DIR") if self.text("CVMFS_CACHE_DIR") else None
        shared = self.yes("CVMFS_SHARED_CACHE") and directory is None
        quota = self.number("CVMFS_QUOTA_LIMIT", -1)
        max_ttl = self.text("CVMFS_MAX_TTL")
        return Configuration(
            fqrn=fqrn,
            servers=parse_servers(self.text("CVMFS_SERVER_URL"), fqrn),
            proxies=proxies,
            external_servers=parse_servers(external, fqrn) if external else [],
            external_proxies=parse_proxies(self.text("CVMFS_EXTERNAL_HTTP_PROXY") or "DIRECT"),
            timing=self._timing(),
            keys=self._keys(fqrn),
            cache=directory or base / ("shared" if shared else fqrn),
            state=(directory or base) / f"state.{fqrn}",
            quota=None if quota < 0 else int(quota * 2**20),
            mountpoint=self.path("CVMFS_MOUNT_DIR") / fqrn,
            max_ttl=self.number("CVMFS_MAX_TTL") * 60 or None if max_ttl else None,
            kernel_timeout=self.number("CVMFS_KCACHE_TIMEOUT"),
            claim_ownership=self.yes("CVMFS_CLAIM_OWNERSHIP"),
            check_permissions=self.yes("CVMFS_CHECK_PERMISSIONS"),
            user=self.text("CVMFS_USER") or "root",
            open_files=int(self.number("CVMFS_NFILES", 256)),
            environment={name: value for name, value in self._found.items() if not name.startswith("CVMFS_")},
            blacklist=self._blacklist(),
        )

    def _timing(self) -> Timing:
        return Timing(
            proxy=self.number("CVMFS_TIMEOUT", 0.1),
            direct=self.number("CVMFS_TIMEOUT_DIRECT", 0.1),
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

    def _blacklist(self) -> frozenset[str]:
        """Fingerprints of revoked certificates (/etc/cvmfs/blacklist); its lines for whole repositories are not for clients."""
        file = self._directory / "blacklist"
        try:
            lines = file.read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from None
        return frozenset(words[0].upper() for words in map(str.split, lines) if words and ":" in words[0])
