"""Ansible callback: loads once, before Ansible forks, what each of its forks would load again."""

from __future__ import annotations

import gc

from ansible.collections.list import list_collection_dirs
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader, test_loader

DOCUMENTATION = """
name: gridstead_preload
type: notification
short_description: Plugins loaded once instead of in each worker
description:
  - Ansible forks a worker for each task on each host, and each loads the Jinja filters and tests of its templates anew; with the fast
    strategy, those that run a collection's module also read the metadata of all collections. What the parent has loaded they share.
  - Changes nothing but time.
requirements:
  - needs enabling, which C(tools/cluster) does
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible-core has no type information
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "gridstead_preload"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook: object) -> None:  # noqa: ARG002 - Ansible passes it by name
        """Load."""
        list(filter_loader.all())
        list(test_loader.all())
        list(list_collection_dirs())
        # Their memory stays shared: a collection in a worker would touch, and so copy, every page of it.
        gc.freeze()
