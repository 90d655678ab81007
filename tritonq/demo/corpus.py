"""Makes training text and held-out text from files that every CPython installation has.

There are two sources: the language reference in `pydoc_data.topics` (a third of a megabyte), and the docstrings of the
standard library, more English about Python. Some whole topics of the reference are held out.

Leaving a topic out is not enough, because the reference repeats itself: the topic "with" is also a section of the topic
"compound". So a training paragraph is also dropped if it shares a passage of `SHARED_PASSAGE` bytes with the held-out
text. A paragraph that occurs twice is kept once. Both comparisons ignore white space.
"""

import ast
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

HELDOUT_TOPICS = ("comparisons", "execmodel", "import", "raise")
SHARED_PASSAGE = 40
CALIBRATION_BYTES = 32 * 1024
# Tests and bundled applications do not document Python.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3"}
PARAGRAPH_BREAK = re.compile(rb"\n\s*\n")


@dataclass(frozen=True)
class Corpus:
    """The parts of the text; only `reference` and `docstrings` are trained on."""

    reference: bytes
    docstrings: bytes
    heldout: bytes

    @property
    def calibration(self) -> bytes:
        """The end of the reference part of the training text, from a paragraph's start."""
        start = self.reference.index(b"\n\n", len(self.reference) - CALIBRATION_BYTES)
        return self.reference[start:].lstrip(b"\n")


def build_corpus() -> Corpus:
    """Read both sources of the running Python and split them. The same Python gives the same bytes."""
    heldout = b"\n\n".join(topics[name].encode().strip() for name in HELDOUT_TOPICS) + b"\n"
    # Held-out paragraphs count as seen, which drops copies that are too short to hold a passage.
    seen = {squeeze(paragraph) for paragraph in PARAGRAPH_BREAK.split(heldout)}
    heldout_passages = set(passages(squeeze(heldout)))
    reference_texts = (text for name, text in sorted(topics.items()) if name not in HELDOUT_TOPICS)
    return Corpus(
        reference=join_new_paragraphs(reference_texts, seen, heldout_passages),
        docstrings=join_new_paragraphs(standard_library_docstrings(), seen, heldout_passages),
        heldout=heldout,
    )


def squeeze(text: bytes) -> bytes:
    """Replace every run of white space by one blank, so that re-wrapped copies compare equal."""
    return b" ".join(text.split())


def passages(text: bytes) -> Iterator[bytes]:
    """Every substring of `SHARED_PASSAGE` bytes."""
    return (text[i : i + SHARED_PASSAGE] for i in range(len(text) - SHARED_PASSAGE + 1))


def join_new_paragraphs(texts: Iterable[str], seen: set[bytes], forbidden: set[bytes]) -> bytes:
    """Join the paragraphs that are not in `seen` and hold no `forbidden` passage; add them to `seen`."""
    kept = []
    for text in texts:
        for paragraph in PARAGRAPH_BREAK.split(text.encode()):
            squeezed = squeeze(paragraph)
            if squeezed in seen or not forbidden.isdisjoint(passages(squeezed)):
                continue
            seen.add(squeezed)
            kept.append(paragraph.strip(b"\n"))
    return b"\n\n".join(kept) + b"\n"


def standard_library_docstrings() -> Iterator[str]:
    """Docstrings of all modules, classes and functions of the standard library, in the order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    yield docstring
