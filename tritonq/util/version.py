"""The version of tritonq that runs."""

from importlib import metadata

try:
    VERSION = metadata.version("tritonq")
except metadata.PackageNotFoundError:  # used from a checkout, without an install
    VERSION = "0+unknown"
