"""Vectors of LANES = 16 floats for numba kernels: SIMD operations, written explicitly.

numba leaves it to the compiler to vectorize loops, and in a large kernel it vectorizes few of them. Here kernels are
written in vectors: `load` a vector from a row of an array, `fma(a, b, c)` = a * b + c,
`+ - *`, `store`. The compiler makes one AVX-512 instruction of each, or two with AVX2, or four with SSE or NEON.

    s = splat(0)
    for i in range(inputs):
        s = fma(x[t, i], load(weight, i, first), s)  # a number times a vector of 16 weights
    store(out, t, first, s)

`load` and `store` take a row and a column. `load_flat`, `store_flat`, `get` and `put` take a place in an array's flat
order, like `array.flat`: where rows have a constant length, the compiler then knows the distance between two of them.

Without numba, `numba` and the names of these operations are None, so that other modules can import them.
"""

import contextlib
import functools
import hashlib
import logging
import operator
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np


try:
    import numba
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.core.caching import FunctionCache
    from numba.core.extending import intrinsic, lower_builtin, models, register_model, type_callable
    from numba.core.registry import cpu_target
except ImportError:
    numba = HAS_AVX512 = None
    exp2 = fma = from_lane = get = halves = load = load_flat = load_pair = maximum = put = reduce_max = splat = None
    store = store_flat = swap_halves = total = up_to_lane = None

LANES = 16
# A kernel calls functions of all of them.
SOURCES = ("kernel_simd.py", "kernel_blocks.py", "kernel_choice.py", "kernel_sampling.py")
logger = logging.getLogger(__name__)


def kernel(function):
    """Mark a function that numba compiles for kernels to call, for the types that it is called with."""
    if numba is None:
        return function
    options = {"error_model": "numpy", "fastmath": {"contract"}}
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(function)  # Python calls none of them


@functools.cache
def source_digest() -> str:
    """Digest of the files whose code is compiled into a kernel, in hexadecimal."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in SOURCES)).hexdigest()[:16]


def compile_kernel(function, signature):
    """Compile a kernel for one signature; it is kept on disk where possible, and slow compilation is logged."""
    message = f"compiling `{function.__name__}` for this processor, once; the result is kept on disk"
    timer = threading.Timer(2, logger.warning, [message])  # loading from disk does not take that long
    timer.start()
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}  # contract: a * b + c rounds once
    try:
        name_for_cache(function)
        return numba.njit(signature, cache=True, **options)(function)
    except (RuntimeError, OSError, ImportError):  # no folder to cache in, or this file was cached under another name
        return numba.njit(signature, **options)(function)
    finally:
        timer.cancel()


def name_for_cache(function):
    """Put a digest of all sources into a kernel's qualified name, and so into the name of its file in numba's cache.

    numba recompiles when the kernel's own file changes, but not when a function that it calls from another file does.
    """
    function.__qualname__ = f"{function.__name__}_{source_digest()}"


def is_on_disk(function) -> bool:
    """Whether numba's cache has a kernel, or can have none."""
    try:
        name_for_cache(function)
        folder = Path(FunctionCache(function).cache_path)
    except RuntimeError:  # no folder to cache in
        return True
    return any(folder.glob(f"*{function.__qualname__}*.nbi"))


@contextlib.contextmanager
def compiled_beside(make_kernel, function):
    """While the body compiles a kernel, have another process compile `function`, unless that is on disk.

    Args:
        make_kernel: A function of a module, which compiles it.
    """
    if is_on_disk(function):
        yield
        return
    program = f"from {make_kernel.__module__} import {make_kernel.__name__}; {make_kernel.__name__}()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment):  # waits for it in the end
        yield


