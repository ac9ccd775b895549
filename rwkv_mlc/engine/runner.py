"""A compiled library with its parameters on a device: tokens and state in, logits out. Needs TVM's runtime only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..config import RWKVConfig
from ..errors import UserError
from ..models import StateTensor, model_module
from ..quantization.layouts import LAYOUTS
from .cuda_graph import FUNCTION, DecodeGraph
from .parameters import Stored, load_parameters
from .threads import start_threads
from .tvm_runtime import (
    CPU,
    Device,
    Tensor,
    copy_row,
    duplicate,
    lend,
    tensor,
    to_numpy,
    tvm_ffi,
    view,
    virtual_machine,
)

FUNCTIONS = ("prefill", "score", "decode", "batch_decode")


@dataclass
class State:
    """Recurrent state of ``slots`` sequences: one tensor a layer and role, float32 [slots, ...], in the order in which the
    library takes them. Calls update it in place; ``copy`` gives an independent one."""

    tensors: list[Tensor]
    graph: DecodeGraph | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        self.packed = tvm_ffi.convert(self.tensors)

    @property
    def slots(self) -> int:
        return int(self.tensors[0].shape[0])

    def copy(self) -> State:
        return State([duplicate(t) for t in self.tensors])

    def copy_slot(self, slot: int, target: State, target_slot: int) -> None:
        """Put what a slot holds into a slot of ``target``, a state of the same model on the same device; may be this one."""
        for source, copied in zip(self.tensors, target.tensors, strict=True):
            copy_row(source, slot, copied, target_slot)

    def arrays(self) -> list[np.ndarray]:
        """Copies of the tensors, in order."""
        return [to_numpy(t) for t in self.tensors]


class Runner:
    """Calls ``prefill``, ``score``, ``decode`` and ``batch_decode`` of a library.

    ``parameters`` are the stored tensors by name, arrays or an artifact's; each is permuted into the layout that the
    library's metadata asks for, and put onto ``device``, where states live as well. ``uses_graphs`` says whether ``decode``
    goes through a CUDA graph, where the library has that form. Raises UserError when the library asks for a tensor that is
    not there, or for one of another shape or dtype."""

    def __init__(self, library: Path, parameters: Mapping[str, Stored], device: Device = CPU):
        self.device = device
        self.executable = tvm_ffi.load_module(library)
        self.vm = virtual_machine(self.executable, self.device)
        self.uses_graphs = self.vm.implements_function(FUNCTION)
        metadata = json.loads(self.vm["_metadata"]())
        self.config = RWKVConfig.from_dict(metadata["model_config"])
        self.state_layout: list[StateTensor] = model_module(self.config).states(self.config)
        _check(library, metadata["params"], parameters)
        self.params = tvm_ffi.convert(load_parameters(metadata["params"], parameters, self.device))
        self.threads = start_threads()
        try:
            self.functions = {name: self.vm[name] for name in FUNCTIONS}
        except AttributeError:
            raise UserError(
                f"{library} lacks one of {', '.join(FUNCTIONS)}: another version of rwkv_mlc built it; build it again."
            ) from None

    def new_state(self, slots: int = 1) -> State:
        """The state before the first token, for ``slots`` sequences."""
        return self.state_from(
            np.full((slots, *role.shape), role.initial, np.float32)
            for _ in range(self.config.num_hidden_layers)
            for role in self.state_layout
        )

    def state_from(self, arrays) -> State:
        return State([tensor(array, self.device) for array in arrays])

    def state_names(self) -> list[str]:
        """``blocks.{layer}.{role}`` of each state tensor, in order."""
        layers = range(self.config.num_hidden_layers)
        return [f"blocks.{layer}.{role.role}" for layer in layers for role in self.state_layout]

    def check_tokens(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Token ids as an array. Raises UserError for one outside the vocabulary."""
        tokens = np.asarray(tokens)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
            raise UserError(
                f"Token ids must lie between 0 and {self.config.vocab_size - 1}, found {tokens.min()} to {tokens.max()}."
            )
        return tokens

    def run(
        self, function: str, sequences: Sequence[Sequence[int]], state: State, slots: Sequence[int] | None = None
    ) -> np.ndarray:
        """Feed one run of tokens to each sequence; updates ``state`` in place.

        ``sequences`` holds B non-empty lists of token ids, ``slots`` the state slot of each (0, 1, ... by default).
        ``prefill``, ``decode`` (one token of one sequence) and ``batch_decode`` (one token each) return float32 [B, V], the
        logits after each sequence's last token; ``score`` returns [T, V], those at every position."""
        tokens = self.check_tokens(np.concatenate([np.asarray(tokens) for tokens in sequences]))
        ends = np.array([*accumulate(map(len, sequences))], np.int32)
        chosen = np.asarray(range(len(sequences)) if slots is None else slots, np.int32)
        inputs = (tokens.astype(np.int32), ends, chosen)  # alive until the logits are there
        if function == "decode" and self.uses_graphs:
            state.graph = state.graph or DecodeGraph(self.executable, self.device, state.packed, self.params)
            logits = state.graph(inputs)
        else:
            lent = (lend(array, self.device) for array in inputs)
            logits = self.functions[function](*lent, state.packed, self.params)
        return view(logits).reshape(-1, self.config.vocab_size)


def _check(library: Path, specs: Sequence[Mapping[str, Any]], parameters: Mapping[str, Stored]) -> None:
    missing = [spec["name"] for spec in specs if spec["name"] not in parameters]
    if missing:
        raise UserError(f"{library} asks for parameters that are not there: {', '.join(missing)}; build it again.")
    for spec in specs:
        stored, layout = parameters[spec["name"]], LAYOUTS[spec["layout"]]
        found, expected = (layout.shape(stored.shape), str(stored.dtype)), (tuple(spec["shape"]), spec["dtype"])
        if found != expected:
            raise UserError(
                f"{library} asks for {spec['name']} as {expected[1]} {list(expected[0])} and would get {found[1]} "
                f"{list(found[0])}; build it again."
            )
