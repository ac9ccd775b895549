"""RWKV-6, 7 and 7a, which are not among ``GENERATIONS`` yet: references, checkpoints and kernels of CPUs."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc import models
from rwkv_mlc.models import GENERATIONS, UNREGISTERED, detect_config, generation_of, resolve
from rwkv_mlc.models.rwkv7 import MIXES
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.reference import forward, load, rwkv7
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.random import random_checkpoint
from support.accuracy import BOUND, trained_like_weights
from support.compiled import Model, conditioning, in_memory
from support.kernel_build import error
from support.synthetic import synthetic_checkpoint

TOKENS = np.random.default_rng(0).integers(0, 97, 60).tolist()
SWITCHES = {"7": {"RWKV_V7_ON": "1"}, "7a": {"RWKV_V7_ON": "1", "RWKV_DE_VERSION": "1"}}

every_generation = pytest.mark.parametrize("generation", UNREGISTERED)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "UNSUPPORTED", {})
        for name, generation in UNREGISTERED.items():
            patch.setitem(GENERATIONS, name, generation)
        yield


def renamed(tensors: dict[str, np.ndarray], changes: dict[str, str], turned: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The tensors with parts of their names changed, those that end so the other way round."""
    result = {}
    for name, array in tensors.items():
        array = np.ascontiguousarray(array.swapaxes(-1, -2)) if name.endswith(turned) else array
        for old, new in changes.items():
            name = name.replace(old, new)
        result[name] = array
    return result


# The reference


