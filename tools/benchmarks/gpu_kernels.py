"""What each kernel of a GPU library reads, writes and computes as it is scheduled, beside the least that could do, for one
decoding step and for a prompt. Needs no GPU.

    python tools/benchmarks/gpu_kernels.py rwkv-5-world-7b --scheme q4f16_1 --device h100 [--cuda sm_90 | --beside-plain]

Counted are the loads and stores of the kernels' own code, over all blocks, threads and loops. What several threads of a
block load with one instruction from one address counts once, what is loaded again by another block, or later, counts again:
it comes from a cache at best. The least is every tensor once. A branch that depends on data counts as taken.

With ``--cuda`` the machine code tells how many instructions a launch takes: those of a thread that goes the longest way,
times the threads. Where the compiler unrolled a part of a loop, or made two loops of one, nothing is shown. ``--beside-plain``
puts what TVM and DLight make of the plain family beside our kernels.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import tvm
import tvm_ffi
from rich.console import Console
from rich.table import Table
from tvm import ir, relax, s_tir, tirx

from families import same_values
from machine_code import Code, disassemble, disassembler
from rwkv_mlc.compiler.cuda import compile_fatbin
from rwkv_mlc.compiler.passes.values import CALLS, is_plain
from rwkv_mlc.compiler.pipeline import OPERATORS, compile_module
from rwkv_mlc.compiler.targets import CompileTarget, resolve_target
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import resolve
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.schema import KernelValues, LibraryMetadata
from rwkv_mlc.verification.fatbin import Resources, read_fatbin, read_resources
from rwkv_mlc.weights.random import load_preset, random_checkpoint

prim = ir.prim.expr
ARITHMETIC = (prim.Add, prim.Sub, prim.Mul, prim.Div, prim.Max, prim.Min)
OPERATIONS = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    "Min": np.minimum,
    "Max": np.maximum,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
}
EXTERNAL = ("tirx.call_extern", "tirx.call_pure_extern")
AXES = 12  # at least as many as loops lie in one another
PRODUCTS = ("gemv", "gemm", "gemv_tensor_core", "gemm_tensor_core", "gemv_or_gemm")
COPIES, COPIED = ("async_copy", "load_where"), 16  # bytes
PAIRS, TENSOR_CORES = "multiply_add_pairs", "multiply_matrices"
OPERATIONS_OF = {
    PAIRS: 2,
    TENSOR_CORES: 2 * 16 * 8 * 16 / 32,
}  # of a thread; those of pairs take as long as two of float32


@dataclass(frozen=True)
class DataSheet:
    """Bytes and operations a second: of the device's memory, of float16 products and of float32; ``threads`` are those that
    it holds at once."""

    name: str
    bandwidth: float
    matrix: float
    float32: float
    threads: int


DEVICES = {
    "h100": DataSheet("H100 SXM", 3.35e12, 989e12, 67e12, 132 * 2048),
    "laptop": DataSheet("RTX 4060 Laptop", 256e9, 58e12, 14e12, 24 * 1536),
    "phone": DataSheet("Adreno 740", 67e9, 4.2e12, 2.1e12, 12 * 1024),
}


COLUMNS = (
    "kernel",
    "calls",
    "MB read",
    "written",
    "x least",
    "M operations",
    "x least",
    "ideal us",
    "us of float32",
    "of threads",
    "chain",
    "registers shared stack",
    "instructions a weight",
    "us of instructions",
)


class Unknown(Exception):
    """A value that depends on data."""


@dataclass
class Work:
    """What one launch does. ``chain`` is how many steps of loops that a thread runs one after the other;
    ``on_tensor_cores`` are those of the operations, ``weights`` the elements of a product's matrices. Of the launches in a
    kernel it is number ``launch``, and its loops run ``trips`` times, in the order in which they stand there."""

    bytes_read: float = 0.0
    bytes_written: float = 0.0
    least_bytes: float = 0.0
    operations: float = 0.0
    least_operations: float = 0.0
    on_tensor_cores: float = 0.0
    threads: int = 0
    chain: int = 1
    weights: int = 0
    launch: int = 0
    trips: list[int] = field(default_factory=list)


@dataclass
class Count:
    """Runs through a kernel with every loop variable an axis of its own, so that an index or a condition is an array over
    the loops that it depends on, and of extent 1 along all others. ``sizes`` are the symbolic extents by name, ``data``
    the tensors that say where sequences lie."""

    kernel: tirx.PrimFunc
    sizes: dict[str, int]
    data: dict[str, np.ndarray]
    work: Work = field(default_factory=Work)
    values: dict = field(default_factory=dict)  # of variables; None where they depend on data
    extents: list[int] = field(default_factory=list)  # of the loops around, by axis
    sums: dict[str, list[np.ndarray]] = field(default_factory=dict)  # what a block sums up: where its first steps are
    bound: dict[str, np.ndarray] = field(default_factory=dict)  # the blocks and threads around, by their tags
    thread_axis: int = 0
    touched: Counter = field(default_factory=Counter)  # bytes by argument, read and written
    launches: int = 0

    def run(self) -> Work:
        self.arguments = {parameter.name: parameter for parameter in self.kernel.params}
        self.work.chain = self.visit(self.kernel.body, [])
        for (name, _), nbytes in self.touched.items():
            shape = [self.number(n) for n in self.arguments[name].shape]
            self.work.least_bytes += min(nbytes, math.prod(shape) * itemsize(self.arguments[name]))
        self.work.least_operations = self.work.operations
        if self.kernel.attrs.get("kernel") in PRODUCTS:
            _, rows, columns = (self.number(n) for n in self.arguments["x"].shape)
            outputs = [self.number(b.shape[2]) for name, b in self.arguments.items() if name.startswith("out")]
            self.work.weights = columns * sum(outputs)
            self.work.least_operations = 2.0 * rows * self.work.weights
        return self.work

    def number(self, expression) -> int:
        return int(np.asarray(self.value(expression)).flat[0])

    def value(self, e) -> np.ndarray:
        """Raises Unknown."""
        kind = type(e).__name__
        if kind in ("IntImm", "int"):
            return np.full((1,) * AXES, int(e))
        if kind == "Var" and e.name in self.sizes:
            return np.full((1,) * AXES, self.sizes[e.name])
        if kind == "Var" and self.values.get(e) is not None:
            return self.values[e]
        if kind in OPERATIONS:
            return OPERATIONS[kind](self.value(e.a), self.value(e.b))
        if kind == "Cast":
            return self.value(e.value)
        if kind == "Ramp":
            return self.value(e.base)
        if kind == "Select":
            return np.where(self.value(e.condition), self.value(e.true_value), self.value(e.false_value))
        if kind == "Call" and e.op.name == "prim.if_then_else":
            return np.where(*map(self.value, e.args))
        if kind == "TensorLoad" and e.source.name in self.data:
            stored = self.data[e.source.name]
            return stored[np.clip(self.value(e.indices[0]), 0, len(stored) - 1)]
        raise Unknown

    def mask(self, conditions: list[np.ndarray]) -> np.ndarray:
        return reduce(np.logical_and, conditions, np.ones((1,) * AXES, bool))

    def executions(self, conditions: list[np.ndarray]) -> float:
        """How often what stands here is executed, by all threads together."""
        mask = self.mask(conditions)
        return float(mask.sum()) * math.prod(n for n, held in zip(self.extents, mask.shape) if held == 1)

    def visit(self, s, conditions: list) -> int:
        """Counts a statement; returns how many steps of loops a thread runs in it one after the other."""
        if isinstance(s, tirx.SeqStmt):
            return max(self.visit(part, conditions) for part in s.seq)
        if isinstance(s, s_tir.SBlockRealize):
            return self.block(s, conditions)
        if isinstance(s, tirx.For):
            return self.loop(s, conditions)
        if isinstance(s, tirx.IfThenElse):
            return self.branch(s, conditions)
        if isinstance(s, tirx.Bind | tirx.BufferStore | tirx.Evaluate):
            self.count(s.value, conditions)
        if isinstance(s, tirx.Bind):
            self.bind(s.var, s.value)
        if isinstance(s, tirx.BufferStore):
            self.access(s.buffer, s.indices, conditions, written=True)
        return 1

    def block(self, s: s_tir.SBlockRealize, conditions: list) -> int:
        """What a block sums up is written once, and meanwhile in registers."""
        for variable, value in zip(s.block.iter_vars, s.iter_values):
            self.bind(variable.var, value)
        inside = [*conditions, self.value(s.predicate).astype(bool)]
        if s.block.init is not None:
            axes = [axis.var for axis in s.block.iter_vars if axis.iter_type == tirx.IterVar.CommReduce]
            self.sums = {region.source.name: [self.value(axis) == 0 for axis in axes] for region in s.block.writes}
        steps = self.visit(s.block.body, inside)
        self.sums = {}
        return steps

    def bind(self, variable, value) -> None:
        try:
            self.values[variable] = self.value(value)
        except Unknown:
            self.values[variable] = None

    def branch(self, s: tirx.IfThenElse, conditions: list) -> int:
        self.count(s.condition, conditions)
        try:
            taken = self.value(s.condition)
            branches = [(s.then_case, taken), (s.else_case, np.logical_not(taken))]
        except Unknown:
            branches = [(s.then_case, True), (s.else_case, True)]
        steps = [1]
        for body, taken in branches:
            if body is not None and np.any(taken):
                steps.append(self.visit(body, [*conditions, taken]))
            elif body is not None:
                self.leave_out(body)
        return max(steps)

    def leave_out(self, body) -> None:
        """A branch that no thread takes: a launch that is not made, or loops that run not once."""

        def found(s: tirx.For) -> None:
            if is_launch(s):
                self.launches += 1
            elif s.kind == tirx.ForKind.SERIAL:
                self.work.trips.append(0)

        before = len(self.work.trips)
        launches = self.launches
        tvm_ffi.structural_walk(body, [(tirx.For, found)])
        if self.launches > launches:  # its loops are in another kernel's code
            del self.work.trips[before:]

    def loop(self, s: tirx.For, conditions: list) -> int:
        extent, axis = self.number(s.extent), len(self.extents)
        tag = str(s.thread_binding.thread_tag) if s.thread_binding is not None else None
        if tag in self.bound:  # the same threads once more
            self.values[s.loop_var] = self.bound[tag]
            return self.visit(s.body, conditions)
        self.values[s.loop_var] = np.arange(extent).reshape([extent if i == axis else 1 for i in range(AXES)])
        self.extents.append(extent)
        if tag is not None and tag.startswith(("blockIdx", "threadIdx")):
            self.bound[tag] = self.values[s.loop_var]
        if tag == "threadIdx.x":
            self.thread_axis = axis
            self.work.threads = math.prod(indices.size for indices in self.bound.values())
        if is_launch(s):
            self.work.launch, self.launches = self.launches, self.launches + 1
        if s.kind == tirx.ForKind.SERIAL and not (isinstance(s.extent, tirx.IntImm) and extent == 1):
            self.work.trips.append(extent)
        steps = self.visit(s.body, conditions)
        self.extents.pop()
        self.bound.pop(tag, None)
        return steps * (extent if s.kind == tirx.ForKind.SERIAL else 1)

    def access(self, buffer, indices, conditions: list, written: bool) -> None:
        if (
            buffer.name not in self.arguments
            or buffer.scope() != "global"
            or (buffer.name in self.sums and not written)
        ):
            return
        conditions = [*conditions, *self.sums.get(buffer.name, ())]
        flat, lanes = np.zeros((1,) * AXES, int), 1
        try:
            for index, extent in zip(indices, buffer.shape):
                flat = flat * self.number(extent) + self.value(index)
                lanes *= int(index.lanes) if type(index).__name__ == "Ramp" else 1
            share = self.share_of_threads(flat, conditions)
        except Unknown:
            share = 1.0
        nbytes = self.executions(conditions) * share * lanes * itemsize(buffer)
        self.touched[buffer.name, written] += nbytes
        if written:
            self.work.bytes_written += nbytes
        else:
            self.work.bytes_read += nbytes

    def share_of_threads(self, flat: np.ndarray, conditions: list) -> float:
        """Different addresses among those of a block's threads that come here, as a part of these threads."""
        others = tuple(axis for axis in range(AXES) if axis != self.thread_axis)
        active = np.broadcast_to(self.mask(conditions).any(axis=others), self.extents[self.thread_axis])
        first = flat[tuple(slice(None) if axis == self.thread_axis else 0 for axis in range(AXES))]
        addresses = np.broadcast_to(first, active.shape)[active]
        return len(np.unique(addresses)) / max(len(addresses), 1)

    def count(self, expression, conditions: list) -> None:
        """Loads, and operations on floats."""
        lanes, loads, calls = [], [], []

        def operation(e) -> None:
            dtype = str(e.expr_ty().dtype)
            if dtype.startswith("float"):
                lanes.append(int(dtype.partition("x")[2] or 1))

        found = [*((kind, operation) for kind in ARITHMETIC), (ir.TensorLoad, loads.append), (ir.Call, calls.append)]
        tvm_ffi.structural_walk(expression, found)
        functions = [str(call.args[0].value) for call in calls if call.op.name in EXTERNAL]
        if not set(functions).isdisjoint(COPIES):
            return self.copy(expression, conditions)
        for load in loads:
            self.access(load.source, load.indices, conditions, written=False)
        operations = sum(lanes) + sum(OPERATIONS_OF.get(function, 0) for function in functions)
        if operations:
            executed = self.executions(conditions) * operations
            self.work.operations += executed
            self.work.on_tensor_cores += executed if TENSOR_CORES in functions else 0

    def copy(self, call: ir.Call, conditions: list) -> None:
        """Count the copy of ``COPIED`` bytes from an address, where the last argument holds."""
        (source,), inside = call.args[2].args, call.args[3]
        *rows, first = source.indices
        vector = tirx.Ramp(first, 1, COPIED // itemsize(source.source))
        self.access(source.source, [*rows, vector], [*conditions, self.value(inside)], written=False)


def is_launch(s: tirx.For) -> bool:
    return s.thread_binding is not None and str(s.thread_binding.thread_tag) == "blockIdx.x"


def itemsize(buffer) -> int:
    return np.dtype(str(buffer.dtype)).itemsize


def as_kernels(module: tvm.IRModule, target: CompileTarget) -> tvm.IRModule:
    """A plain module with the kernels that TVM makes of its operators; another as it is."""
    passes = [one for _, phase in OPERATORS for one in phase(target)] if is_plain(module) else []
    with target.tvm:
        return tvm.transform.Sequential(passes)(module)


def count_each(
    module: tvm.IRModule, function: str, tokens: int, sequences: int = 1
) -> Iterator[tuple[KernelValues, Work]]:
    """The kernel calls of a run of ``function`` that reads ``tokens`` tokens, in order."""
    kernels = {variable.name_hint: kernel for variable, kernel in module.functions_items()}
    listed = LibraryMetadata.read(module["_metadata"].body.body.value).values[function]
    bindings = (binding.value for block in module[function].body.blocks for binding in block.bindings)
    calls = [value for value in bindings if getattr(getattr(value, "op", None), "name", None) in CALLS]
    sizes = {"rows": tokens, "batch": sequences, "num_slots": sequences}
    data = {
        "segment_ends": np.arange(1, sequences + 1) * (tokens // sequences),
        "slots": np.arange(sequences),
        "tokens": np.arange(tokens),
    }
    works: dict[tuple, Work] = {}
    for values, call in zip(listed, calls, strict=True):
        own = sizes | extents_of(kernels[values.kernel], call, sizes)
        key = values.kernel, *own.values()
        if key not in works:
            works[key] = Count(kernels[values.kernel], own, data).run()
        yield values, works[key]


def extents_of(kernel: tirx.PrimFunc, call: relax.Call, sizes: dict[str, int]) -> dict[str, int]:
    """What the symbolic extents of a kernel are in a call."""
    function = Count(kernel, sizes, {})
    return {
        own.name: function.number(extent)
        for parameter, argument in zip(kernel.params, call.args[1].fields)
        for own, extent in zip(parameter.shape, argument.ty.shape)
        if isinstance(own, tirx.Var)
    }


def count_calls(module: tvm.IRModule, function: str, tokens: int, sequences: int = 1) -> list[tuple[str, int, Work]]:
    """(kernel, calls, work of one) for a run of ``function`` that reads ``tokens`` tokens."""
    counted = [(values.kernel, work) for values, work in count_each(module, function, tokens, sequences)]
    calls = Counter((name, id(work)) for name, work in counted)
    return [(name, calls[name, number], work) for (name, number), work in {(n, id(w)): w for n, w in counted}.items()]


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes of a GPU, and its machine code where nvdisasm can show it."""

    resources: Resources
    code: Code | None

    def instructions(self, work: Work) -> float | None:
        """Of all threads of a launch; None where that is not known."""
        longest = self.code.longest(work.trips) if self.code else None
        return None if longest is None else float(longest) * work.threads


def compiled_kernels(module, target, architecture: str) -> dict[str, Compiled]:
    """The machine code of a module's kernels, by name. Raises UserError where there is no compiler for CUDA."""
    (host,) = compile_module(module, target).mod.imports
    source = host.imports[0].inspect_source().encode()
    cubin = next(i.code for i in read_fatbin(compile_fatbin(source, [architecture])) if i.is_machine_code)
    codes = disassemble(cubin) if disassembler() else {}
    return {name: Compiled(resources, codes.get(name)) for name, resources in read_resources(cubin).items()}


def show(title: str, counted: list[tuple[str, int, Work]], sheet: DataSheet, compiled: dict[str, Compiled]) -> None:
    table = Table(*COLUMNS, title=title)
    total = 0.0
    for name, calls, work in sorted(counted, key=lambda row: -row[1] * ideal_seconds(row[2], sheet)):
        moved, seconds = work.bytes_read + work.bytes_written, ideal_seconds(work, sheet)
        total += calls * seconds
        taken = compiled.get(f"{name}_kernel{f'_{work.launch}' if work.launch else ''}")
        instructions = taken.instructions(work) if taken else None
        table.add_row(
            name,
            str(calls),
            f"{work.bytes_read / 1e6:.2f}",
            f"{work.bytes_written / 1e6:.2f}",
            f"{moved / work.least_bytes:.1f}",
            f"{work.operations / 1e6:.1f}",
            f"{work.operations / work.least_operations:.2f}" if work.operations else "",
            f"{seconds * 1e6:.2f}",
            f"{(work.operations - work.on_tensor_cores) / sheet.float32 * 1e6:.2f}",
            f"{work.threads / sheet.threads:.2f}",
            str(work.chain),
            f"{taken.resources.registers} {taken.resources.shared} {taken.resources.stack}" if taken else "",
            f"{instructions / work.weights:.2f}" if instructions and work.weights else "",
            f"{instructions / (sheet.float32 / 2) * 1e6:.2f}" if instructions else "",
        )
    console = Console(width=200)
    console.print(table, f"ideal, all kernels: {total * 1e3:.3f} ms on {sheet.name}\n", highlight=False)


def show_families(
    title: str,
    config: RWKVConfig,
    fused: list[tuple[KernelValues, Work]],
    plain: list[tuple[KernelValues, Work]],
) -> None:
    """What the kernels of both families do that compute the same values."""
    sides = "launches", "MB moved", "M operations"
    table = Table("values", *(f"{family}: {side}" for family in ("fused", "plain") for side in sides), title=title)
    for values, *calls in same_values(config, *([values for values, _ in counted] for counted in (fused, plain))):
        cells = []
        for counted, numbers in zip((fused, plain), calls):
            works = [counted[i][1] for i in numbers]
            moved = sum(work.bytes_read + work.bytes_written for work in works) / 1e6
            cells += [str(len(works)), f"{moved:.2f}", f"{sum(work.operations for work in works) / 1e6:.1f}"]
        table.add_row(values, *cells)
    Console(width=200).print(table, highlight=False)


def ideal_seconds(work: Work, sheet: DataSheet) -> float:
    return max(work.least_bytes / sheet.bandwidth, work.least_operations / sheet.matrix)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="a model of configs/models, such as rwkv-5-world-1.5b")
    parser.add_argument("--scheme", default="q4f16_1")
    parser.add_argument("--device", choices=DEVICES, default="h100", help="whose data sheet the ideal times are of")
    parser.add_argument("--tokens", type=int, default=1024, help="of the prompt")
    parser.add_argument("--batch", type=int, default=1, help="sequences that are decoded together")
    parser.add_argument("--cuda", metavar="sm_90", help="compile, and add what the kernels take of a GPU")
    parser.add_argument(
        "--beside-plain", action="store_true", help="what both families do for the same values, and no more"
    )
    args = parser.parse_args(arguments)
    target = resolve_target("cuda")
    config, _, _ = resolve(random_checkpoint(load_preset(args.preset), args.preset, 0))
    module = build_module(config, get_scheme(args.scheme), target)
    if args.beside_plain:
        plain = as_kernels(build_module(config, get_scheme(args.scheme), target, family="plain"), target)
        for function, tokens in (("decode", 1), ("prefill", args.tokens)):
            counted = [list(count_each(family, function, tokens)) for family in (module, plain)]
            show_families(f"{args.preset} {args.scheme}, {function} of {tokens}", config, *counted)
        return
    compiled = compiled_kernels(module, target, args.cuda) if args.cuda else {}
    step = "decode" if args.batch == 1 else "batch_decode"
    title, sheet = f"{args.preset} {args.scheme}", DEVICES[args.device]
    show(f"{title}, {step} of {args.batch}", count_calls(module, step, args.batch, args.batch), sheet, compiled)
    show(f"{title}, prefill of {args.tokens}", count_calls(module, "prefill", args.tokens), sheet, compiled)


if __name__ == "__main__":
    main()
