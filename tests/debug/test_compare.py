"""What the comparison says of dumps that were made wrong on purpose, and what it is silent about."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rwkv_mlc import reference
from rwkv_mlc.artifact import Artifact
from rwkv_mlc.cli.main import main
from rwkv_mlc.debug.compare import Comparison, compare
from rwkv_mlc.debug.dump import Dump, record
from rwkv_mlc.debug.nonfinite import first_nonfinite
from rwkv_mlc.debug.recipe import Recipe
from rwkv_mlc.debug.reference import stepper
from rwkv_mlc.debug.report import html
from rwkv_mlc.debug.weights import StoredWeights, different_weights
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import ModelOptions
from rwkv_mlc.models.values import place
from rwkv_mlc.schema import DumpHeader
from rwkv_mlc.weights import open_checkpoint
from support.compiled import in_memory, only
from support.paths import DEMO
from support.synthetic import synthetic_checkpoint

TOKENS = (7, 1, 50, 7, 33, 12, 90, 2, 64, 18)


def dump_of(generation: str, change=None, dtype: type = np.float64, **recipe) -> Dump:
    """Dump a small model whose parameters ``change`` may change."""
    config, parameters = reference.load(
        in_memory(synthetic_checkpoint(generation, hidden_size=64, layers=3, head_size=32))
    )
    if change:
        change(parameters)
    recipe = Recipe(**{"tokens": TOKENS, **recipe})
    header = DumpHeader(
        source="reference",
        name=generation,
        sha256="0",
        config=config,
        quantization=None,
        activations=np.dtype(dtype).name,
        tokens=list(recipe.tokens),
        decoded=recipe.decoded,
        chunk=recipe.chunk,
    )
    return Dump(header, record(config, recipe, stepper(config, parameters, dtype)))


@pytest.fixture(scope="module", params=["4", "5.2"])
def right(request) -> Dump:
    return dump_of(request.param)


@pytest.fixture(scope="module")
def eagle() -> Dump:
    return dump_of("5.2")


def with_value(dump: Dump, name: str, array: np.ndarray) -> Dump:
    return Dump(dump.header, {**dump.tensors, name: array})


def without(dump: Dump, *roles: str) -> Dump:
    kept = {name: array for name, array in dump.tensors.items() if place(name.partition("/")[2])[1] not in roles}
    return Dump(dump.header, kept)


def hints_of(comparison: Comparison) -> str:
    return "\n".join(comparison.finding.hints)


def test_equal_dumps_agree(right):
    comparison = compare(right, right)
    assert comparison.agrees and comparison.finding is None and len(comparison.rows) == len(right.tensors)
    assert {(r.difference.relative_rms, r.difference.max_abs) for r in comparison.rows} == {(0.0, 0.0)}
    assert all(row.difference.cosine == pytest.approx(1) for row in comparison.rows)


def test_the_first_wrong_value_is_named_and_not_what_follows(right):
    """A wrong matrix in layer 1: everything after it is wrong as well."""

    def change(parameters):
        parameters["model.blocks.1.feed_forward.key.weight"] *= 1.01

    comparison = compare(dump_of(right.header.name, change), right)
    finding = comparison.finding
    assert not comparison.agrees and finding.row.name == "prefill/blocks.1.ffn.key"
    assert finding.inputs == {"prefill/blocks.1.ffn.mixed_key": 0.0} and finding.between == []
    assert finding.parameters == ["blocks.1.ffn.key.weight"]
    text = "\n".join(finding.sentences())
    assert "The inputs of prefill/blocks.1.ffn.key agree (prefill/blocks.1.ffn.mixed_key 0.0e+00)" in text
    assert "Look at this op: matrix product with blocks.1.ffn.key.weight." in text
    assert "1.01 times what it should be" in text
    wrong = {row.name for row in comparison.rows if row.difference.relative_rms > 1e-4}
    assert "prefill/blocks.2.ffn.residual" in wrong and not any(".blocks.0." in name for name in wrong)


def test_hidden_values_are_named(eagle):
    def change(parameters):
        parameters["model.blocks.2.feed_forward.receptance.weight"] *= 3

    found = without(dump_of("5.2", change), "ffn.receptance", "ffn.receptance_sigmoid", "ffn.value", "ffn.gated")
    finding = compare(found, eagle).finding
    assert finding.row.name == "prefill/blocks.2.ffn.residual"
    assert set(finding.inputs) == {
        f"prefill/blocks.2.{role}" for role in ("att.residual", "ffn.mixed_receptance", "ffn.k_squared")
    }
    hidden = {f"blocks.2.ffn.{role}" for role in ("gated", "receptance_sigmoid", "receptance", "value")}
    assert set(finding.between) == hidden
    assert "blocks.2.ffn.receptance.weight" in finding.parameters


def test_states_are_inputs_of_the_next_call(eagle):
    """A state that is wrong after the prefill is named there, not where decode reads it."""
    found = with_value(eagle, "decode.0/blocks.1.att.wkv", 1.1 * eagle.tensors["decode.0/blocks.1.att.wkv"])
    assert "prefill/blocks.1.state.att_kv" in compare(found, eagle).finding.inputs
    name = "decode.0/blocks.1.state.att_kv"
    found = with_value(found, "decode.1/blocks.1.att.wkv", found.tensors["decode.1/blocks.1.att.wkv"] + 1)
    found = with_value(found, name, eagle.tensors[name] * 1.5)
    found.tensors["decode.0/blocks.1.att.wkv"] = eagle.tensors["decode.0/blocks.1.att.wkv"]
    assert compare(found, eagle).finding.row.name == name


def test_kernels_are_named(right):
    """A state's is the one that reads it, also where that keeps what it computes from it to itself."""
    state, value = {"4": ("att_a", "gated"), "5.2": ("att_kv", "wkv")}[right.header.name]
    kernels = {f"prefill/blocks.1.att.{value}": "wkv", "prefill/blocks.1.ffn.mixed_key": "shift"}
    named = Dump(right.header.model_copy(update={"kernels": kernels}), right.tensors)
    for role, kernel in ((state, "wkv"), ("ffn_x", "shift")):
        name = f"prefill/blocks.1.state.{role}"
        finding = compare(with_value(named, name, right.tensors[name] + 1), right).finding
        assert (finding.row.name, finding.kernel) == (name, kernel)
        assert f"in the kernel {kernel}." in finding.sentences()[1]


