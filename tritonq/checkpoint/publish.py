"""Replaces a checkpoint so that the directory holds the old one or the new one, never a mix.

All files are first written to a hidden directory beside the target. When all are on the disk, they replace the old
files one by one, config.json last. Old files are kept until the last new one is in place; if anything fails, they are
restored.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tritonq.checkpoint import extras, files

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """An empty directory to write into; leaving the block without an error puts its files into `directory`.

    Raises:
        OSError: from the file system; `directory` is then unchanged.
        ValueError: `directory` is a file, or holds another program's weights that the new files would not replace.
    """
    directory = directory.resolve()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} must be a directory, found a file")
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    stage = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stage = Path(
            tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=_stage_home(directory))
        )
        yield stage
        for path in stage.iterdir():
            sync(path)
        _publish(stage, directory)
    except BaseException:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise
    shutil.rmtree(stage, ignore_errors=True)


def _stage_home(directory: Path) -> Path:
    """A place to rename files from: beside the directory, or in it if it is a volume or only it is writable."""
    parent = directory.parent
    return directory if os.path.ismount(directory) or not os.access(parent, os.W_OK) else parent


def _publish(stage: Path, directory: Path) -> None:
    new = sorted((path.name for path in stage.iterdir()), key=lambda name: (name == files.CONFIG, name))
    stale = _stale(directory, new)
    backup = stage / "replaced"
    backup.mkdir()
    touched: list[str] = []
    try:
        for name in new:
            touched.append(name)
            _keep_aside(directory / name, backup / name)
            os.replace(stage / name, directory / name)
        for name in stale:
            touched.append(name)
            os.replace(directory / name, backup / name)
        sync(directory)
    except BaseException:
        for name in reversed(touched):
            if os.path.lexists(backup / name):
                os.replace(backup / name, directory / name)
            elif not os.path.lexists(stage / name) and name in new:
                os.unlink(directory / name)
        raise


def _keep_aside(path: Path, backup: Path) -> None:
    """Keep the file `path` as `backup`; if possible as a second link, so that `path` exists at every moment."""
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise ValueError(f"{path} must be a file, found a directory")
    if not path.is_symlink():
        with contextlib.suppress(OSError):
            os.link(path, backup)
            return
    os.replace(path, backup)


def _stale(directory: Path, new: list[str]) -> list[str]:
    """Weight files of an earlier save that the new files do not replace, and that readers would read with them."""
    old = sorted(
        path.name
        for path in directory.iterdir()
        if path.name not in new and (path.name in (files.SINGLE, files.INDEX) or _SHARD.fullmatch(path.name))
    )
    if old and not _is_ours(directory):
        raise ValueError(
            f"{directory} must be empty or hold a checkpoint of tritonq.save, found {old[0]} of another program, which "
            "would be mixed up with the new files"
        )
    return old


def _is_ours(directory: Path) -> bool:
    try:
        return extras.KEY in files.read_json(directory, files.CONFIG)
    except (OSError, ValueError):
        return False


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk. Windows cannot open directories, so they are skipped there."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
