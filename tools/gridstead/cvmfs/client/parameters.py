"""The parameters of the client's configuration: those that are gone by, and what is said of the others.

The names and defaults are the official client's (doc-cvmfs, "Client parameters"; mount/default.conf). None that would change what a mount shows, to
whom, or where it keeps what it has, is passed over in silence.
"""

from __future__ import annotations

import difflib
import enum
import re
from typing import TYPE_CHECKING, NamedTuple

from gridstead.cvmfs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

YES, NO = ("yes", "on", "1", "true"), ("no", "off", "0", "false", "")


class Kind(enum.Enum):
    """What is done with a parameter."""

    TEXT = "text"
    NUMBER = "number"
    SWITCH = "yes or no"
    PATH = "absolute path"
    #: It would change what is shown, to whom, or where it is kept: whoever sets it is told that it cannot be had.
    REFUSED = "refused"
    #: It has no effect here, and who sets it may think that it has.
    WITHOUT_EFFECT = "without effect"
    #: For other programs of the official client, or for what works otherwise here: nothing is said.
    FOREIGN = "foreign"


class Parameter(NamedTuple):
    """A parameter.

    Attributes:
        kind: what is done with it.
        default: its value when nobody sets it.
        low: the lowest number that it may be.
        about: what somebody who sets it wants, where that cannot be had.
    """

    kind: Kind
    default: str = ""
    low: float = 0
    about: str = ""


def _text(default: str = "") -> Parameter:
    return Parameter(Kind.TEXT, default)


def _number(default: str, low: float = 0) -> Parameter:
    return Parameter(Kind.NUMBER, default, low)


def _switch(default: str) -> Parameter:
    return Parameter(Kind.SWITCH, default)


def _path(default: str = "") -> Parameter:
    return Parameter(Kind.PATH, default)


def _refused(about: str) -> Parameter:
    return Parameter(Kind.REFUSED, about=about)


def _without_effect(about: str) -> Parameter:
    return Parameter(Kind.WITHOUT_EFFECT, about=about)


_FOREIGN = """
ARCH AUTHZ_HELPER AUTHZ_SEARCH_PATH BASE_ENV CACHE_SYMLINKS CATALOG_WATERMARK CLIENT_PROFILE CONFIG_REPO_DEFAULT_ENV CONFIG_REPO_REQUIRED CPU_AFFINITY
CWD_CACHE DNS_MAX_TTL DNS_MIN_TTL DNS_RETRIES DNS_ROAMING DNS_TIMEOUT ENABLE_FUSE3_CACHE_READDIR ENABLE_FUSE3_LOOP_CONFIG FQRN FUSE3_IDLE_THREADS
FUSE3_MAX_THREADS FUSE_NOTIFY_INVALIDATION INITIAL_GENERATION LIBRARY_PATH MAX_IPADDR_PER_PROXY MEMCACHE_SIZE NFS_INTERLEAVED_INODES NFS_SHARED
OOM_SCORE_ADJ RELOAD_SOCKETS REPOSITORIES REPOSITORY_NAME SEND_INFO_HEADER STATFS_CACHE_TIMEOUT STRICT_MOUNT SYSLOG_FACILITY SYSLOG_LEVEL SYSLOG_PREFIX
SYSTEMD_NOKILL TALK_OWNER TALK_SOCKET TELEMETRY_RATE TRACEBUFFER TRACEBUFFER_THRESHOLD USE_CDN USE_SSL_SYSTEM_CA XATTR_PRIVILEGED_GIDS
"""

