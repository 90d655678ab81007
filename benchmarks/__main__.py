"""`python3 -m benchmarks`, which `make bench` runs."""

import sys

from benchmarks.linear.command import main

sys.exit(main())
