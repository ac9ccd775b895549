"""A compute shader as words, put together section by section (SPIR-V specification 1.3, sections 2.3 and 2.4)."""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NamedTuple

import numpy as np

MAGIC, VERSION = 0x07230203, 0x00010300
LOGICAL, GLSL450, GL_COMPUTE, LOCAL_SIZE = 0, 1, 5, 17


class Unsupported(ValueError):
    """A construct that has no form in a shader."""


class Op(IntEnum):
    """Instructions of SPIR-V (section 3.32)."""

    Name = 5
    Extension = 10
    ExtInstImport = 11
    ExtInst = 12
    MemoryModel = 14
    EntryPoint = 15
    ExecutionMode = 16
    Capability = 17
    TypeVoid = 19
    TypeBool = 20
    TypeInt = 21
    TypeFloat = 22
    TypeVector = 23
    TypeArray = 28
    TypeRuntimeArray = 29
    TypeStruct = 30
    TypePointer = 32
    TypeFunction = 33
    ConstantTrue = 41
    ConstantFalse = 42
    Constant = 43
    Function = 54
    FunctionEnd = 56
    Variable = 59
    Load = 61
    Store = 62
    AccessChain = 65
    InBoundsAccessChain = 66
    Decorate = 71
    MemberDecorate = 72
    CompositeConstruct = 80
    CompositeExtract = 81
    ConvertFToU = 109
    ConvertFToS = 110
    ConvertSToF = 111
    ConvertUToF = 112
    UConvert = 113
    SConvert = 114
    FConvert = 115
    Bitcast = 124
    FNegate = 127
    IAdd = 128
    FAdd = 129
    ISub = 130
    FSub = 131
    IMul = 132
    FMul = 133
    UDiv = 134
    SDiv = 135
    FDiv = 136
    UMod = 137
    SRem = 138
    IsNan = 156
    LogicalEqual = 164
    LogicalNotEqual = 165
    LogicalOr = 166
    LogicalAnd = 167
    LogicalNot = 168
    Select = 169
    IEqual = 170
    INotEqual = 171
    ULessThan = 176
    SLessThan = 177
    ULessThanEqual = 178
    SLessThanEqual = 179
    FOrdEqual = 180
    FUnordNotEqual = 183
    FOrdLessThan = 184
    FOrdLessThanEqual = 188
    ShiftRightLogical = 194
    ShiftRightArithmetic = 195
    ShiftLeftLogical = 196
    BitwiseOr = 197
    BitwiseXor = 198
    BitwiseAnd = 199
    Not = 200
    ControlBarrier = 224
    Phi = 245
    LoopMerge = 246
    SelectionMerge = 247
    Label = 248
    Branch = 249
    BranchConditional = 250
    Return = 253


class Glsl(IntEnum):
    """Instructions of the set GLSL.std.450."""

    RoundEven = 2
    Trunc = 3
    FAbs = 4
    FSign = 6
    Floor = 8
    Ceil = 9
    Sin = 13
    Cos = 14
    Tanh = 21
    Pow = 26
    Exp = 27
    Log = 28
    Exp2 = 29
    Log2 = 30
    Sqrt = 31
    InverseSqrt = 32
    FMin = 37
    UMin = 38
    SMin = 39
    FMax = 40
    UMax = 41
    SMax = 42
    FClamp = 43
    Fma = 50


class Storage(IntEnum):
    """Storage classes (section 3.7)."""

    Input = 1
    Uniform = 2
    Workgroup = 4
    Function = 7
    PushConstant = 9
    StorageBuffer = 12


class Decoration(IntEnum):
    """Decorations (section 3.20)."""

    Block = 2
    ArrayStride = 6
    BuiltIn = 11
    Restrict = 19
    NonWritable = 24
    Binding = 33
    DescriptorSet = 34
    Offset = 35


class Capability(IntEnum):
    """Capabilities (section 3.31)."""

    Shader = 1
    Float16 = 9
    Float64 = 10
    Int64 = 11
    Int16 = 22
    Int8 = 39
    StorageBuffer16BitAccess = 4433
    StorageBuffer8BitAccess = 4448


TYPE_CAPABILITIES = {
    (Op.TypeInt, 8): (Capability.Int8,),
    (Op.TypeInt, 16): (Capability.Int16,),
    (Op.TypeInt, 64): (Capability.Int64,),
    (Op.TypeFloat, 64): (Capability.Float64,),
}

# These may touch float16 on a device that has no arithmetic of it (section 3.31, StorageBuffer16BitAccess).
MOVES_FLOAT16 = {Op.TypeVector, Op.TypeRuntimeArray, Op.TypePointer, Op.Load, Op.Store, Op.FConvert}


class Literal(int):
    """An operand that is a number and no id. Members of an ``IntEnum`` are numbers, too."""


