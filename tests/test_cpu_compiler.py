"""Machine code on disk: found by the next process, and never by one whose sources differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tritonq
from tritonq import ops
from tritonq.cpu import choose, compiler, sources


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.o"))


def product(engine: Any) -> torch.Tensor:
    """What a new engine for the same instructions computes: its kernels are looked up again."""
    fresh = choose.engine_for(engine.instructions)
    x, w = torch.arange(12).to(torch.int8).reshape(2, 6), torch.arange(24).to(torch.int8).reshape(4, 6)
    found = fresh.int8.accumulate(fresh, x, None, w, None, w.sum(dim=1, dtype=torch.int32))
    assert torch.equal(found.long(), x.long() @ w.long().t())
    return found


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    if ops.backend("cpu") != "cpu":
        pytest.skip("there is no engine for this CPU")
    from tritonq.ops import backends

    monkeypatch.setenv(compiler.VARIABLE, str(tmp_path))
    return backends.engine()


def test_code_is_kept_and_found_again(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product(engine)
    written = {file: file.stat().st_mtime_ns for file in kept(tmp_path)}
    assert written
    monkeypatch.setattr(compiler, "_optimized", lambda *_: pytest.fail("was compiled again"))
    product(engine)
    assert {file: file.stat().st_mtime_ns for file in kept(tmp_path)} == written


def test_sources_that_changed_after_their_import_neither_keep_nor_find(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else code of the old sources would be kept under the hash of the new ones, and run by a later process."""
    product(engine)
    for file in kept(tmp_path):
        file.write_bytes(b"")
    monkeypatch.setattr(sources, "hash_of_files", lambda: "other")
    assert sources.imported_hash() is None
    before = kept(tmp_path)
    product(engine)
    assert kept(tmp_path) == before
    assert all(file.read_bytes() == b"" for file in before)


def test_tritonq_hashes_its_sources_on_import() -> None:
    assert tritonq.__doc__
    assert sources.imported_hash() == sources.hash_of_files()
