"""What calls of a library leave behind: TVM's runtime keeps the memory of a call for another of the very same sizes, and never
gives it back by itself."""

from __future__ import annotations

from ..schema import LibraryMetadata
from .tvm_runtime import free_pools

SHARE = 20  # of the parameters: memory of several sequences' steps beside that of prompts


class CallMemory:
    """Knows what the runtime keeps of the calls of one library, and has it freed before it becomes more than ``limit`` bytes;
    a larger call leaves no more than its own memory.

    ``limit`` is what the calls of one sequence take, for a ``chunk`` of a prompt and for a single token, as far as the library
    has functions for them, and a twentieth of the parameters."""

    def __init__(self, metadata: LibraryMetadata, chunk: int):
        self.functions = metadata.functions
        alone = {name: self.functions[name] for name in ("prefill", "decode") if name in self.functions}
        calls = sum(function.allocated(T=chunk, B=1) for function in alone.values())
        self.limit = calls + metadata.parameter_bytes // SHARE
        self.kept: dict[tuple[str, int, int], int] = {}

    def make_room(self, function: str, tokens: int, sequences: int) -> None:
        """To come before a call: frees what is kept where that is of other sizes and the call would add too much to it."""
        spec = self.functions[function]
        sizes = function, max(tokens, spec.planned.get("T", 0)), max(sequences, spec.planned.get("B", 0))
        if sizes in self.kept:
            return
        nbytes = spec.allocated(T=tokens, B=sequences)
        if sum(self.kept.values()) + nbytes > self.limit:
            free_pools()
            self.kept.clear()
        self.kept[sizes] = nbytes
