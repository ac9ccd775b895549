from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import GENERATIONS, ModelOptions, check_tensors, detect_config, generation_of, resolve
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.checkpoint import Checkpoint, LazyTensor
from rwkv_mlc.weights.random import random_checkpoint
from support.synthetic import synthetic_checkpoint

Shapes = dict[str, tuple[int, ...]]


def shapes_of(generation: str, **dimensions: int) -> Shapes:
    return {name: array.shape for name, array in synthetic_checkpoint(generation, **dimensions).items()}


def checkpoint_of(tensors: dict[str, np.ndarray], **fields) -> Checkpoint:
    lazy = {name: LazyTensor(a.shape, "float32", lambda a=a: a.copy()) for name, a in tensors.items()}
    return Checkpoint(fields.pop("name", "synthetic"), "memory", "synthetic", lazy, **fields)


def problems(shapes: Shapes, config: RWKVConfig | None = None) -> set[str]:
    """What ``check_tensors`` lists about ``shapes``."""
    config = config or detect_config(shapes)
    with pytest.raises(UserError) as error:
        check_tensors(generation_of(config).parameters(config), shapes)
    count, listed = re.search(r", (\d+) tensors? (?:is|are) wrong: (.*)", str(error.value)).groups()
    listed = listed.split("; ")
    assert int(count) == len(listed) == len(set(listed))
    return set(listed)


@pytest.mark.parametrize(
    "generation, head_size, intermediate", [("4", 0, 768), ("5.0", 32, 672), ("5.1", 32, 672), ("5.2", 32, 672)]
)
def test_generation_and_dimensions_come_from_shapes(generation, head_size, intermediate):
    shapes = shapes_of(generation, vocab_size=300, hidden_size=192, layers=11, head_size=32)
    config = detect_config(shapes)
    assert config == RWKVConfig(generation, 300, 192, 11, intermediate, head_size)
    assert config.num_heads == (6 if head_size else 0)
    assert generation_of(config).model_type == f"rwkv{generation[0]}"
    if head_size:
        assert config.group_norm_epsilon == pytest.approx(64e-5)
    else:
        with pytest.raises(ValueError, match="RWKV-4 has no heads"):
            _ = config.group_norm_epsilon
    assert detect_config(dict(sorted(shapes.items(), reverse=True))) == config


def test_intermediate_size_is_read():
    assert detect_config(shapes_of("5.2", intermediate_size=200)).intermediate_size == 200


def test_divisor_and_context_length_are_passed_on():
    config = detect_config(shapes_of("5.2"), ModelOptions(head_size_divisor=1, context_length=1024))
    assert (config.head_size_divisor, config.context_length) == (1, 1024)
    assert config.group_norm_epsilon == pytest.approx(1e-5)


def test_one_head_tells_5_1_from_5_2():
    one = detect_config(shapes_of("5.1", hidden_size=64, head_size=64))
    two = detect_config(shapes_of("5.2", hidden_size=64, head_size=64))
    assert (one.generation, one.num_heads, one.head_size) == ("5.1", 1, 64)
    assert (two.generation, two.num_heads, two.head_size) == ("5.2", 1, 64)


@pytest.mark.parametrize("generation", ["5.0", "5.1", "5.2"])
def test_trailing_axes_of_one_do_not_count(generation):
    """As in rwkv.cpp's files, where decay and bonus are [H, N or 1, 1] and mixes [C]."""
    shapes = shapes_of(generation)
    expected = detect_config(shapes)
    for name, shape in shapes.items():
        if ".time_mix" in name:
            shapes[name] = shape[-1:]
        elif ".time_" in name:
            shapes[name] = (*shape, *(1,) * (3 - len(shape)))
    assert detect_config(shapes) == expected
    resolve(checkpoint_of({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}))