class Instruction(NamedTuple):
    """``type`` and ``result`` are 0 where an instruction has none. One that is not ``kept`` is left out if nothing uses
    its result."""

    op: Op
    type: int
    result: int
    operands: tuple[int, ...]
    kept: bool = False

    def uses(self) -> list[int]:
        """List the ids that it refers to."""
        return [self.type, *(x for x in self.operands if not isinstance(x, (Literal, IntEnum)))]

    def words(self) -> list[int]:
        return encode(self.op, *(x for x in (self.type, self.result) if x), *self.operands)


class Assembler:
    """The words of one shader. Types and constants are made on first use; ``pure`` instructions are numbered by value,
    so that the same computation is written once where the first one dominates the second. Nothing that is not used ends
    up in the shader, nor does it ask for the capabilities of types that are not."""

    def __init__(self, name: str):
        self.name = name
        self.local_size = [1, 1, 1]
        self._last_id = 0
        self._interface: list[int] = []
        self._storage_capabilities: set[tuple[Capability, str]] = set()
        self._annotations: dict[int, tuple[list[int], list[int]]] = {}  # id: the words of its name and its decorations
        self._globals: list[Instruction] = []
        self._body: list[Instruction] = []
        self._made: dict[Hashable, int] = {}
        self._numbered: list[dict[Hashable, int]] = [{}]
        self._glsl = self.new_id()
        self.entry_block = self.block = self.new_id()

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def storage_capability(self, capability: Capability, extension: str) -> None:
        self._storage_capabilities.add((capability, extension))

    def decorate(self, target: int, decoration: Decoration, *operands: int) -> None:
        self._annotate(target)[1].extend(encode(Op.Decorate, target, decoration, *operands))

    def _annotate(self, target: int) -> tuple[list[int], list[int]]:
        return self._annotations.setdefault(target, ([], []))

    # Types, constants and variables

    def type(self, dtype: np.dtype, lanes: int = 1) -> int:
        if (key := (Op.TypeVector, dtype, lanes)) not in self._made:
            self._made[key] = self._new_type(dtype, lanes)
        return self._made[key]

    def _new_type(self, dtype: np.dtype, lanes: int) -> int:
        if lanes > 1:
            return self._once(Op.TypeVector, self.type(dtype), Literal(lanes))
        if dtype.kind == "b":
            return self._once(Op.TypeBool)
        bits = Literal(8 * dtype.itemsize)
        if dtype.kind == "f":
            return self._once(Op.TypeFloat, bits)
        return self._once(Op.TypeInt, bits, Literal(dtype.kind == "i"))

    def pointer(self, storage: Storage, pointee: int) -> int:
        return self._once(Op.TypePointer, storage, pointee)

    def array(self, element: int, length: int) -> int:
        return self._once(Op.TypeArray, element, self.unsigned(length))

    def runtime_array(self, element: int, stride: int) -> int:
        made = self._once(Op.TypeRuntimeArray, element)
        if made not in self._annotations:
            self.decorate(made, Decoration.ArrayStride, stride)
        return made

    def block_of(self, members: tuple[int, ...], stride: int) -> int:
        """Make a struct whose members lie ``stride`` bytes apart."""
        made = self._once(Op.TypeStruct, *members)
        if made not in self._annotations:
            self.decorate(made, Decoration.Block)
            for i in range(len(members)):
                self._annotate(made)[1].extend(encode(Op.MemberDecorate, made, i, Decoration.Offset, i * stride))
        return made

    def constant(self, dtype: np.dtype, value) -> int:
        written = np.array(value, dtype).tobytes() if dtype.kind == "f" else int(value)  # -0.0 is not 0.0
        if (key := (Op.Constant, dtype, written)) not in self._made:
            self._made[key] = self._new_constant(dtype, written)
        return self._made[key]

    def _new_constant(self, dtype: np.dtype, value: int | bytes) -> int:
        if dtype.kind == "b":
            return self._once(Op.ConstantTrue if value else Op.ConstantFalse, type=self.type(dtype))
        if isinstance(value, bytes):
            data = value
        else:
            data = (value & (1 << 8 * dtype.itemsize) - 1).to_bytes(dtype.itemsize, "little")
        filler = b"\xff" if dtype.kind == "i" and data[-1] & 0x80 else b"\0"
        data += filler * (-len(data) % 4)
        words = struct.unpack(f"<{len(data) // 4}I", data)
        return self._once(Op.Constant, *map(Literal, words), type=self.type(dtype))

    def unsigned(self, value: int) -> int:
        return self.constant(np.dtype("uint32"), value)

    def variable(self, storage: Storage, pointee: int, name: str) -> int:
        made, section = self.new_id(), self._body if storage == Storage.Function else self._globals
        section.append(Instruction(Op.Variable, self.pointer(storage, pointee), made, (storage,)))
        self._annotate(made)[0].extend(encode(Op.Name, made, *text(name)))
        return made

    def built_in(self, number: int, pointee: int) -> int:
        """Declare the input variable of a built-in."""
        key = (Decoration.BuiltIn, number)
        if key not in self._made:
            self._made[key] = self.variable(Storage.Input, pointee, f"built_in_{number}")
            self.decorate(self._made[key], Decoration.BuiltIn, number)
            self._interface.append(self._made[key])
        return self._made[key]

    def _once(self, op: Op, *operands: int, type: int = 0) -> int:
        key = (op, type, operands)
        if key not in self._made:
            self._made[key] = self.new_id()
            self._globals.append(Instruction(op, type, self._made[key], operands))
        return self._made[key]

    # The body

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Forget at its end what was computed inside: that dominates nothing outside."""
        self._numbered.append({})
        yield
        self._numbered.pop()

    def pure(self, op: Op, dtype: int, *operands: int) -> int:
        """Write an instruction that depends on its operands alone, unless its result is there already."""
        key = (op, dtype, operands)
        for numbered in reversed(self._numbered):
            if key in numbered:
                return numbered[key]
        self._numbered[-1][key] = result = self.result(op, dtype, *operands)
        return result

    def glsl(self, instruction: Glsl, dtype: int, *operands: int) -> int:
        return self.pure(Op.ExtInst, dtype, self._glsl, instruction, *operands)

    def result(self, op: Op, dtype: int, *operands: int, result: int = 0, kept: bool = False) -> int:
        """Write an instruction whose result depends on its place, such as a load."""
        result = result or self.new_id()
        self._body.append(Instruction(op, dtype, result, operands, kept))
        return result

    def effect(self, op: Op, *operands: int) -> None:
        self._body.append(Instruction(op, 0, 0, operands, True))

    def start_block(self, label: int) -> None:
        self.block = label
        self._body.append(Instruction(Op.Label, 0, label, (), True))

    def words(self) -> bytes:
        """Put the finished module together, little endian."""
        void = self._once(Op.TypeVoid)
        function_type, function = self._once(Op.TypeFunction, void), self.new_id()
        used = {function_type}
        body = _only_used(self._body, used)
        globals_ = _only_used(self._globals, used)
        out: list[int] = []
        for capability in sorted({Capability.Shader, *self._needed(globals_, body)}):
            out += encode(Op.Capability, capability)
        for extension in sorted({extension for _, extension in self._storage_capabilities}):
            out += encode(Op.Extension, *text(extension))
        out += encode(Op.ExtInstImport, self._glsl, *text("GLSL.std.450"))
        out += encode(Op.MemoryModel, LOGICAL, GLSL450)
        interface = [variable for variable in self._interface if variable in used]
        out += encode(Op.EntryPoint, GL_COMPUTE, function, *text(self.name), *interface)
        out += encode(Op.ExecutionMode, function, LOCAL_SIZE, *self.local_size)
        for section in zip(*(words for target, words in self._annotations.items() if target in used)):
            out += [word for words in section for word in words]
        variables = [instruction for instruction in body if instruction.op == Op.Variable]
        code = [instruction for instruction in body if instruction.op != Op.Variable]
        out += _encode_all(globals_)
        out += encode(Op.Function, void, function, 0, function_type)
        out += encode(Op.Label, self.entry_block) + _encode_all(variables) + _encode_all(code)
        out += encode(Op.Return) + encode(Op.FunctionEnd)
        header = [MAGIC, VERSION, 0, self._last_id + 1, 0]
        return struct.pack(f"<{len(header) + len(out)}I", *header, *out)

    def _needed(self, globals_: list[Instruction], body: list[Instruction]) -> Iterator[Capability]:
        yield from (capability for capability, _ in self._storage_capabilities)
        for instruction in globals_:
            if instruction.op in (Op.TypeInt, Op.TypeFloat):
                yield from TYPE_CAPABILITIES.get((instruction.op, instruction.operands[0]), ())
        if _computes_in_float16([*globals_, *body]):
            yield Capability.Float16


def _computes_in_float16(instructions: list[Instruction]) -> bool:
    """Whether anything but ``MOVES_FLOAT16`` touches float16."""
    ids: set[int] = set()  # of types and values of float16
    for instruction in instructions:
        touched = not ids.isdisjoint(instruction.uses())
        if touched and instruction.op not in MOVES_FLOAT16:
            return True
        vector = touched and instruction.op == Op.TypeVector
        if (instruction.op, *instruction.operands) == (Op.TypeFloat, 16) or vector or instruction.type in ids:
            ids.add(instruction.result)
    return False


def _only_used(instructions: list[Instruction], used: set[int]) -> list[Instruction]:
    """Select the instructions that something uses. ``used`` holds the ids that later ones use; the ids that these use
    are added."""
    found = []
    for instruction in reversed(instructions):
        if instruction.kept or instruction.result in used:
            used.update(instruction.uses())
            found.append(instruction)
    return found[::-1]


def _encode_all(instructions: list[Instruction]) -> list[int]:
    return [word for instruction in instructions for word in instruction.words()]


def encode(op: Op, *operands: int) -> list[int]:
    return [len(operands) + 1 << 16 | op, *operands]


def text(value: str) -> tuple[int, ...]:
    """Encode a string as an operand: UTF-8, ended by a zero byte, in whole words."""
    data = value.encode("utf-8") + b"\0"
    data += b"\0" * (-len(data) % 4)
    return struct.unpack(f"<{len(data) // 4}I", data)
