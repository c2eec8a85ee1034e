"""`python -m fivefold` is the program `fivefold`."""

import sys

from fivefold.cli import main

sys.exit(main())
