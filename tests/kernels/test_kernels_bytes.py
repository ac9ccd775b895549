"""Prompts read with activations of one to three bytes: the kernels against NumPy on the same integers and against the exact
product, and libraries of whole models against the reference."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from rwkv_mlc import Engine, reference
from rwkv_mlc.artifact import BuildRecord
from rwkv_mlc.bench import limits, timing
from rwkv_mlc.bench.prefill_error import prefill_error
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler.link import export_library
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import resolve
from rwkv_mlc.quantization.layouts import LAYOUTS
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.schema import Activations
from support import kernel_twins as twins
from support.accuracy import BOUND, TOKENS, trained_like_weights, with_outliers
from support.compiled import in_memory, only
from support.cpu_products import (
    CALLS,
    FORMS,
    GROUP_FORMS,
    activations,
    apart,
    has,
    quantized_bytes,
    read_outliers,
    unread,
    weights,
)
from support.kernel_build import build, call, error
from support.paths import DEMO
from tir_kernels.cpu.gemm_bytes import TILES, gemm_bytes
from tir_kernels.cpu.outliers import OutlierLists
from tir_kernels.cpu.packed import PackedGroup, TiledGroup
from tir_kernels.cpu.quantize_bytes import largest, quantize_bytes
from tir_kernels.product import Matrix

ROWS = [1, 2, 3, 4, 5, 6, 7, 13]
PLACES = {"int8": 1, "int15": 2, "int21": 3}
ROUNDING = {1: 2e-2, 2: 1e-4, 3: 4e-6}  # of a product, against the exact one

needs_a_dot = pytest.mark.skipif(not any(map(has, TILES)), reason="this CPU lacks AVX-512 VNNI")
every_dot = pytest.mark.parametrize("dot", [dot for dot in TILES if has(dot)])
every_form = pytest.mark.parametrize("form", GROUP_FORMS)
every_call = pytest.mark.parametrize("name", CALLS)
every_place = pytest.mark.parametrize("places", PLACES.values())


def quantized(x: np.ndarray, form: PackedGroup, places: int) -> tuple[np.ndarray, np.ndarray]:
    """x [T, K] -> integers [T, Kp], scales [T, G]; float32 as in the kernel, so that ties round alike."""
    x, most = np.where(twins.outliers(x, form.group), np.float32(0), x), largest(form, places)
    x = np.pad(x, ((0, 0), (0, -x.shape[1] % form.group))).reshape(len(x), -1, form.group)
    top = np.abs(x).max(-1)
    inverse = np.float32(most) / np.maximum(top, np.float32(1e-30))
    return np.rint(x * inverse[..., None]).astype(np.int32).reshape(len(x), -1), top * np.float32(1 / most)


@lru_cache(None)
def quantizers(form: str, places: int):
    return build({name: quantize_bytes(c.columns, FORMS[form], places) for name, c in CALLS.items()})


@lru_cache(None)
def products(form: str, places: int, dot: str):
    def product(c):
        return gemm_bytes(c.matrices, c.columns, FORMS[form], places, dot, c.planes, gated=c.gated, residual=c.residual)

    return build({name: product(c) for name, c in CALLS.items()})


@every_form
@every_call
@every_place
@pytest.mark.parametrize("outlier", [1, 1e3])
def test_quantize(form, name, places, outlier):
    """Bit for bit: the bytes make the integers, and what they leave out is listed."""
    x, packed = activations(2, 5, CALLS[name].columns), FORMS[form]
    x[..., [3, 90]] *= outlier
    digits, scales, outliers = quantized_bytes(quantizers(form, places)[name], packed, places, x)
    for i in range(len(x)):
        integers, expected_scales = quantized(x[i], packed, places)
        found = twins.digits_of_activation(digits[i], packed.quads, packed.fields) & 255
        whole = sum(found[:, place] << 8 * place for place in range(places)) - (128 << 8 * (places - 1))
        assert np.array_equal(whole, integers) and np.abs(whole).max() >= largest(packed, places) - 1
        assert np.array_equal(scales[i], expected_scales)
        assert read_outliers(outliers[i], OutlierLists(x.shape[2], packed)) == apart(x[i], packed)
        assert outlier == 1 or any(apart(x[i], packed))


def check(
    form: str, places: int, dot: str, name: str, rows: int, exact: bool, tolerance: float, outlier: float = 1
) -> None:
    """Against the product with the activations themselves, or with the integers that stand for them."""
    c, packed = CALLS[name], FORMS[form]
    x, rng = activations(c.planes, rows, c.columns), np.random.default_rng(rows)
    x[..., [3, 90]] *= outlier
    x[unread(c)] = np.nan
    stored, dense = zip(*(weights(packed, matrix.rows, c.columns) for matrix in c.matrices))
    gate, residual = rng.normal(0.3, 1, (2, 1, rows, c.matrices[0].rows)).astype(np.float32)
    extra = [gate] * c.gated + [residual] * c.residual
    outs = [np.full((1, rows, matrix.rows), np.nan, np.float32) for matrix in c.matrices]
    arrays = [
        *quantized_bytes(quantizers(form, places)[name], packed, places, x),
        *(array for matrix in stored for array in matrix),
        *extra,
        *outs,
    ]
    outs = call(products(form, places, dot)[name], *arrays, written=range(-len(outs), 0))
    for i, (matrix, out) in enumerate(zip(c.matrices, outs)):
        read = x[matrix.plane].astype(np.float64)
        if not exact:
            integers, scales = quantized(x[matrix.plane], packed, places)
            read = (integers * np.repeat(scales.astype(np.float64), packed.group, 1))[:, : c.columns]
            read = np.where(twins.outliers(x[matrix.plane], packed.group), x[matrix.plane], read)
        after = (gate[0] if c.gated else 1, residual[0] if c.residual else 0)
        expected = twins.product(read, dense[i], matrix.activation, *after)
        assert error(out[0], expected) < tolerance * (2 if matrix.activation == "squared_relu" else 1)


@needs_a_dot
@every_dot
@every_form
@every_call
@every_place
@pytest.mark.parametrize("rows", ROWS)
def test_product_of_the_integers(dot, form, name, places, rows):
    check(form, places, dot, name, rows, exact=False, tolerance=1e-6)


@needs_a_dot
@every_dot
@every_form
@every_call
@every_place
@pytest.mark.parametrize("outlier", [1, 1e3])
def test_product_is_near_the_exact_one(dot, form, name, places, outlier):
    check(form, places, dot, name, 13, exact=True, tolerance=ROUNDING[places], outlier=outlier)


@needs_a_dot
@every_dot
@every_place
@pytest.mark.parametrize("form", GROUP_FORMS)
def test_sums_of_the_largest(dot, places, form):
    """Inputs and weights of the largest magnitude, whose sums in a group come nearest to 32 bits."""
    packed = FORMS[form]
    columns, matrices = packed.group * 2, (Matrix(32),)
    kernels = build(
        {
            "quantize": quantize_bytes(columns, packed, places),
            "product": gemm_bytes(matrices, columns, packed, places, dot),
        }
    )
    fields = np.full((32, columns), 2 * packed.max_int)
    fields[1::2] = 0
    stored = twins.pack(twins.join_fields(fields, packed.bits)), twins.pack(np.ones((32, 2), packed.scale_dtype))
    x = np.float32([np.full(columns, 3), np.full(columns, -3)])[None]
    inputs, out = quantized_bytes(kernels["quantize"], packed, places, x), np.full((1, 2, 32), np.nan, np.float32)
    (out,) = call(kernels["product"], *inputs, *stored, out, written=[-1])
    expected = x[0].astype(np.float64) @ (fields - packed.max_int).T
    assert error(out[0], expected) < 1e-6


@needs_a_dot
@every_dot
@every_place
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("outputs, columns", [(70, 205), (300, 160)])
def test_tiles_give_the_same(dot, places, bits, outputs, columns):
    """Bit for bit what row blocks give: the same integers are added in another order."""
    rng, x, results = np.random.default_rng(outputs), activations(1, 7, columns), []
    x[..., 50] = 1e4
    fields = rng.integers(0, 2**bits - 1, (outputs, columns + -columns % 32))
    scale = rng.uniform(0.3, 3, (outputs, -(-columns // 32))).astype(np.float16)
    blocks = PackedGroup(bits, 32, "float16"), ("row_blocks", "row_blocks")
    tiles = TiledGroup(bits, 32, "float16"), (f"lines_{bits}", f"line_scales_{bits}")
    for form, layouts in (blocks, tiles):
        product = gemm_bytes((Matrix(outputs),), columns, form, places, dot)
        kernels = build({"quantize": quantize_bytes(columns, form, places), "product": product})
        stored = [LAYOUTS[name].permute(a) for name, a in zip(layouts, (twins.join_fields(fields, bits), scale))]
        out = np.full((1, 7, outputs), np.nan, np.float32)
        inputs = quantized_bytes(kernels["quantize"], form, places, x)
        results += call(kernels["product"], *inputs, *stored, out, written=[-1])
    assert np.array_equal(*results)


def runner_of(tensors: dict[str, np.ndarray], scheme_name: str, activations: Activations, path: Path) -> Runner:
    """A library for this machine that reads prompts with such activations, with its weights."""
    scheme, (config, parameters, checkpoint) = get_scheme(scheme_name), resolve(in_memory(tensors))
    target = resolve_target("llvm")
    export_library(compile_module(build_module(config, scheme, target, activations), target), target, path)
    stored = {}
    for parameter in parameters:
        stored |= scheme.quantize(parameter, parameter.convert(checkpoint[parameter.source].read()))
    return Runner(path, stored)


@needs_a_dot
@pytest.mark.parametrize(
    "activations, least, most", [("int8", 1e-4, 2e-2), ("int15", 1e-6, 2e-4), ("float32", 0, BOUND)]
)
@pytest.mark.parametrize("generation, scheme", [("4", "q4f16_1"), ("5.2", "q8f16_1")])
def test_only_prefill_is_rounded(generation, scheme, activations, least, most, compiled, tmp_path):
    """Beside the library as it is built unless something else is asked for."""
    tensors = trained_like_weights(generation)
    model, runner = compiled(tensors, scheme), runner_of(tensors, scheme, activations, tmp_path / "other.so")
    assert model.runner.metadata.prefill_activations == "int21"
    expected = model.reference(TOKENS)
    states = [r.new_state() for r in (model.runner, runner)]
    exact, rounded = (r.run("prefill", [TOKENS], state)[0] for r, state in zip((model.runner, runner), states))
    assert error(exact, expected[-1]) < BOUND
    assert least < error(rounded, expected[-1]) < most
    for name, found, array in zip(runner.state_names(), states[1].arrays(), states[0].arrays()):
        assert error(found, array) < 2 * most, name
    scored = runner.run("score", [TOKENS], runner.new_state())
    assert error(scored, expected) < BOUND and np.array_equal(scored, model.score(TOKENS))
    decoded = runner.run("decode", [TOKENS[:1]], runner.new_state())
    assert np.array_equal(decoded, model.decode(TOKENS[:1]))


@needs_a_dot
def test_int8_beside_outliers(tmp_path, within):
    """Within what README says: channels that are far larger than others keep float32, and take nothing from the
    places of the others."""
    tensors, scheme = with_outliers(trained_like_weights("5.2"), 1e2), get_scheme("q4f16_1")
    with only(("prefill",)):
        runner = runner_of(tensors, scheme.name, "int8", tmp_path / "int8.so")
    config, parameters, checkpoint = resolve(in_memory(tensors))
    stored = {p: scheme.quantize(p, p.convert(checkpoint[p.source].read())) for p in parameters}
    dequantized = {p.name: scheme.dequantize(p, arrays).astype(np.float64) for p, arrays in stored.items()}
    expected, _ = reference.forward(config, dequantized, TOKENS)
    found = runner.run("prefill", [TOKENS], runner.new_state())[0]
    within("int8 prefill beside outliers", error(found, expected[-1]), 1.45e-2)


@pytest.fixture(scope="module")
def village(artifacts) -> Path:
    """The bundled RWKV-5 model in q4f16_1, with a library that reads prompts with int8 activations."""
    folder = artifacts / "int8"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            command = ["build", "--model", str(DEMO), "--quantization", "q4f16_1", "--prefill-activations", "int8"]
            assert main([*command, "--artifact-path", str(folder)]) == 0
    return folder / f"{DEMO.name}-q4f16_1"


@needs_a_dot
def test_a_library_says_what_it_is(village):
    assert BuildRecord.read(village).libraries["llvm"].prefill_activations == "int8"
    engine = Engine(village)
    assert engine.library.prefill_activations == "int8"
    assert json.loads(engine.runner.vm["_metadata"]())["prefill_activations"] == "int8"


@needs_a_dot
def test_error_of_the_demo_model(village):
    found = prefill_error(Engine(village))
    assert 1e-4 < found["relative_rms"] < 1e-2 and 0 < found["max_abs"] < 0.2


@needs_a_dot
def test_bench_says_the_error(village, monkeypatch, tmp_path, capsys):
    for module, name, few in (
        (timing, "MIN_SECONDS", 0.0),
        (limits, "STREAM_BYTES", 1 << 22),
        (limits, "GEMM_SIZE", 64),
    ):
        monkeypatch.setattr(module, name, few)
    file = tmp_path / "bench.json"
    assert main(["bench", str(village), "--prefill", "7", "--decode", "1", "--breakdown", "--json", str(file)]) == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["prefill_activations"] == "int8" and result["prefill_error"] == prefill_error(Engine(village))
    assert "int8 activations" in capsys.readouterr().out


def test_exact_libraries_have_no_error(demo):
    engine = Engine(demo)
    assert engine.library.prefill_activations == "float32"
    assert json.loads(engine.runner.vm["_metadata"]())["prefill_activations"] == "float32"
    assert prefill_error(engine)["relative_rms"] < BOUND


@pytest.mark.parametrize(
    "options, message",
    [
        (["--quantization", "q0f16"], "q0f16 has none"),
        (["--mcpu", "x86-64-v3"], "AVX-512 VNNI"),
        (["--reuse-lib", "library.so"], "leave --prefill-activations out"),
    ],
)
def test_where_it_cannot_be(options, message, tmp_path, capsys):
    command = [
        "build",
        "--model",
        str(DEMO),
        "--artifact-path",
        str(tmp_path),
        "--prefill-activations",
        "int21",
        *options,
    ]
    assert main(command) == 2
    assert message in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_compile_refuses_a_float_artifact(demo, capsys):
    before = (demo / "build-record.json").read_bytes()
    assert main(["compile", str(demo), "--int8-prefill"]) == 2  # as the option was called
    assert "q0f32 has none" in capsys.readouterr().err
    assert (demo / "build-record.json").read_bytes() == before
