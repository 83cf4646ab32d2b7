#!/usr/bin/python
"""Ansible module: the cluster engine."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: gridstead_cluster
short_description: Make or take away the nodes, networks and volumes of a cluster.yml
description:
  - The same engine as C(tools/cluster up --no-configure) and C(tools/cluster down). Runs on the controller, with the
    interpreter that runs Ansible. In check mode it returns the plan and changes nothing.
options:
  spec:
    description: The cluster.yml.
    type: path
    required: true
  root:
    description: The tools directory of the checkout, to find the engine in; by default where this module lies.
    type: path
  state:
    description: V(present) builds and repairs, V(absent) takes away.
    choices: [present, absent]
    default: present
    type: str
  replace:
    description: Nodes to make anew.
    type: list
    elements: str
    default: []
  volumes:
    description: With O(state=absent), also remove the block volumes with all that is on them.
    type: bool
    default: false
  confirmed:
    description: With O(volumes=true), that the data may go; a site that holds any is refused without it.
    type: bool
    default: false
  adopt:
    description: Take the cluster over that another state directory's marks are on.
    type: bool
    default: false
author:
  - Gridstead developers (@gridstead)
"""

EXAMPLES = """
- name: Build the nodes
  gridstead_cluster:
    spec: inventories/local/cluster.yml
"""

RETURN = """
plan:
  description: The steps that were, or in check mode would be, carried out.
  returned: always
  type: list
  elements: dict
  sample: [{action: create, kind: node, name: compute001, why: not there yet}]
"""


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "spec": {"type": "path", "required": True},
            "root": {"type": "path"},
            "state": {"choices": ["present", "absent"], "default": "present"},
            "replace": {"type": "list", "elements": "str", "default": []},
            "volumes": {"type": "bool", "default": False},
            "confirmed": {"type": "bool", "default": False},
            "adopt": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    # The virtual environment has the package installed; without it, the checkout beside the cluster.yml's project.
    if module.params["root"]:
        sys.path.insert(0, module.params["root"])
    try:
        from gridstead.cluster import plan as planning
        from gridstead.cluster.errors import GridsteadError
        from gridstead.cluster.progress import Progress
        from gridstead.cluster.resources import Kind
        from gridstead.cluster.site import Site, find_spec
    except ImportError as error:
        module.fail_json(msg=f"the engine cannot be loaded ({error}): run this from the project's virtual environment")
    params = module.params
    try:
        site = Site.open(find_spec(str(Path(params["spec"]))), Progress(quiet=True))
        if module.check_mode:
            if params["state"] == "present":
                plan, _ = site.plan(params["replace"])
            else:
                keep = [] if params["volumes"] else [Kind.VOLUME]
                plan = planning.teardown(site.provider.observe(), keep=keep)
        elif params["state"] == "present":
            plan = site.up(replace=params["replace"], configure=False, adopt=params["adopt"]).plan
        else:
            if params["volumes"] and not params["confirmed"]:
                site.confirm_loss(ask=None)
            plan = site.down(volumes=params["volumes"], adopt=params["adopt"])
    except GridsteadError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(plan), plan=[step.as_json() for step in plan.told()])


if __name__ == "__main__":
    main()
