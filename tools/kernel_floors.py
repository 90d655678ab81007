"""Check that each folder of `kernels/` imports only from folders below it, and never from the rest of tritonq.

import-linter, which checks the other folders, does not see `kernels/`: it has no `__init__.py`.

    python tools/kernel_floors.py [folder of kernels]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

#: From the top down. A folder may import from itself and from every folder behind it.
FLOORS = ("matmul", "hopper", "rows", "config", "blocks", "launch")
PACKAGE = "tritonq.kernels"


def main(root: Path) -> int:
    """Print every forbidden import; 1 if there is any, else 0."""
    found = [line for path in sorted(root.rglob("*.py")) for line in violations(path.relative_to(root), root)]
    print("\n".join(found) or f"kernels: every import goes down ({' > '.join(FLOORS)})")
    return 1 if found else 0


def violations(path: Path, root: Path) -> Iterator[str]:
    """A line for every import of the file `path` (relative to `root`) that its folder may not have."""
    if path.parts[0] not in FLOORS:
        yield f"{path}: not in one of the folders {', '.join(FLOORS)}"
        return
    allowed = FLOORS[FLOORS.index(path.parts[0]) :]
    package = [*PACKAGE.split("."), *path.parent.parts]
    for node in ast.walk(ast.parse((root / path).read_text())):
        for module in imported(node, package):
            if module.split(".")[0] != "tritonq":
                continue
            folder = module.removeprefix(PACKAGE + ".").split(".")[0]
            if not module.startswith(PACKAGE + ".") or folder not in allowed:
                yield f"{path}:{node.lineno}: {path.parts[0]} must not import {module}"  # type: ignore[attr-defined]


def imported(node: ast.AST, package: list[str]) -> Iterator[str]:
    """The modules that an import statement names, in full."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) + 1 - node.level] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        # `from ..launch import target` and `from .. import launch` name a module each.
        yield from (f"{module}.{alias.name}" for alias in node.names)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "kernels"))