def test_rounding_that_adds_up_is_not_blamed(right):
    """Errors that grow threefold from layer to layer, beyond the tolerance, and a fault after them that is found."""
    rng = np.random.default_rng(0)

    def noisy(name: str, array: np.ndarray) -> np.ndarray:
        layer = place(name.partition("/")[2])[0]
        size = 5e-5 * 3.0 ** (3 if layer is None and "emb" not in name else layer or 0)
        return array * (1 + size * rng.normal(size=array.shape))

    found = Dump(right.header, {name: noisy(name, array) for name, array in right.tensors.items()})
    comparison = compare(found, right)
    assert max(row.difference.relative_rms for row in comparison.rows) > 10 * comparison.rtol
    assert comparison.agrees, comparison.finding.sentences()
    name = "prefill/blocks.2.ffn.key"
    comparison = compare(with_value(found, name, np.roll(found.tensors[name], 1, axis=1)), right)
    assert comparison.finding.row.name == name
    assert "are off" in comparison.finding.sentences()[0]


def test_what_a_norm_enlarges_is_not_blamed():
    """A head that is all but zero: rounding is nothing beside the other head, and the norm brings it to the same size."""

    def quiet(parameters):
        parameters["model.blocks.1.attention.value.weight"][:32] *= 1e-4

    right = dump_of("5.2", quiet)
    wkv, ln_x = "prefill/blocks.1.att.wkv", "prefill/blocks.1.att.ln_x"
    off = right.tensors[wkv].copy()
    off[:, :32] *= 1.001
    found = with_value(with_value(right, wkv, off), ln_x, right.tensors[ln_x] * 1.003)
    comparison = compare(found, right)
    assert comparison.agrees, comparison.finding.sentences()
    assert compare(with_value(found, ln_x, right.tensors[ln_x] * 1.1), right).finding.row.name == ln_x
    assert compare(with_value(found, wkv, right.tensors[wkv]), right).finding.row.name == ln_x


