"""`python -m shade_fast.cli`."""

import sys

from shade_fast.cli.program import main

sys.exit(main())
