"""Records a model's calls while it runs, to see which layers read the output of a layer.

The recorder notes each Linear and each norm as one call, and each torch function called outside of them. A call reads
values and makes values. A value is one tensor on its way through the model:

    x ─ linear1 ─ a ─ gelu ─ b ─ view ─ c ─ linear2 ─ y          b's readers: view;  c's: linear2;  y is returned

A QuantizedTensor will later meet the same calls. So the recorder tries each call on a QuantizedTensor, to tell calls
that only move elements from calls that read their values. It keeps only the identity of tensors. Calls that read sizes,
dtype or device are not recorded.

A recording proves something only for the path that the run took. If a QuantizedTensor later meets another call, it
raises an error, so a wrong guess never gives a wrong number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from tritonq.nn.epilogue_steps import step_of
from tritonq.nn.norm_kinds import is_norm
from tritonq.nn.packed_weight import PackedWeight
from tritonq.nn.quantized_tensor import METADATA, QuantizedTensor
from tritonq.observers import ObserverBase
from tritonq.select.calibrate import run_batch
from tritonq.select.patterns import places


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a module or a function.

    Attributes:
        name: of the module or the function.
        is_module: False for a function.
        reads, makes: the numbers of the values; a value that is read twice is listed twice.
        step: its name as a step of an epilogue (tritonq/nn/epilogue_steps.py); None for others.
        moves: it only moves elements, so a QuantizedTensor can do it.
        whole: the values that a step reads in the shape of its result; other values are broadcast.
    """

    name: str
    is_module: bool
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    step: str | None = None
    moves: bool = False
    whole: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Dataflow:
    """One run of a model.

    Attributes:
        calls: in the order in which they ended.
        returned: values that the model returned.
        kept: values that still existed when the model had returned, such as those of a cache.
    """

    calls: tuple[Call, ...]
    returned: frozenset[int]
    kept: frozenset[int] = frozenset()

    @functools.cached_property
    def readers(self) -> Mapping[int, list[Call]]:
        """value → the calls that read it."""
        readers: defaultdict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            for value in dict.fromkeys(call.reads):
                readers[value].append(call)
        return readers

    def prefixed(self, prefix: str) -> Dataflow:
        """The same run with `prefix` before the modules' names, for a model that is a part of another one."""
        renamed = (
            dataclasses.replace(call, name=prefix + call.name) if call.is_module else call
            for call in self.calls
        )
        return Dataflow(tuple(renamed), self.returned, self.kept)

    def calls_of(self, name: str) -> list[Call]:
        """All calls of a module."""
        return [call for call in self.calls if call.is_module and call.name == name]

    def ends(self, value: int) -> tuple[list[Call], list[Call], bool]:
        """What reads a value, directly or after calls that only move elements.

        Returns:
            (modules that read it, functions that read it, True if the model returns or keeps it).
        """
        modules: list[Call] = []
        functions: list[Call] = []
        returned = value in self.returned or value in self.kept
        for call in self.readers.get(value, ()):
            if call.is_module:
                modules.append(call)
            elif call.moves:
                for made in call.makes:
                    further = self.ends(made)
                    modules += further[0]
                    functions += further[1]
                    returned = returned or further[2]
            else:
                functions.append(call)
        return modules, functions, returned


def record(model: nn.Module, batch: Any) -> Dataflow:
    """Run one batch through a model, without gradients, and note its calls.

    Args:
        model: each Linear, quantized or not, and each norm (tritonq/nn/norm_kinds.py) is one call.
        batch: tensor → model(x), tuple → model(*x), dict → model(**x).
    """
    with torch.no_grad(), recording(model) as recorder:
        output = run_batch(model, batch)
        return recorder.finish(output)


@contextlib.contextmanager
def recording(model: nn.Module, per_token: bool = False) -> Iterator[Recorder]:
    """Record the calls inside of the block; each Linear and each norm of `model` is one call."""
    recorder = Recorder(per_token)
    with contextlib.ExitStack() as stack:
        for handle in recorder.attach(model):
            stack.callback(handle.remove)
        with recorder:
            yield recorder


