"""The operations of interpreted Triton kernels on numpy arrays, right or refused for bfloat16.

Triton's own interpreter keeps bfloat16 and float8 as their bits in unsigned integers and computes
with those bits as integers: without an error, products, sums and comparisons are wrong.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, InterpreterOptions, TensorHandle

from coxcompile.runtime.emulated.triton_conversions import (
    FLOAT8,
    bfloat16_to_float32,
    float8_values,
    float32_to_bfloat16,
)
from coxcompile.runtime.emulated.triton_memory import notify_observer

_REMEDY = "cast to float32 in the kernel first"


class Operations(InterpreterBuilder):  # type: ignore[misc]
    """Triton's operations; those on bfloat16 and float8 that would be wrong raise.

    Right for bfloat16 are loads, stores, everything that only moves values, ``tl.where``,
    ``tl.abs``, ``tl.dot`` and casts; for float8 the same but for casts to it. ``tl.dot`` of float32
    multiplies without rounding to TF32.

    Raises:
        NotImplementedError: arithmetic, comparisons, atomics, or a cast that is not right.
    """

    grid_idx: tuple[int, int, int]

    def __init__(self) -> None:
        super().__init__()
        # Costs a quarter of the time, for assertions that are off without the option debug.
        self.options = InterpreterOptions(sanitize_overflow=False)

    def get_bf16(self, value: float) -> TensorHandle:
        """A constant."""
        return TensorHandle(float32_to_bfloat16(np.array([value], dtype=np.float32)), tl.bfloat16)

    def cast_impl(self, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        """Cast, but between floating types of which one is float8."""
        source, target = src.dtype.scalar, dst_type.scalar
        if source == tl.bfloat16:
            values = TensorHandle(bfloat16_to_float32(src.data), tl.float32)
            return values if target == tl.float32 else self.cast_impl(values, dst_type)
        if target == tl.bfloat16:
            if not _rounds_once(source):
                raise NotImplementedError(f"cast of {source} to bfloat16: {_REMEDY}")
            return TensorHandle(float32_to_bfloat16(src.data.astype(np.float32)), tl.bfloat16)
        return super().cast_impl(src, dst_type)

    def create_fp_to_fp(
        self, src: TensorHandle, dst_type: tl.dtype, rounding_mode: Any
    ) -> TensorHandle:
        """Cast from float8; to float8 and with a rounding of the kernel's choice it is refused."""
        source, target = src.dtype.scalar, dst_type.scalar
        if source.name not in FLOAT8 or target.is_fp8():
            raise NotImplementedError(
                f"cast of {source} to {target} with rounding {rounding_mode}: interpreted kernels "
                "cast right from float8, and otherwise with the default rounding"
            )
        values = TensorHandle(float8_values(source.name)[src.data], tl.float32)
        return values if target == tl.float32 else self.cast_impl(values, dst_type)

    def create_dot(
        self,
        a: TensorHandle,
        b: TensorHandle,
        d: TensorHandle,
        input_precision: Any,
        max_num_imprecise_acc: int,
    ) -> TensorHandle:
        """The product, of exact operands and summed in the type of ``d``."""
        return super().create_dot(
            _exact_operand(a, d), _exact_operand(b, d), d, input_precision, max_num_imprecise_acc
        )

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> TensorHandle:
        """Arithmetic and comparisons."""
        refuse_bits(op.__name__, lhs.dtype, rhs.dtype)
        return super().binary_op(lhs, rhs, op)

    def ternary_op(
        self, lhs: TensorHandle, rhs: TensorHandle, other: TensorHandle, op: Any
    ) -> TensorHandle:
        """``tl.where``, which only moves values, and ``tl.clamp``."""
        if op is not np.where:
            refuse_bits(op.__name__, lhs.dtype, rhs.dtype, other.dtype)
        return super().ternary_op(lhs, rhs, other, op)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        """X * y + z."""
        refuse_bits("fma", x.dtype, y.dtype, z.dtype)
        return super().create_fma(x, y, z)

    def create_make_tensor_descriptor(
        self, base: TensorHandle, shape: Any, strides: Any, tensor_shape: Any, *rest: Any
    ) -> Any:
        """A descriptor."""
        descriptor = super().create_make_tensor_descriptor(
            base, shape, strides, tensor_shape, *rest
        )
        if "NAN" in str(descriptor.padding):
            refuse_bits("padding with NaN", base.get_element_ty())
        return descriptor

    def create_masked_load(
        self, ptrs: TensorHandle, mask: TensorHandle, *rest: Any, **names: Any
    ) -> TensorHandle:
        """Every load, through descriptors and block pointers too, ends here."""
        notify_observer("load", self.grid_idx, ptrs, mask)
        return super().create_masked_load(ptrs, mask, *rest, **names)

    def create_masked_store(
        self, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any
    ) -> Any:
        """Every store, through descriptors and block pointers too, ends here."""
        notify_observer("store", self.grid_idx, ptrs, mask)
        return super().create_masked_store(ptrs, value, mask, *rest)

    def create_atomic_rmw(
        self, rmwOp: Any, ptr: TensorHandle, val: TensorHandle, mask: TensorHandle, *rest: Any
    ) -> TensorHandle:
        """Atomic operations but compare-and-swap."""
        refuse_bits("atomics", val.dtype)
        notify_observer("atomic", self.grid_idx, ptr, mask)
        return super().create_atomic_rmw(rmwOp, ptr, val, mask, *rest)

    def create_atomic_cas(self, ptr: TensorHandle, *rest: Any) -> TensorHandle:
        """Atomic compare-and-swap."""
        notify_observer("atomic", self.grid_idx, ptr, None)
        return super().create_atomic_cas(ptr, *rest)


def refuse_bits(operation: str, *types: tl.dtype) -> None:
    """Raise NotImplementedError where a type is one that the interpreter keeps as bits."""
    for kind in types:
        if kind.scalar == tl.bfloat16 or kind.scalar.is_fp8():
            raise NotImplementedError(
                f"{operation} of {kind.scalar} in an interpreted kernel: {_REMEDY}"
            )


def _rounds_once(source: tl.dtype) -> bool:
    """Whether a cast to bfloat16 by way of float32 gives what a GPU's gives."""
    if source.is_int():  # signed ones go by way of float32 on GPUs as well
        return bool(source.is_int_signed() or source.int_bitwidth <= 16)
    return source.name in ("fp16", "fp32")


def _exact_operand(operand: TensorHandle, sum_: TensorHandle) -> TensorHandle:
    kind = operand.dtype.scalar
    if kind == tl.bfloat16:
        return TensorHandle(bfloat16_to_float32(operand.data), tl.float32)
    if kind.name in FLOAT8:
        return TensorHandle(float8_values(kind.name)[operand.data], tl.float32)
    if kind == tl.float16 and sum_.dtype.scalar == tl.float32:  # numpy has no fast float16
        return TensorHandle(operand.data.astype(np.float32), tl.float32)
    return operand
