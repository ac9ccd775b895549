"""Dumps of the reference, of the rwkv package and of compiled libraries, on disk and by name."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from rwkv_mlc import Engine, reference
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.debug import dump as dump_module
from rwkv_mlc.debug.compare import compare
from rwkv_mlc.debug.dump import HEADER, TENSORS, Dump, record
from rwkv_mlc.debug.library import Tracer, dump_library
from rwkv_mlc.debug.measure import relative
from rwkv_mlc.debug.recipe import Recipe
from rwkv_mlc.debug.reference import dump_artifact, dump_checkpoint, stepper
from rwkv_mlc.errors import UserError
from rwkv_mlc.interfaces import native
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import GENERATIONS, ModelOptions, generation_of, resolve
from rwkv_mlc.models.values import place
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.weights import open_checkpoint
from support.compiled import in_memory
from support.paths import DEMO
from support.synthetic import synthetic_checkpoint

TOKENS = (7, 1, 50, 7, 33, 12, 90, 2, 64, 18)
RECIPE = Recipe(TOKENS)


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a small checkpoint of a generation and opens it."""

    def write(generation: str, **shape):
        tensors = synthetic_checkpoint(generation, **{"hidden_size": 64, "layers": 2, "head_size": 32, **shape})
        save_file(tensors, tmp_path / f"tiny-{generation}.safetensors")
        return open_checkpoint(str(tmp_path / f"tiny-{generation}.safetensors"))

    return write


@pytest.fixture
def dump_chatrwkv():
    pytest.importorskip("torch")
    pytest.importorskip("rwkv")
    from rwkv_mlc.debug.chatrwkv import dump_chatrwkv

    return dump_chatrwkv


@pytest.mark.parametrize("generation", GENERATIONS)
def test_reference_gives_every_value_in_order(generation, checkpoint):
    dump = dump_checkpoint(checkpoint(generation), RECIPE)
    graph = generation_of(dump.header.config).values(dump.header.config)
    assert list(dump.tensors) == [f"{call}/{name}" for call in ("prefill", "decode.0", "decode.1") for name in graph]
    assert {str(array.dtype) for array in dump.tensors.values()} == {"float64"}
    shapes = {name: dump.tensors[f"prefill/{name}"].shape for name in graph}
    assert shapes["blocks.1.att.wkv"] == shapes["blocks.0.ln1"] == (10, 64)
    assert shapes["ln_out"] == (1, 64) and shapes["logits"] == (1, 97)
    assert ("blocks.0.att.gate_silu" in graph) == (generation in ("5.1", "5.2", "6"))
    assert ("blocks.0.att.gated" in graph) == (generation != "5.0")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_values_come_after_what_they_are_computed_from(generation):
    config, _ = reference.load(in_memory(synthetic_checkpoint(generation)))
    seen, graph = set(), generation_of(config).values(config)
    sources = {parameter.source for parameter in resolve(in_memory(synthetic_checkpoint(generation)))[1]}
    states = {name for name in graph if ".state." in name}
    for value in graph.values():
        assert seen.issuperset(value.inputs) and states.issuperset(value.states), value
        assert sources.issuperset(value.parameters), value
        seen.add(value.name)
    assert {p for value in graph.values() for p in value.parameters} == sources
    assert place("blocks.11.att.key") == (11, "att.key") and place("logits") == (None, "logits")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_dumps_hold_what_the_reference_computes(generation, checkpoint):
    opened = checkpoint(generation)
    dump = dump_checkpoint(opened, RECIPE)
    logits, state = reference.forward(*reference.load(opened), [*TOKENS, 7, 1])
    for call, row in (("prefill", 9), ("decode.0", 10), ("decode.1", 11)):
        np.testing.assert_allclose(dump.tensors[f"{call}/logits"][0], logits[row], rtol=1e-9)
    for (layer, role), array in state.items():
        np.testing.assert_allclose(dump.tensors[f"decode.1/blocks.{layer}.state.{role}"], array, rtol=1e-9)
    graph = dump.tensors
    np.testing.assert_array_equal(
        graph["prefill/blocks.0.att.residual"], graph["prefill/blocks.0.ln0"] + graph["prefill/blocks.0.att.output"]
    )
    np.testing.assert_array_equal(graph["prefill/blocks.1.state.ffn_x"], graph["prefill/blocks.1.ln2"][-1])