@pytest.mark.parametrize(
    "activations, error, agrees", [("float64", 2e-4, False), ("float16", 2e-4, True), ("float16", 2e-2, False)]
)
def test_tolerance_goes_by_the_activations(activations, error, agrees, eagle):
    found = Dump(eagle.header.model_copy(update={"activations": activations}), dict(eagle.tensors))
    found.tensors["prefill/blocks.0.att.key"] = found.tensors["prefill/blocks.0.att.key"] * (1 + error)
    assert compare(found, eagle).agrees == agrees
    assert compare(found, eagle, rtol=0.1).agrees


def test_hint_transposed(eagle):
    name = "prefill/blocks.1.state.att_kv"
    comparison = compare(with_value(eagle, name, eagle.tensors[name].swapaxes(1, 2)), eagle)
    assert comparison.finding.row.name == name and "after a transpose of the last two axes" in hints_of(comparison)


@pytest.mark.parametrize(
    "factor, said", [(0.25, "2^-2: a rescale"), (4, "2^2: a rescale"), (-1, "-1 times"), (1.5, "1.5 times")]
)
def test_hint_scaled(factor, said, eagle):
    name = "prefill/blocks.1.ffn.residual"
    assert said in hints_of(compare(with_value(eagle, name, factor * eagle.tensors[name]), eagle))


@pytest.mark.parametrize(
    "rows, said",
    [
        (slice(1, None), "agrees for the first token only"),
        (slice(2, None), "first two tokens only: the decay"),
        (slice(0, 1), "differs for the first token only"),
        (slice(4, None, 4), "those after a chunk border (tokens 4, 8)"),
        (slice(4, None), "up to the chunk border before token 4"),
    ],
)
def test_hint_tokens(rows, said, eagle):
    chunked = Dump(eagle.header.model_copy(update={"chunk": 4}), eagle.tensors)
    name = "prefill/blocks.1.att.mixed_gate"
    wrong = eagle.tensors[name].copy()
    wrong[rows] += np.random.default_rng(1).normal(size=wrong[rows].shape)
    assert said in hints_of(compare(with_value(chunked, name, wrong), eagle))


def test_hint_phases(eagle):
    for name, said in (("decode.0/blocks.0.ln0", "ln0 may be applied twice"), ("decode.1/blocks.1.att.wkv", "layout")):
        wrong = with_value(eagle, name, eagle.tensors[name][:, ::-1])
        assert f"agrees in prefill and not in decode: {'' if 'ln0' in name else 'the kernels'}" in hints_of(
            compare(wrong, eagle)
        )
        assert said in hints_of(compare(wrong, eagle))


def test_hint_swapped_and_mirrored(right):
    a, b = (f"prefill/blocks.1.ffn.mixed_{role}" for role in ("key", "receptance"))
    both = with_value(with_value(right, a, right.tensors[b]), b, right.tensors[a])
    comparison = compare(both, right)
    assert comparison.finding.row.name == a and "what blocks.1.ffn.mixed_receptance should be" in hints_of(comparison)

    def mirror(parameters):
        parameters["model.blocks.1.feed_forward.time_mix_key"] = (
            1 - parameters["model.blocks.1.feed_forward.time_mix_key"]
        )

    def skip(parameters):
        parameters["model.blocks.1.feed_forward.time_mix_key"][:] = 1

    for change, said in ((mirror, "mu and 1 - mu are swapped"), (skip, "takes the token itself")):
        comparison = compare(dump_of(right.header.name, change), right)
        assert comparison.finding.row.name == a and said in hints_of(comparison)


def test_hint_stale(right):
    name, before = "decode.1/blocks.1.state.att_x", "decode.0/blocks.1.state.att_x"
    assert "it is still that of decode.0" in hints_of(compare(with_value(right, name, right.tensors[before]), right))
    name = "prefill/blocks.1.state.ffn_x"
    assert "still the initial state" in hints_of(compare(with_value(right, name, 0 * right.tensors[name]), right))


