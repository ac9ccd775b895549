"""Emits a device function of TIR, as TVM's pipeline leaves it, as a shader."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import tvm_ffi
from tvm import ir, tirx
from tvm.target import Target

from . import narrowing
from .arithmetic import BINARY, COMPARE, EXTREMA, INT32, REVERSED, Arithmetic, Value
from .memory import Memory, MemoryAccess
from .vectors import MAX_VECTOR, index_of_elements, pointer_of, vector_widths
from .words import Assembler, Decoration, Glsl, Literal, Op, Storage, Unsupported

WORKGROUP_ID, LOCAL_INVOCATION_ID = 26, 27  # built-ins
WORKGROUP_SCOPE, ACQUIRE_RELEASE, WORKGROUP_MEMORY = 2, 0x8, 0x100
UNROLL, DONT_CARE = Literal(1), Literal(0)  # loop and selection control
SCOPES = {"local": Storage.Function, "shared": Storage.Workgroup}
COMPARISONS = {*COMPARE, *REVERSED}
OPERATOR_CALLS = {
    "bitwise_and": "BitwiseAnd",
    "bitwise_or": "BitwiseOr",
    "bitwise_xor": "BitwiseXor",
    "shift_left": "LShift",
    "shift_right": "RShift",
}


@dataclass(frozen=True)
class Shader:
    """``words`` are the SPIR-V, little endian; ``name`` is that of its entry point. ``arguments`` are the dtypes of the
    function's arguments ("handle" for a buffer), ``launch`` the tags of the grid's extents that follow them in a call.
    The scalars are in a uniform buffer if ``uniform``, else they are push constants."""

    name: str
    words: bytes
    arguments: tuple[str, ...]
    launch: tuple[str, ...]
    uniform: bool


def emit(function: tirx.PrimFunc, target: Target) -> Shader:
    """Emit a function. Raises ValueError, naming the kernel and the construct, for what cannot be emitted, and for more
    threads or shared memory than the target has for a block."""
    name = str(function.attrs["global_symbol"])
    try:
        return Emitter(name, function, target).shader()
    except Unsupported as error:
        raise ValueError(f"The Vulkan code generator cannot emit {error} in the kernel {name}.") from None


def dtype_of(expr: tirx.Expr) -> np.dtype:
    """The dtype of every lane of an expression."""
    return scalar_dtype(expr.ty.dtype)


def element_dtype(dtype: tvm_ffi.dtype) -> np.dtype:
    """The dtype of the elements of a buffer."""
    if dtype.lanes != 1:
        raise Unsupported(f"a buffer of {dtype}")
    return scalar_dtype(dtype)


@lru_cache(None)
def scalar_dtype(dtype: tvm_ffi.dtype) -> np.dtype:
    try:
        return np.dtype(str(dtype.with_lanes(1)))
    except TypeError:
        raise Unsupported(f"the type {dtype}") from None


class Emitter:
    """Emits one function: ``_emit_X`` a statement of class X, ``_value_X`` an expression, ``_call_x`` a call of x."""

    def __init__(self, name: str, function: tirx.PrimFunc, target: Target):
        self.name = name
        self.function = function
        self.target = target
        self.shared_bytes = 0
        self.assembler = Assembler(name)
        self.arithmetic = Arithmetic(self.assembler)
        self.access = MemoryAccess(self.assembler, self.arithmetic)
        self.values: dict[tirx.Var, Value] = {}
        self.memories: dict[tirx.Var, Memory] = {}
        self.widths = vector_widths(function.body)

    def shader(self) -> Shader:
        params = list(self.function.params)
        buffers = [param for param in params if isinstance(param.ty, ir.PointerType)]
        pods = [param for param in params if not isinstance(param.ty, ir.PointerType)]
        noalias = bool(self.function.attrs.get("tirx.noalias", False))
        for binding, buffer in enumerate(buffers):
            dtype, width = element_dtype(buffer.ty.element_type.dtype), self.widths.get(buffer, 1)
            self.memories[buffer] = self.access.storage_buffer(buffer.name, binding, dtype, width, noalias)
        uniform = False
        if pods:
            values, uniform = self.access.pods([dtype_of(pod) for pod in pods], len(buffers))
            self.values.update(zip(pods, values))
        self._statement(self.function.body)
        self._check_limits()
        for buffer in buffers:
            if not self.memories[buffer].written:
                self.assembler.decorate(self.memories[buffer].variable, Decoration.NonWritable)
        launch = tuple(str(tag) for tag in self.function.attrs.get("tirx.kernel_launch_params", ()))
        arguments = tuple("handle" if param in self.memories else str(param.ty.dtype) for param in params)
        return Shader(self.name, self.assembler.words(), arguments, launch, uniform)

    def _check_limits(self) -> None:
        used = {
            "max_num_threads": (math.prod(self.assembler.local_size), "threads"),
            "max_shared_memory_per_block": (self.shared_bytes, "bytes of shared memory"),
        }
        for attribute, (amount, what) in used.items():
            if amount > (limit := int(self.target.attrs[attribute])):
                raise Unsupported(f"{amount} {what} a block (the target's {attribute} is {limit})")

    # Statements

    def _statement(self, statement: tirx.Stmt) -> None:
        kind = type(statement).__name__
        method = getattr(self, f"_emit_{kind}", None)
        if method is None:
            raise Unsupported(f"the statement {kind}")
        method(statement)

    def _emit_SeqStmt(self, statement: tirx.SeqStmt) -> None:
        for part in statement.seq:
            self._statement(part)

    def _emit_Bind(self, statement: tirx.Bind) -> None:
        self.values[statement.var] = self._value(statement.value)

    def _emit_Evaluate(self, statement: tirx.Evaluate) -> None:
        if isinstance(statement.value, ir.Call) and statement.value.op.name == "tirx.tvm_storage_sync":
            self._barrier(statement.value.args[0].value)
        else:
            self._value(statement.value)

    def _barrier(self, scope: str) -> None:
        if scope != "shared":
            raise Unsupported(f"a barrier over {scope} memory")
        operands = (WORKGROUP_SCOPE, WORKGROUP_SCOPE, ACQUIRE_RELEASE | WORKGROUP_MEMORY)
        self.assembler.effect(Op.ControlBarrier, *(self.assembler.unsigned(x) for x in operands))

    def _emit_AssertStmt(self, statement: tirx.AssertStmt) -> None:
        """Nothing is written: a shader has no way to report a failure."""

    def _emit_DeclBuffer(self, statement: tirx.DeclBuffer) -> None:
        buffer, memory = statement.buffer, self.memories[pointer_of(statement)]
        if memory.dtype != scalar_dtype(buffer.dtype):
            raise Unsupported(f"the buffer {buffer.name} as {buffer.dtype}")
        self.memories[buffer] = memory
        if memory.storage == Storage.StorageBuffer:
            self._learn_from_extent(buffer, memory)

    def _learn_from_extent(self, buffer: tirx.Buffer, memory: Memory) -> None:
        """A static extent tells whether indices are small, a dynamic one bounds the argument that it depends on. (A
        static int32 extent that int32 cannot hold has wrapped to a negative one.)"""
        extent, element_bytes = buffer.shape[0], memory.stored.itemsize
        if isinstance(extent, tirx.IntImm):
            size = int(extent) % 2**32 * element_bytes if int(extent) < 0 else int(extent) * element_bytes
            if size > narrowing.MAX_BUFFER_BYTES:
                raise Unsupported(f"the buffer {buffer.name} of {size} bytes (at most 2^32 - 1)")
            memory.small |= int(extent) <= narrowing.INT32[1]
        elif (found := narrowing.largest_argument(extent, element_bytes)) and found[0] in self.values:
            variable, limit = found
            value = self.values[variable]
            interval = (max(0, value.interval[0]), min(limit, value.interval[1]))
            if narrowing.fits(interval):
                self.values[variable] = self.arithmetic.narrow_value(value.low, interval)

    def _emit_AllocBuffer(self, statement: tirx.AllocBuffer) -> None:
        buffer = statement.buffer
        if buffer.scope() not in SCOPES or not all(isinstance(extent, tirx.IntImm) for extent in buffer.shape):
            raise Unsupported(
                f"the array {buffer.name} of shape {list(buffer.shape)} in {buffer.scope() or 'global'} memory"
            )
        length = int(np.prod([int(extent) for extent in buffer.shape], dtype=np.int64)) * buffer.dtype.lanes
        dtype, storage = scalar_dtype(buffer.dtype), SCOPES[buffer.scope()]
        width = self.widths.get(buffer, 1) if storage == Storage.Workgroup and length % MAX_VECTOR == 0 else 1
        self.memories[buffer] = self.access.array(buffer.name, storage, dtype, width, length)
        if storage == Storage.Workgroup:
            self.shared_bytes += length * self.memories[buffer].stored.itemsize

    def _emit_AttrStmt(self, statement: tirx.AttrStmt) -> None:
        if statement.attr_key == "thread_extent" and statement.node.var not in self.values:
            self._launch(statement.node, statement.value)
        if statement.body is not None:
            self._statement(statement.body)

    def _launch(self, axis: tirx.IterVar, extent: tirx.Expr) -> None:
        kind, _, dimension = axis.thread_tag.partition(".")
        component = "xyz".index(dimension)
        if kind == "threadIdx":
            if not isinstance(extent, tirx.IntImm):
                raise Unsupported(f"{axis.thread_tag} of dynamic extent")
            self.assembler.local_size[component] = int(extent)
        most = min(self._value(extent).interval[1], narrowing.MAX_BLOCKS)
        index = self.access.built_in(LOCAL_INVOCATION_ID if kind == "threadIdx" else WORKGROUP_ID, component)
        signed = self.assembler.pure(Op.Bitcast, self.assembler.type(INT32), index)
        value = Value(INT32, (signed,), (0, max(most - 1, 0)))
        self.values[axis.var] = self.arithmetic.cast(value, dtype_of(axis.var))

    def _emit_BufferStore(self, statement: tirx.BufferStore) -> None:
        value = self._value(statement.value)
        self.access.store(self.memories[statement.buffer], self._index(statement.buffer, statement.indices), value)

    def _index(self, buffer: tirx.Var, indices: list[tirx.Expr]) -> Value:
        if len(indices) != 1:
            raise Unsupported(f"an access of {len(indices)} dimensions")
        return self._value(index_of_elements(buffer, indices[0]))

    def _emit_IfThenElse(self, statement: tirx.IfThenElse) -> None:
        cases = [statement.then_case] + ([statement.else_case] if statement.else_case is not None else [])
        self._branch(statement.condition, [lambda case=case: self._statement(case) for case in cases])

    def _branch(self, condition: tirx.Expr, cases: list[Callable]) -> list[tuple]:
        """Write one or two cases under a condition; return the result and the last block of each."""
        assembler = self.assembler
        chosen = self._value(condition)
        if len(chosen.ids) > 1:
            raise Unsupported("a branch on a vector")
        labels, merge = [assembler.new_id() for _ in cases], assembler.new_id()
        assembler.effect(Op.SelectionMerge, merge, DONT_CARE)
        assembler.effect(Op.BranchConditional, chosen.ids[0], labels[0], labels[1] if len(labels) > 1 else merge)
        results = []
        for label, case in zip(labels, cases):
            assembler.start_block(label)
            with assembler.scope():
                results.append((case(), assembler.block))
            assembler.effect(Op.Branch, merge)
        assembler.start_block(merge)
        return results

    def _emit_For(self, statement: tirx.For) -> None:
        """The loop counts in 32 bits where its variable is proven to fit, the step past its end included."""
        assembler, arithmetic = self.assembler, self.arithmetic
        first, extent = self._value(statement.min), self._value(statement.extent)
        end = extent if first.interval == (0, 0) else arithmetic.binary("Add", first, extent)
        dtype = first.dtype
        step = arithmetic.constant(dtype, 1) if statement.step is None else self._value(statement.step)
        if step.interval[0] <= 0:
            raise Unsupported(f"the loop over {statement.loop_var.name} with the step {statement.step}")
        past = end.interval[1] - 1 + step.interval[1]
        interval = narrowing.within(dtype, (first.interval[0], max(first.interval[0], end.interval[1] - 1)))
        narrow = first.narrow and end.narrow and step.narrow and past <= narrowing.INT32[1]
        counter = INT32 if narrow else dtype
        start, increment = (x.low[0] if narrow else x.ids[0] for x in (first, step))

        head, test, body, following, merge = (assembler.new_id() for _ in range(5))
        index, advanced, counter_type = assembler.new_id(), assembler.new_id(), assembler.type(counter)
        before = assembler.block
        assembler.effect(Op.Branch, head)
        with assembler.scope():
            assembler.start_block(head)
            assembler.result(Op.Phi, counter_type, start, before, advanced, following, result=index, kept=True)
            unroll = UNROLL if statement.kind == tirx.ForKind.UNROLLED else DONT_CARE
            assembler.effect(Op.LoopMerge, merge, following, unroll)
            assembler.effect(Op.Branch, test)
            assembler.start_block(test)
            value = arithmetic.narrow_value([index], interval) if narrow else arithmetic.value(dtype, [index], interval)
            more = arithmetic.compare("LT", value, end)
            assembler.effect(Op.BranchConditional, more.ids[0], body, merge)
            assembler.start_block(body)
            self.values[statement.loop_var] = value
            self._statement(statement.body)
            assembler.effect(Op.Branch, following)
            assembler.start_block(following)
            assembler.result(Op.IAdd, counter_type, index, increment, result=advanced, kept=True)
            assembler.effect(Op.Branch, head)
        assembler.start_block(merge)

    def _emit_While(self, statement: tirx.While) -> None:
        assembler = self.assembler
        head, test, body, following, merge = (assembler.new_id() for _ in range(5))
        assembler.effect(Op.Branch, head)
        with assembler.scope():
            assembler.start_block(head)
            assembler.effect(Op.LoopMerge, merge, following, DONT_CARE)
            assembler.effect(Op.Branch, test)
            assembler.start_block(test)
            more = self._value(statement.condition)
            assembler.effect(Op.BranchConditional, more.ids[0], body, merge)
            assembler.start_block(body)
            self._statement(statement.body)
            assembler.effect(Op.Branch, following)
            assembler.start_block(following)
            assembler.effect(Op.Branch, head)
        assembler.start_block(merge)

    # Expressions

    def _value(self, expr: tirx.Expr) -> Value:
        kind = type(expr).__name__
        if kind in BINARY:
            return self.arithmetic.binary(kind, self._value(expr.a), self._value(expr.b))
        if kind in COMPARISONS:
            return self.arithmetic.compare(kind, self._value(expr.a), self._value(expr.b))
        if kind in EXTREMA:
            return self.arithmetic.extremum(kind, self._value(expr.a), self._value(expr.b))
        method = getattr(self, f"_value_{kind}", None)
        if method is None:
            raise Unsupported(f"the expression {kind}")
        return method(expr)

    def _value_Var(self, expr: tirx.Var) -> Value:
        if expr not in self.values:
            raise Unsupported(f"the variable {expr.name} outside a definition")
        return self.values[expr]

    def _value_IntImm(self, expr: tirx.IntImm) -> Value:
        return self.arithmetic.constant(dtype_of(expr), int(expr.value))

    def _value_FloatImm(self, expr: tirx.FloatImm) -> Value:
        return self.arithmetic.constant(dtype_of(expr), expr.value)

    def _value_Cast(self, expr: tirx.Cast) -> Value:
        return self.arithmetic.cast(self._value(expr.value), dtype_of(expr))

    def _value_Not(self, expr: tirx.Not) -> Value:
        return self.arithmetic.invert(self._value(expr.a))

    def _value_BitwiseNot(self, expr: tirx.BitwiseNot) -> Value:
        return self.arithmetic.invert(self._value(expr.a))

    def _value_Select(self, expr: tirx.Select) -> Value:
        """Both sides are computed, then one of them is chosen."""
        return self.arithmetic.select(*(self._value(x) for x in (expr.condition, expr.true_value, expr.false_value)))

    def _value_Let(self, expr: tirx.Let) -> Value:
        self.values[expr.var] = self._value(expr.value)
        return self._value(expr.body)

    def _value_Broadcast(self, expr: tirx.Broadcast) -> Value:
        return self.arithmetic.join([self._value(expr.value)] * int(expr.lanes))

    def _value_Ramp(self, expr: tirx.Ramp) -> Value:
        base, stride = self._value(expr.base), self._value(expr.stride)
        lanes = [base]
        for i in range(1, int(expr.lanes)):
            offset = self.arithmetic.binary("Mul", stride, self.arithmetic.constant(base.dtype, i))
            lanes.append(self.arithmetic.binary("Add", base, offset))
        return self.arithmetic.join(lanes)

    def _value_Shuffle(self, expr: tirx.Shuffle) -> Value:
        lanes = self.arithmetic.join([self._value(vector) for vector in expr.vectors])
        return lanes.lanes([int(index) for index in expr.indices])

    def _value_TensorLoad(self, expr: ir.TensorLoad) -> Value:
        return self.access.load(self.memories[expr.source], self._index(expr.source, expr.indices))

    def _value_Call(self, expr: ir.Call) -> Value:
        name, args = expr.op.name.rpartition(".")[2], expr.args
        if name in OPERATOR_CALLS:
            return self.arithmetic.binary(OPERATOR_CALLS[name], self._value(args[0]), self._value(args[1]))
        method = getattr(self, f"_call_{name}", None)
        if method is None:
            callee = f" of {args[0].value}" if name in ("call_pure_extern", "call_extern") else ""
            raise Unsupported(f"the call {name}{callee}")
        return method(expr, *args)

    # Calls

    def _call_if_then_else(self, _: ir.Call, condition, a, b) -> Value:
        """Only one side is computed: the other may lie outside of a buffer."""
        (x, from_x), (y, from_y) = self._branch(condition, [lambda: self._value(a), lambda: self._value(b)])
        return self.arithmetic.merge(x, from_x, y, from_y)

    def _call_likely(self, _: ir.Call, condition) -> Value:
        return self._value(condition)

    def _call_bitwise_not(self, _: ir.Call, a) -> Value:
        return self.arithmetic.invert(self._value(a))

    def _call_reinterpret(self, call: ir.Call, a) -> Value:
        return self.arithmetic.reinterpret(self._value(a), dtype_of(call))

    def _call_isnan(self, _: ir.Call, a) -> Value:
        return self.arithmetic.is_nan(self._value(a))

    def _call_large_uint_imm(self, call: ir.Call, low, high) -> Value:
        return self.arithmetic.constant(dtype_of(call), int(low) | int(high) << 32)

    def _call_vectorlow(self, call: ir.Call, a) -> Value:
        return self._value(a).lanes(range(call.ty.dtype.lanes))

    def _call_vectorhigh(self, call: ir.Call, a) -> Value:
        lanes = call.ty.dtype.lanes
        return self._value(a).lanes(range(lanes, 2 * lanes))

    def _call_vectorcombine(self, _: ir.Call, *parts) -> Value:
        return self.arithmetic.join([self._value(part) for part in parts])

    def _call_call_spirv_pure_glsl450(self, _: ir.Call, instruction, *args) -> Value:
        return self.arithmetic.glsl(Glsl(int(instruction)), *(self._value(arg) for arg in args))
