"""The services: what they run, what they need, and supervisord, which keeps them running."""

from __future__ import annotations

import http.client
import socket
import time
import xmlrpc.client
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.machine import Machine
from cloud.settings import FAKE_HOSTS
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.progress import Progress

_NEUTRON = "/etc/neutron/neutron.conf"
_ML2 = "/etc/neutron/plugins/ml2/ml2_conf.ini"
_LINUXBRIDGE = "/etc/neutron/plugins/ml2/linuxbridge_agent.ini"
_NOVA = "/etc/nova/nova.conf"
_NOVA_CPU = "/etc/nova/nova-cpu.conf"
_CINDER = "/etc/cinder/cinder.conf"


@dataclass(frozen=True)
class Service:
    """One service.

    Args:
        name: supervisord's name for it, and its log's.
        stage: services start stage by stage: store, identity, api, fake, real.
        command: the command line, in supervisord's syntax.
        files: configuration files it reads; it is started again when one changes.
        port: where it listens, when others wait for that.
        user: who it runs as, when not root.
        environment: in supervisord's syntax.
    """

    name: str
    stage: str
    command: str
    files: tuple[str, ...]
    port: int | None = None
    user: str = ""
    environment: str = ""


def _wsgi(name: str, stage: str, port: int, application: str, processes: int, *files: str) -> Service:
    # Each answer ends its connection: uwsgi's own HTTP socket does not keep one, and a client that is not told finds out the hard way.
    command = (
        f"uwsgi_python3 --http-socket 0.0.0.0:{port} --wsgi-file /usr/bin/{application} --master --lazy-apps --enable-threads"
        f" --processes {processes} --die-on-term --buffer-size 65535 --thunder-lock --listen 100 --need-app --disable-logging"
        ' --add-header "Connection: close"'
    )
    return Service(name, stage, command, files, port=port)


def _program(name: str, stage: str, *files: str, program: str = "", arguments: str = "", port: int | None = None) -> Service:
    options = "".join(f" --config-file {file}" for file in files)
    return Service(name, stage, f"{program or name}{options}{arguments}", files, port=port)


#: In the order of their start. Stages are groups that need the ones before; `fake` and `real` are the zones.
SERVICES = (
    Service("mariadb", "store", "mariadbd --user=mysql", ("/etc/mysql/mariadb.conf.d/99-gridstead.cnf",), port=3306),
    Service(
        *("rabbitmq", "store", "/usr/lib/rabbitmq/bin/rabbitmq-server"),
        files=("/etc/rabbitmq/rabbitmq.conf", "/etc/rabbitmq/rabbitmq-env.conf"),
        port=5672,
        user="rabbitmq",
        environment='HOME="/var/lib/rabbitmq"',
    ),
    Service("memcached", "store", "memcached -u nobody -m 64 -l 127.0.0.1", (), port=11211),
    Service(
        *("dns", "store", "nsenter --net=/run/host-net dnsmasq --keep-in-foreground --conf-file=/etc/gridstead/dnsmasq.conf"),
        files=("/etc/gridstead/dnsmasq.conf", "/etc/gridstead/resolv.conf", "/etc/gridstead/host-names"),
    ),
    _wsgi("keystone", "identity", 5000, "keystone-wsgi-public", 2, "/etc/keystone/keystone.conf"),
    _wsgi("placement", "api", 8778, "placement-api", 1, "/etc/placement/placement.conf"),
    _program("neutron-server", "api", _NEUTRON, _ML2, port=9696),
    _wsgi("nova-api", "api", 8774, "nova-api-wsgi", 3, _NOVA),
    _program("nova-conductor", "api", _NOVA),
    _program("nova-scheduler", "api", _NOVA),
    _program("glance-api", "api", "/etc/glance/glance-api.conf", port=9292),
    _wsgi("cinder-api", "api", 8776, "cinder-wsgi", 2, _CINDER),
    _program("cinder-scheduler", "api", _CINDER),
    _program("cinder-volume", "api", _CINDER),
    _program("fake-l2-agent", "fake", _NEUTRON, program="gridstead-fake-l2-agent", arguments=f" {' '.join(FAKE_HOSTS)}"),
    *(_program(f"nova-compute-{host}", "fake", _NOVA_CPU, f"/etc/nova/nova-{host}.conf", program="nova-compute") for host in FAKE_HOSTS),
    Service("libvirtd", "real", "libvirtd", ("/etc/libvirt/libvirtd.conf", "/etc/libvirt/qemu.conf")),
    _program("neutron-linuxbridge-agent", "real", _NEUTRON, _ML2, _LINUXBRIDGE),
    _program("neutron-dhcp-agent", "real", _NEUTRON, "/etc/neutron/dhcp_agent.ini"),
    _program("neutron-l3-agent", "real", _NEUTRON, "/etc/neutron/l3_agent.ini"),
    _program("neutron-metadata-agent", "real", _NEUTRON, "/etc/neutron/metadata_agent.ini"),
    _wsgi("nova-metadata", "real", 8775, "nova-metadata-wsgi", 1, _NOVA),
    _program("nova-compute-real", "real", _NOVA_CPU, "/etc/nova/nova-real.conf", program="nova-compute"),
)


