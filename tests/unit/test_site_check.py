"""playbooks/validate.yml: what does not fit between roles and hosts is told before anything is changed, all at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

import support
from support import ROOT

PYTHON = Path(sys.executable).parent
SITE_CHECK = support.load(ROOT / "plugins" / "action" / "site_check.py")
SERVICES = {
    **dict.fromkeys(("nfs_server", "slurm_controller", "cvmfs_stratum0", "cvmfs_squid"), "frontend001"),
    **dict.fromkeys(("nfs_client", "slurm_node", "cvmfs_client"), "compute001"),
}


def site(
    shared: dict[str, Any], *, ce: str = "frontend001", client: str = "frontend001", **host: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Two hosts with their variables, and which of them offers a service.

    Args:
        shared: variables of all hosts.
        ce: the host with the CE.
        client: the host with its client.
        host: variables of single hosts.
    """
    always = {"gridstead_flavor": {"cpus": 2, "memory": 1024}, "gridstead_secrets": "/nowhere"}
    names = dict.fromkeys(("frontend001", "compute001", ce))
    hosts = {name: always | {"gridstead_address": f"192.0.2.{n}"} | shared | host.get(name, {}) for n, name in enumerate(names, start=1)}
    return hosts, {**SERVICES, "arc_ce": ce, "arc_client": client}


def mistakes(shared: dict[str, Any], **more: Any) -> list[str]:
    """What does not fit on such a site."""
    loader = DataLoader()
    defaults, options = SITE_CHECK.defaults_of(ROOT / "roles", loader)
    hosts, services = site({"ansible_facts": {"os_family": "Debian"}} | shared, **more)
    groups = {"all": list(hosts)} | {service: [host] for service, host in services.items()}
    table = loader.load_from_file(str(SITE_CHECK.SERVICES))["services"]
    templar = Templar(loader=loader, variables={})
    seen = {host: SITE_CHECK.seen_by_roles(it, defaults, options, templar, groups) for host, it in hosts.items()}
    return [mistake.text for mistake in SITE_CHECK.mistakes(seen, groups, options, table)]


