"""Model directories as a user has them, tokenizer included, and the command line run on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import hosts
from tritonq import cli

TEXT = (
    "Quantization maps 32-bit numbers to 8-bit ones, and what that costs is measured on text like this. " * 20
)


def save_tokenizer(directory: Path) -> None:
    """One token a character of ASCII: its ids are below every vocabulary in tests/support/hosts.py."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)] + [
        "Ġ",
        "Ċ",
    ]  # how blank and newline are written
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def save_model(directory: Path, architecture: str = "llama-tied") -> Path:
    """A float model with its tokenizer."""
    hosts.build(architecture).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    """Run a command; returns what it wrote to stdout and to stderr."""
    capsys.readouterr()
    found = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert found == code, err
    assert "Traceback" not in err
    return out, err
