"""Ansible action: the certificates of a site, issued by its own authority, on the controller."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Beside the plugins, in the checkout as in the collection.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

#: How a trust anchor's policy file says which names its authority may give.
_POLICY = "access_id_CA X509 '{ca}'\npos_rights globus CA:sign\ncond_subjects globus '{names}'\n"


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core has no type information
    """Makes that certificates are there and valid; returns where they are. Writes only below its directory, keys 0600.

    Arguments: ``directory`` of the authority; ``namespace``, what all its names begin with; ``authority``, the rest of its own; ``days``,
    ``certificate_days`` and ``renew_days``; ``hosts`` and ``users`` that are to have a certificate, ``host-NAME.pem`` or ``user-NAME.pem``
    beside the key of that name; ``trust``, files with certificates of further authorities. Returns ``written``, names of files, and
    ``anchors``, the authorities to trust: ``name``, ``pem`` and ``policy`` (globus's signing policy) of each.
    """

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS: ClassVar[frozenset[str]] = frozenset(
        {"directory", "namespace", "authority", "days", "certificate_days", "renew_days", "hosts", "users", "trust"}
    )

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Issue what is missing or about to expire."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            from gridstead.pki.authority import Authority, Request, subject_of
            from gridstead.pki.errors import PkiError
        except ImportError as error:
            raise AnsibleActionFail(f"the controller's Python has no usable package cryptography: {error}") from None
        given = self._task.args
        pretend = bool(self._task.check_mode)
        try:
            directory = Path(given["directory"])
            space = given["namespace"]
            authority = Authority(directory, f"{space}/CN={given['authority']}", days=int(given["days"]), renew=int(given["renew_days"]))
            wanted = [Request(f"host-{host}", f"{space}/CN={host}", (host,)) for host in given.get("hosts", ())]
            wanted += [Request(f"user-{user}", f"{space}/CN={user}") for user in given.get("users", ())]
            written = authority.ensure(wanted, days=int(given["certificate_days"]), pretend=pretend)
            anchors = [] if pretend and not (directory / "ca.pem").exists() else [("site", directory / "ca.pem")]
            anchors += [(f"trust-{Path(file).stem}", Path(file)) for file in given.get("trust", ())]
            found = []
            for name, file in anchors:
                pem = file.read_bytes()
                # The site's own names those of its own space; whom another one may name is not known here.
                names = f'"{space}/*"' if name == "site" else '"/*"'
                found.append({"name": name, "pem": pem.decode(), "policy": _POLICY.format(ca=subject_of(pem, str(file)), names=names)})
        except PkiError as error:
            raise AnsibleActionFail(str(error)) from None
        except OSError as error:
            raise AnsibleActionFail(f"{error.filename}: {error.strerror}") from None
        return result | {"changed": bool(written), "written": written, "anchors": found}