@pytest.mark.parametrize("attention_size", [128, 192])
@pytest.mark.parametrize(
    "generation, ranks",
    [
        ("6", {"mix_rank": 12, "decay_rank": 10}),
        ("7", {"decay_rank": 12, "rate_rank": 10, "value_rank": 14, "gate_rank": 20}),
        ("7a", {"decay_rank": 12, "rate_rank": 10, "value_rank": 14, "gate_rank": 20, "embedding_rank": 32}),
    ],
)
def test_ranks_come_from_shapes(generation, ranks, attention_size):
    """None of them is a multiple of another."""
    tensors = synthetic_checkpoint(generation, attention_size=attention_size, head_size=32)
    config, parameters, _ = resolve(checkpoint_of(tensors))
    own = ranks if attention_size == 128 else {"attention_size": attention_size, **ranks}
    assert config == RWKVConfig(generation, 97, 128, 3, 448 if generation == "6" else 512, 32, own=own)
    assert (config.attention_size, config.num_heads) == (attention_size, attention_size // 32)
    drawn = random_checkpoint(config, "drawn").tensors
    assert {name: t.read().shape for name, t in drawn.items()} == {
        p.source: p.source_shape or p.shape for p in parameters
    }


@pytest.mark.parametrize("generation, missing", [("6", "mix_rank"), ("7", "gate_rank"), ("7a", "embedding_rank")])
def test_a_generations_own_sizes_are_asked_for(generation, missing):
    data = detect_config(shapes_of(generation)).to_dict()
    data["own"] = [name for name in data["own"] if name != missing]
    with pytest.raises(UserError, match=f"RWKV-{generation} lacks {missing}"):
        generation_of(RWKVConfig.from_dict(data))


def test_what_nothing_reads_may_be_there():
    """BlinkDL's files of RWKV-7 have the first layer's value pair or not; of its rank nothing depends either."""
    tensors = synthetic_checkpoint("7")
    for other in ("blocks.1.att.v", "blocks.0.att.a"):
        more = {f"blocks.0.att.v{i}": tensors[f"{other}{i}"] for i in range(3)}
        found, expected = resolve(checkpoint_of({**more, **tensors})), resolve(checkpoint_of(tensors))
        assert found[0] == expected[0] and found[2].keys() == expected[2].keys()


@pytest.mark.parametrize("decay", [(128,), (128, 1, 1)])
def test_heads_of_one_channel_are_a_decay_without_its_shape(decay):
    shapes = shapes_of("5.2") | {"blocks.0.att.time_decay": decay}
    with pytest.raises(
        UserError, match="128 heads of one channel.* its shape should be .heads. in RWKV-5.0 and 5.1 and"
    ):
        detect_config(shapes)


@pytest.mark.parametrize("decay", [(3,), (3, 64), (256,), (0,), ()])
def test_heads_must_divide_the_hidden_size(decay):
    shapes = shapes_of("5.2") | {"blocks.0.att.time_decay": decay}
    with pytest.raises(UserError, match="time_decay says .* heads, which do not divide the hidden size 128"):
        detect_config(shapes)


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"conv1.weight": (64, 3, 7, 7)},
        {"emb.weight": (10, 4)},
        {"emb.weight": (10,), "head.weight": (10, 4), "blocks.0.ffn.key.weight": (16, 4)},
        {"emb.weight": (10, 4), "head.weight": (10, 4), "blocks.0.ffn.key.weight": (16,)},
        {"emb.weight": (10, 4), "head.weight": (10, 4), "blocks.0.ffn.key.weight": (16, 4)},
    ],
)
def test_other_files_are_refused(shapes):
    with pytest.raises(UserError, match="This is not an RWKV checkpoint"):
        detect_config(shapes)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"emb.weight": (0, 128)}, "vocab_size as 0, expected at least 1"),
        ({"blocks.0.ffn.key.weight": (0, 128)}, "intermediate_size as 0, expected at least 1"),
    ],
)
def test_sizes_that_no_model_has(change, message):
    with pytest.raises(UserError, match=f"checkpoint's tensors gives {message}; it is damaged or no RWKV model"):
        detect_config(shapes_of("4") | change)


