"""Kernels that try what the emulated targets have to do with Triton kernels."""
# Annotations of a kernel's parameters would choose their types.
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl


@triton.jit
def square(x):
    return x * x


@triton.jit
def square_and_add(x, y):
    return square(x) + square(y)


@triton.jit
def multiply(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    row, column, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + row[:, None] * K + inner[None, :])
    right = tl.load(b + inner[:, None] * N + column[None, :])
    tl.store(out + row[:, None] * N + column[None, :], tl.dot(left, right))


@triton.jit
def cast(x, out, N: tl.constexpr):
    place = tl.arange(0, N)
    tl.store(out + place, tl.load(x + place).to(out.dtype.element_ty))


@triton.jit
def combine(x, out, OPERATION: tl.constexpr, N: tl.constexpr):
    place = tl.arange(0, N)
    values = tl.load(x + place)
    if OPERATION == "add":
        result = values + values
    elif OPERATION == "negate":
        result = -values
    elif OPERATION == "compare":
        result = tl.where(values < values, values, 0.0)
    elif OPERATION == "sum":
        result = tl.sum(values, keep_dims=True)
    elif OPERATION == "reduce":
        result = tl.reduce(values, 0, square_and_add, keep_dims=True)
    elif OPERATION == "scan":
        result = tl.associative_scan(values, 0, square_and_add)
    elif OPERATION == "fma":
        result = tl.fma(values, values, values)
    elif OPERATION == "atomic":
        result = tl.atomic_add(out + place, values)
    elif OPERATION == "absolute":
        result = tl.abs(values)
    elif OPERATION == "select":
        result = tl.where(place < N // 2, values, 1.5)
    elif OPERATION == "full":
        result = tl.full([N], 0.3, x.dtype.element_ty)
    elif OPERATION == "maximum":
        result = tl.maximum(values, 0.0)
    elif OPERATION == "compare with a constant":
        result = tl.where(values < 0.5, values, 0.0)
    elif OPERATION == "cumulative sum":
        result = tl.cumsum(values)
    tl.store(out + place, result)


@triton.jit
def squares(x, out, scale, start: tl.int64, N: tl.constexpr, FUNCTION: tl.constexpr):
    total = tl.zeros([N], tl.float32)
    for step in range(start, start + 2):
        total += FUNCTION(tl.load(x + step.to(tl.int64) * N + tl.arange(0, N)), scale)
    tl.store(out + tl.program_id(0) * N + tl.arange(0, N), total)


@triton.jit
def copy_by_address(table, out, N: tl.constexpr, TYPE: tl.constexpr):
    program = tl.program_id(0)
    source = tl.load(table + program).to(tl.pointer_type(TYPE))
    place = tl.arange(0, N)
    tl.store(out + program * N + place, tl.load(source + place))


@triton.jit
def copy_by_descriptor(x, out, rows, columns, M: tl.constexpr, N: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [rows, columns], [columns, 1], [M, N])
    target = tl.make_tensor_descriptor(out, [rows, columns], [columns, 1], [M, N])
    first = tl.program_id(0) * M
    target.store([first, 0], source.load([first, 0]))


@triton.jit
def copy_block(x, out, count, step, MASKED: tl.constexpr, N: tl.constexpr):
    place = tl.program_id(0) * step + tl.arange(0, N)
    mask = place < count if MASKED else place >= 0
    tl.store(out + place, tl.load(x + place, mask=mask), mask=mask)


@triton.jit
def fail(x):
    tl.static_assert(x.dtype.element_ty == tl.float32)
    for step in range(0, tl.load(x).to(tl.int32)):
        tl.assume(step < 2)


@triton.jit
def hold(x, N: tl.constexpr, STAGES: tl.constexpr):
    total = tl.zeros([N, N], tl.float32)
    place = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    for step in tl.range(0, 4, num_stages=STAGES):
        tile = tl.load(x + step * N * N + place)
        total = tl.dot(tile, tile, total)
    tl.store(x + place, total.to(tl.float16))


@triton.autotune([triton.Config({}, num_warps=w) for w in (1, 2)], key=[])
@triton.jit
def tuned(x):
    tl.store(x, 1.0)
