"""Kernel source → Python that runs with Triton's meaning.

The body of a kernel looks like Python but means something else: a plain assignment makes a tensor of a number, an
annotated one a constexpr, `and` evaluates both sides, `range` counts in tensors. Every such expression and statement is
rewritten into a call of the interpreter (interpreter.py); control flow stays Python's, line numbers stay the file's.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from .errors import MARK

#: The interpreter's name in rewritten functions; no name of a kernel is mangled so.
INTERPRETER = "_gluon_emulator_"

_BINARY: dict[type[ast.AST], str] = {
    ast.Add: "__add__",
    ast.Sub: "__sub__",
    ast.Mult: "__mul__",
    ast.Div: "__truediv__",
    ast.FloorDiv: "__floordiv__",
    ast.Mod: "__mod__",
    ast.Pow: "__pow__",
    ast.LShift: "__lshift__",
    ast.RShift: "__rshift__",
    ast.BitAnd: "__and__",
    ast.BitOr: "__or__",
    ast.BitXor: "__xor__",
    ast.Eq: "__eq__",
    ast.NotEq: "__ne__",
    ast.Lt: "__lt__",
    ast.LtE: "__le__",
    ast.Gt: "__gt__",
    ast.GtE: "__ge__",
}
_UNARY: dict[type[ast.AST], str] = {
    ast.USub: "__neg__",
    ast.UAdd: "__pos__",
    ast.Not: "__not__",
    ast.Invert: "__invert__",
}


def rewritten(function: Callable[..., Any], interpreter: object) -> Callable[..., Any]:
    """A Python function that runs `function`, the source of a kernel, through an interpreter."""
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    for argument in ast.walk(definition.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    definition.returns = None
    # Defaults are the original's: they were evaluated where it was defined.
    definition.args.defaults, definition.args.kw_defaults = [], [None] * len(definition.args.kwonlyargs)
    definition.body = [_Rewriter().visit(statement) for statement in definition.body]
    ast.increment_lineno(ast.fix_missing_locations(tree), first - 1)
    code = compile(tree, inspect.getsourcefile(function) or "<kernel>", "exec")
    namespace = {**function.__globals__, **_closure(function), INTERPRETER: interpreter, MARK: True}
    exec(code, namespace)
    result = namespace[definition.name]
    result.__defaults__, result.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return result


def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


def _call(method: str, *arguments: ast.expr, at: ast.AST) -> ast.Call:
    function = ast.Attribute(ast.Name(INTERPRETER, ast.Load()), method, ast.Load())
    return ast.copy_location(ast.Call(function, list(arguments), []), at)


def _text(value: str) -> ast.expr:
    return ast.Constant(value)


def _lazy(body: ast.expr) -> ast.expr:
    nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.Lambda(nothing, body)


class _Rewriter(ast.NodeTransformer):
    # Expressions

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return _call("constant", node, at=node)

    def visit_Tuple(self, node: ast.Tuple | ast.List) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Store):
            return node
        return _call("tuple", ast.List(node.elts, ast.Load()), at=node)

    visit_List = visit_Tuple

    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
        self.generic_visit(node)
        return _call("tuple", node, at=node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Store):
            return node
        return _call("attribute", node.value, _text(node.attr), at=node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Store):
            raise NotImplementedError("Triton knows no assignment to elements")
        return _call("subscript", node.value, node.slice, at=node)

    def visit_Slice(self, node: ast.Slice) -> ast.expr:
        self.generic_visit(node)
        ends = (end or _text(None) for end in (node.lower, node.upper, node.step))  # type: ignore[arg-type]
        return _call("slice", *ends, at=node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        return _call("binary", _text(_BINARY[type(node.op)]), node.left, node.right, at=node)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) != 1:
            raise NotImplementedError("Triton knows no chained comparison")
        operation, other = node.ops[0], node.comparators[0]
        if isinstance(operation, (ast.Is, ast.IsNot)):
            is_wanted = ast.Constant(isinstance(operation, ast.Is))
            return _call("is_same", node.left, other, is_wanted, at=node)
        return _call("binary", _text(_BINARY[type(operation)]), node.left, other, at=node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        return _call("unary", _text(_UNARY[type(node.op)]), node.operand, at=node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        name = "logical_and" if isinstance(node.op, ast.And) else "logical_or"
        return _call("logical", _text(name), *(_lazy(value) for value in node.values), at=node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        return _call("either", node.test, _lazy(node.body), _lazy(node.orelse), at=node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        return _call("call", *self._call_parts(node), at=node)

    def _call_parts(self, node: ast.Call) -> tuple[ast.expr, ast.expr, ast.expr]:
        self.generic_visit(node)
        names: list[ast.expr | None] = [
            None if word.arg is None else _text(word.arg) for word in node.keywords
        ]
        keywords = ast.Dict(names, [word.value for word in node.keywords])
        return node.func, ast.List(node.args, ast.Load()), keywords

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                value.value = _call("plain", self.visit(value.value), at=node)
        return _call("constant", node, at=node)

    # Statements

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        if isinstance(node.value, ast.Constant):
            return node  # a docstring
        self.generic_visit(node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        self.generic_visit(node)
        node.value = _call("assigned", node.value, at=node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        assert node.value is not None
        value = _call("annotated", node.annotation, self.visit(node.value), at=node)
        return ast.copy_location(ast.Assign([node.target], value), node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        assert isinstance(node.target, ast.Name)
        old = ast.copy_location(ast.Name(node.target.id, ast.Load()), node)
        new = _call("binary", _text(_BINARY[type(node.op)]), old, self.visit(node.value), at=node)
        return ast.copy_location(ast.Assign([node.target], _call("assigned", new, at=node)), node)

    def visit_If(self, node: ast.If) -> ast.stmt:
        self.generic_visit(node)
        node.test = _call("truth", node.test, at=node)
        return node

    def visit_While(self, node: ast.While) -> ast.stmt:
        self.generic_visit(node)
        node.test = _call("truth", node.test, at=node)
        return node

    def visit_For(self, node: ast.For) -> ast.stmt:
        assert isinstance(node.iter, ast.Call)
        node.iter = _call("iterate", *self._call_parts(node.iter), at=node)
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        self.generic_visit(node)
        node.test = _call("truth", node.test, at=node)
        return node

    def visit_Return(self, node: ast.Return) -> ast.stmt:
        if node.value is None:
            node.value = _text(None)  # type: ignore[arg-type]
        else:
            self.generic_visit(node)
        return node
