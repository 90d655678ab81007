"""The rule of INT8 products: tiles by M, stages that fit, splits where tiles leave multiprocessors idle."""

from __future__ import annotations

import triton

from ..blocks.split_k import split_count
from ..launch.gluon_versions import AVAILABLE
from ..launch.target import Target
from .hopper_shapes import choose_gated_config, choose_int8_config, is_for_hopper
from .problem import Epilogue, Int8, Int8Gated, Problem
from .tile import TileConfig, stages_that_fit


def choose(problem: Problem, target: Target) -> TileConfig:
    """Of a product of int8 x with one weight or two."""
    variant = problem.variant
    assert isinstance(variant, (Int8, Int8Gated))
    on_hopper = AVAILABLE and variant.addressable and is_for_hopper(target, problem.rows, problem.features)
    sizes = (problem.rows, problem.features, problem.columns)
    if isinstance(variant, Int8Gated):
        if on_hopper:
            return choose_gated_config(target, *sizes)
        return _completed(problem, target, _shape_of_two(problem, target), 2)
    if on_hopper:
        return choose_int8_config(target, *sizes, variant.epilogue == "long")
    if problem.rows > 512 and variant.addressable and has_copy_engine(target):
        return choose_descriptors(target, variant.epilogue)
    return _completed(problem, target, _shape(problem, target, variant.epilogue), 1)


def _shape(problem: Problem, target: Target, epilogue: Epilogue) -> tuple[int, int, int, int, int]:
    """(block_n, block_m, block_k, warps, stages at most) of one weight.

    A tile of [256, 128] fits in registers on Hopper alone (elsewhere Triton 3.8 spills 600 bytes of it), and with a
    short epilogue.
    """
    rows, columns = problem.rows, problem.columns
    if target.backend == "hip":
        if rows <= 32:
            return 64, 16, 128, 4, 2
        return (64, 64, 64, 4, 2) if rows <= 128 else (128, 128, 64, 8, 2)
    if (
        columns % 16 != 0
    ):  # rows are not aligned: they are loaded byte by byte, each with an address in registers
        return 64, 16 if rows <= 16 else 32, 64, 4, 3
    if rows <= 16:
        return 64, 16, 256, 4, 4
    if rows <= 32:
        return 64, 32, 256, 4, 3
    if rows <= 64:
        return 64, 64, 128, 4, 4
    if rows <= 512 or target.arch // 10 != 9 or epilogue != "short":
        return 128, 128, 128, 8, 3
    return 256, 128, 128, 8, 3


def _shape_of_two(problem: Problem, target: Target) -> tuple[int, int, int, int, int]:
    """The same of two weights: two tiles take the registers and the shared memory of one with twice the rows."""
    rows, columns = problem.rows, problem.columns
    if target.backend == "hip":
        return (64, 16, 128, 4, 2) if rows <= 32 else (64, 64, 64, 4, 2)
    if (
        columns % 16 != 0
    ):  # rows are not aligned: they are loaded byte by byte, each with an address in registers
        return 64, 16, 64, 8, 3
    if rows <= 16:
        return 64, 16, 128, 4, 4
    if rows <= 32:
        return 64, 32, 128, 4, 4
    if rows <= 64:
        return 64, 64, 128, 4, 4
    if rows <= 512 or target.arch // 10 != 9:
        return 64, 128, 128, 8, 3
    return 128, 128, 128, 8, 3


def _completed(
    problem: Problem, target: Target, shape: tuple[int, int, int, int, int], weights: int
) -> TileConfig:
    block_n, block_m, block_k, num_warps, num_stages = shape
    bytes_per_column = weights * block_n + block_m
    while block_k > 64 and stages_that_fit(target, bytes_per_column * block_k, num_stages) < 2:
        block_k //= 2
    num_stages = stages_that_fit(target, bytes_per_column * block_k, num_stages)
    tiles = triton.cdiv(problem.features, block_n) * triton.cdiv(problem.rows, block_m)
    programs_per_multiprocessor = 3 if problem.rows <= 64 else 1
    splits = split_count(target, tiles, triton.cdiv(problem.columns, block_k), programs_per_multiprocessor)
    return TileConfig(block_n, block_m, block_k, splits, num_warps, num_stages)


def has_copy_engine(target: Target) -> bool:
    """True where tiles can be moved by descriptors."""
    return target.backend == "interpreter" or (target.backend == "cuda" and target.arch >= 90)


def choose_descriptors(target: Target, epilogue: Epilogue) -> TileConfig:
    """Tiles that fit the registers together with what is done to them: [256, 128] on Hopper, half of it elsewhere."""
    block_n, block_m = (256, 128) if target.arch // 10 == 9 else (128, 128)
    if epilogue != "short":
        block_n //= 2
    block_k = 128
    num_stages = stages_that_fit(target, (block_n + block_m) * block_k, 4)
    return TileConfig(block_n, block_m, block_k, 1, 8, num_stages, "descriptors")


def choose_quantizing(problem: Problem, target: Target, element_size: int) -> TileConfig:
    """Of few rows of float x, quantized on the way: stages that fit with floats in them."""
    block_n, block_m = 64, 16
    block_k, num_stages = (128, 2) if target.backend == "hip" else (256, 4)
    bytes_per_column = block_n + block_m * element_size
    while block_k > 64 and stages_that_fit(target, bytes_per_column * block_k, num_stages) < 2:
        block_k //= 2
    num_stages = stages_that_fit(target, bytes_per_column * block_k, num_stages)
    tiles = triton.cdiv(problem.features, block_n)
    splits = split_count(target, tiles, triton.cdiv(problem.columns, block_k), 3)
    return TileConfig(block_n, block_m, block_k, splits, 4, num_stages, "quantizing")