class Recorder(TorchFunctionMode):
    """Notes every call of a torch function, and of the modules it is attached to, while it is active.

    Args:
        per_token: try calls on a QuantizedTensor with one scale per row, which can only move whole rows.
    """

    def __init__(self, per_token: bool = False) -> None:
        super().__init__()
        self._per_token = per_token
        self._calls: list[Call] = []
        self._values = WeakIdKeyDictionary()  # tensor → the number of its value, and its version at that time
        self._count = 0
        # The running modules, the innermost last: (module, name, values it reads); observers have no name.
        self._inside: list[tuple[nn.Module, str, tuple[int, ...]]] = []

    def attach(self, model: nn.Module) -> list[Any]:
        """Hook into each Linear, norm and observer; returns the hooks' handles."""
        handles: list[Any] = []
        for place in places(model):
            module = place.module
            if isinstance(module, ObserverBase):
                enter = functools.partial(self._enter, "")
            elif isinstance(module, (nn.Linear, PackedWeight)) or is_norm(module):
                enter = functools.partial(self._enter, place.name)
            else:
                continue
            # These hooks are inside of the user's hooks, so what a user's hook reads is recorded.
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, prepend=True, always_call=True))
        return handles

    def finish(self, output: Any) -> Dataflow:
        """The recorded run, which returned `output`.

        Without gradients, a tensor that still exists was returned, or the model keeps it somewhere. With gradients
        autograd keeps tensors too, so `kept` stays empty.
        """
        returned = (self._values.get(tensor) for tensor in _tensors(output))
        kept = () if torch.is_grad_enabled() else self._values.values()
        known = frozenset(noted[0] for noted in returned if noted is not None)
        return Dataflow(tuple(self._calls), known, frozenset(noted[0] for noted in kept) - known)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        words = kwargs or {}
        if self._inside or _is_metadata(func):
            return func(*args, **words)
        tensors = _tensors((args, words))
        reads = tuple(map(self._value_of, tensors))  # before func changes one of them
        result = func(*args, **words)
        # Dropout in eval mode returns its input: no call.
        if tensors and not (func is functional.dropout and result is tensors[0]):
            moves, step = _moves(func, args, words, self._per_token), step_of(func, args, words)
            if not all(tensor.is_floating_point() for tensor in tensors):
                step = None  # no epilogue takes integers or complex numbers
            whole = () if step is None else _of_shape(result.shape, tensors, reads)
            made = tuple(map(self._new_value, _tensors(result)))
            name = getattr(func, "__name__", str(func))
            self._calls.append(Call(name, False, reads, made, step, moves, whole))
        return result

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._inside.append((module, name, tuple(map(self._value_of, _tensors((args, kwargs))))))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._inside or self._inside[-1][0] is not module:
            return  # another hook failed before this module was entered
        _, name, reads = self._inside.pop()
        if name and not self._inside and output is not None:  # None: the forward failed
            self._calls.append(Call(name, True, reads, tuple(map(self._new_value, _tensors(output)))))

    def _value_of(self, tensor: Tensor) -> int:
        """The value of a tensor; a new value if the tensor was changed in place since, even through a view."""
        value, version = self._values.get(tensor, (0, 0))
        return value if value and version == _version(tensor) else self._new_value(tensor)

    def _new_value(self, tensor: Tensor) -> int:
        self._count += 1
        self._values[tensor] = self._count, _version(tensor)
        return self._count


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for tensors of inference mode, which keep no count."""
    with torch._C.DisableTorchFunction():  # else the recorder would note these calls
        return 0 if tensor.is_inference() else tensor._version


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


def _of_shape(shape: torch.Size, tensors: list[Tensor], values: tuple[int, ...]) -> tuple[int, ...]:
    """The values of the tensors of this shape."""
    return tuple(value for tensor, value in zip(tensors, values, strict=True) if tensor.shape == shape)


def _is_metadata(func: Callable[..., Any]) -> bool:
    """True for a method such as `size`, and for the getter of a property such as `shape`."""
    name, owner = getattr(func, "__name__", ""), getattr(func, "__self__", None)
    if name == "__get__":
        return getattr(owner, "__name__", "") in METADATA
    return name in METADATA and getattr(Tensor, name) is func  # not torch.numel


def _moves(func: Callable[..., Any], args: Any, kwargs: dict[str, Any], per_token: bool) -> bool:
    """True if a QuantizedTensor as the first argument can do this call. Steps such as relu do not count."""
    first = args[0] if args else kwargs.get("input")
    if (
        step_of(func, args, kwargs) is not None
        or not isinstance(first, Tensor)
        or not first.is_floating_point()
    ):
        return False
    meta = torch.empty(first.shape, dtype=torch.int8, device="meta")
    scale = meta.new_empty((*first.shape[:-1], 1)) if per_token else meta.new_empty(1)
    stand_in = QuantizedTensor(meta, scale, None, first.dtype)
    others = args[1:] if args else ()
    words = {word: value for word, value in kwargs.items() if args or word != "input"}
    name = getattr(func, "__name__", "")
    try:
        if getattr(torch.Tensor, name, None) is func:
            result = getattr(stand_in, name)(*others, **words)
        else:
            result = func(stand_in, *others, **words)
    except Exception:  # any error means that it cannot
        return False
    return isinstance(result, QuantizedTensor)