PARAMETERS: dict[str, Parameter] = {
    f"CVMFS_{name}": parameter
    for name, parameter in {
        # What is mounted, and from where
        "AUTO_UPDATE": _switch("yes"),
        "DEFAULT_DOMAIN": _text(),
        "MOUNT_DIR": _path("/cvmfs"),
        "REPOSITORY_DATE": _text(),
        "REPOSITORY_TAG": _text(),
        "ROOT_HASH": _text(),
        "SERVER_URL": _text(),
        "EXTERNAL_URL": _text(),
        # Trust
        "BLACKLIST": _path(),
        "KEYS_DIR": _path("/etc/cvmfs/keys"),
        "PUBLIC_KEY": _text(),
        # Downloads
        "BACKOFF_INIT": _number("2"),
        "BACKOFF_MAX": _number("10"),
        "EXTERNAL_FALLBACK_PROXY": _text(),
        "EXTERNAL_HTTP_PROXY": _text(),
        "EXTERNAL_TIMEOUT": _number("", 0.1),
        "EXTERNAL_TIMEOUT_DIRECT": _number("", 0.1),
        "FALLBACK_PROXY": _text(),
        "HOST_RESET_AFTER": _number("1800"),
        "HTTP_PROXY": _text(),
        "LOW_SPEED_LIMIT": _number("1024"),
        "MAX_RETRIES": _number("1"),
        "MAX_TTL": _number(""),
        "PROXY_RESET_AFTER": _number("300"),
        "TIMEOUT": _number("5", 0.1),
        "TIMEOUT_DIRECT": _number("10", 0.1),
        # The cache
        "CACHE_BASE": _path("/var/lib/cvmfs"),
        "CACHE_DIR": _path(),
        "QUOTA_LIMIT": _number("4000", -1),
        "SHARED_CACHE": _switch("yes"),
        # The mount
        "CHECK_PERMISSIONS": _switch("yes"),
        "CLAIM_OWNERSHIP": _switch("yes"),
        "HIDE_MAGIC_XATTRS": _text(),
        "KCACHE_TIMEOUT": _number("60"),
        "MAGIC_XATTRS_VISIBILITY": _text("rootonly"),
        "NFILES": _number("65536", 256),
        "USER": _text("cvmfs"),
        # What cannot be had
        "ALIEN_CACHE": _refused("a cache that other programs fill"),
        "ALT_ROOT_PATH": _refused("a root catalogue under another path"),
        "CACHE_PRIMARY": _refused("a cache of another kind"),
        "CONFIG_REPOSITORY": _refused("configuration from a repository"),
        "ENFORCE_ACLS": _refused("access control lists"),
        "GID_MAP": _refused("other groups"),
        "MOUNT_RW": _refused("a mount that looks writable"),
        "NFS_SOURCE": _refused("a mount that can be exported by NFS"),
        "SUID": _refused("programs that run with their owner's rights"),
        "UID_MAP": _refused("other owners"),
        "WORLD_READABLE": _refused("other modes"),
        "XATTR_PROTECTED_XATTRS": _refused("attributes that only some may read"),
        "DEBUGLOG": _without_effect("the log is the journal's; --verbose says more"),
        "DNS_SERVER": _without_effect("names are looked up as the host does"),
        "EXTERNAL_MAX_SERVERS": _without_effect("all servers are used"),
        "FAILOVER_INDEFINITELY": _without_effect("a read that nobody answers fails in the end"),
        "FOLLOW_REDIRECTS": _without_effect("redirections are not followed"),
        "IGNORE_SIGNATURE": _without_effect("signatures are always verified"),
        "INSTRUMENT_FUSE": _without_effect("calls are not measured"),
        "IPFAMILY_PREFER": _without_effect("addresses are used in the order that the host gives them"),
        "IPV4_ONLY": _without_effect("addresses are used in the order that the host gives them"),
        "MAX_SERVERS": _without_effect("all servers are used"),
        "NOTIFICATION_SERVER": _without_effect("new revisions are looked for in time only"),
        "PROXY_SHARD": _without_effect("proxies of a group are chosen at random"),
        "PROXY_SHARDING_POLICY": _without_effect("proxies of a group are chosen at random"),
        "PROXY_TEMPLATE": _without_effect("there are no templates in URLs"),
        "STREAMING_CACHE": _without_effect("everything is cached"),
        "TELEMETRY_SEND": _without_effect("no telemetry is sent"),
        "TRACEFILE": _without_effect("calls are not traced"),
        "TRUSTED_CERTS": _without_effect("whitelists with chains of certificates are refused"),
        "USE_GEOAPI": _without_effect("servers are asked in the order given"),
        "WORKSPACE": _without_effect("there is only the cache directory"),
        **{name: Parameter(Kind.FOREIGN) for name in _FOREIGN.split()},
    }.items()
}
#: Those with a default.
DEFAULTS = {name: parameter.default for name, parameter in PARAMETERS.items() if parameter.default}
#: Parameters of a cache by its name, of NFS and of helpers: they come with one that is refused, or mean nothing.
_FAMILIES = re.compile(r"CVMFS_(CACHE|AUTHZ|NFS|TELEMETRY|TRACE|DEVEL|HTTP_TRACING)_\w+", re.ASCII)


def remarks(found: Mapping[str, str]) -> list[str]:
    """What is to be said of parameters that are set and have no effect.

    Args:
        found: all parameters by name.

    Raises:
        InputError: one is set that would change what the mount is, and cannot be had.
    """
    said = []
    for name, value in sorted(found.items()):
        parameter = PARAMETERS.get(name)
        if value.strip().lower() in NO:
            continue
        if parameter is None:
            near = (
                difflib.get_close_matches(name, PARAMETERS, 1, 0.9) if name.startswith("CVMFS_") and not _FAMILIES.fullmatch(name) else []
            )
            said += [f"{name} is no parameter that is known; {near[0]} would be one" for _ in near]
        elif parameter.kind is Kind.REFUSED:
            raise InputError(
                f"{name} is '{value}', but this client does not do {parameter.about}", hint="take it out, or use the official client"
            )
        elif parameter.kind is Kind.WITHOUT_EFFECT:
            said.append(f"{name} has no effect: {parameter.about}")
    return said