def test_hint_read_after_the_update(eagle):
    """r (S' + u k v), where S' is the next state."""
    r, k, v = (eagle.tensors[f"prefill/blocks.1.att.{x}"].reshape(10, 2, 32) for x in ("receptance", "key", "value"))
    name = "prefill/blocks.1.att.wkv"
    wrong = eagle.tensors[name] + ((r * k).sum(2, keepdims=True) * v).reshape(10, 64)
    assert "read after its update" in hints_of(compare(with_value(eagle, name, wrong), eagle))


@pytest.mark.parametrize("hidden", [(), ("att.ln_x",)])
@pytest.mark.parametrize(
    "epsilon, axes, said",
    [
        (1e-5, 2, "an epsilon of 1e-05 instead of 0.00064"),
        (64e-5, (1, 2), "all heads together"),
        (64e-5, (0, 2), "over the tokens"),
        (64e-5, 1, "across the heads"),
    ],
)
def test_hint_group_norms(epsilon, axes, said, hidden, eagle):
    _, parameters = reference.load(in_memory(synthetic_checkpoint("5.2", hidden_size=64, layers=3, head_size=32)))
    x = eagle.tensors["prefill/blocks.1.att.wkv"].reshape(10, 2, 32)
    x = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    weight, bias = (parameters[f"model.blocks.1.attention.ln_x.{part}"] for part in ("weight", "bias"))
    ln_x = x.reshape(10, 64) * weight + bias
    wrong = with_value(eagle, "prefill/blocks.1.att.ln_x", ln_x)
    wrong = with_value(wrong, "prefill/blocks.1.att.gated", ln_x * eagle.tensors["prefill/blocks.1.att.gate_silu"])
    comparison = compare(without(wrong, *hidden), eagle, rtol=1e-6)
    assert comparison.finding.row.name == f"prefill/blocks.1.att.{'gated' if hidden else 'ln_x'}"
    assert "blocks.1.att.ln_x" in comparison.finding.suspects and said in hints_of(comparison)


def overflowing(generation: str) -> tuple[Dump, Dump]:
    """A model whose key in layer 0 does not fit float16, as a target that computes in float16 has it, and as it should be."""

    def change(parameters):
        parameters["model.blocks.0.attention.key.weight"] *= 1e5

    recipe = {"decodes": 0}
    return dump_of(generation, change, dtype=np.float16, **recipe), dump_of(generation, change, **recipe)


def test_overflow_in_float16_is_named_with_its_cure():
    found, right = overflowing("4")
    text = first_nonfinite(found, right)
    assert re.search(
        r"first NaN or Inf of the reference's dump is in prefill/blocks\.0\.att\.key \(0 NaN and \d+ Inf", text
    )
    assert "matrix product of prefill/blocks.0.att.mixed_key up to " in text
    assert re.search(r"has magnitudes up to \d\.\d+e\+05 there", text)
    assert text.endswith("Float16 ends at 65504: build it with --fp32 att.key or --fp32-layers 0 or --auto-precision.")
    comparison = compare(found, right)
    assert comparison.finding.row.name == "prefill/blocks.0.att.key" and comparison.nonfinite == [text]
    assert comparison.finding.row.difference.relative_rms == np.inf
    assert first_nonfinite(right) is None
    data = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert data["finding"]["name"] == "prefill/blocks.0.att.key" and not data["agrees"]
    assert "inf" in {value["relative_rms"] for value in data["values"]}


def test_saturated_float16_is_an_overflow():
    """What GPU kernels make of values beyond float16; their library keeps ``ffn.key`` to itself."""
    right = without(dump_of("4", decodes=0), "ffn.key")
    name = "prefill/blocks.0.ffn.k_squared"
    large = right.tensors[name].copy()
    large[3, :5] = 1e6
    right = with_value(right, name, large)
    clipped = with_value(right, name, np.minimum(large, 65504).astype(np.float16))
    found = Dump(right.header.model_copy(update={"source": "library", "activations": "float16"}), clipped.tensors)
    comparison = compare(found, right)
    assert comparison.finding.row.name == name and not comparison.agrees
    (text,) = comparison.nonfinite
    assert text.startswith(
        f"The first value that float16 cannot hold of the library's dump is in {name} (5 at 65504 among 2560): "
        "matrix product and squared ReLU of prefill/blocks.0.ffn.mixed_key up to "
    )
    assert "has magnitudes up to 1e+06 there. Float16 ends at 65504: build it with --fp32 ffn.k_squared" in text
    assert first_nonfinite(with_value(found, name, clipped.tensors[name].astype(np.float32))) is None