def test_layers_are_counted_before_they_are_looped_over():
    with pytest.raises(UserError, match="it has a block 9999999 and no more than 61 tensors"):
        detect_config(shapes_of("4") | {"blocks.9999999.ln1.weight": (128,)})


def test_missing_essentials_are_listed():
    with pytest.raises(UserError, match="it has no head.weight, blocks.0.ffn.key.weight"):
        detect_config({"emb.weight": (10, 4)})


@pytest.mark.parametrize("generation", GENERATIONS)
def test_own_tensors_fit(generation):
    tensors = synthetic_checkpoint(generation)
    config, parameters, lazy = resolve(checkpoint_of(tensors))
    folded = [name for name in tensors if ".s_emb_x." in name]  # into the tables of 7a
    assert config.generation == generation
    assert len(parameters) == len({p.name for p in parameters}) == len(tensors) - len(folded)
    assert {p.source for p in parameters} == set(lazy)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_missing_tensor_is_listed(generation):
    shapes = {name.replace("time_first", "time_faaaa"): shape for name, shape in shapes_of("5.0").items()}
    if generation != "5.0":
        shapes = {name: shape for name, shape in shapes_of(generation).items() if ".s_emb_x." not in name}
    config = detect_config(shapes)
    for name in shapes:
        assert problems({n: s for n, s in shapes.items() if n != name}, config) == {f"missing {name}"}
    part = "blocks.2.att." if generation in ("7", "7a") else "blocks.1."  # of more than 32 not all are listed
    gone = {name for name in shapes if name.startswith(part)}
    assert problems({n: s for n, s in shapes.items() if n not in gone}) == {f"missing {name}" for name in gone}


def test_missing_unknown_and_misshapen_are_one_list():
    shapes = shapes_of("5.2") | {
        "blocks.0.att.lora_a": (8, 128),
        "optimizer.step": (),
        "blocks.1.att.key.weight": (128, 64),
        "blocks.2.ffn.value.weight": (448, 128),
        "blocks.2.att.time_faaaa": (2,),
        "head.weight": (98, 128),
        "ln_out.bias": (127,),
    }
    del shapes["blocks.1.att.ln_x.bias"], shapes["blocks.2.att.gate.weight"]
    assert problems(shapes) == {
        "missing blocks.1.att.ln_x.bias",
        "missing blocks.2.att.gate.weight",
        "unknown blocks.0.att.lora_a",
        "unknown optimizer.step",
        "blocks.1.att.key.weight is [128, 64], expected [128, 128]",
        "blocks.2.ffn.value.weight is [448, 128], expected [128, 448]",
        "blocks.2.att.time_faaaa is [2], expected [2, 64]",
        "head.weight is [98, 128], expected [97, 128]",
        "ln_out.bias is [127], expected [128]",
    }


def test_resolve_ignores_names_and_takes_the_checkpoints_own_settings():
    tensors = synthetic_checkpoint("5.2")
    checkpoint = checkpoint_of(tensors, name="RWKV-4-World-0.1B", head_size_divisor=1, context_length=512)
    config, _, _ = resolve(checkpoint)
    assert (config.generation, config.head_size_divisor, config.context_length) == ("5.2", 1, 512)
    assert resolve(checkpoint, ModelOptions(head_size_divisor=4))[0].head_size_divisor == 4


def test_resolve_refuses_what_does_not_fit():
    tensors = synthetic_checkpoint("4")
    tensors["blocks.0.att.time_faaaa"] = tensors.pop("blocks.0.att.time_first")
    with pytest.raises(UserError, match="missing blocks.0.att.time_first; unknown blocks.0.att.time_faaaa"):
        resolve(checkpoint_of(tensors))


