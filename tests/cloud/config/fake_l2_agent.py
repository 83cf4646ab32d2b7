#!/usr/bin/python3
"""Neutron's L2 agent for the hosts of the fake zone: their servers have no interfaces, so there is nothing to plug.

It reports each host as a living Linux bridge agent, so that ML2 binds ports there, and reports a port as wired as soon
as it is bound, so that it becomes ACTIVE as a real one does. The protocol is neutron's own (neutron.agent.rpc).

    fake_l2_agent.py --config-file /etc/neutron/neutron.conf HOST...
"""

# ruff: noqa: E402  (eventlet patches what is imported after it)
from neutron.common import eventlet_utils

eventlet_utils.monkey_patch()

import sys

import eventlet
import oslo_messaging
from neutron.agent import rpc as agent_rpc
from neutron.common import config
from neutron.conf.agent import common as agent_config
from neutron_lib import constants, context
from neutron_lib.agent import topics
from oslo_config import cfg
from oslo_log import log

LOG = log.getLogger(__name__)


class Agent:
    """All the fake hosts' agents.

    Args:
        hosts: their names.
    """

    target = oslo_messaging.Target(version="1.5")

    def __init__(self, hosts):
        self.hosts = frozenset(hosts)
        self.context = context.get_admin_context_without_session()
        self.state = agent_rpc.PluginReportStateAPI(topics.REPORTS)
        self.plugin = agent_rpc.PluginApi(topics.PLUGIN)
        self.start_flags = dict.fromkeys(hosts, True)
        self.connection = agent_rpc.create_consumers([self], topics.AGENT, [[topics.PORT, topics.UPDATE]])

    def report(self):
        """Say that every host's agent lives."""
        for host in self.hosts:
            state = {
                "binary": "neutron-linuxbridge-agent",
                "agent_type": constants.AGENT_TYPE_LINUXBRIDGE,
                "host": host,
                "topic": constants.L2_AGENT_TOPIC,
                "configurations": {"bridge_mappings": {"public": "br-ex"}, "interface_mappings": {}, "tunnel_types": []},
            }
            if self.start_flags[host]:
                state["start_flag"] = True
            try:
                # A call, not a cast: that the server has heard it is what counts at the start.
                self.state.report_state(self.context, state, use_call=self.start_flags[host])
                self.start_flags[host] = False
            except Exception:  # the server is away: the next report comes
                LOG.exception("no report for %s", host)

    def port_update(self, context, **kwargs):  # noqa: ARG002  (oslo.messaging passes it)
        """A port has changed; when it is bound to one of the hosts and not yet up, it is up now."""
        port = kwargs["port"]
        host = port.get("binding:host_id")
        if host in self.hosts and port["status"] != constants.PORT_STATUS_ACTIVE and port["admin_state_up"]:
            eventlet.spawn_n(self._wired, port["id"], host)

    def _wired(self, port, host):
        try:
            self.plugin.update_device_up(self.context, port, f"lb-{host}", host)
        except Exception:  # as with every agent: the port stays DOWN, the server's log says why
            LOG.exception("port %s is not reported as up", port)


def main():
    """Report until killed."""
    agent_config.register_agent_state_opts_helper(cfg.CONF)
    config.register_common_config_options()
    hosts = [word for word in sys.argv[1:] if word.startswith("fake")]
    config.init([word for word in sys.argv[1:] if word not in hosts])
    config.setup_logging()
    agent = Agent(hosts)
    while True:
        agent.report()
        eventlet.sleep(cfg.CONF.AGENT.report_interval)


main()