def test_a_halved_residual_stream_is_a_cure_for_itself_only():
    def change(parameters):
        parameters["model.blocks.1.feed_forward.value.weight"] *= 1e5

    text = first_nonfinite(dump_of("4", change, dtype=np.float16))
    assert "blocks.1.ffn.value" in text and "--fp32-layers 1 or --rescale-every 6 or --auto-precision" in text


def test_rescaled_dumps_agree_with_plain_ones():
    """``rescale_every`` in one of them; without saying so it is the fault that it looks like."""
    checkpoint = in_memory(synthetic_checkpoint("5.2", hidden_size=64, layers=3, head_size=32))
    config, parameters = reference.load(checkpoint, options=ModelOptions(rescale_every=1))
    right = dump_of("5.2")
    tensors = record(config, Recipe(TOKENS), stepper(config, parameters))
    header = right.header.model_copy(update={"config": config})
    comparison = compare(Dump(header, tensors), right)
    assert comparison.agrees, comparison.finding.sentences()
    silent = compare(Dump(right.header, tensors), right)
    assert silent.finding.row.name == "prefill/blocks.1.att.output"
    assert "2^-1: a rescale needs both halves" in hints_of(silent)
    assert "the weights of att.output and ffn.value" in hints_of(silent)


def test_nan_in_one_element_shows(right):
    name = "prefill/blocks.2.ffn.gated"
    wrong = right.tensors[name].copy()
    wrong[3, 5] = np.nan
    comparison = compare(with_value(right, name, wrong), right)
    assert comparison.finding.row.name == name and not comparison.agrees
    assert (
        comparison.finding.row.difference.nan == (1, 0) and "1 NaN and 0 Inf in A" in comparison.finding.sentences()[0]
    )


def test_other_shapes_differ(right):
    name = "prefill/blocks.1.state.ffn_x"
    comparison = compare(with_value(right, name, right.tensors[name][:-1]), right)
    assert comparison.finding.row.name == name and comparison.finding.row.difference.relative_rms == np.inf


def test_dumps_of_other_things_are_refused(right, eagle):
    with pytest.raises(UserError, match="of different tokens: 7,1,50,7,33,12,90,2,64,18 and 1,1,1"):
        compare(right, dump_of(right.header.name, tokens=(1, 1, 1)))
    with pytest.raises(UserError, match="of different models: they differ in generation"):
        compare(dump_of("4"), eagle)


def test_notes(eagle):
    config = dataclasses.replace(eagle.header.config, head_size_divisor=1, context_length=7)
    other = eagle.header.model_copy(update={"sha256": "1", "quantization": "q4f16_1", "config": config})
    comparison = compare(Dump(other, eagle.tensors), eagle)
    assert comparison.agrees and len(comparison.notes) == 3
    assert comparison.notes[1] == "head_size_divisor is 1 in A and 8 in B."
    assert "dump the reference with --quantization q4f16_1" in comparison.notes[2]
    noted = eagle.header.model_copy(update={"notes": ["decode gives other logits."]})
    comparison = compare(Dump(noted, eagle.tensors), eagle)
    assert not comparison.agrees and comparison.notes == ["decode gives other logits."]


def test_report_is_one_harmless_file(eagle):
    name = "prefill/blocks.1.att.wkv"
    named = eagle.header.model_copy(update={"name": "<script>alert(1)</script>", "target": '"><img src=x>'})
    text = html(compare(Dump(named, {**eagle.tensors, name: eagle.tensors[name] * 2}), eagle))
    assert "<script" not in text and "<img" not in text and "&lt;script&gt;" in text
    assert not re.search(r"\b(src|href)=|url\(|@import|https?:", text.replace("src=x", ""))
    assert text.count('class="first"') == 1 and "They differ." in text
    assert text.count("<td ") >= len(eagle.tensors)
    assert "They agree." in html(compare(eagle, eagle))