@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_chunks_are_one_prefill(chunk, checkpoint):
    opened = checkpoint("5.2")
    whole, chunked = (dump_checkpoint(opened, dataclasses.replace(RECIPE, chunk=c)).tensors for c in (512, chunk))
    assert list(whole) == list(chunked)
    assert max(relative(chunked[name], whole[name]) for name in whole) < 1e-12


def test_float32_and_rounded_weights(checkpoint):
    opened = checkpoint("5.2")
    exact, single = dump_checkpoint(opened, RECIPE), dump_checkpoint(opened, RECIPE, dtype=np.float32)
    assert {str(array.dtype) for array in single.tensors.values()} == {"float32"}
    assert 0 < relative(single.tensors["prefill/logits"], exact.tensors["prefill/logits"]) < 1e-4
    rounded = dump_checkpoint(opened, RECIPE, get_scheme("q4f16_1"))
    assert rounded.header.quantization == "q4f16_1"
    assert relative(rounded.tensors["prefill/blocks.0.att.key"], exact.tensors["prefill/blocks.0.att.key"]) > 0.01


@pytest.mark.parametrize("generation", GENERATIONS)
def test_float16(generation, checkpoint):
    """Every value is rounded, but for those that are to be float32, and the tolerance knows."""
    opened, options = checkpoint(generation), ModelOptions(float32=("blocks.1.ffn.*",))
    exact, half = (dump_checkpoint(opened, RECIPE, dtype=dtype, options=options) for dtype in (np.float64, np.float16))
    wide = {name for name, array in half.tensors.items() if array.dtype == np.float32}
    assert wide == {name for name in half.tensors if "blocks.1.ffn." in name or ".state." in name}
    comparison = compare(half, exact)
    assert half.header.activations == "float16" and comparison.agrees, comparison.finding.sentences()
    assert 1e-4 < relative(half.tensors["prefill/logits"], exact.tensors["prefill/logits"]) < 2e-2


@pytest.mark.parametrize("generation", [name for name in GENERATIONS if GENERATIONS[name].package])
def test_agrees_with_rwkv_package(generation, checkpoint, dump_chatrwkv):
    """Values that no product, norm or activation of the package shows are those of the embedding and 6's decays."""
    opened = checkpoint(generation)
    peer, ours = dump_chatrwkv(opened, RECIPE), dump_checkpoint(opened, RECIPE)
    unseen = ["emb", *(f"blocks.{i}.att.decay" for i in range(2) if generation == "6")]
    missing = [f"{call}/{name}" for call in ours.header.calls for name in unseen]
    assert [name for name in ours.tensors if name not in peer.tensors] == missing
    assert not peer.tensors.keys() - ours.tensors.keys()
    comparison = compare(peer, ours, rtol=1e-4)
    assert comparison.agrees, comparison.finding.sentences()
    assert max(row.difference.relative_rms for row in comparison.rows) < 2e-5


@pytest.mark.parametrize("generation", [name for name in GENERATIONS if not GENERATIONS[name].package])
def test_the_rwkv_package_shows_nothing_of_what_it_compiles(generation, checkpoint, dump_chatrwkv):
    with pytest.raises(UserError, match=f"shows nothing of what it computes of RWKV-{generation}; compare"):
        dump_chatrwkv(checkpoint(generation), RECIPE)


@pytest.mark.parametrize("scheme", ["q0f32", "q4f16_1"])
@pytest.mark.parametrize("generation", ["5.2", "6"])
def test_agrees_with_rwkv_package_on_rounded_weights(generation, scheme, checkpoint, dump_chatrwkv):
    opened, rounding = checkpoint(generation), get_scheme(scheme)
    comparison = compare(dump_chatrwkv(opened, RECIPE, rounding), dump_checkpoint(opened, RECIPE, rounding), rtol=1e-4)
    assert comparison.agrees, comparison.finding.sentences()


def test_the_rwkv_package_finds_no_heads_in_one_layer(checkpoint, dump_chatrwkv):
    with pytest.raises(UserError, match="finds no heads in a model of one layer"):
        dump_chatrwkv(checkpoint("5.2", layers=1), RECIPE)


def test_the_rwkv_package_cannot_divide_heads_otherwise(checkpoint, dump_chatrwkv):
    opened = checkpoint("5.2")
    with pytest.raises(UserError, match="divides heads by 8"):
        dump_chatrwkv(opened, RECIPE, options=ModelOptions(head_size_divisor=1))