def test_resolve_refuses_a_bonus_stored_twice():
    tensors = synthetic_checkpoint("5.2")
    tensors["blocks.1.att.time_first"] = tensors["blocks.1.att.time_faaaa"]
    with pytest.raises(UserError, match="1 tensor.*: unknown blocks.1.att.time_first"):
        resolve(checkpoint_of(tensors))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_values_of_the_parameters(generation):
    source = synthetic_checkpoint(generation)
    _, parameters, tensors = resolve(checkpoint_of(source))
    values = {p.name: p.convert(tensors[p.source].read(), np.float64) for p in parameters}
    assert all(values[p.name].shape == p.shape and values[p.name].flags.c_contiguous for p in parameters)
    for name in ("key", "value", "receptance", "output"):
        np.testing.assert_array_equal(
            values[f"model.blocks.2.attention.{name}.weight"], source[f"blocks.2.att.{name}.weight"]
        )
    assert {p.role for p in parameters if p.name.endswith("head.weight")} == {"head"}
    assert {p.role for p in parameters if "embeddings" in p.name} == {"embedding"}
    matrices = r"(key|value|receptance|output|gate|embeddings|head|s_emb|(time_(maa|decay)_w|[wavgs])[12])\.weight"
    assert all((p.role != "vector") == bool(re.search(matrices, p.name)) for p in parameters)


@pytest.mark.parametrize("generation", ["4", "5.0", "5.1", "5.2"])
def test_decay_and_bonus(generation):
    source = synthetic_checkpoint(generation)
    _, parameters, tensors = resolve(checkpoint_of(source))
    values = {p.name: p.convert(tensors[p.source].read(), np.float64) for p in parameters}
    decay = values["model.blocks.1.attention.time_decay"]
    raw = source["blocks.1.att.time_decay"].astype(np.float64)
    if generation == "4":
        np.testing.assert_allclose(decay, -np.exp(raw), rtol=1e-14)
        np.testing.assert_array_equal(values["model.blocks.1.attention.time_first"], source["blocks.1.att.time_first"])
        return
    bonus = values["model.blocks.1.attention.time_faaaa"]
    stored = source.get("blocks.1.att.time_faaaa")
    if generation == "5.0":
        stored = np.exp(source["blocks.1.att.time_first"].astype(np.float64))
    assert decay.shape == bonus.shape == (2, 64)
    for head in range(2):
        np.testing.assert_allclose(decay[head], np.exp(-np.exp(raw[head])), rtol=1e-14)
        np.testing.assert_allclose(bonus[head], stored[head], rtol=1e-14)


@pytest.mark.parametrize("generation", ["6", "7", "7a"])
def test_mixes_and_low_rank_pairs(generation):
    """Mixes are the parts of the token itself, and the halves of a pair lie as [outputs, inputs]."""
    source = synthetic_checkpoint(generation)
    _, parameters, tensors = resolve(checkpoint_of(source))
    values = {p.name: p.convert(tensors[p.source].read(), np.float64) for p in parameters}
    mixes = {"6": ("time_mix_x", "time_maa_x")}.get(generation, ("time_mix_rate", "x_a"))
    np.testing.assert_allclose(
        values[f"model.blocks.1.attention.{mixes[0]}"], 1 - source[f"blocks.1.att.{mixes[1]}"].astype(np.float64)
    )
    for pair in {"6": ("time_decay_w",)}.get(generation, tuple("wavg")):
        for half in "12":
            found, stored = (
                values[f"model.blocks.1.attention.{pair}{half}.weight"],
                source[f"blocks.1.att.{pair}{half}"],
            )
            np.testing.assert_array_equal(found, stored.T)


