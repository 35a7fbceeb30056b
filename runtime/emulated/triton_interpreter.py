"""Interpreting a Triton kernel on CPU tensors, with nothing left patched afterwards."""

import __future__

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction, get_jit_fn_file_line
from triton.tools.tensor_descriptor import TensorDescriptor

from coxcompile.runtime.emulated.triton_conversions import float32_to_bfloat16
from coxcompile.runtime.emulated.triton_memory import begin_launch
from coxcompile.runtime.emulated.triton_operations import Operations, refuse_bits

_operations = Operations()
_semantic = interpreter.TritonSemantic(_operations)
_rewritten: dict[Callable[..., Any], Callable[..., Any]] = {}


def interpret(
    kernel: JITFunction[Any],
    grid: tuple[int, int, int],
    arguments: Mapping[str, Any],
    types: Mapping[str, Any],
) -> None:
    """Run the programs of a grid one after another; the last axis of the grid changes fastest.

    Not for two threads at once, nor while another thread compiles a kernel: ``triton.language`` is
    patched meanwhile.

    Args:
        grid: programs in each axis.
        arguments: by parameter, all of them; tensors are CPU tensors.
        types: Triton's signature: the types of the parameters as the compiler takes them.

    Raises:
        Exception: whatever a program raises, with a note that names the kernel and the program.
    """
    begin_launch(tensors_in(arguments.values()))
    constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    with _patched(), np.errstate(all="ignore"):
        values = {
            name: value if name in constants else _kernel_value(value, types[name])
            for name, value in arguments.items()
        }
        function = _rewrite(kernel)
        _operations.set_grid_dim(*grid)
        for program in np.ndindex(*grid):
            _operations.set_grid_idx(*program)
            try:
                function(**values)
            except Exception as error:
                error.add_note(f"in program {program} of the Triton kernel {kernel.__name__}")
                raise


def tensors_in(arguments: Any) -> list[torch.Tensor]:
    """The tensors among the arguments of a kernel, in tuples and descriptors too."""
    found: list[torch.Tensor] = []
    for value in arguments:
        if isinstance(value, tuple):
            found += tensors_in(value)
        elif isinstance(value, TensorDescriptor):
            found += tensors_in([value.base])
        elif isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(getattr(value, "base", None), torch.Tensor):  # triton.reinterpret
            found.append(value.base)
    return found


@contextmanager
def _patched() -> Iterator[None]:
    """Let ``triton.language`` compute, and @triton.jit functions be called from one another."""
    language = {"language": tl, "core": tl.core}
    scope = interpreter._patch_lang(SimpleNamespace(__globals__=language))
    scope.set_attr(interpreter, "interpreter_builder", _operations)
    scope.set_attr(interpreter, "interpreter_semantic", _semantic)
    scope.set_attr(interpreter.ReduceScanOpInterface, "check_tensor", _check_reduced)
    scope.set_attr(JITFunction, "__call__", _call_nested)
    scope.set_attr(tl, "range", _range)
    scope.set_attr(tl.core, "range", _range)
    try:
        yield
    finally:
        scope.restore()


def _call_nested(function: JITFunction[Any], *arguments: Any, **names: Any) -> Any:
    return _rewrite(function)(*arguments, **names)


_check_tensor = interpreter.ReduceScanOpInterface.check_tensor


def _check_reduced(self: interpreter.ReduceScanOpInterface, tensors: tuple[Any, ...]) -> None:
    _check_tensor(self, tensors)
    refuse_bits("reductions", *(tensor.dtype for tensor in tensors))


def _range(*bounds: Any, **options: Any) -> Iterator[Any]:
    """As in compiled kernels, where the variable of a loop is a tensor; options are hints."""
    step = options.get("step")
    numbers = range(*(int(bound) for bound in bounds), *([] if step is None else [int(step)]))
    wide = any(isinstance(bound, tl.tensor) and bound.dtype == tl.int64 for bound in bounds)
    for number in numbers:
        yield _scalar(number, tl.int64 if wide else tl.int32)


def _rewrite(function: JITFunction[Any]) -> Callable[..., Any]:
    """The function with its assignments converted to tensors, in a namespace of its own."""
    if function.fn not in _rewritten:
        tree = interpreter.FunctionRewriter.ast_transformer.visit(function.parse())
        tree.body[0].decorator_list = []
        file, line = get_jit_fn_file_line(function)
        ast.increment_lineno(ast.fix_missing_locations(tree), line - 1)
        code = compile(
            tree, file, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True
        )
        names = function.get_capture_scope() | {"interpreter_semantic": _semantic, "range": _range}
        defined: dict[str, Any] = {}
        exec(code, names, defined)
        _rewritten[function.fn] = defined[function.fn.__name__]
    return _rewritten[function.fn]


def _kernel_value(value: Any, kind: Any) -> Any:
    """An argument as the kernel sees it: of the type that the compiler gave it."""
    if isinstance(value, tuple):
        items = [_kernel_value(item, k) for item, k in zip(value, kind, strict=True)]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, int | float) and kind != "constexpr":
        return _scalar(value, tl.str_to_ty(kind, None))
    return interpreter._implicit_cvt(value)


def _scalar(value: float, kind: tl.dtype) -> tl.tensor:
    if kind == tl.bfloat16:
        data: Any = float32_to_bfloat16(np.array([value], dtype=np.float32))
    else:
        data = np.array([value], dtype=interpreter._get_np_dtype(kind))
    return tl.tensor(interpreter.TensorHandle(data, kind), kind)
