"""`python3 -m benchmarks.llm`."""

import sys

from benchmarks.llm.command import main

sys.exit(main())
