"""What all of pytest's runs in this checkout have, those of the roles' scenarios too."""

pytest_plugins = ["gridstead_plugin"]  # tests/gridstead_plugin.py
