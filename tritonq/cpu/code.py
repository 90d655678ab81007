"""Writing a kernel: LLVM IR through Python expressions, vectors included.

A kernel is one function `void f(int64 *arguments)`. The first int64 is a counter, from which the threads that run the
function side by side take the numbers of their pieces of work; the others are addresses and counts. Python runs once,
while the kernel is built: Python loops unroll, `Code.range` and `Code.when` become loops and branches.

    code = Code(("source", "target", "rows", "pitch"))
    at = code.arguments
    with code.pieces(at["rows"]) as row, code.range(row * at["pitch"], row * at["pitch"] + at["pitch"], 64) as k:
        values = code.load(vector(F32, 16), at["source"] + k)
        code.store(values * 2.0, at["target"] + k)

What changes in a loop is a `Variable`; LLVM keeps it in a register. Integers are signed unless a method says otherwise,
floats are IEEE: nothing is fused, reordered or assumed finite unless the kernel asks for `fma`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
#: The name of a kernel's function.
ENTRY = "kernel"
F16, F32 = ir.HalfType(), ir.FloatType()
#: llvm.prefetch's locality, 3 being the first-level cache.
_SECOND_LEVEL = 2


def vector(element: Any, lanes: int) -> Any:
    """The type of `lanes` elements."""
    return ir.VectorType(element, lanes)


class Value:
    """A number or vector in a register; Python's operators act on it, Python's numbers become constants of its type."""

    def __init__(self, code: Code, raw: Any) -> None:
        self.code, self.raw = code, raw

    @property
    def type(self) -> Any:
        """LLVM's type."""
        return self.raw.type

    @property
    def _is_float(self) -> bool:
        return isinstance(_element(self.type), (ir.FloatType, ir.HalfType))

    def _other(self, other: Any) -> Any:
        return self.code.constant(self.type, other).raw if isinstance(other, (int, float)) else other.raw

    def _apply(self, other: Any, integer: str, real: str | None = None) -> Value:
        name = real if self._is_float and real else integer
        return Value(self.code, getattr(self.code.builder, name)(self.raw, self._other(other)))

    def __add__(self, other: Any) -> Value:
        return self._apply(other, "add", "fadd")

    def __sub__(self, other: Any) -> Value:
        return self._apply(other, "sub", "fsub")

    def __mul__(self, other: Any) -> Value:
        return self._apply(other, "mul", "fmul")

    def __truediv__(self, other: Any) -> Value:
        return self._apply(other, "sdiv", "fdiv")

    def __and__(self, other: Any) -> Value:
        return self._apply(other, "and_")

    def __or__(self, other: Any) -> Value:
        return self._apply(other, "or_")

    def __xor__(self, other: Any) -> Value:
        return self._apply(other, "xor")

    def __lshift__(self, other: Any) -> Value:
        return self._apply(other, "shl")

    def __rshift__(self, other: Any) -> Value:
        """Logical: zeros come in from the left."""
        return self._apply(other, "lshr")

    def shift_signed(self, bits: Any) -> Value:
        """Arithmetic shift to the right."""
        return self._apply(bits, "ashr")

    def _compare(self, symbol: str, other: Any) -> Value:
        compare = "fcmp_ordered" if self._is_float else "icmp_signed"
        return Value(self.code, getattr(self.code.builder, compare)(symbol, self.raw, self._other(other)))

    def __lt__(self, other: Any) -> Value:
        return self._compare("<", other)

    def __gt__(self, other: Any) -> Value:
        return self._compare(">", other)

    def __le__(self, other: Any) -> Value:
        return self._compare("<=", other)

    def __ge__(self, other: Any) -> Value:
        return self._compare(">=", other)

    def equals(self, other: Any) -> Value:
        """=="""
        return self._compare("==", other)

    def where(self, yes: Any, no: Any) -> Value:
        """This condition's choice, lane by lane."""
        return Value(self.code, self.code.builder.select(self.raw, yes.raw, no.raw))

    def minimum(self, other: Any) -> Value:
        """The smaller one."""
        other = Value(self.code, self._other(other))
        return (self < other).where(self, other)

    def maximum(self, other: Any) -> Value:
        """The larger one."""
        other = Value(self.code, self._other(other))
        return (self > other).where(self, other)

    def clamp(self, low: Any, high: Any) -> Value:
        """Between two bounds."""
        return self.maximum(low).minimum(high)

    def cast(self, element: Any) -> Value:
        """The same number in another element type: sign-extended, truncated, int to float or float to int."""
        wanted = _like(self.type, element)
        builder = self.code.builder
        if self._is_float and isinstance(element, ir.IntType):
            return Value(self.code, builder.fptosi(self.raw, wanted))
        if isinstance(element, ir.IntType):
            wider = element.width > _element(self.type).width
            return Value(self.code, (builder.sext if wider else builder.trunc)(self.raw, wanted))
        if not self._is_float:
            return Value(self.code, builder.sitofp(self.raw, wanted))
        narrower = isinstance(element, ir.HalfType)
        return Value(self.code, (builder.fptrunc if narrower else builder.fpext)(self.raw, wanted))

    def widen(self, element: Any) -> Value:
        """An unsigned integer in a wider type."""
        return Value(self.code, self.code.builder.zext(self.raw, _like(self.type, element)))

    def view(self, kind: Any) -> Value:
        """The same bits as another type."""
        return Value(self.code, self.code.builder.bitcast(self.raw, kind))

    def rint(self) -> Value:
        """Rounded to an integer, half to even."""
        return self.code.intrinsic(f"llvm.roundeven.{_suffix(self.type)}", self.type, self)

    def take(self, *indices: int) -> Value:
        """The elements at constant places."""
        return self.code.shuffle(self, self, indices)

    def __getitem__(self, index: int) -> Value:
        return Value(self.code, self.code.builder.extract_element(self.raw, ir.Constant(I32, index)))


