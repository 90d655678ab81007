"""PTX as text → a program: numbered registers, instructions with parsed operands, the places of labels.

Inline assembly opens scopes with separate registers and labels. Special registers (%tid.x …) are registers that have
values when a kernel starts.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .errors import UnknownInstructionError

#: Types of PTX and how their bits lie in NumPy; 16-bit floats and pairs of them as the bits alone.
DTYPES: dict[str, Any] = {
    "pred": np.dtype(np.bool_),
    **{name: np.dtype(np.uint8) for name in ("b8", "u8")},
    **{name: np.dtype(np.uint16) for name in ("b16", "u16", "f16", "bf16")},
    **{name: np.dtype(np.uint32) for name in ("b32", "u32", "f16x2", "bf16x2", "s16x2", "u16x2")},
    **{name: np.dtype(np.uint64) for name in ("b64", "u64")},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
#: Registers that are full when a kernel starts.
SPECIAL = ("%laneid", *(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"))
_BITS = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}


@dataclasses.dataclass(frozen=True)
class Register:
    """One register of every thread, by its number."""

    index: int
    dtype: Any


@dataclasses.dataclass(frozen=True)
class Immediate:
    """A constant's bits, or a negative integer."""

    value: int


@dataclasses.dataclass(frozen=True)
class Symbol:
    """A label, a kernel's parameter, or a variable in shared memory."""

    name: str


@dataclasses.dataclass(frozen=True)
class Vector:
    """{a, b, …}, or a|b; None for what is thrown away."""

    items: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Address:
    """[base + offset], or [base, {coordinates}]."""

    base: Any
    offset: int
    coordinates: Vector | None


Operand = Register | Immediate | Symbol | Vector | Address | None


@dataclasses.dataclass
class Instruction:
    """One instruction: what it is, of whose lanes, on what, and where the source says so."""

    opcode: str
    guard: Register | None
    negated: bool
    operands: tuple[Any, ...]
    touched: frozenset[int]
    text: str
    location: str

    def __str__(self) -> str:
        return f"`{' '.join(self.text.split())[:120]}` ({self.location})"


class Instructions(Sequence[Instruction]):
    """A program's instructions, parsed when they are asked for: most kernels execute a part of theirs."""

    def __init__(self, statements: list[tuple[str, str, _Scope]], parse_statement: Any) -> None:
        self._statements, self._parse = statements, parse_statement
        self._parsed: dict[int, Instruction] = {}

    def __len__(self) -> int:
        return len(self._statements)

    def __getitem__(self, place: Any) -> Any:
        found = self._parsed.get(place)
        if found is None:
            found = self._parsed[place] = self._parse(*self._statements[place])
        return found


@dataclasses.dataclass
class Program:
    """A kernel."""

    name: str
    parameters: list[str]
    threads: int
    instructions: Instructions
    labels: dict[str, int]
    branch_targets: dict[str, list[int]]
    registers: list[Any]
    special: dict[str, int]
    meetings: dict[int, int] | None = None


class _Scope:
    def __init__(self, outer: _Scope | None) -> None:
        self.outer = outer
        self.registers: dict[str, Register] = {}
        self.labels: dict[str, str] = {}

    def register(self, name: str) -> Register | None:
        found = self.registers.get(name)
        return found if found or self.outer is None else self.outer.register(name)

    def label(self, name: str) -> str | None:
        found = self.labels.get(name)
        return found if found or self.outer is None else self.outer.label(name)


_TOKEN = re.compile(
    r"\s*(?:(?P<brace>[{}])|\.loc (?P<location>[^\n]*)\n|\.(?:file|section|pragma)[^\n]*\n"
    r"|(?P<label>[$\w]+):(?!:)|(?P<statement>[^;{}]+(?:\{[^{}]*\}[^;{}]*)*);)"
)


@functools.lru_cache(maxsize=64)
def parse(ptx: str) -> Program:
    """The only kernel in a module."""
    return _Parser(ptx).program