def test_without_the_rwkv_package(checkpoint, tmp_path, monkeypatch, capsys):
    checkpoint("4")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "rwkv_mlc.debug.chatrwkv", raising=False)
    assert main(["dump", str(tmp_path / "tiny-4.safetensors"), "--with", "rwkv", "--out", str(tmp_path / "a")]) == 2
    assert "error: --with rwkv needs the packages rwkv and torch" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("scheme", ["q0f32", "q4f16_1"])
@pytest.mark.parametrize("generation", ["4", "5.0", "5.2"])
def test_library_gives_what_its_kernels_write(generation, scheme, compiled):
    """Also that ``decode``, whose kernels are merged, gives the bits of ``batch_decode``."""
    model = compiled(synthetic_checkpoint(generation, hidden_size=64, layers=2, head_size=32), scheme)
    tracer = Tracer(model.runner)
    found = record(model.config, RECIPE, tracer.step)
    expected = record(model.config, RECIPE, stepper(model.config, model.parameters))
    assert tracer.notes == []
    assert list(found) == [name for name in expected if name in found]
    hidden = {place(name.partition("/")[2])[1] for name in expected if name not in found}
    assert {"ln1", "att.output", "ffn.key", "ffn.value", "ffn.gated"} <= hidden
    assert not hidden & {"att.key", "att.mixed_key", "att.residual", "ffn.k_squared", "ffn.residual", "logits"}
    assert max(relative(found[name], expected[name]) for name in found) < 1e-4
    fresh = Tracer(model.runner)
    chunked = record(model.config, dataclasses.replace(RECIPE, chunk=4), fresh.step)
    assert max(relative(chunked[name], found[name]) for name in found) < 1e-4


def test_a_library_and_its_artifact(demo, tmp_path):
    engine = Engine(demo)
    library, numpy = dump_library(engine.artifact, engine.runner, RECIPE), dump_artifact(engine.artifact, RECIPE)
    assert library.header.target == "llvm" and library.header.notes == []
    assert library.header.kernels["prefill/blocks.0.att.wkv"].startswith("wkv5")
    assert library.header.sha256 == numpy.header.sha256 == Engine(demo).artifact.record.source_sha256
    assert compare(library, numpy).agrees


def test_writing_and_reading(checkpoint, tmp_path):
    dump = dump_checkpoint(checkpoint("4"), RECIPE)
    for _ in range(2):
        dump.write(tmp_path / "dumps" / "a")
    read = Dump.read(tmp_path / "dumps" / "a")
    assert read.header == dump.header and list(read.tensors) == list(dump.tensors)
    assert all(np.array_equal(read.tensors[name], array) for name, array in dump.tensors.items())
    assert sorted(p.name for p in (tmp_path / "dumps" / "a").iterdir()) == [HEADER, TENSORS]
    assert [p.name for p in (tmp_path / "dumps").iterdir()] == ["a"]
    listed = json.loads((tmp_path / "dumps" / "a" / HEADER).read_text(encoding="utf-8"))["tensors"]
    assert listed["prefill/blocks.0.att.key"] == ["float64", 10, 64]


def test_other_folders_stay(checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is no dump"):
        dump_checkpoint(checkpoint("4"), RECIPE).write(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "damage", ["header", "format", "tensors", "shape", "missing", "token", "value", "type", "model"]
)
def test_damaged_dumps_are_refused(damage, checkpoint, tmp_path):
    folder = tmp_path / "a"
    dump_checkpoint(checkpoint("4", layers=1), Recipe(decodes=0)).write(folder)
    header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    if damage == "header":
        (folder / HEADER).write_text("{", encoding="utf-8")
    elif damage == "tensors":
        (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-9])
    elif damage == "missing":
        (folder / TENSORS).unlink()
    else:
        header |= {
            "format": {"format": "another"},
            "token": {"tokens": [97]},
            "type": {"tokens": "1,1"},
            "model": {"model_config": {}},
        }.get(damage, {})
        if damage == "value":
            header["tensors"]["prefill/blocks.7.att.key"] = header["tensors"].pop("prefill/blocks.0.att.key")
        header["tensors"]["prefill/logits"] = ["float64", 2 if damage == "shape" else 1, 97]
        (folder / HEADER).write_text(json.dumps(header), encoding="utf-8")
    with pytest.raises(UserError, match="dump"):
        Dump.read(folder)