class Variable:
    """A value that changes: `set` it, read it by `.value`."""

    def __init__(self, code: Code, initial: Value) -> None:
        self._code = code
        with code.builder.goto_entry_block():
            self._slot = code.builder.alloca(initial.type)
        self._type = initial.type
        self.set(initial)

    @property
    def value(self) -> Value:
        """As it is now."""
        return Value(self._code, self._code.builder.load(self._slot))

    def set(self, value: Value) -> None:
        """Change it."""
        self._code.builder.store(value.raw, self._slot)


class Code:
    """A kernel in the making.

    Args:
        fields: the names of its int64 arguments behind the counter, in order.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        self.module = ir.Module("kernel")
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), ENTRY)
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        body = function.append_basic_block("body")
        self._entry_end = self.builder.branch(body)
        self.builder.position_at_end(body)
        self._counter = function.args[0]
        self.arguments = {name: self._argument(place) for place, name in enumerate(fields, start=1)}

    def _argument(self, place: int) -> Value:
        address = self.builder.gep(self._counter, [ir.Constant(I64, place)])
        return Value(self, self.builder.load(address))

    def finish(self) -> str:
        """The IR as text."""
        self.builder.ret_void()
        return str(self.module)

    # --- values ----------------------------------------------------------------------------------------------------

    def constant(self, kind: Any, number: float) -> Value:
        """A number, in every lane of a vector."""
        number = number if isinstance(_element(kind), ir.IntType) else float(number)
        raw = [number] * kind.count if isinstance(kind, ir.VectorType) else number
        return Value(self, ir.Constant(kind, raw))

    def integer(self, number: int) -> Value:
        """An int64, as addresses and counts are."""
        return self.constant(I64, number)

    def places(self, lanes: int) -> Value:
        """0, 1, 2, … in the lanes of a vector."""
        return Value(self, ir.Constant(vector(I32, lanes), list(range(lanes))))

    def variable(self, initial: Value) -> Variable:
        """What changes in a loop."""
        return Variable(self, initial)

    def spread(self, scalar: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        empty = ir.Constant(vector(scalar.type, lanes), ir.Undefined)
        first = self.builder.insert_element(empty, scalar.raw, ir.Constant(I32, 0))
        return Value(self, self.builder.shuffle_vector(first, empty, ir.Constant(vector(I32, lanes), None)))

    def shuffle(self, one: Value, other: Value, indices: Sequence[int]) -> Value:
        """Elements of two vectors at constant places, the other's counted on from the one's."""
        mask = ir.Constant(vector(I32, len(indices)), list(indices))
        return Value(self, self.builder.shuffle_vector(one.raw, other.raw, mask))

    # --- memory ----------------------------------------------------------------------------------------------------

    def load(self, kind: Any, address: Value) -> Value:
        """What lies at an address of any alignment."""
        pointer = self.builder.inttoptr(address.raw, kind.as_pointer())
        return Value(self, self.builder.load(pointer, align=1))

    def store(self, value: Value, address: Value) -> None:
        """Write to an address of any alignment."""
        pointer = self.builder.inttoptr(address.raw, value.type.as_pointer())
        self.builder.store(value.raw, pointer, align=1)

    def load_first(self, kind: Any, address: Value, count: Value) -> Value:
        """The first `count` elements of a vector, zeros behind them; memory behind them is not read."""
        pointer = self.builder.inttoptr(address.raw, kind.as_pointer())
        zero = ir.Constant(kind, None)
        name = f"llvm.masked.load.{_suffix(kind)}.p0"
        return self._masked(name, kind, [pointer], kind, count, [zero])

    def store_first(self, value: Value, address: Value, count: Value) -> None:
        """Write the first `count` elements of a vector."""
        pointer = self.builder.inttoptr(address.raw, value.type.as_pointer())
        name = f"llvm.masked.store.{_suffix(value.type)}.p0"
        self._masked(name, ir.VoidType(), [value.raw, pointer], value.type, count, [])

    def _masked(
        self, name: str, result: Any, front: list[Any], kind: Any, count: Value, back: list[Any]
    ) -> Value:
        mask = (self.places(kind.count) < self.spread(count.cast(I32), kind.count)).raw
        return self._call(name, result, [*front, ir.Constant(I32, 1), mask, *back])

    def scratch(self, size: int) -> Value:
        """The address of `size` bytes that the function has while it runs."""
        with self.builder.goto_entry_block():
            slot = self.builder.alloca(ir.ArrayType(I8, size))
            slot.align = 64
            return Value(self, self.builder.ptrtoint(slot, I64))

    def prefetch(self, address: Value) -> None:
        """Have a cache line that will be read brought to the second-level cache."""
        pointer = self.builder.inttoptr(address.raw, I8.as_pointer())
        hints = [ir.Constant(I32, hint) for hint in (0, _SECOND_LEVEL, 1)]
        self._call("llvm.prefetch.p0", ir.VoidType(), [pointer, *hints])

    # --- control ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def range(self, start: Any, stop: Value, step: Any = 1) -> Iterator[Value]:
        """for i in range(start, stop, step)."""
        first = self.integer(start) if isinstance(start, int) else start
        index = self.variable(first)
        head, body, end = (self.builder.append_basic_block(name) for name in ("head", "body", "end"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch((index.value < stop).raw, body, end)
        self.builder.position_at_end(body)
        yield index.value
        index.set(index.value + step)
        self.builder.branch(head)
        self.builder.position_at_end(end)

    @contextlib.contextmanager
    def pieces(self, count: Value) -> Iterator[Value]:
        """The numbers below `count` that no other thread has taken."""
        head, body, end = (self.builder.append_basic_block(name) for name in ("take", "taken", "none_left"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        number = Value(self, self.builder.atomic_rmw("add", self._counter, ir.Constant(I64, 1), "monotonic"))
        self.builder.cbranch((number < count).raw, body, end)
        self.builder.position_at_end(body)
        yield number
        self.builder.branch(head)
        self.builder.position_at_end(end)

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """If."""
        with self.builder.if_then(condition.raw):
            yield

    @contextlib.contextmanager
    def choose(self, condition: Value) -> Iterator[tuple[Any, Any]]:
        """If and else: `with code.choose(c) as (yes, no):`, then `with yes:` and `with no:`."""
        with self.builder.if_else(condition.raw) as branches:
            yield branches

    # --- instructions ----------------------------------------------------------------------------------------------

    def intrinsic(self, name: str, result: Any, *operands: Value) -> Value:
        """Call one of LLVM's intrinsics by its full name."""
        return self._call(name, result, [operand.raw for operand in operands])

    def sum(self, values: Value) -> Value:
        """The sum of the lanes of integers."""
        kind = values.type
        return self.intrinsic(f"llvm.vector.reduce.add.{_suffix(kind)}", kind.element, values)

    def largest(self, values: Value) -> Value:
        """The largest lane of integers."""
        kind = values.type
        return self.intrinsic(f"llvm.vector.reduce.smax.{_suffix(kind)}", kind.element, values)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a · b + c, rounded once."""
        return self.intrinsic(f"llvm.fma.{_suffix(a.type)}", a.type, a, b, c)

    def _call(self, name: str, result: Any, operands: list[Any]) -> Value:
        kind = ir.FunctionType(result, [operand.type for operand in operands])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return Value(self, self.builder.call(function, operands))


def _element(kind: Any) -> Any:
    return kind.element if isinstance(kind, ir.VectorType) else kind


def _like(kind: Any, element: Any) -> Any:
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _suffix(kind: Any) -> str:
    """A type in the name of an intrinsic."""
    lanes = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    element = _element(kind)
    return lanes + {F16: "f16", F32: "f32"}.get(element, f"i{getattr(element, 'width', 0)}")