class _Parser:
    def __init__(self, ptx: str) -> None:
        found = re.search(r"\.visible\s+\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{", ptx, re.DOTALL)
        assert found is not None, "no kernel in this module"
        self.registers: list[Any] = []
        self.special: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.targets: dict[str, tuple[list[str], _Scope]] = {}
        self.raw: list[tuple[str, str, _Scope]] = []
        threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", found[3])
        assert threads is not None
        self._read(ptx[found.end() - 1 :])
        for name in SPECIAL:
            self.special[name] = len(self.registers)
            self.registers.append(np.dtype(np.uint32))
        branch_targets = {
            label: [self.labels[scope.labels[name]] for name in names]
            for label, (names, scope) in self.targets.items()
        }
        parameters = re.findall(r"\.param\b[^,]*?(\w+)(?:\[\d+\])?\s*(?:,|$)", found[2])
        self.program = Program(
            found[1],
            parameters,
            int(threads[1]),
            Instructions(self.raw, self._instruction),
            self.labels,
            branch_targets,
            self.registers,
            self.special,
        )

    def _read(self, body: str) -> None:
        lines = []
        for line in body.splitlines():
            if line.lstrip().startswith(".loc"):
                lines.append(".loc " + line.partition("//")[2].strip())
            else:
                lines.append(line.partition("//")[0])
        text = "\n".join(lines)
        scope: _Scope | None = None
        place, location = 0, "?"
        while scope is not None or place == 0:
            token = _TOKEN.match(text, place)
            assert token is not None, f"not PTX: {text[place : place + 80]!r}"
            place = token.end()
            if token["brace"] == "{":
                scope = _Scope(scope)
            elif token["brace"] == "}":
                assert scope is not None
                scope = scope.outer
            elif token["location"] is not None:
                location = token["location"]
            elif token["label"] is not None:
                assert scope is not None
                unique = scope.labels.setdefault(token["label"], f"{token['label']}:{len(self.raw)}")
                self.labels[unique] = len(self.raw)
            elif token["statement"] is not None:
                assert scope is not None
                self._statement(token["statement"].strip(), location, scope)

    def _statement(self, statement: str, location: str, scope: _Scope) -> None:
        if statement.startswith(".reg"):
            _, kind, names = statement.split(None, 2)
            for name in names.split(","):
                self._declare(name.strip(), kind.removeprefix("."), scope)
        elif statement.startswith(".branchtargets"):
            label = list(scope.labels.values())[-1]  # stands right before it
            targets = re.findall(r"[$\w]+", statement.removeprefix(".branchtargets"))
            self.targets[label] = (targets, scope)
        else:
            self.raw.append((statement, location, scope))

    def _declare(self, name: str, kind: str, scope: _Scope) -> None:
        dtype = DTYPES[kind]
        dtype = dtype if kind == "pred" else np.dtype(_BITS[dtype.itemsize])
        many = re.fullmatch(r"(.+)<(\d+)>", name)
        for each in [name] if many is None else [f"{many[1]}{i}" for i in range(int(many[2]))]:
            scope.registers[each] = Register(len(self.registers), dtype)
            self.registers.append(dtype)

    def _instruction(self, statement: str, location: str, scope: _Scope) -> Instruction:
        found = re.fullmatch(r"(?:@(!?)\s*([%\w]+)\s+)?(\S+)\s*(.*)", statement, re.DOTALL)
        assert found is not None
        guard = self._operand(found[2], scope) if found[2] else None
        assert guard is None or isinstance(guard, Register)
        operands = tuple(self._operand(item, scope) for item in _split(found[4]))
        touched = frozenset(_registers_of((guard, *operands)))
        return Instruction(found[3], guard, found[1] == "!", operands, touched, statement, location)

    def _operand(self, text: str, scope: _Scope) -> Operand:
        if text == "_":
            return None
        if text.startswith("{"):
            return Vector(tuple(self._operand(item, scope) for item in _split(text[1:-1])))
        if text.startswith("["):
            base, *rest = _split(text[1:-1])
            coordinates = self._operand(rest[0], scope) if rest else None
            assert coordinates is None or isinstance(coordinates, Vector)
            found = re.fullmatch(r"(.+?)\s*(?:([+-])\s*(\d+))?", base)
            assert found is not None
            offset = int(f"{found[2]}{found[3]}") if found[3] else 0
            return Address(self._operand(found[1], scope), offset, coordinates)
        if "|" in text:
            return Vector(tuple(self._operand(item.strip(), scope) for item in text.split("|")))
        register = scope.register(text)
        if register is not None:
            return register
        if text in self.special:
            return Register(self.special[text], np.dtype(np.uint32))
        if re.fullmatch(r"0f[0-9A-Fa-f]{8}|0d[0-9A-Fa-f]{16}", text):
            return Immediate(int(text[2:], 16))
        if re.fullmatch(r"-?(?:0x[0-9A-Fa-f]+|\d+)U?", text):
            return Immediate(int(text.rstrip("U"), 0))
        if re.fullmatch(r"-?\d*\.\d+", text):
            return Immediate(int(np.float32(text).view(np.uint32)))
        if re.fullmatch(r"[$\w]+", text):
            return Symbol(scope.label(text) or text)
        raise UnknownInstructionError(f"the operand {text!r}")


def _split(text: str) -> Iterator[str]:
    """At the commas that stand in no bracket."""
    depth, begin = 0, 0
    for place, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            yield text[begin:place].strip()
            begin = place + 1
    if text[begin:].strip():
        yield text[begin:].strip()


def _registers_of(operands: tuple[Operand, ...]) -> Iterator[int]:
    for operand in operands:
        if isinstance(operand, Register):
            yield operand.index
        elif isinstance(operand, Vector):
            yield from _registers_of(operand.items)
        elif isinstance(operand, Address):
            yield from _registers_of((operand.base, operand.coordinates))
