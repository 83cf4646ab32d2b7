"""``python -m gridstead.cvmfs``."""

import sys

from gridstead.cvmfs.cli import main

sys.exit(main())
