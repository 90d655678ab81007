"""A hash of this package's files, under which machine code is kept on disk.

A process may outlive the files it imported: an upgrade or an edit replaces them while it runs. Its machine code must
then not be kept under the new files' hash, where a later process would run old code with new arguments.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def hash_of_files() -> str:
    """Of the files as they are now."""
    found = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


_imported = hash_of_files()


def imported_hash() -> str | None:
    """The hash of the files this process imported; None if they have changed since."""
    return _imported if hash_of_files() == _imported else None
