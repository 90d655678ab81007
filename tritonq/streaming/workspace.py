"""A result that grows file by file in `<target>.partial`, and is renamed when it is complete.

    model-00001-of-00007.safetensors, …    finished files: each was written under another name first
    manifest.json                          what the run was asked for, and which files are finished

A run that finds a manifest which asks for the same goes on with what is missing. One that finds another refuses: it
would mix two results, or throw hours of work away.
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
    """The directory `<target>.partial`; as a context it goes away after an error if nothing in it is finished.

    Args:
        target: where the result is to be.
        request: JSON values that say what the result depends on; its "shards" are the files: tensor name → bytes.
        restart: begin again where a manifest is found.

    Raises:
        ValueError: `target` is there and not empty, or what is in the workspace is not a part of this result.
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
        """True if that file is finished."""
        return self._name(shard) in self._finished

    def check_space(self) -> None:
        """Raise an OSError now where what is missing will not fit on the disk."""
        shards: list[dict[str, int]] = self._request["shards"]
        needed = sum(sum(names.values()) for index, names in enumerate(shards) if not self.has(index))
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise OSError(f"{self.path} needs {needed:,} bytes more, found {free:,} free on its disk")

    def write_shard(self, shard: int, tensors: dict[str, Tensor]) -> None:
        """Write a tensor file, and note that it is finished once it is on the disk."""
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
        """Make it the target."""
        for path in self.path.iterdir():
            sync(path)
        sync(self.path)
        if os.path.ismount(self.target):  # cannot be replaced, only filled
            self._fill_target()
            return
        if self.target.exists():
            self.target.rmdir()
        os.replace(self.path, self.target)
        (self.target / MANIFEST).unlink()  # last: without it nobody could go on
        sync(self.target.parent)

    def _fill_target(self) -> None:
        """Copy everything into the target, config.json last, which makes it a checkpoint; or nothing."""
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
        """Take over what an earlier run has finished, or clear it away."""
        if not (self.path / MANIFEST).is_file():
            raise ValueError(
                f"{self.path} must be what an interrupted run left, found no {MANIFEST} in it: move it away"
            )
        if restart:
            shutil.rmtree(self.path)
            return
        manifest = files.read_json(self.path, MANIFEST)
        before, finished = manifest.get("request"), manifest.get("finished")
        if not isinstance(before, dict) or not isinstance(finished, dict):
            raise ValueError(
                f"{self.path / MANIFEST} must hold a request and what is finished: begin again (--restart)"
            )
        if before != self._request:
            found = (
                "other source files" if before.get("source") != self._request["source"] else "other options"
            )
            raise ValueError(
                f"{self.path} holds an unfinished result for {found}: run that to its end, or begin again (--restart)"
            )
        for name, size in finished.items():
            path = self.path / name
            if Path(name).name == name and path.is_file() and path.stat().st_size == size:
                self._finished[name] = size


def partial_directory(target: Path) -> Path:
    """Where the result for `target` grows."""
    target = target.absolute()
    return target.with_name(f"{target.name}.partial")


def check_empty(target: Path) -> None:
    """Raise a ValueError unless `target` does not exist or is an empty directory."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} must be a directory, found a file")
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} must be empty or not exist, found files in it: choose another directory")


def identity_of(path: Path) -> list[int]:
    """What changes when a file does: its size, and when it was last written."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
