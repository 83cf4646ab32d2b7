"""Ansible inventory plugin: a cluster.yml is an inventory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.template import trust_as_template
from yaml import YAMLError, safe_load

DOCUMENTATION = """
name: gridstead
short_description: The nodes of a Gridstead cluster
description:
  - Reads a C(cluster.yml), or a file of another name that says what one says (C(name) and C(nodes)), asks its provider what exists, and gives a group for each node kind and each service, with
    the variables that the roles use. C(group_vars/) and C(host_vars/) beside the file count, as with any inventory.
options: {}
"""

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]  # ansible-core has no type information
    """See DOCUMENTATION."""

    NAME = "gridstead"

    def verify_file(self, path: str) -> bool:
        """A file named cluster.yml is for this plugin, and any other one that is a cluster.yml by what it says."""
        if not super().verify_file(path):
            return False
        if Path(path).name == "cluster.yml":
            return True
        try:
            content = safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, YAMLError):
            return False
        return isinstance(content, dict) and isinstance(content.get("name"), str) and isinstance(content.get("nodes"), dict)

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Fill the inventory."""
        super().parse(inventory, loader, path, cache)
        from gridstead.cluster.errors import GridsteadError
        from gridstead.cluster.inventory import DECLARED
        from gridstead.cluster.progress import Progress
        from gridstead.cluster.site import Site

        try:
            site = Site.open(Path(path), Progress(quiet=True))
            listing = site.inventory(declared=DECLARED in os.environ)
            # This process is Ansible's from here on; a `down` that it runs could not clean up after the last node otherwise.
            site.provider.release()
        except GridsteadError as error:
            raise AnsibleParserError(str(error)) from error
        for name, value in listing["all"]["vars"].items():
            inventory.set_variable("all", name, _trusted(value))
        for group in listing["all"]["children"]:
            inventory.add_group(group)
            for host in listing[group]["hosts"]:
                inventory.add_host(host, group)
        for host, variables in listing["_meta"]["hostvars"].items():
            for name, value in variables.items():
                inventory.set_variable(host, name, _trusted(value))


def _trusted(value: Any) -> Any:
    """The value with its strings marked as the operator's own, as those of group_vars are.

    Without the mark, ansible-inventory shows every string wrapped ({"__ansible_unsafe": ...}), which testinfra and other
    readers do not know. The class attribute ``trusted_by_default`` would do, but ansible-core 2.19 keeps the setting of the
    inventory source that it happens to read first for all sources.
    """
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, Mapping):
        return {key: _trusted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_trusted(item) for item in value]
    return value
