"""The one table of named values: their order in a call, and what each is computed from.

A role is named below its block: ``att.key`` of ``blocks.3.att.key``. ``x`` stands for the residual stream that enters the
half block; states are those that the call before has left behind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..config import RWKVConfig
from . import model_module

LAST_ROW = ("ln_out", "logits")
"""Of the last token only, in every call."""

RESIDUAL = ("att.output", "att.residual", "ffn.value", "ffn.gated", "ffn.residual")
"""What is halved with the residual stream (``RWKVConfig.rescale_every``)."""


@dataclass(frozen=True)
class Role:
    name: str
    operation: str
    inputs: tuple[str, ...]
    states: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """One value of a call, with whole names: ``inputs`` are values of the same call, ``states`` of the call before, and
    ``parameters`` go by their names in the checkpoint."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    states: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


def _norm(name: str, source: str, operation: str = "layer norm") -> Role:
    return Role(name, operation, (source,), parameters=(f"{name}.weight", f"{name}.bias"))


def _mixed(norm: str, half: str, *targets: str) -> list[Role]:
    operation = "token shift and mix"
    return [
        Role(f"{half}.mixed_{t}", operation, (norm,), (f"state.{half}_x",), (f"{half}.time_mix_{t[0]}",))
        for t in targets
    ]


def _product(name: str, source: str) -> Role:
    return Role(name, "matrix product", (source,), parameters=(f"{name}.weight",))


def _products(half: str, *targets: str) -> list[Role]:
    return [_product(f"{half}.{target}", f"{half}.mixed_{target}") for target in targets]


def _time_mixing_4() -> list[Role]:
    targets = ("key", "value", "receptance")
    previous = ("state.att_a", "state.att_b", "state.att_p")
    decay = ("att.time_decay", "att.time_first")
    return [
        *_mixed("ln1", "att", *targets),
        *_products("att", *targets),
        Role("att.receptance_sigmoid", "sigmoid", ("att.receptance",)),
        Role("att.wkv", "wkv", ("att.key", "att.value"), previous, decay),
        Role("att.gated", "gate", ("att.receptance_sigmoid", "att.wkv")),
        _product("att.output", "att.gated"),
    ]


def _time_mixing_5(gated: bool) -> list[Role]:
    targets = ("key", "value", "receptance", *(["gate"] if gated else []))
    gate = [Role("att.gate_silu", "SiLU", ("att.gate",))] if gated else []
    read = ("att.key", "att.value", "att.receptance")
    return [
        *_mixed("ln1", "att", *targets),
        *_products("att", *targets),
        *gate,
        Role("att.wkv", "wkv", read, ("state.att_kv",), ("att.time_decay", "att.time_faaaa")),
        _norm("att.ln_x", "att.wkv", "group norm"),
        *([Role("att.gated", "gate", ("att.ln_x", "att.gate_silu"))] if gated else []),
        _product("att.output", "att.gated" if gated else "att.ln_x"),
    ]


def _channel_mixing() -> list[Role]:
    return [
        *_mixed("ln2", "ffn", "key", "receptance"),
        _product("ffn.key", "ffn.mixed_key"),
        Role("ffn.k_squared", "squared ReLU", ("ffn.key",)),
        _product("ffn.receptance", "ffn.mixed_receptance"),
        Role("ffn.receptance_sigmoid", "sigmoid", ("ffn.receptance",)),
        _product("ffn.value", "ffn.k_squared"),
        Role("ffn.gated", "gate", ("ffn.receptance_sigmoid", "ffn.value")),
    ]


def block_roles(config: RWKVConfig) -> list[Role]:
    """The roles of one block, in order."""
    mixing = _time_mixing_4() if config.generation == "4" else _time_mixing_5(gated=config.generation != "5.0")
    return [
        _norm("ln1", "x"),
        *mixing,
        Role("att.residual", "sum", ("x", "att.output")),
        _norm("ln2", "att.residual"),
        *_channel_mixing(),
        Role("ffn.residual", "sum", ("att.residual", "ffn.gated")),
    ]


def state_roles(config: RWKVConfig) -> list[Role]:
    """The states of one block after a call, in the order of ``models.<generation>.states``."""
    wkv = next(role for role in block_roles(config) if role.name == "att.wkv")
    kept = {"att_x": Role("state.att_x", "last row", ("ln1",)), "ffn_x": Role("state.ffn_x", "last row", ("ln2",))}
    return [
        kept.get(state.role)
        or Role(f"state.{state.role}", "state of wkv", wkv.inputs[:2], wkv.states, wkv.parameters[:1])
        for state in model_module(config).states(config)
    ]


def values(config: RWKVConfig) -> dict[str, Value]:
    """Every value of a call by name, in the order of execution; the states that it leaves behind come last."""
    result = [
        Value("emb", "embedding", (), parameters=("emb.weight",)),
        Value("blocks.0.ln0", "layer norm", ("emb",), parameters=("blocks.0.ln0.weight", "blocks.0.ln0.bias")),
    ]
    x = "blocks.0.ln0"
    for layer in range(config.num_hidden_layers):
        result += [_placed(role, layer, x) for role in block_roles(config)]
        x = result[-1].name
    result += [
        Value("ln_out", "layer norm", (x,), parameters=("ln_out.weight", "ln_out.bias")),
        Value("logits", "matrix product", ("ln_out",), parameters=("head.weight",)),
    ]
    for layer in range(config.num_hidden_layers):
        result += [_placed(role, layer, x) for role in state_roles(config)]
    return {value.name: value for value in result}


def place(name: str) -> tuple[int | None, str]:
    """Layer and role of a value: (3, "att.key"), (None, "logits")."""
    parts = name.split(".", 2)
    return (int(parts[1]), parts[2]) if parts[0] == "blocks" else (None, name)


def nearest(
    graph: Mapping[str, Value], known: Collection[str], call: str, value: Value
) -> tuple[dict[str, Value], list[Value]]:
    """The nearest values before ``value`` that are ``known``, with their calls and with what reads them, and the values on the
    way that are not."""
    before = _before(call)
    found: dict[str, Value] = {}
    between: list[Value] = []
    open_values = [value]
    while open_values:
        current = open_values.pop(0)
        found |= {name: current for state in current.states if (name := f"{before}/{state}") in known}
        for source in current.inputs:
            name = f"{call}/{source}"
            if name in known:
                found[name] = current
            elif graph[source] not in between:
                between.append(graph[source])
                open_values.append(graph[source])
    return found, between


def _before(call: str) -> str | None:
    """The call whose states a call reads."""
    phase, _, number = call.partition(".")
    if phase == "prefill":
        return None
    return f"decode.{int(number) - 1}" if int(number) else "prefill"


def _placed(role: Role, layer: int, x: str) -> Value:
    def whole(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(x if name == "x" else f"blocks.{layer}.{name}" for name in names)

    return Value(whole((role.name,))[0], role.operation, whole(role.inputs), whole(role.states), whole(role.parameters))