def test_command(right, tmp_path, capsys):
    a, b, page = tmp_path / "a", tmp_path / "b", tmp_path / "report.html"
    name = "prefill/blocks.1.att.value"
    with_value(right, name, right.tensors[name] * 2).write(a)
    right.write(b)
    assert main(["compare", str(b), str(b)]) == 0
    assert capsys.readouterr().out.endswith(f"A and B agree ({len(right.tensors)} values, tolerance 0.0001).\n")
    assert main(["compare", str(a), str(b), "--html", str(page)]) == 1
    out = capsys.readouterr().out
    assert f"> {name}" in out and "Look at this op: matrix product with blocks.1.att.value.weight." in out
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["compare", str(a), str(b), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["finding"]["name"] == name and len(data["values"]) == len(right.tensors)
    assert main(["compare", str(a), str(b), "--rtol", "2"]) == 0
    assert main(["compare", str(a), str(b), "--all"]) == 1
    assert len(capsys.readouterr().out.splitlines()) > len(right.tensors)
    for wrong in ([str(a), str(tmp_path)], [str(a), str(b), "--html", str(tmp_path / "no" / "r.html")]):
        assert main(["compare", *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_debug(demo, tmp_path, capsys):
    command = ["debug", str(demo), "--tokens", "5,9,200,31", "--against"]
    assert main([*command, str(DEMO), "--out", str(tmp_path / "dumps")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The stored weights are those of the checkpoint.\n") and "A and B agree" in out
    assert main(["compare", str(tmp_path / "dumps" / "library"), str(tmp_path / "dumps" / "reference")]) == 0
    capsys.readouterr()
    assert main([*command, str(DEMO), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == []
    assert main(["debug", str(DEMO), "--against", str(DEMO)]) == 2


def test_debug_with_a_plain_library(demo, tmp_path, capsys):
    """What lies between two values of the artifact's own library is named at its place, and nothing is left of the other."""
    tensors = load_file(DEMO / "model.safetensors")
    tensors["rwkv.blocks.1.ln1.bias"] += 0.1
    other = tmp_path / DEMO.name
    shutil.copytree(DEMO, other)
    save_file(tensors, other / "model.safetensors")
    command = ["debug", str(demo), "--tokens", "5,9,200,31", "--decode", "0", "--against", str(other)]
    assert main(command) == 1
    said, before = capsys.readouterr().out, sorted(demo.rglob("*"))
    assert "A: rwkv-5-village-q0f32 (fused library, float32)\n" in said
    assert "inputs of prefill/blocks.1.att.mixed_" in said
    assert (
        "Between them, and not in both dumps: blocks.1.ln1. It may as well be there: --family plain says where." in said
    )
    with only(["prefill"]):
        assert main([*command, "--family", "plain"]) == 1
    said = capsys.readouterr().out
    assert "A: rwkv-5-village-q0f32 (plain library, float32)\n" in said
    assert "inputs of prefill/blocks.1.ln1 agree" in said and "Between them" not in said
    assert sorted(demo.rglob("*")) == before


def test_weights_that_are_not_the_checkpoints(demo):
    checkpoint, artifact = open_checkpoint(str(DEMO)), Artifact.open(demo)
    weights = StoredWeights.of(artifact)
    seen = []
    assert different_weights(weights, checkpoint, lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (len(weights.parameters), len(weights.parameters))
    name, other = "model.blocks.2.attention.output.weight", "model.blocks.4.ln2.weight"
    changed = {**weights.stored, name: weights.stored[name].T, other: weights.stored[other] * 2}
    found = different_weights(dataclasses.replace(weights, stored=changed), checkpoint)
    assert [(d.name, d.hint) for d in found] == [
        ("blocks.2.att.output.weight", "it is transposed"),
        ("blocks.4.ln2.weight", "it is 2 times what it should be"),
    ]
    assert (
        found[1].sentence().startswith("blocks.4.ln2.weight is stored with other values than the checkpoint's (1.0e+00")
    )
