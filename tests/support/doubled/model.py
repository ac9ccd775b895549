"""RWKV-5.2 with a second gate, which multiplies what the state gives before the group norm."""

from __future__ import annotations

from functools import partial
from typing import Any

from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.models.block import mixed_roles
from rwkv_mlc.models.generation import Device, Recurrence, ReferenceForward, Shapes
from rwkv_mlc.models.rwkv5 import RWKV5
from rwkv_mlc.models.values import Role, norm_role, product_role


class Doubled(RWKV5):
    model_type = "rwkv5doubled"
    package = None
    mlc_chat = None
    targets = ("key", "value", "receptance", "gate", "second")

    def __init__(self):
        super().__init__("5d", gated=True, by_channel=True)

    def recognizes(self, shapes: Shapes) -> bool:
        return super().recognizes(shapes) and "blocks.0.att.second.weight" in shapes

    def dimensions(self, shapes: Shapes) -> dict[str, Any]:
        return {**super().dimensions(shapes), "own": {"gates": 2}}

    def time_mixing(self, config: RWKVConfig, ops, block, x):
        w = block.at("attention")
        mixes = {target: w.vector(f"time_mix_{target}") for target in self.targets}
        mixed = ops.norm_shift_mix(x, block.norm("ln1"), mixes, block.state("att_x"))
        activations = {"gate": "silu", "second": "silu"}
        k, v, r, gate, second = ops.linears([(mixed[t], w.matrix(t), activations.get(t)) for t in self.targets])
        inputs = [r, k, v, second, w.vector("time_decay"), w.vector("time_faaaa")]
        (out,) = ops.recurrence(inputs, [block.state("att_kv")], "att.wkv")
        out = ops.group_norm(out, w.norm("ln_x"), config.num_heads, config.group_norm_epsilon, gate)
        return ops.linear(out, w.matrix("output"), residual=x)

    def recurrence(self, config: RWKVConfig, device: Device) -> Recurrence:
        from . import kernel

        factory = {"cpu": kernel.doubled_on_cpu, "gpu": kernel.doubled_on_gpu}[device]
        return Recurrence(partial(factory, config.num_heads, config.head_size), parts=config.num_heads)

    def time_mixing_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        read = ("att.key", "att.value", "att.receptance", "att.second_silu")
        return [
            *mixed_roles("ln1", "att", self.targets),
            *(product_role(f"att.{target}", f"att.mixed_{target}") for target in self.targets),
            Role("att.gate_silu", "SiLU", ("att.gate",)),
            Role("att.second_silu", "SiLU", ("att.second",)),
            Role("att.wkv", "wkv", read, ("state.att_kv",), ("att.time_decay", "att.time_faaaa")),
            norm_role("att.ln_x", "att.wkv", "group norm"),
            Role("att.gated", "gate", ("att.ln_x", "att.gate_silu")),
            product_role("att.output", "att.gated", rescaled=True),
        ]

    def mistakes(self, config: RWKVConfig, role: str, beside):
        return iter(())

    @property
    def reference(self) -> ReferenceForward:
        from .reference import forward

        return forward