def test_a_dump_of_a_newer_version_is_read(checkpoint, tmp_path):
    dump_checkpoint(checkpoint("4", layers=1), Recipe(decodes=0)).write(tmp_path / "a")
    header = json.loads((tmp_path / "a" / HEADER).read_text(encoding="utf-8"))
    (tmp_path / "a" / HEADER).write_text(json.dumps(header | {"surplus": 1}), encoding="utf-8")
    assert Dump.read(tmp_path / "a").header.tokens == header["tokens"]


@pytest.mark.parametrize("recipe", [Recipe(()), Recipe((97,)), Recipe((-1, 3)), Recipe((1,), -1), Recipe((1,), 1, 0)])
def test_recipes_that_cannot_be(recipe, checkpoint):
    with pytest.raises(UserError, match="dump"):
        dump_checkpoint(checkpoint("4", layers=1), recipe)


def test_command(demo, checkpoint, tmp_path, capsys):
    opened = checkpoint("4")
    path = str(tmp_path / "tiny-4.safetensors")
    out = str(tmp_path / "dumps" / "a")
    assert main(["dump", path, "--reference", "--tokens", "1,2,3", "--decode", "1", "--out", out]) == 0
    assert capsys.readouterr().out == f"116 values of prefill, decode.0 in {out}\n"
    dump = Dump.read(tmp_path / "dumps" / "a")
    assert (dump.header.tokens, dump.header.decoded, dump.header.sha256) == ([1, 2, 3], [1], opened.sha256())
    assert main(["dump", str(demo), "--prompt", "Tom", "--out", out]) == 0
    assert Dump.read(tmp_path / "dumps" / "a").header.tokens == Engine(demo).tokenizer.encode("Tom")
    for dtype in ("float32", "float16"):
        assert main(["dump", str(demo), "--reference", "--dtype", dtype, "--out", out]) == 0
        assert Dump.read(tmp_path / "dumps" / "a").header.activations == dtype
    assert main(["dump", str(DEMO), "--reference", "--prompt", "Tom", "--out", out]) == 0
    capsys.readouterr()
    for wrong in (
        [path],
        [str(demo), "--with", "rwkv"],
        [str(demo), "--tokens", "99999"],
        [str(demo), "--family", "plain", "--reference"],
        [path, "--reference", "--prompt", "x"],
    ):
        assert main(["dump", *wrong]) == 2
        assert capsys.readouterr().err.rstrip("\n").rpartition("\n")[2].startswith("error: ")


def test_index_of_a_build(tmp_path, monkeypatch):
    """``build --debug-dump``: links lead somewhere, kernels and values are listed."""
    monkeypatch.setattr(native, "FUNCTIONS", {"prefill": native.FUNCTIONS["prefill"]})
    config, _, _ = resolve(in_memory(synthetic_checkpoint("5.2", hidden_size=32, layers=1, head_size=32)))
    target = resolve_target("llvm")
    compile_module(build_module(config, get_scheme("q0f32"), target), target, tmp_path)
    text = (tmp_path / "index.md").read_text(encoding="utf-8")
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert links and all((tmp_path / link).is_file() for link in links)
    assert "| [wkv5](kernels/wkv5.py) | wkv5 | 1 |" in text
    assert "[wkv5](kernels/wkv5.py) | 8 | blocks.0.att.wkv |" in text
    assert "def wkv5(" in (tmp_path / "kernels" / "wkv5.py").read_text(encoding="utf-8")
    assert "define " in (tmp_path / "code-0.ll").read_text(encoding="utf-8")


def test_a_disk_that_is_full(checkpoint, tmp_path, monkeypatch):
    """safetensors says so in its own exception."""

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(dump_module, "save_file", full)
    dump = dump_checkpoint(checkpoint("5.2"), Recipe((1,), 0))
    with pytest.raises(UserError, match="cannot be written to .*No space left on device"):
        dump.write(tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


def test_a_disk_that_is_really_full(checkpoint, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(UserError, match="No space left on device|is full; free some space"):
            dump_checkpoint(checkpoint("5.2"), Recipe((1,) * 9, 0)).write(disk / "dump")
        assert not (disk / "dump").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_header_of_more_layers_than_values(checkpoint, tmp_path):
    folder = tmp_path / "dump"
    dump_checkpoint(checkpoint("5.2"), Recipe((1,), 0)).write(folder)
    header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    header["model_config"]["num_hidden_layers"] = 65536
    (folder / HEADER).write_text(json.dumps(header), encoding="utf-8")
    with pytest.raises(UserError, match=r"has 65536 layers and \d+ values"):
        Dump.read(folder)
