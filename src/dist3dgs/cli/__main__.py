"""Run the command line: `python -m dist3dgs.cli`."""

import sys

from . import main

sys.exit(main())
