"""A compiled library with its parameters on a device: tokens and state in, logits out. Needs TVM's runtime only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from threading import RLock

import numpy as np

from ..errors import UserError
from ..escaping import listed, listed_problems, quoted
from ..schema import LONGEST_PREFILL_CHUNK, MLC, NATIVE, LibraryMetadata, ParameterSpec, StateSpec
from .call_memory import CallMemory
from .cuda_graph import FUNCTION, DecodeGraph
from .integers import integers
from .older_libraries import described
from .parameters import Stored, load_parameters
from .state import State
from .threads import start_threads
from .tvm_runtime import (
    CPU,
    Device,
    Module,
    Tensor,
    duplicate,
    lend,
    load_library,
    tensor,
    tvm_ffi,
    view,
    virtual_machine,
)

# A virtual machine takes one call at a time, and all of a process have one memory, which a call may clear. A fork waits for
# the end of a call, so that the child finds that memory whole.
CALLING = RLock()
os.register_at_fork(before=CALLING.acquire, after_in_parent=CALLING.release, after_in_child=CALLING.release)

READING = ("prefill", "score", "decode", "batch_decode")
"""The functions that read tokens."""


class Runner:
    """Calls ``prefill``, ``score``, ``decode`` and ``batch_decode`` of a library.

    ``parameters`` are the stored tensors by name, arrays or an artifact's; each is permuted into the layout that the
    library's metadata asks for, and put onto ``device``, where states live as well. ``chunk`` is how many tokens a call has
    at most as a rule, ``prefill_chunk`` how many with this library: what such a call takes is kept for those that follow.
    ``threads`` run the kernels on a CPU, as ``start_threads`` says; ``pool`` is what it gave. ``uses_graphs`` says whether
    ``decode`` goes through a CUDA graph, where the library has that form; ``metadata`` is what the library says of itself.
    ``initial`` has states before the first token, float32 [*shape] by name, that are not the library's constants.
    Raises UserError for tensors that are missing, that the library does not know, or of another shape or dtype, and for a
    library of another interface or without one of its functions."""

    def __init__(
        self,
        library: Path,
        parameters: Mapping[str, Stored],
        device: Device = CPU,
        chunk: int = LONGEST_PREFILL_CHUNK,
        threads: int | None = None,
        initial: Mapping[str, np.ndarray] | None = None,
    ):
        self.device = device
        self.pool = start_threads(threads)  # before the library, which asks for it when it is loaded
        self.executable, self.vm, self.metadata = open_library(library, device)
        self.uses_graphs = self.vm.implements_function(FUNCTION)
        self.config = self.metadata.config
        _check_parameters(library, self.metadata.params, parameters)
        self.params = tvm_ffi.convert(load_parameters(self.metadata.params, parameters, self.device))
        self.calling = CALLING
        self.process = os.getpid()
        self.functions = {name: self.vm[spec.symbol or name] for name, spec in self.metadata.functions.items()}
        self.layout = tuple((tuple(spec.shape), spec.dtype) for spec in self.metadata.states)
        self.prefill_chunk = self.metadata.prefill_chunk(chunk)
        self.initial = initial or {}
        _check_initial(library, self.metadata.states, self.initial)
        self.memory = CallMemory(self.metadata, self.prefill_chunk)

    def new_state(self, slots: int = 1) -> State:
        """The state before the first token, for ``slots`` sequences. Raises UserError for none."""
        if slots < 1:
            raise UserError(f"A state has at least one slot, not {slots}.")

        def before(state: StateSpec) -> np.ndarray:
            array = state.before(slots)
            array[:] = self.initial.get(state.name, array)
            return array

        return self.state_from(map(before, self.metadata.states))

    def state_from(self, arrays: Iterable[np.ndarray]) -> State:
        self.check_process()
        return State([tensor(array, self.device) for array in arrays])

    def state_names(self) -> list[str]:
        """``blocks.{layer}.{role}`` of each state tensor, in order."""
        return [state.name for state in self.metadata.states]

    def check_tokens(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Raises UserError for an id outside the vocabulary."""
        if len(tokens) and not 0 <= min(tokens) <= max(tokens) < self.config.vocab_size:
            raise UserError(
                f"Token ids must lie between 0 and {self.config.vocab_size - 1}, found {min(tokens)} to {max(tokens)}."
            )

    def check_process(self) -> None:
        """Raises UserError in a process that was forked from the one which loaded the model, where it does not have what runs
        it: a device's driver, or the threads of TVM's pool. Ours begins anew."""
        if os.getpid() != self.process and (self.device != CPU or self.pool.owner == "tvm"):
            what = self.pool if self.device == CPU else self.device
            raise UserError(
                f"This process was forked after the model was loaded, and has nothing of what runs it, {what}; load it in the "
                "process that uses it, as multiprocessing's start method spawn does."
            )

    def _check_sequences(
        self, function: str, sequences: Sequence[Sequence[int]], state: State, slots: Sequence[int]
    ) -> None:
        if function not in (known := [name for name in READING if name in self.functions]):
            raise UserError(f"This library reads tokens with {', '.join(known)}, not with {quoted(function)}.")
        if state.layout != self.layout:
            raise UserError(
                f"This is a state of another model: it has {len(state.layout)} tensors, {_shapes(state.layout)}, where this "
                f"model has {len(self.layout)}, {_shapes(self.layout)}; take one of Engine.new_state or Runner.new_state."
            )
        tokens = self.metadata.functions[function].arguments[0]
        assert not isinstance(tokens, str)
        (extent,) = tokens.shape  # 1, "B" for one of each sequence, or "T"
        lengths = list(map(len, sequences))
        if (
            not lengths
            or min(lengths) < 1
            or (extent != "T" and max(lengths) > 1)
            or (extent == 1 and len(lengths) > 1)
        ):
            wanted = {1: "one token of one sequence", "B": "one token of each sequence"}.get(
                extent, "at least one token of each sequence"
            )
            found = f"{len(lengths)} of {min(lengths, default=0)} to {max(lengths, default=0)} tokens"
            raise UserError(f"{function} reads {wanted}, found {found}.")
        if (
            len(slots) != len(lengths)
            or len(set(slots)) < len(slots)
            or not 0 <= min(slots) <= max(slots) < state.slots
        ):
            raise UserError(
                f"Each of {len(lengths)} sequences needs a slot of its own, below {state.slots}, found "
                f"{listed([str(slot) for slot in slots])}; make a state of more slots, or name others."
            )

    def call(
        self, function: str, sequences: Sequence[Sequence[int]], state: State, slots: Sequence[int] | None = None
    ) -> Tensor:
        """``run``, with the logits where the library left them: float32 [1, rows, V]."""
        parts = [integers(sequence, "Token ids") for sequence in sequences]
        chosen = range(len(parts)) if slots is None else integers(slots, "Slots")
        self._check_sequences(function, parts, state, chosen)
        tokens = list(chain.from_iterable(parts))
        self.check_tokens(tokens)
        ends = list(accumulate(map(len, parts)))
        inputs = [np.array(values, np.int32) for values in (tokens, ends, chosen)]  # alive until the logits are there
        with self.calling:
            self.check_process()
            state.last.update(dict.fromkeys(chosen))
            state.lengths |= {slot: state.lengths.get(slot, 0) + len(part) for slot, part in zip(chosen, parts)}
            if function == "decode" and self.uses_graphs:
                state.graph = state.graph or DecodeGraph(self.executable, self.device, state.packed, self.params)
                return duplicate(state.graph(inputs))
            self.memory.make_room(function, len(tokens), len(parts))
            return self.functions[function](*(lend(array, self.device) for array in inputs), state.packed, self.params)

    def run(
        self, function: str, sequences: Sequence[Sequence[int]], state: State, slots: Sequence[int] | None = None
    ) -> np.ndarray:
        """Feed one run of tokens to each sequence; updates ``state`` in place.

        ``sequences`` holds B non-empty lists of token ids, ``slots`` the state slot of each (0, 1, ... by default).
        ``prefill``, ``decode`` (one token of one sequence) and ``batch_decode`` (one token each) return float32 [B, V], the
        logits after each sequence's last token; ``score`` returns [T, V], those at every position. Calls of several threads
        take turns. Raises UserError for another function, a state of another model, what are no integers, sequences that the
        function does not take, ids outside the vocabulary, and slots that the state does not have or two sequences share."""
        return view(self.call(function, sequences, state, slots)).reshape(-1, self.config.vocab_size)


