"""Which tensors of a function share memory, and how much of it a call takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import tvm
import tvm_ffi
from tvm import relax, tirx

from ...graph.marks import PLANNED
from ...schema import FunctionSpec, LibraryMetadata

METADATA = "_metadata"
RESHAPE = "vm.builtin.reshape"
COPIES = ("vm.builtin.rnn_state_get", "vm.builtin.rnn_state_set")  # which are done with a tensor when they return
ALLOC_TENSOR = "relax.builtin.alloc_tensor"


@dataclass
class Allocation:
    """A tensor that a function allocates: ``nbytes`` for each unit of ``extent``, or in all where that is None. It is in use
    from binding ``first`` to binding ``last``."""

    call: tvm.ir.Call
    nbytes: int
    extent: tirx.Var | None
    first: int
    last: int
    returned: bool = False


@dataclass
class Storage:
    """Memory of allocations that are never in use at the same time; the first of them is the largest."""

    allocations: list[Allocation]
    var: relax.Var = field(default_factory=lambda: relax.Var("storage", relax.ObjectType()))

    def has_room(self, other: Allocation) -> bool:
        """Whether an allocation that is no larger can be in the same memory."""
        return other.extent == self.allocations[0].extent and all(
            other.last < own.first or own.last < other.first for own in self.allocations
        )

    def allocate(self, planned: Mapping[str, int]) -> tvm.ir.Call:
        nbytes, extent = self.allocations[0].nbytes, self.allocations[0].extent
        if extent is None:
            size = tirx.IntImm("int64", nbytes)
        else:
            size = nbytes * (tirx.max(extent, planned[extent.name]) if extent.name in planned else extent)
        return relax.op.memory.alloc_storage(relax.ShapeExpr([size]), 0, "global", "uint8")


@tvm.transform.module_pass(opt_level=0)
def plan_memory(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Have tensors of a function that are not in use at the same time share memory, those that it returns excepted, and let
    the metadata say what a call takes. To come when all tensors are allocated, and before functions that allocate once.

    The largest choose first (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020, greedy by
    size): 31 KB a token of a 0.1B model's prompt. ``StaticPlanBlockMemory``, which shares unknown sizes only where they are
    equal, takes 48, and asks the runtime for four times that, as it passes bytes for a count of float32.

    Memory that grows with an extent of the mark ``PLANNED`` is allocated as for that number at least: the runtime finds it
    again for every call up to there, whereas it keeps memory of each other size beside it.

    Raises ValueError for a function that does anything but allocate, call kernels, copy states, reshape, and make tuples and
    take their items."""
    functions = {name: f for name, f in mod.functions_items() if isinstance(f, relax.Function)}
    builder, taken = relax.BlockBuilder(mod), {}
    for name, function in functions.items():
        planned, taken[name.name_hint] = _planned(function)
        builder.update_func(name, planned)
    for name, function in functions.items():
        if name.name_hint == METADATA:
            builder.update_func(name, _describing(function, functions, taken))
    return builder.get()


def _planned(function: relax.Function) -> tuple[relax.Function, Counter[tirx.Var | None]]:
    """The function, and the bytes that it allocates for each unit of an extent."""
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    allocations = _allocations(bindings, function.body.body)
    storages = _assign([one for one in allocations if not one.returned])
    taken: Counter[tirx.Var | None] = Counter()
    for one in [*(storage.allocations[0] for storage in storages), *(one for one in allocations if one.returned)]:
        taken[one.extent] += one.nbytes
    places = {one.first: (storage, one) for storage in storages for one in storage.allocations}
    planned, allocated = [], set()
    for index, binding in enumerate(bindings):
        if index not in places:
            planned.append(binding)
            continue
        storage, one = places[index]
        if storage.var not in allocated:
            allocated.add(storage.var)
            planned.append(relax.VarBinding(storage.var, storage.allocate(_marked(function))))
        shape, dtype, *_ = one.call.args
        planned.append(relax.VarBinding(binding.var, relax.op.memory.alloc_tensor(storage.var, 0, shape, dtype)))
    return with_body(function, planned, function.body.body), taken


def _marked(function: relax.Function) -> dict[str, int]:
    marked = function.attrs[PLANNED] if function.attrs and PLANNED in function.attrs else {}
    return {str(name): int(extent) for name, extent in marked.items()}


