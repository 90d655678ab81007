"""Global memory: only the tensors that a launch was given."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .errors import DependentLaunchError, OutOfBoundsError


class Region:
    """The memory of one argument.

    Args:
        name: of the kernel's parameter.
        address: of its first byte.
        size: bytes.
    """

    def __init__(self, name: str, address: int, size: int) -> None:
        self.name, self.address, self.size = name, address, size
        memory: Any = (ctypes.c_uint8 * size).from_address(address)
        self.bytes = np.frombuffer(memory, dtype=np.uint8)


class GlobalMemory:
    """All regions.

    Args:
        regions: of the arguments; they may overlap.
        early: parameters whose memory may be touched before the kernel in front has ended; None where nothing waits.
    """

    def __init__(self, regions: list[Region], early: tuple[str, ...] | None) -> None:
        self._regions, self._early = regions, early

    def at(self, low: int, high: int, waited: bool) -> Region:
        """The region that holds the bytes low … high - 1."""
        for region in self._regions:
            if region.address <= low and high <= region.address + region.size:
                if not waited and self._early is not None and region.name not in self._early:
                    raise DependentLaunchError(
                        f"{region.name} is touched before the kernel in front has ended"
                    )
                return region
        raise OutOfBoundsError(self._beside(low, high))

    def _beside(self, low: int, high: int) -> str:
        near = min(
            self._regions,
            key=lambda region: min(abs(low - region.address), abs(high - region.address - region.size)),
            default=None,
        )
        if near is None:
            return f"global memory at {low:#x}, and the launch has none"
        offset = low - near.address
        return f"{high - low} bytes at {offset} of {near.name}, which has {near.size}"

    def _places(self, addresses: Any, size: int, aligned: int, waited: bool) -> list[tuple[Region, Any, Any]]:
        """(region, lanes, offsets): most often one of all lanes."""
        if (addresses % aligned).any():
            raise OutOfBoundsError(f"global memory at {hex(addresses[0])}, not a multiple of {aligned}")
        try:
            region = self.at(int(addresses.min()), int(addresses.max()) + size, waited)
            return [(region, slice(None), addresses - region.address)]
        except OutOfBoundsError:
            found = []
            for lane, address in enumerate(addresses.tolist()):
                region = self.at(address, address + size, waited)
                found.append((region, slice(lane, lane + 1), addresses[lane : lane + 1] - region.address))
            return found

    def load(self, addresses: Any, size: int, aligned: int, waited: bool) -> Any:
        """Bytes [lanes, size]."""
        result = np.empty((len(addresses), size), np.uint8)
        for region, lanes, offsets in self._places(addresses, size, aligned, waited):
            result[lanes] = region.bytes[offsets[:, None] + np.arange(size)]
        return result

    def store(self, addresses: Any, values: Any, aligned: int, waited: bool) -> None:
        """Put bytes [lanes, size] there."""
        size = values.shape[1]
        for region, lanes, offsets in self._places(addresses, size, aligned, waited):
            region.bytes[offsets[:, None] + np.arange(size)] = values[lanes]
