"""Gridstead: a whole grid site from one command."""

__version__ = "0.1.0"