def _shapes(layout: Iterable[tuple[tuple[int, ...], str]]) -> str:
    return listed([f"{dtype} {list(shape)}" for shape, dtype in dict.fromkeys(layout)])


def open_library(library: Path, device: Device) -> tuple[Module, Module, LibraryMetadata]:
    """The executable of a library, its functions for ``device``, and what it says of itself. Raises UserError for a library
    of another interface, or without one of its functions."""
    executable = load_library(library)
    machine = virtual_machine(executable, device)
    if not machine.implements_function("_metadata"):
        raise UserError(f"{library} does not describe itself: it is no library that rwkv-mlc wrote; build it again.")
    metadata = described(LibraryMetadata.read(machine["_metadata"](), library))
    _check_functions(library, metadata, machine)
    return executable, machine, metadata


def _check_functions(library: Path, metadata: LibraryMetadata, machine: Module) -> None:
    if metadata.interface != NATIVE:
        advice = "build it with --abi both" if metadata.interface == MLC else "build it again"
        raise UserError(
            f"{library} has the functions of the interface {metadata.interface} alone, and the engine calls those of "
            f"{NATIVE}; {advice}."
        )
    if missing := [
        name for name, spec in metadata.functions.items() if not machine.implements_function(spec.symbol or name)
    ]:
        raise UserError(f"{library} lacks {listed(missing)}: another version of rwkv_mlc built it; build it again.")


def _check_initial(library: Path, specs: Sequence[StateSpec], initial: Mapping[str, np.ndarray]) -> None:
    expected = {spec.name: (spec.shape, spec.dtype) for spec in specs}
    wrong = [name for name, array in initial.items() if (array.shape, str(array.dtype)) != expected.get(name)]
    if wrong:
        raise UserError(f"The initial state does not fit {library}: {listed(wrong)}; build the artifact again.")


def _check_parameters(library: Path, specs: Sequence[ParameterSpec], parameters: Mapping[str, Stored]) -> None:
    expected = {spec.name: spec for spec in specs}
    problems = [f"missing {name}" for name in expected if name not in parameters]
    problems += [f"unknown {name}" for name in parameters if name not in expected]
    for name, spec in expected.items():
        if name not in parameters:
            continue
        stored = parameters[name]
        found, wanted = (stored.shape, str(stored.dtype)), (spec.stored_shape, spec.dtype)
        if found != wanted:
            shape = list(spec.stored_shape or ())
            problems.append(f"{name} is {stored.dtype} {list(stored.shape)}, expected {spec.dtype} {shape}")
    if problems:
        raise UserError(
            f"The parameters do not fit {library}, {len(problems)} tensors are wrong: {listed_problems(problems)}; build the "
            "artifact again."
        )