def test_tables_of_7a_are_folded_and_have_a_row_a_token():
    tensors = synthetic_checkpoint("7a")
    _, parameters, lazy = resolve(checkpoint_of(tensors))
    (table,) = (p for p in parameters if p.source == "blocks.1.ffn.s_emb.weight")
    x = tensors["emb.weight"].astype(np.float64)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = x * tensors["blocks.0.ln0.weight"] + tensors["blocks.0.ln0.bias"]
    expected = tensors[table.source] + x @ tensors["blocks.1.ffn.s_emb_x.weight"].T.astype(np.float64)
    np.testing.assert_allclose(lazy[table.source].read(), expected, atol=1e-6 * np.abs(expected).max())
    with pytest.raises(UserError, match="a square matrix for each of 97 tokens"):
        resolve(checkpoint_of({**tensors, table.source: tensors[table.source][:-1]}))


def test_what_stays_a_float():
    """Four bits would ruin the output matrix of the first layer, and low-rank pairs."""
    config = detect_config(shapes_of("7a"))
    forms = {p.name: SCHEMES["q4f16_1"].form(p.role) for p in generation_of(config).parameters(config)}
    halves = {name for name, form in forms.items() if getattr(form, "dtype", None) == "float16"}
    low_rank = {f"attention.{s}{i}.weight" for s in "wavg" for i in "12"} | {
        f"feed_forward.{s}.weight" for s in ("s1", "s2", "s_emb")
    }
    expected = {f"model.blocks.{i}.{name}" for i in range(3) for name in low_rank}
    expected -= {"model.blocks.0.attention.v1.weight", "model.blocks.0.attention.v2.weight"}
    assert halves == expected | {"model.blocks.0.attention.output.weight"}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_json_round_trip(generation):
    config = detect_config(shapes_of(generation), ModelOptions(head_size_divisor=2, context_length=77))
    text = json.dumps(config.to_dict() | {"a_later_field": [1, 2]})
    assert RWKVConfig.from_dict(json.loads(text)) == config


def test_json_defaults_and_errors():
    data = detect_config(shapes_of("4")).to_dict()
    short = {key: data[key] for key in list(data)[:5]}
    assert RWKVConfig.from_dict(short) == RWKVConfig(**short)
    with pytest.raises(UserError, match="lacks vocab_size, hidden_size;"):
        RWKVConfig.from_dict({key: value for key, value in data.items() if key not in ("vocab_size", "hidden_size")})
    with pytest.raises(UserError, match="Unknown RWKV generation '9'; this version knows 4, 5.0, 5.1, 5.2, 6, 7, 7a"):
        generation_of(RWKVConfig.from_dict(data | {"generation": "9"}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_size": "128"}, "gives hidden_size as '128', expected an integer"),
        ({"num_hidden_layers": -1}, "gives num_hidden_layers as -1, expected at least 1"),
        ({"num_hidden_layers": 10**9}, "gives num_hidden_layers as 1000000000, expected at most 65536"),
        ({"vocab_size": 10**30}, "gives vocab_size as 10+, expected"),
        ({"head_size_divisor": 0}, "gives head_size_divisor as 0, expected at least 1"),
        ({"layer_norm_epsilon": float("nan")}, "gives layer_norm_epsilon as nan, expected a finite number"),
        ({"layer_norm_epsilon": True}, "gives layer_norm_epsilon as True, expected a number"),
        ({"float32": "blocks.*"}, r"gives float32 as 'blocks.\*', expected a list"),
        ({"float32": [1]}, r"gives float32\[0\] as 1, expected a string"),
        ({"own": ["rank"]}, "gives own.rank as None, expected an integer"),
        ({"own": ["rank"], "rank": -4}, "gives own.rank as -4, expected at least 0"),
        ({"own": 3}, "gives own as 3, expected an object"),
    ],
)
def test_values_of_another_type_or_range(change, message):
    with pytest.raises(UserError, match=f"The model configuration {message}"):
        RWKVConfig.from_dict(detect_config(shapes_of("4")).to_dict() | change)


