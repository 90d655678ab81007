"""Builds a result file by file in `<target>.partial`, and renames the directory when it is complete.

    model-00001-of-00007.safetensors, …    finished files; each was written under another name first
    manifest.json                          the request, and the list of finished files

If the manifest has the same request, a run writes only the missing files. If it has another one, the run is refused: it
would mix two results, or delete hours of work.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from tritonq.checkpoint import files
from tritonq.checkpoint.publish import sync
from tritonq.checkpoint.writer import shard_name, write_tensors
from tritonq.util.json_file import write_json

MANIFEST = "manifest.json"
VERSION = 1


class Workspace:
    """The directory `<target>.partial`. Used as a context, it is deleted after an error if no file is finished.

    Args:
        target: the final directory.
        request: everything that the result depends on, as JSON values; "shards" lists the files, tensor name → bytes.
        restart: delete the files of an earlier run.

    Raises:
        ValueError: `target` is not empty, or the workspace holds another result.
    """

    def __init__(self, target: Path, request: dict[str, Any], restart: bool) -> None:
        self.target = target.absolute()
        self.path = partial_directory(target)
        self._request = json.loads(json.dumps({"version": VERSION, **request}))
        self._finished: dict[str, int] = {}
        check_empty(target)
        if self.path.exists():
            self._continue(restart)
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_manifest()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, error: type[BaseException] | None, *more: object) -> None:
        if error is not None and not self._finished:
            shutil.rmtree(self.path, ignore_errors=True)

    def has(self, shard: int) -> bool:
        """True if the file is finished."""
        return self._name(shard) in self._finished

    def check_space(self) -> None:
        """Raise an OSError if the missing files do not fit on the disk."""
        shards: list[dict[str, int]] = self._request["shards"]
        needed = sum(sum(names.values()) for index, names in enumerate(shards) if not self.has(index))
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise OSError(f"{self.path} needs {needed:,} more bytes, found {free:,} free on its disk")

    def write_shard(self, shard: int, tensors: dict[str, Tensor]) -> None:
        """Write a tensor file, and list it as finished when it is on the disk."""
        name = self._name(shard)
        beside = self.path / f"{name}.unfinished"
        try:
            write_tensors(beside, tensors)
            sync(beside)
            os.replace(beside, self.path / name)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        self._finished[name] = (self.path / name).stat().st_size
        self._write_manifest()

    def write_json(self, name: str, fields: dict[str, Any]) -> None:
        write_json(self.path / name, fields)

    def copy(self, source: Path) -> None:
        shutil.copyfile(source, self.path / source.name)

    def publish(self) -> None:
        """Rename the workspace to the target."""
        for path in self.path.iterdir():
            sync(path)
        sync(self.path)
        if os.path.ismount(self.target):  # a mount point cannot be replaced, only filled
            self._fill_target()
            return
        if self.target.exists():
            self.target.rmdir()
        os.replace(self.path, self.target)
        (self.target / MANIFEST).unlink()  # last: a run cannot continue without it
        sync(self.target.parent)

    def _fill_target(self) -> None:
        """Copy all files into the target, or none. config.json is last, because it makes the target a checkpoint."""
        names = sorted(path.name for path in self.path.iterdir() if path.name != MANIFEST)
        try:
            for name in sorted(names, key=lambda name: name == files.CONFIG):
                shutil.copyfile(self.path / name, self.target / name)
                sync(self.target / name)
        except BaseException:
            for name in names:
                (self.target / name).unlink(missing_ok=True)
            raise
        shutil.rmtree(self.path)

    def _name(self, shard: int) -> str:
        return shard_name(shard, len(self._request["shards"]))

    def _write_manifest(self) -> None:
        write_json(self.path / MANIFEST, {"request": self._request, "finished": self._finished})

    def _continue(self, restart: bool) -> None:
        """Take over the finished files of an earlier run, or delete them if `restart`."""
        if not (self.path / MANIFEST).is_file():
            raise ValueError(
                f"{self.path} must come from an interrupted run, found no {MANIFEST} in it: move it away"
            )
        if restart:
            shutil.rmtree(self.path)
            return
        manifest = files.read_json(self.path, MANIFEST)
        before, finished = manifest.get("request"), manifest.get("finished")
        if not isinstance(before, dict) or not isinstance(finished, dict):
            raise ValueError(
                f"{self.path / MANIFEST} must hold a request and the finished files: start over (--restart)"
            )
        if before != self._request:
            found = (
                "other source files" if before.get("source") != self._request["source"] else "other options"
            )
            raise ValueError(
                f"{self.path} holds an unfinished result for {found}: finish that run, or start over (--restart)"
            )
        for name, size in finished.items():
            path = self.path / name
            if Path(name).name == name and path.is_file() and path.stat().st_size == size:
                self._finished[name] = size


def partial_directory(target: Path) -> Path:
    """The directory where the result for `target` is built."""
    target = target.absolute()
    return target.with_name(f"{target.name}.partial")


def check_empty(target: Path) -> None:
    """Raise a ValueError unless `target` does not exist or is an empty directory."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} must be a directory, found a file")
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} must be empty or not exist, found files in it: choose another directory")


def identity_of(path: Path) -> list[int]:
    """A file's size and modification time, which change if the file does."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
