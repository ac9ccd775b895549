"""How many instructions a thread runs in a kernel's machine code, as ``nvdisasm`` shows it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rwkv_mlc.errors import UserError

NAME = "nvdisasm"
SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+)")
LABEL = re.compile(r"^(\.L_\w+):")
INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);"
)
TARGET = re.compile(r"`\((\.L_\w+)\)")
ENDS = ("EXIT", "RET")
PREDICATE = re.compile(r"\b!?U?P\d\b")


@dataclass
class Instruction:
    opcode: str
    target: str | None  # of a branch, a label
    goes_on: bool  # to the one after it


@dataclass
class Code:
    """A kernel: its instructions without those that fill it up, and where labels stand among them."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def loops(self) -> list[tuple[int, int]]:
        """The first and the last instruction of every loop, outer ones before inner ones."""
        last: dict[int, int] = {}
        for i, instruction in enumerate(self.instructions):
            first = self.labels.get(instruction.target, i + 1)
            if first < i:
                last[first] = i
        return sorted(last.items())

    def longest(self, trips: Sequence[int]) -> int | None:
        """How many instructions a thread runs that takes the longest way, where the loops of the kernel's source run so often
        in the order in which they stand there, those in others that often each time; the compiler may have unrolled all of
        them. None where the loops are not those of the source."""
        loops = self.loops()
        if not loops:
            trips = ()
        if len(loops) != len(trips):
            return None
        times = [1] * len(self.instructions)
        for (first, last), count in zip(loops, trips):
            for i in range(first, last + 1):
                times[i] *= count
        ways: dict[int, int] = {0: 0}
        longest = 0
        for i, instruction in enumerate(self.instructions):
            if i not in ways:
                continue
            way = ways[i] + times[i]
            longest = max(longest, way)
            after = [i + 1] if instruction.goes_on else []
            after += [self.labels[instruction.target]] if instruction.target in self.labels else []
            for place in after:
                if place > i:
                    ways[place] = max(ways.get(place, 0), way)
        return longest


def disassembler() -> str | None:
    """Where nvdisasm is: on the path, or that of PyPI's nvidia-cuda-nvdisasm."""
    if found := shutil.which(NAME):
        return found
    package = importlib.util.find_spec("nvidia")
    folders = package.submodule_search_locations if package else ()
    return next((str(path) for folder in folders or () for path in Path(folder).glob(f"*/bin/{NAME}")), None)


def disassemble(cubin: bytes) -> dict[str, Code]:
    """The kernels of machine code by name. Raises UserError where nvdisasm is missing or fails."""
    tool = disassembler()
    if tool is None:
        raise UserError("Counting instructions needs nvdisasm; install it with pip install nvidia-cuda-nvdisasm.")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        result = subprocess.run([tool, "-c", file.name], capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"nvdisasm: {result.stderr.strip()}")
    return read_assembly(result.stdout)


def read_assembly(text: str) -> dict[str, Code]:
    """The kernels of what nvdisasm writes."""
    found: dict[str, Code] = {}
    code = Code()
    for line in text.splitlines():
        if section := SECTION.match(line):
            code = found.setdefault(section[1], Code())
        elif label := LABEL.match(line):
            code.labels[label[1]] = len(code.instructions)
        elif (match := INSTRUCTION.match(line)) and match["opcode"] != "NOP":
            opcode, operands = match["opcode"], match["operands"]
            target = TARGET.search(operands) if opcode.startswith("BRA") else None
            always = match["guard"] is None and PREDICATE.search(operands) is None
            ends = opcode.partition(".")[0] in (*ENDS, "BRA") and always
            code.instructions.append(Instruction(opcode, target and target[1], not ends))
    return found