def test_fields_of_a_generations_own():
    """They lie beside the others in JSON; a generation that has none leaves no trace of them."""
    config = detect_config(shapes_of("5.2"))
    assert "own" not in config.to_dict()
    ranked = dataclasses.replace(config, own={"decay_rank": 64, "gate_rank": 128})
    data = ranked.to_dict()
    assert data == config.to_dict() | {"own": ["decay_rank", "gate_rank"], "decay_rank": 64, "gate_rank": 128}
    assert RWKVConfig.from_dict(json.loads(json.dumps(data))) == ranked != config
    assert RWKVConfig.from_dict(config.to_dict() | {"decay_rank": 64}) == config
    assert len({config, ranked, RWKVConfig.from_dict(data)}) == 2


def test_chat_defaults():
    """A template and mlc_chat's category by generation and kind of tokenizer; nothing for a kind that is not known."""
    templates = {(g, kind): GENERATIONS[g].template(kind) for g in ("4", "5.0", "5.2") for kind in ("world", "pile")}
    assert {name for (_, kind), name in templates.items() if kind == "world"} == {"rwkv_world"}
    assert templates["4", "pile"] == "rwkv_raven" and templates["5.0", "pile"] == templates["5.2", "pile"] == "plain"
    assert [GENERATIONS["4"].category(kind) for kind in ("world", "pile")] == ["rwkv_world", "rwkv"]
    assert {GENERATIONS[g].category("world") for g in ("5.0", "5.1", "5.2")} == {"rwkv5"}
    with pytest.raises(KeyError):
        GENERATIONS["5.2"].template("other")


@pytest.mark.parametrize("generation", ["5.1", "5.2"])
def test_a_bonus_is_what_its_generation_says_whatever_its_name(generation, tmp_path):
    """web-rwkv's converter writes ``time_faaaa`` as ``time_first``, its values as they are, into a file ``.st``."""
    tensors = synthetic_checkpoint(generation)
    save_file({name.replace("time_faaaa", "time_first"): a for name, a in tensors.items()}, tmp_path / "model.st")
    found, expected = resolve(open_checkpoint(str(tmp_path / "model.st"))), resolve(checkpoint_of(tensors))
    assert found[:1] == expected[:1]
    for name, tensor in expected[2].items():
        np.testing.assert_array_equal(found[2][name].read(), tensor.read())


def test_web_rwkvs_form_of_5_1():
    """It gives decay and bonus of a head to every channel, which makes a 5.2 of the same values."""
    tensors = synthetic_checkpoint("5.1")
    repeated = {
        name.replace("time_faaaa", "time_first"): np.repeat(array[:, None], 64, 1)
        if name.endswith(("time_decay", "time_faaaa"))
        else array
        for name, array in tensors.items()
    }
    (config, parameters, found), (_, _, expected) = (resolve(checkpoint_of(each)) for each in (repeated, tensors))
    assert config.generation == "5.2"
    for p in parameters:
        wanted = next(q for q in resolve(checkpoint_of(tensors))[1] if q.name == p.name)
        array = p.convert(found[p.source].read())
        np.testing.assert_array_equal(array, wanted.convert(expected[wanted.source].read()), err_msg=p.name)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_time_mixing_may_have_channels_of_its_own(generation):
    tensors = synthetic_checkpoint(generation, attention_size=192)
    config, parameters, _ = resolve(checkpoint_of(tensors))
    assert (config.hidden_size, config.attention_size, config.num_heads) == (128, 192, 0 if generation == "4" else 3)
    assert RWKVConfig.from_dict(config.to_dict()) == config
    assert {p.source: p.source_shape or p.shape for p in parameters}["blocks.0.att.output.weight"] == (128, 192)
    assert "attention_size" not in resolve(checkpoint_of(synthetic_checkpoint(generation)))[0].own
    with pytest.raises(UserError, match="attention_hidden_size 128, where its tensors have 192"):
        resolve(checkpoint_of(tensors, stated={"attention_hidden_size": 128}))