def _allocations(bindings: list[relax.Binding], result: relax.Expr) -> list[Allocation]:
    found: dict[relax.Var, Allocation] = {}
    held: dict[relax.Var, set[relax.Var]] = {}  # the allocated tensors that a variable stands for
    fields: dict[relax.Var, list[relax.Expr]] = {}  # of a tuple
    for index, binding in enumerate(bindings):
        var, value = binding.var, binding.value
        if isinstance(value, tvm.ir.Call) and getattr(value.op, "name", None) == ALLOC_TENSOR:
            found[var] = Allocation(value, *_size(var.ty), first=index, last=index)
            held[var] = {var}
            continue
        used = {tensor for v in relax.analysis.free_vars(value) for tensor in held.get(v, ())}
        for tensor in used:
            found[tensor].last = index
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in fields:
            held[var] = held.get(fields[value.tuple_value][value.index], set())
        elif isinstance(value, relax.Tuple):
            held[var], fields[var] = used, list(value.fields)
        elif isinstance(value, relax.Var) or _extern(value) == RESHAPE:
            held[var] = used
        elif used and not (isinstance(value.op, tvm.ir.GlobalVar) or _extern(value) in COPIES):
            raise ValueError(f"{value} may go on using the memory of what it is given")
    for var in relax.analysis.free_vars(result):
        for tensor in held.get(var, ()):
            found[tensor].returned = True
    return list(found.values())


def _extern(value: relax.Expr) -> str | None:
    """The name of the function of the runtime that an expression is a call of."""
    op = getattr(value, "op", None)
    return str(op.global_symbol) if isinstance(op, relax.ExternFunc) else None


def _size(kind: relax.TensorType) -> tuple[int, tirx.Var | None]:
    """Bytes for each unit of the extent that is not known yet, and that extent."""
    unknown = [extent for extent in kind.shape if not isinstance(extent, tirx.IntImm)]
    if len(unknown) > 1 or not all(isinstance(extent, tirx.Var) for extent in unknown):
        raise ValueError(f"the size of a tensor of {kind} is no multiple of one extent")
    known = math.prod(int(extent) for extent in kind.shape if isinstance(extent, tirx.IntImm))
    return known * tvm_ffi.dtype(kind.dtype).itemsize, unknown[0] if unknown else None


def _assign(allocations: list[Allocation]) -> list[Storage]:
    storages: list[Storage] = []
    for allocation in sorted(allocations, key=lambda one: -one.nbytes):
        for storage in reversed(storages):  # the smallest first
            if storage.has_room(allocation):
                storage.allocations.append(allocation)
                break
        else:
            storages.append(Storage([allocation]))
    return storages


def _describing(
    metadata: relax.Function,
    functions: Mapping[tvm.ir.GlobalVar, relax.Function],
    taken: Mapping[str, Counter[tirx.Var | None]],
) -> relax.Function:
    """The function of the metadata, with ``FunctionSpec.memory`` and ``planned``."""
    described = LibraryMetadata.read(metadata.body.body.value)
    by_name = {name.name_hint: function for name, function in functions.items()}
    specs = dict(described.functions)
    for name, spec in specs.items():
        if name not in by_name:  # added later: its memory is a machine's and not a call's
            specs[name] = spec.model_copy(update={"memory": {}})
            continue
        names = dict(_extents(by_name[name], spec))
        memory = {"1" if extent is None else names[extent]: nbytes for extent, nbytes in taken[name].items()}
        marked = _marked(by_name[name])
        planned = {names[extent]: marked[extent.name] for extent in names if extent.name in marked}
        specs[name] = spec.model_copy(update={"memory": memory, "planned": planned})
    text = described.model_copy(update={"functions": specs}).model_dump_json(by_alias=True)
    return with_body(metadata, [b for block in metadata.body.blocks for b in block.bindings], tvm.ir.StringImm(text))


def _extents(function: relax.Function, spec: FunctionSpec) -> Iterator[tuple[tirx.Var, str]]:
    """The names of extents by the variables that stand for them."""
    for param, argument in zip(function.params, spec.arguments):
        if not isinstance(argument, str):
            for extent, name in zip(param.ty.shape, argument.shape):
                if isinstance(extent, tirx.Var):
                    yield extent, str(name)


def with_body(function: relax.Function, bindings: list[relax.Binding], result: relax.Expr) -> relax.Function:
    body = relax.SeqExpr([relax.BindingBlock(bindings)], result)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
