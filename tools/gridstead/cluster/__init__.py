"""The cluster engine: from a cluster.yml to running, configured nodes.

The data flows spec -> (provider) observe -> plan -> apply -> inventory -> Ansible.
"""