@pytest.mark.parametrize("precision, bound", [("float32", 1e-5), ("float64", 1e-11)])
@pytest.mark.parametrize("head_size", [64, 32])
def test_rwkv_6_agrees_with_rwkv_package(head_size, precision, bound, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    package = pytest.importorskip("rwkv.model")
    tensors = synthetic_checkpoint("6", seed=2, hidden_size=3 * head_size, head_size=head_size)
    torch.save({n: torch.from_numpy(a.astype(precision)) for n, a in tensors.items()}, tmp_path / "model.pth")
    if precision == "float64":
        monkeypatch.setattr(torch, "float", torch.float64)
        monkeypatch.setattr(torch, "float32", torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    peer = package.RWKV(model=str(tmp_path / "model"), strategy="cpu fp32", verbose=False)
    expected, states = peer.forward(TOKENS, None, full_output=True)
    ours, our_states = forward(*load(in_memory(tensors)), TOKENS)
    assert error(expected.numpy(), ours) < bound
    assert all(error(theirs.numpy(), array) < bound for theirs, array in zip(states, our_states.values(), strict=True))


PEER = """
import sys, numpy as np
from rwkv.model import RWKV
tokens = [int(token) for token in sys.argv[3].split(",")]
logits, states = RWKV(model=sys.argv[1], strategy="cpu fp32").forward(tokens, None, full_output=True)
np.savez(sys.argv[2], logits.numpy(), *(state.numpy() for state in states))
"""


@pytest.mark.parametrize("generation", SWITCHES)
def test_rwkv_7_agrees_with_rwkv_package(generation, tmp_path):
    """In a process of its own: the package knows 7 or the others, and reads a switch when it is imported."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("rwkv")
    tensors = synthetic_checkpoint(generation, seed=2, layers=2)
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, tmp_path / "model.pth")
    arguments = [str(tmp_path / "model"), str(tmp_path / "out.npz"), ",".join(map(str, TOKENS))]
    switches = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", **SWITCHES[generation]}
    subprocess.run(
        [sys.executable, "-c", PEER, *arguments], env={"PATH": "", **switches}, check=True, capture_output=True
    )
    expected, *states = np.load(tmp_path / "out.npz").values()
    ours, our_states = forward(*load(in_memory(tensors)), TOKENS)
    assert error(expected, ours) < 1e-5
    assert all(error(theirs, array) < 1e-5 for theirs, array in zip(states, our_states.values(), strict=True))


@every_generation
def test_state_carries_and_every_value_is_traced(generation):
    config, parameters = load(in_memory(synthetic_checkpoint(generation)))
    found = {}
    whole, end = forward(config, parameters, TOKENS, trace=lambda name, value: found.setdefault(name, value))
    assert sorted(found) == sorted(name for name in generation_of(config).values(config) if ".state." not in name)
    assert {len(value) for value in found.values()} == {len(TOKENS)}
    first, state = forward(config, parameters, TOKENS[:23])
    second, after = forward(config, parameters, TOKENS[23:], state)
    assert error(np.concatenate([first, second]), whole) < 1e-12
    assert all(error(after[key], end[key]) < 1e-12 for key in end)


@every_generation
def test_every_tensor_matters(generation):
    tensors = synthetic_checkpoint(generation, layers=2)
    expected, _ = forward(*load(in_memory(tensors)), TOKENS)
    for name, array in tensors.items():
        moved = np.roll(array.reshape(-1), 1).reshape(array.shape)
        logits, _ = forward(*load(in_memory({**tensors, name: moved})), TOKENS)
        assert error(logits, expected) > 1e-4, name


@every_generation
def test_a_transposed_state_shows(generation):
    config, parameters = load(in_memory(synthetic_checkpoint(generation)))
    _, state = forward(config, parameters, TOKENS[:20])
    wrong = {key: array.swapaxes(1, 2) if key[1] == "att_kv" else array for key, array in state.items()}
    expected, _ = forward(config, parameters, TOKENS[20:], state)
    assert error(forward(config, parameters, TOKENS[20:], wrong)[0], expected) > 1e-2


RIGHT_WKV, RIGHT_MIXING = rwkv7.wkv, rwkv7.time_mixing
WKV_FAULTS = {
    "the sign of what is removed": lambda r, w, k, v, kk, a, s: RIGHT_WKV(r, w, k, v, kk, -a, s),
    "a is not applied to kk": lambda r, w, k, v, kk, a, s: RIGHT_WKV(r, w, k, v, kk, np.ones_like(a), s),
    "the state is transposed": lambda r, w, k, v, kk, a, s: RIGHT_WKV(r, w, k, v, kk, a, s.swapaxes(1, 2)),
}
VALUE_FAULTS = {
    ("7", "the decay lacks exp(-1/2)"): ("att.decay", lambda w: w ** np.exp(0.5)),
    ("7", "the decay is its inverse"): ("att.decay", lambda w: 1 / w),
    ("7", "there is no bonus"): ("att.bonus", np.zeros_like),
    ("6", "no tanh in the mixes"): ("att.time_maa_w1_tanh", np.arctanh),
    ("6", "no tanh in the decay"): ("att.time_decay_w1_tanh", np.arctanh),
}


def shows(generation: str, **changed) -> bool:
    """Whether accuracy tests would find a fault: by a hundred times their bound."""
    config, parameters = load(in_memory(trained_like_weights(generation)))
    right, state = forward(config, parameters, TOKENS[:30])
    right, _ = forward(config, parameters, TOKENS[30:], state)
    with pytest.MonkeyPatch.context() as patch:
        for name in {"wkv", "time_mixing"} & changed.keys():
            patch.setattr(rwkv7, name, changed.pop(name))
        wrong, _ = forward(config, parameters | changed.pop("parameters", {}), TOKENS[30:], state, **changed)
    return error(wrong, right) > 100 * BOUND


@pytest.mark.parametrize("fault", WKV_FAULTS)
def test_faults_of_wkv_show(fault):
    assert shows("7", wkv=WKV_FAULTS[fault]) and not shows("7", wkv=RIGHT_WKV)


@pytest.mark.parametrize("generation, fault", VALUE_FAULTS)
def test_faults_of_values_show(generation, fault):
    role, wrong = VALUE_FAULTS[generation, fault]
    assert shows(generation, trace=lambda name, value: wrong(value) if name.endswith(role) else value)


def test_a_state_that_is_read_before_its_update_shows():
    def read_before_update(r, w, k, v, kk, a, s):
        out = np.empty_like(v)
        for t in range(len(k)):
            out[t] = (s @ r[t][:, :, None])[:, :, 0]
            _, s = RIGHT_WKV(*(x[t : t + 1] for x in (r, w, k, v, kk, a)), s)
        return out, s

    assert shows("7", wkv=read_before_update)


def test_values_of_another_layer_than_the_first_show():
    def own_values(config, p, x, last, s, v_first, trace):
        """The next layer gets this one's values; and, below, none."""
        found = {}
        result = RIGHT_MIXING(config, p, x, last, s, v_first, lambda n, v: found.setdefault(n, trace(n, v)))
        return (*result[:3], found["value"])

    assert shows("7", time_mixing=own_values)
    assert shows("7", time_mixing=lambda c, p, x, last, s, v_first, trace: RIGHT_MIXING(c, p, x, last, s, None, trace))


def test_a_bonus_of_the_key_as_it_was_shows():
    _, parameters = load(in_memory(trained_like_weights("7")))
    share, found = parameters["model.blocks.0.attention.r_k"], {}

    def of_the_first_layer(name: str, value: np.ndarray) -> np.ndarray:
        found[name] = value
        if name != "blocks.0.att.bonus":
            return value
        r, k, v = (found[f"blocks.0.att.{part}"].reshape(-1, *share.shape) for part in ("receptance", "key", "value"))
        return ((r * k * share).sum(-1, keepdims=True) * v).reshape(value.shape)

    assert shows("7", trace=of_the_first_layer)


@pytest.mark.parametrize("first, second", list(itertools.pairwise(MIXES)))
def test_swapped_mixes_show(first, second):
    _, parameters = load(in_memory(trained_like_weights("7")))
    names = [f"model.blocks.1.attention.time_mix_{target}" for target in (first, second)]
    assert shows("7", parameters=dict(zip(names, (parameters[name] for name in names[::-1]))))


# Checkpoints


@pytest.mark.parametrize("attention_size", [128, 192])
@pytest.mark.parametrize("generation, own", [("6", 2), ("7", 4), ("7a", 5)])
def test_detection(generation, own, attention_size):
    """Ranks, of which none is a multiple of another, come from shapes."""
    tensors = synthetic_checkpoint(generation, attention_size=attention_size, head_size=32)
    config, parameters, _ = resolve(in_memory(tensors))
    assert (config.generation, config.head_size, config.attention_size) == (generation, 32, attention_size)
    ranks = {name: rank for name, rank in config.own.items() if name != "attention_size"}
    assert sorted(ranks.values()) == sorted(
        {"6": [12, 10], "7": [12, 10, 14, 20], "7a": [12, 10, 14, 20, 32]}[generation]
    )
    assert len(ranks) == own and config.num_heads == attention_size // 32
    assert config == type(config).from_dict(config.to_dict())
    drawn = random_checkpoint(config, "drawn").tensors
    assert {name: t.read().shape for name, t in drawn.items()} == {
        p.source: p.source_shape or p.shape for p in parameters
    }


def test_what_nothing_reads_may_be_there():
    """BlinkDL's files of RWKV-7 have the first layer's value pair or not."""
    tensors = synthetic_checkpoint("7")
    expected, _ = forward(*load(in_memory(tensors)), TOKENS)
    more = {f"blocks.0.att.v{i}": tensors[f"blocks.1.att.v{i}"] for i in range(3)}
    assert np.array_equal(forward(*load(in_memory({**tensors, **more})), TOKENS)[0], expected)


@pytest.mark.parametrize("ranks", [(12, 10, 14, 20), (128, 128, 128, 128)])
def test_rwkv_7_of_flash_linear_attention(ranks, tmp_path):
    """Whose matrices of low rank are the other way round, which square ones do not show."""
    tensors = synthetic_checkpoint("7", ranks=ranks)
    expected, _ = forward(*load(in_memory(tensors)), TOKENS)
    names = {
        f".att.{s}{i}": f".attn.{s}_lora.lora.{p}"
        for s in "wavg"
        for i, p in enumerate(("2.bias", "0.weight", "2.weight"))
    }
    names |= {
        "blocks.": "model.layers.",
        "emb.": "model.embeddings.",
        "head.": "lm_head.",
        "ln_out.": "model.norm.",
        ".ln0.": ".pre_norm.",
        ".ln1.": ".attn_norm.",
        ".ln2.": ".ffn_norm.",
        ".att.ln_x.": ".attn.g_norm.",
        ".att.output.": ".attn.o_proj.",
        **{f".att.{name}.": f".attn.{name[0]}_proj." for name in ("receptance", "key", "value")},
        ".att.": ".attn.",
    }
    halves = tuple(f".att.{s}{i}" for s in "wavg" for i in "12")
    save_file(renamed(tensors, names, halves), tmp_path / "model.safetensors")
    found, _ = forward(*load(open_checkpoint(str(tmp_path / "model.safetensors"))), TOKENS)
    assert np.array_equal(found, expected)


def test_rwkv_6_of_web_rwkv_and_of_transformers(tmp_path):
    tensors = synthetic_checkpoint("6")
    expected, _ = forward(*load(in_memory(tensors)), TOKENS)
    web = renamed(tensors, {"time_maa": "time_mix"}, ("time_maa_w1", "time_decay_w1"))
    names = {"blocks.": "rwkv.blocks.", "emb.": "rwkv.embeddings.", "ln_out.": "rwkv.ln_out.", ".ln0.": ".pre_ln."}
    folder = renamed(tensors, names | {".att.": ".attention.", ".ffn.": ".feed_forward."}, ("no name ends so",))
    for name, given in {"web": web, "folder": folder}.items():
        save_file(given, tmp_path / f"{name}.safetensors")
        found, _ = forward(*load(open_checkpoint(str(tmp_path / f"{name}.safetensors"))), TOKENS)
        assert np.array_equal(found, expected), name


@pytest.mark.parametrize("generation", ["6", "7"])
def test_rwkv_cpp(generation, tmp_path):
    """Its files, as ``convert_pytorch_to_ggml.py`` writes them."""
    tensors = synthetic_checkpoint(generation, hidden_size=64, layers=2)
    expected, _ = forward(*load(in_memory(tensors)), TOKENS)
    turned = (
        "time_maa_w1",
        "time_maa_w2",
        "time_decay_w1",
        "time_decay_w2",
        *(f".{s}{i}" for s in "wavg" for i in "12"),
    )
    stored = renamed({name: np.squeeze(array) for name, array in tensors.items()}, {}, turned)
    for i in range(2):
        if generation == "7":
            mixes = [stored.pop(f"blocks.{i}.att.x_{letter}") for letter in "rwkvag"]
            stored |= {
                f"blocks.{i}.att.x_rwkvag": np.stack(mixes),
                f"blocks.{i}.att.r_k": tensors[f"blocks.{i}.att.r_k"],
            }
        else:
            stored[f"blocks.{i}.att.time_faaaa"] = stored[f"blocks.{i}.att.time_faaaa"][..., None]
    with open(tmp_path / "model.bin", "wb") as file:
        file.write(struct.pack("<6i", 0x67676D66, 101, 97, 64, 2, 0))
        for name, array in stored.items():
            sizes = (array.ndim, len(name), 0, *array.shape[::-1])
            file.write(struct.pack(f"<{len(sizes)}i", *sizes) + name.encode() + np.ascontiguousarray(array).tobytes())
    found, _ = forward(*load(open_checkpoint(str(tmp_path / "model.bin"))), TOKENS)
    assert np.array_equal(found, expected)


def test_tables_of_7a_are_folded_and_have_a_row_a_token():
    tensors = synthetic_checkpoint("7a")
    _, parameters, lazy = resolve(in_memory(tensors))
    (table,) = (p for p in parameters if p.source == "blocks.1.ffn.s_emb.weight")
    x = tensors["emb.weight"].astype(np.float64)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = x * tensors["blocks.0.ln0.weight"] + tensors["blocks.0.ln0.bias"]
    expected = tensors[table.source] + x @ tensors["blocks.1.ffn.s_emb_x.weight"].T.astype(np.float64)
    assert error(lazy[table.source].read(), expected) < 1e-6
    short = {**tensors, table.source: tensors[table.source][:-1]}
    with pytest.raises(models.UserError, match="a square matrix for each of 97 tokens"):
        resolve(in_memory(short))


def test_what_stays_a_float():
    """Four bits would ruin the output matrix of the first layer, and low-rank pairs."""
    config = detect_config({name: a.shape for name, a in synthetic_checkpoint("7a").items()})
    forms = {p.name: SCHEMES["q4f16_1"].form(p.role) for p in generation_of(config).parameters(config)}
    halves = {name for name, form in forms.items() if getattr(form, "dtype", None) == "float16"}
    low_rank = {f"attention.{s}{i}.weight" for s in "wavg" for i in "12"} | {
        f"feed_forward.{s}.weight" for s in ("s1", "s2", "s_emb")
    }
    expected = {f"model.blocks.{i}.{name}" for i in range(3) for name in low_rank}
    expected -= {"model.blocks.0.attention.v1.weight", "model.blocks.0.attention.v2.weight"}
    assert halves == expected | {"model.blocks.0.attention.output.weight"}


# The kernels


@pytest.fixture(params=[("6", "q4f16_1"), ("7", "q0f32"), ("7", "q4f16_1"), ("7a", "q4f16_1")], ids="-".join)
def model(request, compiled) -> Model:
    generation, scheme = request.param
    return compiled(trained_like_weights(generation), scheme)


def test_logits(model, within):
    assert conditioning(model, TOKENS) < 6
    expected = model.reference(TOKENS)
    within("score", error(model.score(TOKENS), expected), BOUND)
    prefilled, decoded = model.runner.new_state(), model.runner.new_state()
    last = model.runner.run("prefill", [TOKENS], prefilled)
    within("prefill", error(last[0], expected[-1]), BOUND)
    within("decode", error(model.decode(TOKENS, decoded), expected), BOUND)
    for name, found, array in zip(model.runner.state_names(), decoded.arrays(), prefilled.arrays()):
        assert error(found, array) < 1e-5, name


def test_chunks_are_one_call(model, within):
    whole = model.runner.new_state()
    expected = model.score(TOKENS, whole)
    for chunk in (1, 7, 33):
        state = model.runner.new_state()
        within(f"chunks of {chunk}", error(model.score(TOKENS, state, chunk), expected), 1e-5)
        for name, found, array in zip(model.runner.state_names(), state.arrays(), whole.arrays()):
            assert error(found, array) < 1e-5, name


def test_state_continues_from_a_copy(model):
    state = model.runner.new_state()
    model.score(TOKENS[:37], state)
    copy, before = state.copy(), state.arrays()
    expected = model.decode(TOKENS[37:], copy)
    assert all(np.array_equal(now, then) for now, then in zip(state.arrays(), before))
    assert np.array_equal(model.decode(TOKENS[37:], state), expected)


def test_ragged_batches(model, within):
    runner, rng = model.runner, np.random.default_rng(1)
    pool = runner.state_from(rng.normal(size=array.shape).astype(np.float32) for array in runner.new_state(5).arrays())
    before, slots, sequences = pool.arrays(), [3, 0, 4], [TOKENS[:23], TOKENS[23:24], TOKENS[24:50]]
    alone = [runner.state_from(array[slot : slot + 1] for array in before) for slot in slots]

    def check(function: str, batched: np.ndarray, single: str, pieces: list[list[int]]) -> None:
        rows = [runner.run(single, [piece], state)[-1] for piece, state in zip(pieces, alone)]
        within(function, error(batched, np.stack(rows)), 2e-6)
        for name, array, old, *ours in zip(runner.state_names(), pool.arrays(), before, *(s.arrays() for s in alone)):
            assert error(array[slots], np.concatenate(ours)) < 2e-6, name
            assert np.array_equal(array[[1, 2]], old[[1, 2]]), name

    check("prefill", runner.run("prefill", sequences, pool, slots), "prefill", sequences)
    tokens = [[7], [96], [5]]
    check("batch_decode", runner.run("batch_decode", tokens, pool, slots), "decode", tokens)


@pytest.mark.parametrize("generation, scheme", [("6", "q3f16_1"), ("7", "q8f16_1")])
def test_odd_widths(generation, scheme, compiled, within):
    """Nothing is a multiple of 16 or of a group, and the time mixing has a size of its own."""
    shape = {"hidden_size": 40, "head_size": 12, "intermediate_size": 90, "attention_size": 36, "ranks": (5, 7, 6, 9)}
    model = compiled(trained_like_weights(generation, layers=2, **shape), scheme, functions=["score", "decode"])
    expected = model.reference(TOKENS)
    within("score", error(model.score(TOKENS), expected), BOUND)
    within("decode", error(model.decode(TOKENS), expected), BOUND)
