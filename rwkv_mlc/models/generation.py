"""The protocol through which everything else asks what a generation is: one subclass a model file."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..config import RWKVConfig
from .huggingface import HuggingFace
from .llama_cpp import LlamaCpp
from .parameter import Parameter, StateTensor
from .values import Role, Value
from .vocabulary import Expr, Ops, Weights

if TYPE_CHECKING:
    from ..reference.trace import Trace
    from ..weights.checkpoint import LazyTensor

Shapes = Mapping[str, tuple[int, ...]]
Device = Literal["cpu", "gpu"]

Beside = Callable[[str], "np.ndarray | None"]
"""The right value [T, C] of a role of the same block, or of a whole name, None where it is not known."""

ReferenceForward = Callable[
    [RWKVConfig, Mapping[str, np.ndarray], np.ndarray, dict, "Trace", np.ndarray], tuple[np.ndarray, dict]
]
"""(config, parameters, embedded tokens [T, C], state by (layer, role), trace, tokens [T]) -> logits [T, V], state."""


@dataclass(frozen=True)
class Recurrence:
    """The kernel that updates a generation's state. ``kernel(phase=..., in_place=...)`` makes it; it takes what the graph gives
    for the tokens of several sequences, then the states, then where the sequences lie, and puts out [1, T, C].

    ``parts`` are the iterations of its parallel loop for one sequence on a CPU, each with an equal part of the channels;
    ``feeds_matrix`` says that a matrix reads what it puts out, so that ``kernel`` has an argument ``dtype`` on GPUs, and
    ``stages`` that it has one ``async_copies`` there, which says whether the device has them."""

    kernel: Callable[..., Any]
    parts: int
    feeds_matrix: bool = False
    stages: bool = False


@dataclass(frozen=True)
class TunedState:
    """Which state of a layer state tuning trains: its ``role``, and the ``axes`` of the file's [heads, value, key] in the order
    in which the generation keeps them."""

    role: str
    axes: tuple[int, int, int]


@dataclass(frozen=True)
class PackageHooks:
    """How the ``rwkv`` package (ChatRWKV) runs a generation: the ``environment`` that it reads when it is imported, the roles
    of the ``states`` of a layer in its order, and the ``head_size_divisor`` that is written into it, None without heads."""

    environment: Mapping[str, str]
    states: tuple[str, ...]
    head_size_divisor: int | None = None


@dataclass(frozen=True)
class MlcChat:
    """What mlc_chat of 2023, which numbers its parameters, did to a generation's: the order in which it numbered those of a
    ``time_mixing``, which parameters stay ``float32`` in every quantization, by the end of their names, and what was
    ``done`` to values, as ``Generation.mlc_llm`` says it."""

    time_mixing: tuple[str, ...]
    float32: tuple[str, ...]
    done: Mapping[str, str]


class Generation(ABC):
    """All that is known of one generation of RWKV.

    ``name`` is what ``RWKVConfig.generation`` holds ("5.2"), ``model_type`` its name in configurations ("rwkv5")."""

    name: str
    model_type: str

    # From a checkpoint

    @abstractmethod
    def recognizes(self, shapes: Shapes) -> bool:
        """Whether tensors of these shapes, under BlinkDL's names, are of this generation or a later one."""

    @abstractmethod
    def dimensions(self, shapes: Shapes) -> dict[str, Any]:
        """The fields of ``RWKVConfig`` that only this generation's own tensors tell; sizes that no other generation has go
        by name under "own". Raises UserError where the tensors contradict each other."""

    @property
    @abstractmethod
    def own(self) -> Sequence[str]:
        """The sizes that every ``RWKVConfig.own`` of the generation holds."""

    @property
    @abstractmethod
    def own_in_configs(self) -> Mapping[str, str]:
        """Those of ``own`` that Hugging Face's ``config.json`` gives, by the names that they have there."""

    @abstractmethod
    def arrange(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        """The tensors under the names and in the order of axes of a BlinkDL ``.pth``, with its values, where other formats
        have others; without what nothing reads."""

    @abstractmethod
    def sanitize(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        """The tensors under the names and with the values of ``Parameter.source``, where checkpoints differ in either."""

    @abstractmethod
    def check_norms(self, config: RWKVConfig, of_folder: bool) -> None:
        """Raises UserError for epsilons with which the norms would not be those of the checkpoint; ``of_folder`` says that
        Hugging Face's ``config.json`` gave them."""

    @abstractmethod
    def parameters(self, config: RWKVConfig) -> list[Parameter]:
        """Every parameter in the order in which the compiled functions take them."""

    @abstractmethod
    def states(self, config: RWKVConfig) -> list[StateTensor]:
        """The recurrent state of one layer, in the order in which the compiled functions take it."""

    @property
    @abstractmethod
    def tuned_state(self) -> TunedState | None:
        """None where the state has no heads."""

    @property
    @abstractmethod
    def hugging_face_names(self) -> Sequence[tuple[str, str]]:
        """What turns names of Hugging Face's implementations into BlinkDL's: a pattern for the name's beginning and its
        replacement, applied one after the other."""

    @property
    @abstractmethod
    def hugging_face(self) -> HuggingFace | None:
        """The layout in which transformers loads the generation, None where there is none."""

    @abstractmethod
    def hugging_face_config(self, config: RWKVConfig, names: Collection[str]) -> dict[str, Any]:
        """What that layout's ``config.json`` holds beside what all have (the sizes of vocabulary, residual stream, layers and
        channel mixing); ``names`` are those of the tensors as ``arrange`` has them. Raises UserError for a model that the
        layout cannot express."""

    @property
    @abstractmethod
    def in_rwkv_cpp(self) -> bool:
        """Whether rwkv.cpp knows the generation."""

    @abstractmethod
    def to_rwkv_cpp(self, config: RWKVConfig, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str | None]:
        """With which shape rwkv.cpp's converter (``convert_pytorch_to_ggml.py``) stores a tensor of BlinkDL's name and shape,
        and what it does to its values, in the words of ``rwkv_cpp_tensor``."""

    @abstractmethod
    def rwkv_cpp_tensor(
        self, name: str, shape: tuple[int, ...], hidden_size: int
    ) -> tuple[tuple[int, ...], str | None]:
        """BlinkDL's shape of a tensor that rwkv.cpp stores with ``shape``, and the name of what rwkv.cpp did to its
        values, a key of ``weights.rwkv_cpp.INVERSES`` or "transpose" of the last two axes, or None."""

    @property
    @abstractmethod
    def mlc_llm(self) -> Mapping[str, str] | None:
        """What mlc_llm's loader does to a parameter before it stores it, by the end of its name, in the words of
        ``rwkv_cpp_tensor``; None where mlc_llm does not have the generation."""

    @property
    @abstractmethod
    def mlc_chat(self) -> MlcChat | None:
        """None where mlc_chat of 2023 did not have the generation."""

    @property
    @abstractmethod
    def llama_cpp(self) -> LlamaCpp | None:
        """None where llama.cpp does not know the generation."""

    # The graph

    @abstractmethod
    def embed(self, config: RWKVConfig, ops: Ops, weights: Weights, tokens: Expr) -> Expr:
        """Token ids int32 [T] to the beginning of the residual stream, float32 [1, T, C]."""

    @abstractmethod
    def blocks(self, config: RWKVConfig, ops: Ops, weights: Weights, x: Expr) -> Expr:
        """The residual stream through all layers, which read and update the state."""

    @abstractmethod
    def head(self, config: RWKVConfig, ops: Ops, weights: Weights, x: Expr) -> Expr:
        """The logits float32 [1, T, V] after rows [1, T, C] of the residual stream."""

    @abstractmethod
    def recurrence(self, config: RWKVConfig, device: Device) -> Recurrence:
        """The kernel of the recurrent state for a kind of device. Loads the compiler."""

    # What is said of its values

    def values(self, config: RWKVConfig) -> dict[str, Value]:
        """Every value of a call by name, in the order of execution; the states that it leaves come last."""
        result = [
            Value("emb", "embedding", (), parameters=("emb.weight",)),
            Value("blocks.0.ln0", "layer norm", ("emb",), parameters=("blocks.0.ln0.weight", "blocks.0.ln0.bias")),
        ]
        x = "blocks.0.ln0"
        for layer in range(config.num_hidden_layers):
            result += [role.placed(layer, x) for role in self.block_roles(config, layer)]
            x = result[-1].name
        result += [
            Value("ln_out", "layer norm", (x,), parameters=("ln_out.weight", "ln_out.bias")),
            Value("logits", "matrix product", ("ln_out",), parameters=("head.weight",)),
        ]
        for layer in range(config.num_hidden_layers):
            result += [role.placed(layer, x) for role in self.state_roles(config, layer)]
        return {value.name: value for value in result}

    @abstractmethod
    def block_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        """The named values of a layer's block in the order of execution. ``x`` is the residual stream that enters it; what
        comes from another layer goes by its whole name."""

    @abstractmethod
    def state_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        """The states of a layer after a call, in the order of ``states``."""

    @abstractmethod
    def mistakes(self, config: RWKVConfig, role: str, beside: Beside) -> Iterator[tuple[str, np.ndarray]]:
        """What known mistakes make of a value in the first rows of a prefill: a sentence, and rows [n, C]. ``beside`` gives the
        right value [T, C] of a role of the same block, or of a whole name, None where it is not known."""

    # The reference and its peer

    @property
    @abstractmethod
    def reference(self) -> ReferenceForward:
        """The forward in numpy."""

    @property
    @abstractmethod
    def package(self) -> PackageHooks | None:
        """None where the ``rwkv`` package does not know the generation, or shows no values of it."""

    # Chats

    @abstractmethod
    def category(self, tokenizer_kind: str) -> str:
        """mlc_chat's ``model_category`` of a model with a tokenizer of this kind."""

    @abstractmethod
    def template(self, tokenizer_kind: str) -> str:
        """The prompt template of ``configs/templates`` that suits the generation's chat models."""


def kernel_module(device: Device, name: str) -> ModuleType:
    """The module of a kernel in ``tir_kernels``, which loads the compiler."""
    return importlib.import_module(f"tir_kernels.{device}.{name}")
