"""What workers are asked in tests: a module that is imported fast, in processes of their own."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any


def answer(question: str) -> str:
    if question == "crash":
        os._exit(7)
    if question == "hang":
        time.sleep(1000)
    if question == "raise":
        raise ValueError("no such thing\nand a second line")
    return f"{question} answered by {os.getpid()}"


@dataclasses.dataclass(frozen=True)
class Hanging:
    """A check of `tritonq doctor` that never ends."""

    name: str = "planted"
    path: str = "nowhere"

    def run(self, device: str, repeats: int) -> Any:
        time.sleep(1000)