def validate(tmp_path: Path, shared: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run the playbook on such a site."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_remote_tmp": str(tmp_path / "remote")}
    hosts, services = site(local | shared)
    children = {service: {"hosts": {host: None}} for service, host in services.items()}
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts, "children": children}}))
    return subprocess.run(
        [PYTHON / "ansible-playbook", "--inventory", tmp_path / "hosts.yml", ROOT / "playbooks" / "validate.yml"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
    )


def test_the_playbook_passes_a_site_of_defaults(tmp_path: Path) -> None:
    done = validate(tmp_path, {})
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_playbook_tells_all_mistakes_at_once(tmp_path: Path) -> None:
    done = validate(tmp_path, {"arc_ce_queues": ["short"], "arc_ce_user": "nobody"})
    assert done.returncode == 2
    assert "arc_ce_queues has 'short'" in done.stdout
    assert "arc_ce_user is 'nobody'" in done.stdout


def test_the_file_and_line_of_a_variable_are_told(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    variables = tmp_path / "group_vars" / "all.yml"
    variables.write_text("---\narc_ce_user: grid\narc_ce_queues: [short]\n")
    done = validate(tmp_path, {})
    assert f"{variables}:3: frontend001: arc_ce_queues has 'short', which is no partition" in done.stdout.replace("\n      ", " ")


def test_one_share_moves_all_that_lies_on_it() -> None:
    assert mistakes({"gridstead_shares": ["/data"]}) == []


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (
            {"arc_ce_queues": ["main", "short"]},
            "frontend001: arc_ce_queues has 'short', which is no partition: one of slurm_controller_partitions (main) is right",
        ),
        (
            {"arc_ce_session_dir": "/var/session"},
            "arc_ce_session_dir is /var/session, which compute nodes do not see: a directory below a share (/grid) is right",
        ),
        (
            {"gridstead_root": "/gridiron", "arc_ce_session_dir": "/grid/s", "arc_ce_cache_dir": "/grid/c", "arc_ce_runtime_dir": "/grid/r"}
            | {"base_users": [{"name": "grid", "uid": 2000, "home": "/grid/home"}]},
            "gridstead_root is /gridiron, which compute nodes do not see: a directory below a share (/grid) is right",
        ),
        (
            {"arc_ce_user": "nobody"},
            "frontend001: arc_ce_user is 'nobody', whom base_users does not have: one of grid, alice, bob is right",
        ),
        (
            {"gridstead_state": "/grid/state"},
            "frontend001: gridstead_state is /grid/state, on a share: databases and keys belong on the node's own disk or a volume of its own",
        ),
        (
            {"cvmfs_client_repositories": [{"name": "other.grid.test"}]},
            (
                "compute001: cvmfs_client_repositories has other.grid.test, of which nobody knows a server; "
                "frontend001 publishes sw.grid.test: a name of cvmfs_stratum0_repositories is right"
            ),
        ),
        (
            {"cvmfs_client_repositories": [{"name": "atlas.cern.ch"}], "cvmfs_client_domains": {"example.org": {"servers": ["x"]}}},
            (
                "compute001: cvmfs_client_repositories has atlas.cern.ch, of which nobody knows a server; "
                "servers of the repository, or of its domain in cvmfs_client_domains, are right"
            ),
        ),
        (
            {"cvmfs_client_stratum0": ""},
            "compute001: cvmfs_client has no repository to mount: a node with cvmfs_stratum0, or cvmfs_client_repositories with their servers, is right",
        ),
        (
            {"cvmfs_client_stratum0": "", "cvmfs_client_repositories": [{"name": "sw.grid.test"}]},
            (
                "compute001: cvmfs_client_repositories has sw.grid.test, of which nobody knows a server; "
                "no node publishes the site's own: one with cvmfs_stratum0 is right, or servers of its own"
            ),
        ),
        ({"gridstead_os_families": ["RedHat"]}, "frontend001: its OS family is Debian; the roles were run on RedHat only"),
    ],
)
def test_what_does_not_fit_is_told(shared: dict[str, Any], message: str) -> None:
    assert mistakes(shared)[0] == message


def test_a_ce_without_slurms_commands_is_told() -> None:
    assert mistakes({}, ce="other001", client="other001") == [
        (
            "other001: arc_ce needs slurm_client or slurm_controller or slurm_node on the same host, for Slurm's commands, by which it submits: "
            "slurm_client is right"
        ),
        "other001: it sees no shared directories, but arc_ce and slurm_node need them, for the session directories of its jobs: nfs_client is right",
    ]


def test_a_client_of_a_ce_elsewhere_is_told() -> None:
    """INTERNAL writes into the control directory: there is no other host's."""
    found = mistakes({}, client="compute001")
    assert found == ["compute001: arc_client_submission_type is internal, which reaches a CE on the same host only: arc_ce is not there"]
    assert mistakes({"arc_client_submission_type": "arcrest"}, client="compute001") == []


@pytest.mark.parametrize(
    "shared",
    [
        {"cvmfs_client_repositories": [{"name": "sw.grid.test"}, {"name": "a.cern.ch", "servers": ["http://x/cvmfs"]}]},
        {"cvmfs_client_repositories": [{"name": "atlas.cern.ch"}], "cvmfs_client_domains": {"cern.ch": {"servers": ["x"]}}},
    ],
)
def test_repositories_with_servers_fit(shared: dict[str, Any]) -> None:
    assert mistakes(shared) == []


def test_a_shared_variable_of_the_wrong_kind_is_told_by_host_and_name() -> None:
    found = mistakes({}, compute001={"gridstead_address": None, "gridstead_share": "smb"})
    assert len(found) == 2
    assert all(line.startswith("compute001: ") for line in found)
    assert any("gridstead_address" in line for line in found)
    assert any("gridstead_share" in line and "nfs, directory" in line for line in found)


def test_clients_that_ask_a_cache_at_another_port_are_told() -> None:
    found = mistakes({}, frontend001={"cvmfs_squid_port": 3129})
    assert found == ["frontend001: cvmfs_squid_port is 3129, and compute001 asks at port 3128: set gridstead_squid_port for all hosts"]
