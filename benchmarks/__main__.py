"""`python3 -m benchmarks`: what `make bench` runs."""

import sys

from benchmarks.linear import main

sys.exit(main())
