"""RWKV-5 in its versions 5.0, 5.1 and 5.2 (Peng et al. 2024, "Eagle and Finch", section 4; ChatRWKV, ``att_seq_v5``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import RWKVConfig
from ..errors import UserError
from .block import (
    BlockGeneration,
    attention_size,
    headed_config,
    matrix,
    mix,
    mixed_roles,
    norm,
    read_after_update,
    squeezed,
    states_of_heads,
)
from .generation import (
    Beside,
    Device,
    MlcChat,
    PackageHooks,
    Recurrence,
    ReferenceForward,
    Shapes,
    TunedState,
    kernel_module,
)
from .huggingface import TRANSFORMERS_NAMES, HuggingFace
from .parameter import Parameter, StateTensor, Transform
from .values import Role, norm_role, product_role
from .vocabulary import Expr, Ops, Weights

if TYPE_CHECKING:
    from ..weights.checkpoint import LazyTensor

MLC_LLM = {"attention.time_decay": "exp(-exp)"}

# mlc-llm's mlc_llm/relax_model/rwkv5.py, of pull request 1275
MLC_CHAT = MlcChat(
    time_mixing=(
        "time_decay",
        "time_faaaa",
        "time_mix_gate",
        "time_mix_key",
        "time_mix_value",
        "time_mix_receptance",
        "key.weight",
        "value.weight",
        "receptance.weight",
        "gate.weight",
        "output.weight",
        "ln_x.weight",
        "ln_x.bias",
    ),
    float32=("time_decay", "time_faaaa", "ln_x.weight", "ln_x.bias"),
    done=MLC_LLM,
)


class RWKV5(BlockGeneration):
    """``gated`` says whether there is a gate, ``by_channel`` whether decay and bonus are one number a channel (5.2 is
    the paper's Eagle) or one a head."""

    model_type = "rwkv5"
    tuned_state = TunedState("att_kv", axes=(0, 2, 1))
    llama_cpp = None
    hugging_face = HuggingFace(
        architecture="Rwkv5ForCausalLM",
        model_type="rwkv5",
        names=TRANSFORMERS_NAMES,
        prefix="rwkv.",
        code=("configuration_rwkv5.py", "modeling_rwkv5.py", "rwkv_causal_lm.py"),
        configuration="Rwkv5Config",
        base="Rwkv5Model",
    )
    mlc_llm: Mapping[str, str] = MLC_LLM
    package = PackageHooks(environment={}, states=("att_x", "att_kv", "ffn_x"), head_size_divisor=8)

    def __init__(self, name: str, gated: bool, by_channel: bool):
        self.name, self.gated, self.by_channel = name, gated, by_channel

    @property
    def targets(self) -> tuple[str, ...]:
        """What the mixed inputs are for."""
        return ("key", "value", "receptance", "gate") if self.gated else ("key", "value", "receptance")

    @property
    def mlc_chat(self) -> MlcChat | None:
        """Its decay and its bonus are [heads, channels]."""
        return MLC_CHAT if self.by_channel else None

    def recognizes(self, shapes: Shapes) -> bool:
        """ChatRWKV's ``model.py``: ``ln_x`` is 5, ``att.gate.weight`` 5.1, a second axis of ``time_decay`` 5.2."""
        decay = shapes.get("blocks.0.att.time_decay")
        if decay is None or not _any_layer_has(shapes, "ln_x"):
            return False
        gated = _any_layer_has(shapes, "gate")
        return (gated or not self.gated) and ((len(decay) > 1 and decay[1] > 1) or not self.by_channel)

    def dimensions(self, shapes: Shapes) -> dict[str, Any]:
        decay, (_, hidden_size), other = shapes["blocks.0.att.time_decay"], shapes["emb.weight"], attention_size(shapes)
        size = other["own"]["attention_size"] if other else hidden_size
        heads = decay[0] if decay else 0
        if not heads or size % heads:
            raise UserError(
                f"blocks.0.att.time_decay says {heads} heads, which do not divide the "
                f"{'attention' if other else 'hidden'} size {size}."
            )
        if size == heads:
            raise UserError(
                f"blocks.0.att.time_decay says {heads} heads of one channel, of which their norm would leave nothing; its "
                "shape should be [heads] in RWKV-5.0 and 5.1 and [heads, channels] in 5.2."
            )
        return {"head_size": size // heads, **other}

    def arrange(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Later versions than 5.0 store the bonus itself, whatever its name: web-rwkv's converter renames ``time_faaaa`` to
        ``time_first``."""
        return {self._bonus(name, tensors) if self.gated else name: tensor for name, tensor in tensors.items()}

    def sanitize(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        """5.0 stores the bonus as its logarithm under ``time_first``, or itself under ``time_faaaa``."""

        def exponential(tensor: LazyTensor) -> LazyTensor:
            return dataclasses.replace(tensor, read=lambda: np.exp(tensor.read().astype(np.float64)))

        result = self.arrange(tensors)
        for name in tensors:
            if not self.gated and (bonus := self._bonus(name, tensors)) != name:
                result[bonus] = exponential(result.pop(name))
        return result

    @staticmethod
    def _bonus(name: str, tensors: Mapping[str, LazyTensor]) -> str:
        """``time_faaaa`` in the place of a ``time_first`` that has none beside it."""
        if not name.endswith(".time_first"):
            return name
        bonus = name.removesuffix("time_first") + "time_faaaa"
        return name if bonus in tensors else bonus

    def hugging_face_config(self, config: RWKVConfig, names: Collection[str]) -> dict[str, Any]:
        return headed_config(config) | {
            "model_version": self.name.replace(".", "_"),
            "logarithmic_bonus": "blocks.0.att.time_first" in names,
        }

    def attention(self, config: RWKVConfig, layer: int) -> list[Parameter]:
        """Decay and bonus are [H, N] in every version: the one scalar per head of 5.0 and 5.1 is repeated."""
        name, source, halvings = f"model.blocks.{layer}.attention", f"blocks.{layer}.att", config.halvings(layer)
        c, a, heads, size = config.hidden_size, config.attention_size, config.num_heads, config.head_size

        def by_channel(array: np.ndarray) -> np.ndarray:
            return np.broadcast_to(array.reshape(heads, -1), (heads, size))

        def decay(w: np.ndarray) -> np.ndarray:
            return np.exp(-np.exp(by_channel(w)))

        def by_head(part: str, low: float, high: float, transform: Transform) -> Parameter:
            stored = (heads, size) if self.by_channel else (heads,)
            names, shape = (f"{name}.{part}", f"{source}.{part}"), (heads, size)
            return Parameter(*names, shape, "vector", "wkv", (low, high), transform, stored)

        return [
            by_head("time_decay", -6.0, -0.5, decay),
            by_head("time_faaaa", -1.0, 1.0, by_channel),
            *(mix(name, source, target, c) for target in self.targets),
            *(matrix(f"{name}.{t}", f"{source}.{t}", a, c, "time_mixing_inputs") for t in self.targets),
            matrix(f"{name}.output", f"{source}.output", c, a, "time_mixing_output", halvings),
            *norm(f"{name}.ln_x", f"{source}.ln_x", a, "group_norm"),
        ]

    def states(self, config: RWKVConfig) -> list[StateTensor]:
        """``att_kv`` is S[h, k, v], key before value."""
        return states_of_heads(config)

    def rwkv_cpp_tensor(
        self, name: str, shape: tuple[int, ...], hidden_size: int
    ) -> tuple[tuple[int, ...], str | None]:
        """rwkv.cpp stores the decay after its exponentials, 5.0's bonus after its exponential, and both with trailing
        axes of length 1: [H, N, 1] is [H, N]; [H, 1] and [H, 1, 1] are [H]; [N, 1], what is left of a single head's
        [1, N], is [1, N]."""
        part = name.rpartition(".")[2]
        if part not in ("time_decay", "time_first", "time_faaaa"):
            return shape, None
        if prod(shape) == hidden_size:
            shape = (1, hidden_size) if len(shape) == 2 else shape[:2]
        else:
            shape = shape[:1]
        return shape, {"time_decay": "exp(-exp)", "time_first": "exp", "time_faaaa": None}[part]

    def to_rwkv_cpp(self, config: RWKVConfig, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str | None]:
        part = name.rpartition(".")[2]
        if part == "time_first" or (part == "time_decay" and not self.gated):
            return (prod(shape), 1, 1), {"time_first": "exp", "time_decay": "exp(-exp)"}[part]
        if part in ("time_decay", "time_faaaa"):
            return (*squeezed(shape), 1), {"time_decay": "exp(-exp)", "time_faaaa": None}[part]
        return (squeezed(shape) if ".time_" in name else shape), None

    def time_mixing(self, config: RWKVConfig, ops: Ops, block: Weights, x: Expr) -> Expr:
        """x + W_o (silu(g) * group_norm(wkv)), equations 3 to 7; no gate in 5.0."""
        w = block.at("attention")
        mixes = {target: w.vector(f"time_mix_{target}") for target in self.targets}
        mixed = ops.norm_shift_mix(x, block.norm("ln1"), mixes, block.state("att_x"))
        activations = {"gate": "silu"}
        k, v, r, *gate = ops.linears([(mixed[t], w.matrix(t), activations.get(t)) for t in self.targets])
        inputs = [r, k, v, w.vector("time_decay"), w.vector("time_faaaa")]
        (out,) = ops.recurrence(inputs, [block.state("att_kv")], "att.wkv")
        out = ops.group_norm(out, w.norm("ln_x"), config.num_heads, config.group_norm_epsilon, *gate)
        return ops.linear(out, w.matrix("output"), residual=x)

    def recurrence(self, config: RWKVConfig, device: Device) -> Recurrence:
        """(r, k, v, w, u, kv) -> wkv."""
        kernel = partial(kernel_module(device, "wkv5").wkv5, config.num_heads, config.head_size)
        return Recurrence(kernel, parts=config.num_heads, stages=True)

    def time_mixing_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        read = ("att.key", "att.value", "att.receptance")
        gate = [
            Role("att.gate_silu", "SiLU", ("att.gate",)),
            Role("att.gated", "gate", ("att.ln_x", "att.gate_silu")),
        ]
        return [
            *mixed_roles("ln1", "att", self.targets),
            *(product_role(f"att.{target}", f"att.mixed_{target}") for target in self.targets),
            *(gate[:1] if self.gated else []),
            Role("att.wkv", "wkv", read, ("state.att_kv",), ("att.time_decay", "att.time_faaaa")),
            norm_role("att.ln_x", "att.wkv", "group norm"),
            *(gate[1:] if self.gated else []),
            product_role("att.output", "att.gated" if self.gated else "att.ln_x", rescaled=True),
        ]

    def mistakes(self, config: RWKVConfig, role: str, beside: Beside) -> Iterator[tuple[str, np.ndarray]]:
        if role == "att.wkv":
            yield from read_after_update(config, beside)

    @property
    def reference(self) -> ReferenceForward:
        from ..reference.rwkv5 import forward

        return forward

    def category(self, tokenizer_kind: str) -> str:
        return "rwkv5"

    def template(self, tokenizer_kind: str) -> str:
        return {"pile": "plain", "world": "rwkv_world"}[tokenizer_kind]


def _any_layer_has(shapes: Shapes, part: str) -> bool:
    return any(name.startswith("blocks.") and name.endswith(f".att.{part}.weight") for name in shapes)


GENERATIONS = (
    RWKV5("5.0", gated=False, by_channel=False),
    RWKV5("5.1", gated=True, by_channel=False),
    RWKV5("5.2", gated=True, by_channel=True),
)
