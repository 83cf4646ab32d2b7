"""Nodes as systemd containers on this machine."""
