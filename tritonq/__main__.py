"""`python -m tritonq` is `tritonq`."""

import sys

from tritonq.cli import main

if __name__ == "__main__":
    sys.exit(main())