if numba is not None:
    # AVX-512 has 32 registers of a vector each; elsewhere a vector fills two or four of 16 or 32.
    HAS_AVX512 = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]

    floats, ints = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)

    class Vector(types.Type):
        """numba's type of 16 floats."""

    vector = Vector("float32x16")

    @register_model(Vector)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager, numba_type):
            super().__init__(manager, numba_type, floats)

    def _constant(number, kind=floats):
        return ir.Constant(kind, [number] * LANES)

    def _splat(context, builder, kind, value):
        """A scalar of any type, or a vector -> a vector."""
        if isinstance(kind, Vector):
            return value
        number = context.cast(builder, value, kind, types.float32)
        one = builder.insert_element(ir.Constant(floats, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, one, _constant(0, ints))

    def _call(builder, name, values, kinds, result=floats, **flags):
        """Call an intrinsic function of LLVM on vectors of 16 floats."""
        function = ir.FunctionType(result, kinds)
        return builder.call(
            cgutils.get_or_insert_function(builder.module, function, f"{name}.v{LANES}f32"), values, **flags
        )

    def _pointer(context, builder, signature, values):
        """Address of array[row, column], where a row's numbers lie side by side."""
        array = context.make_array(signature.args[0])(context, builder, values[0])
        size = context.get_value_type(types.intp)
        row, column = (
            context.cast(builder, v, t, types.intp) for v, t in zip(values[1:3], signature.args[1:3], strict=True)
        )
        stride = cgutils.unpack_tuple(builder, array.shape)[1]
        place = builder.add(builder.mul(row, stride, flags=("nsw",)), column, flags=("nsw",))
        assert place.type == size
        return builder.bitcast(builder.gep(array.data, [place], inbounds=True), floats.as_pointer())

    @intrinsic
    def load(typing, array, row, column):
        """array[row, column : column + 16]; the array is C-contiguous, the indices are not negative."""

        def generate(context, builder, signature, values):
            return builder.load(_pointer(context, builder, signature, values), align=4)

        return vector(array, row, column), generate

    @intrinsic
    def load_pair(typing, array, row, column):
        """array[row, column] in the even lanes, array[row, column + 1] in the odd ones."""

        def generate(context, builder, signature, values):
            two = ir.VectorType(ir.FloatType(), 2)
            place = _pointer(context, builder, signature, values)
            pair = builder.load(builder.bitcast(place, two.as_pointer()), align=4)
            return builder.shuffle_vector(pair, pair, ir.Constant(ints, [0, 1] * (LANES // 2)))

        return vector(array, row, column), generate

    @intrinsic
    def store(typing, array, row, column, value):
        """array[row, column : column + 16] = value"""

        def generate(context, builder, signature, values):
            what = _splat(context, builder, signature.args[3], values[3])
            builder.store(what, _pointer(context, builder, signature, values), align=4)
            return context.get_dummy_value()

        return types.void(array, row, column, value), generate

    def _flat_pointer(context, builder, signature, values):
        """Address of array.flat[index]; the array is C-contiguous, the index is not negative."""
        array = context.make_array(signature.args[0])(context, builder, values[0])
        index = context.cast(builder, values[1], signature.args[1], types.intp)
        return builder.gep(array.data, [index], inbounds=True)

    @intrinsic
    def load_flat(typing, array, index):
        """array.flat[index : index + 16]"""

        def generate(context, builder, signature, values):
            place = _flat_pointer(context, builder, signature, values)
            return builder.load(builder.bitcast(place, floats.as_pointer()), align=4)

        return vector(array, index), generate

    @intrinsic
    def store_flat(typing, array, index, value):
        """array.flat[index : index + 16] = value"""

        def generate(context, builder, signature, values):
            place = _flat_pointer(context, builder, signature, values)
            builder.store(values[2], builder.bitcast(place, floats.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(array, index, value), generate

    @intrinsic
    def get(typing, array, index):
        """array.flat[index], one number"""

        def generate(context, builder, signature, values):
            return builder.load(_flat_pointer(context, builder, signature, values))

        return array.dtype(array, index), generate

    @intrinsic
    def put(typing, array, index, number):
        """array.flat[index] = number"""

        def generate(context, builder, signature, values):
            builder.store(values[2], _flat_pointer(context, builder, signature, values), align=4)
            return context.get_dummy_value()

        return types.void(array, index, types.float32), generate

    @intrinsic
    def halves(typing, a, b):
        """a in the first 8 lanes, b in the others; numbers or vectors."""

        def generate(context, builder, signature, values):
            a, b = (_splat(context, builder, k, v) for k, v in zip(signature.args, values, strict=True))
            lanes = [lane if lane < LANES // 2 else LANES + lane for lane in range(LANES)]
            return builder.shuffle_vector(a, b, ir.Constant(ints, lanes))

        return vector(a, b), generate

    @intrinsic
    def splat(typing, number):
        """A vector of 16 equal numbers."""

        def generate(context, builder, signature, values):
            return _splat(context, builder, signature.args[0], values[0])

        return vector(number), generate

    @intrinsic
    def fma(typing, a, b, c):
        """a * b + c; scalars among them are broadcast."""

        def generate(context, builder, signature, values):
            vectors = [_splat(context, builder, k, v) for k, v in zip(signature.args, values, strict=True)]
            return _call(builder, "llvm.fmuladd", vectors, [floats] * 3)

        return vector(a, b, c), generate

    @intrinsic
    def maximum(typing, a, b):
        """Elementwise maximum."""

        def generate(context, builder, signature, values):
            a, b = (_splat(context, builder, k, v) for k, v in zip(signature.args, values, strict=True))
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        return vector(a, b), generate

    def _choose(comparison):
        """Make the code generator of: x in the lanes whose index compares with `lane` like that, otherwise `other`."""

        def generate(context, builder, signature, values):
            lane, x, other = values
            number = builder.trunc(context.cast(builder, lane, signature.args[0], types.intp), ir.IntType(32))
            one = builder.insert_element(ir.Constant(ints, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
            border = builder.shuffle_vector(one, one, _constant(0, ints))
            lanes = ir.Constant(ints, list(range(LANES)))
            other = _splat(context, builder, signature.args[2], other)
            return builder.select(builder.icmp_signed(comparison, lanes, border), x, other)

        return generate

    @intrinsic
    def from_lane(typing, lane, x, other):
        """x in the lanes from `lane` on, `other` in those before."""
        return vector(lane, x, other), _choose(">=")

    @intrinsic
    def up_to_lane(typing, lane, x, other):
        """x in the lanes up to `lane`, `other` in those after."""
        return vector(lane, x, other), _choose("<=")

    @intrinsic
    def swap_halves(typing, x):
        """Exchange numbers 0 to 3 with 4 to 7, and 8 to 11 with 12 to 15."""

        def generate(context, builder, signature, values):
            (x,) = values
            return builder.shuffle_vector(x, x, ir.Constant(ints, [lane ^ 4 for lane in range(LANES)]))

        return vector(vector), generate

    @intrinsic
    def exp2(typing, x):
        """2**x for x <= 0, to a relative error of 2e-7; exactly 0 from -127 down."""

        def generate(context, builder, signature, values):
            (x,) = values
            low, magic = _constant(-127.0), _constant(1.5 * 2**23)
            x = builder.select(builder.fcmp_ordered(">", x, low), x, low)
            # The sum has no bits left for fractions: its last bits are n, x rounded to an integer.
            shifted = builder.fadd(x, magic)
            r = builder.fsub(x, builder.fsub(shifted, magic))  # x = n + r, |r| <= 1/2
            p = _constant(float(np.float32(EXP2_POLYNOMIAL[0])))
            for coefficient in EXP2_POLYNOMIAL[1:]:
                p = _call(builder, "llvm.fmuladd", [p, r, _constant(float(np.float32(coefficient)))], [floats] * 3)
            n = builder.shl(builder.bitcast(shifted, ints), _constant(23, ints))
            return builder.bitcast(builder.add(builder.bitcast(p, ints), n), floats)  # adds n to p's exponent

        return vector(vector), generate

    @intrinsic
    def total(typing, x):
        """Sum of the 16 numbers."""

        def generate(context, builder, signature, values):
            numbers, number = [ir.Constant(ir.FloatType(), -0.0), values[0]], ir.FloatType()
            fastmath = ("reassoc",)  # in any order
            return _call(builder, "llvm.vector.reduce.fadd", numbers, [number, floats], number, fastmath=fastmath)

        return types.float32(x), generate

    @intrinsic
    def reduce_max(typing, x):
        """Maximum of the 16 numbers."""

        def generate(context, builder, signature, values):
            return _call(builder, "llvm.vector.reduce.fmax", values, [floats], ir.FloatType())

        return types.float32(x), generate

    def _define(symbol, instruction):
        @type_callable(symbol)
        def typer(context):
            def result(a, b):
                if isinstance(a, Vector) and isinstance(b, Vector):
                    return vector

            return result

        @lower_builtin(symbol, Vector, Vector)
        def lower(context, builder, signature, values):
            return getattr(builder, instruction)(*values)

    INSTRUCTIONS = {
        operator.add: "fadd",
        operator.iadd: "fadd",
        operator.sub: "fsub",
        operator.isub: "fsub",
        operator.mul: "fmul",
        operator.imul: "fmul",
        operator.truediv: "fdiv",
    }
    for _symbol, _instruction in INSTRUCTIONS.items():
        _define(_symbol, _instruction)

# 2**r for |r| <= 1/2, highest power first: of the polynomials of degree 5 with p(0) = 1, the least relative error.
EXP2_POLYNOMIAL = (1.326471444e-3, 9.671508966e-3, 5.550733740e-2, 2.402224214e-1, 6.931469776e-1, 1.0)
