"""A hash of this package's files, which is part of the name of cached machine code.

An upgrade or an edit may replace the files while a process runs. The process must not cache its machine code under the
hash of the new files: a later process would run old code with new arguments.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def hash_of_files() -> str:
    """The hash of the files as they are on disk now."""
    found = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


_imported = hash_of_files()


def imported_hash() -> str | None:
    """The hash of the files this process imported; None if they have changed since."""
    return _imported if hash_of_files() == _imported else None
