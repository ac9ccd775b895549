"""What a kernel reads and writes: buffers, scalar arguments, shared memory and arrays of one thread.

By TVM's Vulkan ABI the i-th pointer argument is the storage buffer of set 0, binding i. Scalar arguments lie in one
block, 8 bytes each: push constants while these fill no more than 128 bytes, else a uniform buffer in the next binding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .arithmetic import BOOL, FLOAT16, FLOAT32, INT32, INT64, UINT32, Arithmetic, Value
from .words import Assembler, Capability, Decoration, Op, Storage, Unsupported

MAX_PUSH_CONSTANTS = 128  # bytes that every device has
POD_BYTES = 8


@dataclass
class Memory:
    """A variable whose elements are of ``dtype`` to a kernel, and vectors of ``width`` elements of ``stored`` in
    memory. A ``small`` one has less than 2^31 vectors; ``written`` says whether the kernel stores to it."""

    variable: int
    storage: Storage
    dtype: np.dtype
    stored: np.dtype
    width: int
    small: bool
    written: bool = False


class MemoryAccess:
    """Declares memory and writes loads and stores."""

    def __init__(self, assembler: Assembler, arithmetic: Arithmetic):
        self.assembler = assembler
        self.arithmetic = arithmetic

    # Declarations

    def storage_buffer(self, name: str, binding: int, dtype: np.dtype, width: int, noalias: bool) -> Memory:
        """Declare an argument in global memory, where truth values take a byte."""
        assembler = self.assembler
        stored = np.dtype("uint8") if dtype == BOOL else dtype
        if stored.itemsize == 2:
            assembler.storage_capability(Capability.StorageBuffer16BitAccess, "SPV_KHR_16bit_storage")
        if stored.itemsize == 1:
            assembler.storage_capability(Capability.StorageBuffer8BitAccess, "SPV_KHR_8bit_storage")
        array = assembler.runtime_array(assembler.type(stored, width), stored.itemsize * width)
        variable = assembler.variable(Storage.StorageBuffer, assembler.block_of((array,), 0), name)
        self._bind(variable, binding)
        if noalias:
            assembler.decorate(variable, Decoration.Restrict)
        small = stored.itemsize * width > 1
        return Memory(variable, Storage.StorageBuffer, dtype, stored, width, small)

    def array(self, name: str, storage: Storage, dtype: np.dtype, width: int, length: int) -> Memory:
        """Declare an array in shared memory (``Workgroup``) or one that each thread has for itself (``Function``),
        where float16 is kept as float32. Truth values take 32 bits in both."""
        stored_as = {BOOL: UINT32, FLOAT16: FLOAT32} if storage == Storage.Function else {BOOL: UINT32}
        stored = stored_as.get(dtype, dtype)
        pointee = self.assembler.array(self.assembler.type(stored, width), length // width)
        return Memory(self.assembler.variable(storage, pointee, name), storage, dtype, stored, width, True)

    def pods(self, dtypes: Sequence[np.dtype], binding: int) -> tuple[list[Value], bool]:
        """Load the scalar arguments; also say whether they are in a uniform buffer."""
        assembler, arithmetic = self.assembler, self.arithmetic
        for dtype in dtypes:
            if dtype.itemsize not in (4, 8):
                raise Unsupported(f"an argument of type {dtype}")
        uniform = POD_BYTES * len(dtypes) > MAX_PUSH_CONSTANTS
        storage = Storage.Uniform if uniform else Storage.PushConstant
        types = tuple(assembler.type(UINT32, 2) if dtype == INT64 else assembler.type(dtype) for dtype in dtypes)
        block = assembler.block_of(types, POD_BYTES)
        variable = assembler.variable(storage, block, "arguments")
        if uniform:
            self._bind(variable, binding)
        values = []
        for i, dtype in enumerate(dtypes):
            pointer = assembler.pointer(storage, types[i])
            member = assembler.pure(Op.AccessChain, pointer, variable, assembler.unsigned(i))
            loaded = assembler.result(Op.Load, types[i], member)
            values.append(arithmetic.int64_value(loaded) if dtype == INT64 else arithmetic.value(dtype, [loaded]))
        return values, uniform

    def built_in(self, number: int, component: int) -> int:
        """Load one of the three components of a built-in, as uint32."""
        assembler = self.assembler
        vector = assembler.type(UINT32, 3)
        variable = assembler.built_in(number, vector)
        pointer = assembler.pointer(Storage.Input, assembler.type(UINT32))
        member = assembler.pure(Op.AccessChain, pointer, variable, assembler.unsigned(component))
        return assembler.result(Op.Load, assembler.type(UINT32), member)

    def _bind(self, variable: int, binding: int) -> None:
        self.assembler.decorate(variable, Decoration.DescriptorSet, 0)
        self.assembler.decorate(variable, Decoration.Binding, binding)

    # Access

    def load(self, memory: Memory, index: Value) -> Value:
        """Load the elements at every lane of an index."""
        element = self.assembler.type(memory.stored, memory.width)
        pointers = self._pointers(memory, index)
        loaded = [self.assembler.result(Op.Load, element, pointer) for pointer in pointers]
        value = self.arithmetic.vectors(memory.stored, loaded, memory.width)
        if memory.dtype == FLOAT16 != memory.stored:
            return self.arithmetic.float16_value(value.ids)
        return self.arithmetic.cast(value, memory.dtype)

    def store(self, memory: Memory, index: Value, value: Value) -> None:
        """Store a value's lanes at those of an index."""
        memory.written = True
        value, width = self.arithmetic.cast(value, memory.stored), memory.width
        for i, pointer in enumerate(self._pointers(memory, index)):
            lanes = value.lanes(range(i * width, (i + 1) * width))
            self.assembler.effect(Op.Store, pointer, self.arithmetic.vector(lanes))

    def _pointers(self, memory: Memory, index: Value) -> list[int]:
        """Point to every element of an index, or to every vector of elements."""
        assembler = self.assembler
        pointer = assembler.pointer(memory.storage, assembler.type(memory.stored, memory.width))
        member = [assembler.unsigned(0)] if memory.storage == Storage.StorageBuffer else []
        places = index.low if memory.small and index.low else index.ids
        if memory.width > 1:
            places = self._vectors(places[0], len(places) // memory.width, memory.width)
        return [assembler.pure(Op.InBoundsAccessChain, pointer, memory.variable, *member, place) for place in places]

    def _vectors(self, first: int, count: int, width: int) -> list[int]:
        """Compute the indices of consecutive vectors from that of the first element, all in 32 bits."""
        integer = self.assembler.type(INT32)
        bits = self.assembler.constant(INT32, width.bit_length() - 1)
        place = self.assembler.pure(Op.ShiftRightLogical, integer, first, bits)
        offsets = [self.assembler.constant(INT32, i) for i in range(1, count)]
        return [place, *(self.assembler.pure(Op.IAdd, integer, place, offset) for offset in offsets)]
