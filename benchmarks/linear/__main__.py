"""`python3 -m benchmarks.linear`."""

import sys

from benchmarks.linear.command import main

sys.exit(main())
