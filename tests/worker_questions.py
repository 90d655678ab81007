"""What the workers of test_tuning.py are asked: a module that is imported fast, in processes of their own."""

from __future__ import annotations

import os
import time


def answer(question: str) -> str:
    if question == "crash":
        os._exit(7)
    if question == "hang":
        time.sleep(1000)
    if question == "raise":
        raise ValueError("no such thing\nand a second line")
    return f"{question} answered by {os.getpid()}"
