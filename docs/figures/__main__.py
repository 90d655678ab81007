"""`python3 -m docs.figures [--out FOLDER] [NAME …]`: draw figures, and write the numbers in them to figures.json."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path

from docs.figures import style
from docs.figures.material import Material

NAMES = (
    "grid",
    "granularity",
    "ranges",
    "clipping",
    "static_flow",
    "training",
    "layers",
    "sensitivity",
)
IMAGES = Path(__file__).resolve().parents[1] / "images"


def main(arguments: list[str] | None = None) -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(prog="python3 -m docs.figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--out", type=Path, default=IMAGES, help="the folder to write to")
    parser.add_argument(
        "--limit", type=int, metavar="BYTES", help="calibrate and measure on so many bytes only"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"NAME must be one of {', '.join(NAMES)}, found {', '.join(unknown)}")
    material = Material(options.limit)
    file = options.out / "figures.json"
    numbers = json.loads(file.read_text()) if file.exists() else {}
    for name in options.names or NAMES:
        start = time.perf_counter()
        figure, numbers[name] = importlib.import_module(f"docs.figures.{name}").draw(material)
        figure.savefig(options.out / f"{name}.png", dpi=style.DPI)
        print(f"{name}: {time.perf_counter() - start:.1f} s")
        for key, value in numbers[name].items():
            print(f"    {key}: {value:.5g}")
    file.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
