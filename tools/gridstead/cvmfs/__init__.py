"""CVMFS: the repository format, a publisher and a client.

Runs on nodes with Python 3.9 or later, from the standard library and ``gridstead.pki`` alone.

Sources of the format: the CernVM-FS documentation (chapter "Implementation Notes") and the official sources, whose files are
named where a rule comes from one.
"""
