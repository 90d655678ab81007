"""Shared memory of one CTA: bytes that start poisoned, and the last writer and readers of each, to find races.

Writers are recorded for every byte, ordinary loads for every word, and asynchronous readers (wgmma, copies out) for
every 16 bytes, which is the least that they read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .clocks import Clocks
from .errors import FenceError, OutOfBoundsError, RaceError

_WORD, _CHUNK = 4, 16


class SharedMemory:
    """Bytes and their history.

    Args:
        size: bytes that the launch asked for.
        clocks: of the CTA.
        seed: of the poison.
    """

    def __init__(self, size: int, clocks: Clocks, seed: int) -> None:
        padded = -(-size // 1024) * 1024 + 1024
        self.size, self.clocks, warps = size, clocks, clocks.warps
        self.bytes = np.random.default_rng(seed).integers(0, 256, padded, dtype=np.uint8)
        self._writer = np.zeros(padded, np.int16)
        self._written = np.zeros(padded, np.int32)
        self._readers = np.zeros((warps, padded // _WORD), np.int32)
        self._asynchronous = np.zeros((2 * warps, padded // _CHUNK), np.int32)
        # Columns of `known` of the agents that read asynchronously: products, copies out.
        self._agents = np.r_[clocks.products_of(np.arange(warps)), clocks.copies_of(np.arange(warps))]

    def indices(self, addresses: Any, size: int, aligned: int) -> Any:
        """[lanes, size]: the bytes at these addresses, which are checked."""
        if addresses.size and (addresses.min() < 0 or addresses.max() + size > self.size):
            raise OutOfBoundsError(f"shared memory beside its {self.size} bytes, at {addresses.max()}")
        if (addresses % aligned).any():
            raise OutOfBoundsError(f"shared memory at {addresses}, not a multiple of {aligned}")
        return addresses[:, None] + np.arange(size)

    def load(self, warps: Any, places: Any) -> Any:
        """Bytes [lanes, size], each lane's for its warp."""
        known = self.clocks.known
        self._check_written(known[warps[:, None], self._writer[places]] < self._written[places], places)
        self._readers[warps[:, None], places >> 2] = known[warps, warps][:, None]
        return self.bytes[places]

    def store(self, warps: Any, places: Any, values: Any) -> None:
        """Put bytes [lanes, size] there."""
        self.claim(warps, places)
        self._writer[places] = warps[:, None]
        self._written[places] = self.clocks.known[warps, warps][:, None]
        self.bytes[places] = values

    def claim(self, warps: Any, places: Any) -> None:
        """Raise unless each lane's warp knows of all accesses to these bytes."""
        known = self.clocks.known
        self._check_written(known[warps[:, None], self._writer[places]] < self._written[places], places)
        words = places[:, ::_WORD] >> 2
        mine = known[warps]
        self._check_read(self._readers[:, words] > mine.T[: self.clocks.warps, :, None], places)
        chunks = places[:, 0] >> 4
        self._check_read(self._asynchronous[:, chunks] > mine.T[self._agents], places)

    def start_fill(self, warps: Any, places: Any, time: int) -> None:
        """cp.async of these warps is going to write these bytes, in its group of that number."""
        self.claim(warps, places)
        self._writer[places] = self.clocks.fills_of(warps)[:, None]
        self._written[places] = time

    def start_load(self, warp: int, place: slice, agent: int, phase: int) -> None:
        """The copy engine is going to write a tile there for a warp, until a barrier's phase is over."""
        self._check_bounds(place)
        known = self.clocks.known[warp]
        self._check_written(known[self._writer[place]] < self._written[place], place)
        words = slice(place.start // _WORD, -(-place.stop // _WORD))
        self._check_read(self._readers[:, words].max(1) > known[: self.clocks.warps], place)
        chunks = slice(place.start // _CHUNK, -(-place.stop // _CHUNK))
        self._check_read(self._asynchronous[:, chunks].max(1) > known[self._agents], place)
        self._writer[place] = agent
        self._written[place] = phase

    def start_reading(self, warps: slice, agents: str, places: Any, time: int) -> None:
        """Something asynchronous ("products" or "copies") of these warps is going to read from there.

        Args:
            warps: that ask for it, each of which must know what is read, and have it fenced.
            agents: what kind.
            places: a slice of bytes, or the first bytes of chunks.
            time: of the agent, when it will have read.
        """
        if isinstance(places, slice):
            self._check_bounds(places)
            chunks: Any = slice(places.start // _CHUNK, -(-places.stop // _CHUNK))
            looked_at: Any = places
        else:
            if places.min() < 0 or places.max() + _CHUNK > self.size:
                raise OutOfBoundsError(f"a product reads shared memory beside its {self.size} bytes")
            chunks = places // _CHUNK
            looked_at = (places[..., None] + np.arange(0, _CHUNK, _WORD)).ravel()
        writer, written = self._writer[looked_at], self._written[looked_at]
        first, last = writer.min(), writer.max()
        if first == last:  # most often
            writer, written = writer[:1], written.max(keepdims=True)
        self._check_written(self.clocks.known[warps][:, writer] < written, looked_at)
        stored = writer < self.clocks.warps
        if stored.any():
            unfenced = (self.clocks.visible[warps][:, writer[stored]] < written[stored]) & (
                written[stored] > 0
            )
            if unfenced.any():
                raise FenceError("shared memory is read asynchronously that was stored without a proxy fence")
        offset = 0 if agents == "products" else self.clocks.warps
        for warp in range(warps.start, warps.stop):
            self._asynchronous[offset + warp, chunks] = time

    def _check_bounds(self, place: slice) -> None:
        if place.start < 0 or place.stop > self.size:
            raise OutOfBoundsError(f"a tile at {place.start}, beside the {self.size} bytes of shared memory")

    def _check_written(self, unknown: Any, places: Any) -> None:
        if unknown.any():
            raise RaceError(f"shared memory that something else writes meanwhile, {_first(unknown, places)}")

    def _check_read(self, unknown: Any, places: Any) -> None:
        if unknown.any():
            raise RaceError(f"shared memory is written that is still read, {_first(unknown, places)}")


def _first(unknown: Any, places: Any) -> str:
    if isinstance(places, slice):
        return f"bytes {places.start} to {places.stop}"
    return f"from byte {np.min(places)} on"