def of_stages(*stages: str) -> list[Service]:
    """The services of these stages, in the order of their start."""
    return [service for service in SERVICES if service.stage in stages]


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:  # noqa: ARG002  (the base class's signature)
        return _Connection(self._path)


class Supervisor:
    """supervisord in the machine, over its XML-RPC socket.

    Args:
        machine: where it runs.
        logs: the directory of the services' logs.
    """

    def __init__(self, machine: Machine, logs: Path) -> None:
        self.logs = logs
        self._rpc: Any = xmlrpc.client.ServerProxy(
            "http://localhost", transport=_Transport(machine.root / "run/supervisor.sock")
        ).supervisor

    def states(self) -> dict[str, dict[str, Any]]:
        """What supervisord says of each service: statename, pid, start, now, spawnerr."""
        return {entry["name"]: entry for entry in self._rpc.getAllProcessInfo()}

    def outdated(self, root: Path) -> list[str]:
        """The services that run since before one of their configuration files was written.

        By the files' times, so it holds also where the run that wrote them was killed.

        Args:
            root: the root file system.
        """
        states = self.states()

        def written(file: str) -> int:
            return int((root / file.lstrip("/")).stat().st_mtime)  # as whole seconds, like supervisord's

        return [
            service.name
            for service in SERVICES
            if states[service.name]["pid"] and any(written(file) > states[service.name]["start"] for file in service.files)
        ]

    def reload(self) -> None:
        """Take over supervisord's own configuration; services whose command changed are stopped."""
        added, changed, removed = self._rpc.reloadConfig()[0]
        for name in (*changed, *removed):
            self._rpc.stopProcessGroup(name)
            self._rpc.removeProcessGroup(name)
        for name in (*added, *changed):
            self._rpc.addProcessGroup(name)

    def stop(self, names: Iterable[str]) -> None:
        """Stop services that run, all at once; returns when they have ended."""
        states = self.states()
        stopping = [name for name in names if states[name]["statename"] in ("RUNNING", "STARTING", "BACKOFF")]
        for name in stopping:
            self._rpc.stopProcess(name, False)
        # supervisord itself kills what does not end within stopwaitsecs.
        while any(state["pid"] for name, state in self.states().items() if name in stopping):
            time.sleep(0.1)

    def start(self, wanted: Collection[Service], progress: Progress, settle: float = 180) -> None:
        """Start those that do not run; returns once supervisord calls all of them running and their ports answer.

        Raises:
            GridsteadError: one does not stay up; with the last lines of its log.
        """
        states = self.states()
        missing = [service for service in wanted if states[service.name]["statename"] not in ("RUNNING", "STARTING")]
        for service in missing:
            self._rpc.startProcess(service.name, False)
        deadline = time.monotonic() + settle
        while waiting := [service.name for service in wanted if not self._runs(service)]:
            states = self.states()
            failed = [name for name in waiting if states[name]["statename"] in ("FATAL", "EXITED", "UNKNOWN")]
            if failed or time.monotonic() > deadline:
                names = failed or waiting
                raise GridsteadError("\n".join(self.failure(name, states[name]) for name in names))
            time.sleep(0.2)
        if missing:
            progress.say(f"started {', '.join(service.name for service in missing)}")

    def _runs(self, service: Service) -> bool:
        return bool(self._rpc.getProcessInfo(service.name)["statename"] == "RUNNING")

    def failure(self, name: str, state: dict[str, Any]) -> str:
        """What an operator needs to know of a failed service: its name, its state, the end of its log."""
        lines = self.tail(name, 10)
        why = state["spawnerr"] or state["description"]
        return f"service {name} is {state['statename']}: {why}; the end of its log:\n" + "\n".join(f"    {line}" for line in lines)

    def tail(self, name: str, count: int) -> list[str]:
        """The last lines of a service's log."""
        path = self.logs / f"{name}.log"
        return path.read_text(errors="replace").splitlines()[-count:] if path.exists() else []
