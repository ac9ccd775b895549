"""Products on tensor cores against twins in float64, from the very source that is compiled for GPUs, on ``cuda_device``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from rwkv_mlc.compiler import cuda
from rwkv_mlc.compiler.cuda import compile_fatbin, find_compiler
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.engine.devices import open_device
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.errors import UserError
from rwkv_mlc.schema import LONGEST_PREFILL_CHUNK
from rwkv_mlc.verification.fatbin import read_fatbin, read_resources
from support import kernel_twins as twins
from support.accuracy import trained_like_weights
from support.cpu_products import unread
from support.cuda_device import CudaOnCpu
from support.gpu_kernels import EXACT, FORMS, ROUNDED, check_wkv5, normal, stuck, weights
from support.kernel_build import call, error
from support.opencl_device import source_of
from tir_kernels.gpu.gemm_tensor_core import LARGE, SMALL, SMALL_TOKENS, gemm_tensor_core
from tir_kernels.gpu.gemv_or_gemm import MOST_FEW, gemv_or_gemm
from tir_kernels.gpu.gemv_tensor_core import gemv_tensor_core
from tir_kernels.gpu.tensor_core import fits_tensor_cores
from tir_kernels.gpu.wkv5 import wkv5
from tir_kernels.gpu.wkv5_staged import MOST_TOKENS
from tir_kernels.product import Matrix


@dataclass(frozen=True)
class Product:
    """Matrices that share one launch, K inputs each, of so many planes."""

    matrices: tuple[Matrix, ...]
    columns: int
    forms: tuple[str, ...]
    planes: int = 1
    gated: bool = False
    residual: bool = False


PRODUCTS = {
    # Blocks of three matrices, none of which fills its last one; whole chunks of 32 inputs and part of one of 64.
    "several": Product(
        (Matrix(150, "squared_relu", "float16"), Matrix(64, plane=1), Matrix(25, "silu", plane=2)),
        160,
        ("float16", "q4", "q8"),
        planes=3,
    ),
    # Every chunk in shared memory is used again and again; what follows a product.
    "deep": Product((Matrix(136, "sigmoid"),), 768, ("float16", "q4"), gated=True, residual=True),
    "whole": Product((Matrix(128), Matrix(128, plane=1)), 64, ("q4",), planes=2),
    # Planes out of order, one of them twice, others that no matrix reads.
    "planes": Product(
        (Matrix(70, plane=3), Matrix(24), Matrix(129, plane=3), Matrix(9, plane=1)), 64, ("float16", "q4"), planes=5
    ),
    # A chunk and a quarter; less than one.
    "ragged": Product((Matrix(129, None, "float16"),), 40, ("float16", "q8")),
    "least": Product((Matrix(6),), 8, ("q4",), residual=True),
}
# Weights that no product of many tokens needs to be told of: one row, several steps of a warp and of all warps, an odd
# number of them, a row of an odd number of groups, two tiles of rows for a warp.
FEW_TOKENS = {
    "tall": Product((Matrix(8200, "silu"), Matrix(70, plane=1)), 96, ("q4",), planes=2),
    "long": Product((Matrix(1, None, "float16"), Matrix(33)), 1248, ("float16", "q4", "q8")),
    "longest": Product((Matrix(5),), 3072, ("float16", "q4", "q8"), gated=True),
}
CASES = [(name, form) for name, product in PRODUCTS.items() for form in product.forms]
TOKENS = [1, 33, SMALL_TOKENS, SMALL_TOKENS + 1, 200]
COPIES_LATE, SCHEDULES = 0, 4  # for ``CudaOnCpu.schedule``


FEW_CASES = CASES + [(name, form) for name, product in FEW_TOKENS.items() for form in product.forms]
BATCH_CASES = [("several", "q4"), ("deep", "float16"), ("whole", "q4")]
BATCHES = [1, 7, 8, 15, MOST_FEW, MOST_FEW + 1, 33]
FEW = {"of one": 1, "of several": 8}


def kernel_of(name: str, form: str, factory: Callable = gemm_tensor_core, **options: int):
    product = {**PRODUCTS, **FEW_TOKENS}[name]
    fused = {"planes": product.planes, "gated": product.gated, "residual": product.residual}
    return factory(product.matrices, product.columns, FORMS[form][0], **fused, **options)


def identifier(name: str, form: str) -> str:
    return f"{name}_{form}"


@pytest.fixture(scope="module")
def kernels(cuda_device: CudaOnCpu, libraries) -> dict[str, Callable]:
    return cuda_device.build({identifier(*case): kernel_of(*case) for case in CASES}, libraries)


def check_product(function, name: str, form: str, tokens: int, bound: float = 2 * EXACT, rounded: bool = True) -> None:
    """The twin's weights are rounded to float16 as the kernel's, unless ``rounded`` is False."""
    product, rng = {**PRODUCTS, **FEW_TOKENS}[name], np.random.default_rng(tokens)
    shape = (product.planes, tokens, product.columns)
    x = (normal(rng, shape) / np.sqrt(product.columns)).astype(np.float16)
    x[unread(product)] = np.nan
    arrays, dense = zip(*(weights(FORMS[form][0], matrix.rows, product.columns) for matrix in product.matrices))
    gate, residual = normal(rng, (2, 1, tokens, product.matrices[0].rows))
    extra = [gate] * product.gated + [residual] * product.residual
    outs = [np.full((1, tokens, matrix.rows), np.nan, matrix.dtype) for matrix in product.matrices]
    outs = call(function, x, *sum(arrays, ()), *extra, *outs, written=range(-len(outs), 0))
    for i, (matrix, out) in enumerate(zip(product.matrices, outs)):
        after = (gate[0] if product.gated else 1, residual[0] if product.residual else 0)
        weight = dense[i].astype(np.float16).astype(np.float64) if rounded else dense[i]
        expected = twins.product(x[matrix.plane].astype(np.float64), weight, matrix.activation, *after)
        assert error(out[0], expected) < (ROUNDED if matrix.dtype == "float16" else bound)


@pytest.mark.parametrize("name, form", CASES)
def test_products(kernels, name, form):
    for tokens in TOKENS:
        check_product(kernels[identifier(name, form)], name, form, tokens)


@pytest.fixture(scope="module")
def few(cuda_device: CudaOnCpu, libraries) -> dict[str, Callable]:
    kernels = {
        f"{identifier(*case)}_{tokens}": kernel_of(*case, gemv_tensor_core, tokens=tokens)
        for case in FEW_CASES
        for tokens in FEW.values()
    }
    return cuda_device.build(kernels, libraries)


@pytest.mark.parametrize("kind", FEW)
@pytest.mark.parametrize("name, form", FEW_CASES)
def test_few_tokens(few, kind, name, form):
    """Weights are not rounded."""
    for tokens in (1, 2, 3) if FEW[kind] == 1 else (1, 2, 7, 8, 17):
        function = few[f"{identifier(name, form)}_{FEW[kind]}"]
        check_product(function, name, form, tokens, bound=3 * EXACT, rounded=False)


@pytest.fixture(scope="module")
def batches(cuda_device: CudaOnCpu, libraries) -> dict[str, Callable]:
    return cuda_device.build({identifier(*case): kernel_of(*case, gemv_or_gemm) for case in BATCH_CASES}, libraries)


@pytest.mark.parametrize("name, form", BATCH_CASES)
def test_one_token_of_each_sequence(batches, name, form):
    """Weights are rounded where the tokens are many."""
    for tokens in BATCHES:
        few = tokens <= MOST_FEW
        bound = 3 * EXACT if few else 2 * EXACT
        check_product(batches[identifier(name, form)], name, form, tokens, bound, rounded=not few)


def test_copies_early_and_late(kernels, cuda_device):
    """The product is right with the threads in either order."""
    for number in range(SCHEDULES):
        cuda_device.schedule(number)
        check_product(kernels["deep_q4"], "deep", "q4", 100)


def test_what_rounding_the_weights_costs(kernels):
    """Up to half of the last bit of a float16, 2 ** -11 of a weight, as independent errors of all that is added."""
    check_product(kernels["deep_q4"], "deep", "q4", 33, bound=3e-4, rounded=False)
    with pytest.raises(AssertionError):
        check_product(kernels["deep_q4"], "deep", "q4", 33, rounded=False)


@pytest.mark.parametrize("tokens", [1, 70])
def test_outputs_saturate(kernels, tokens):
    """What is too large for float16 becomes its largest value, not infinity."""
    arrays = sum((weights(FORMS["q4"][0], m.rows, 160)[0] for m in PRODUCTS["several"].matrices), ())
    outs = [np.full((1, tokens, matrix.rows), np.nan, matrix.dtype) for matrix in PRODUCTS["several"].matrices]
    x = np.full((3, tokens, 160), 30, np.float16)
    squares, *_ = call(kernels["several_q4"], x, *arrays, *outs, written=range(-3, 0))
    assert np.isfinite(squares).all() and squares.max() == np.finfo(np.float16).max


WKV = {"wkv5": (2, 8), "wkv5_of_64": (1, 64)}  # heads and their size


@pytest.fixture(scope="module")
def staged(cuda_device: CudaOnCpu, libraries) -> dict[str, Callable]:
    kernels = {name: wkv5(*shape, in_place=True, async_copies=True) for name, shape in WKV.items()}
    return cuda_device.build(kernels, libraries)


@pytest.mark.parametrize("number", range(SCHEDULES))
def test_staged_wkv(staged, cuda_device, number):
    """Several stages of a sequence, a part of one, and one token."""
    cuda_device.schedule(number)
    check_wkv5(staged["wkv5"])
    check_wkv5(staged["wkv5"], lengths=[MOST_TOKENS, 1, 3 * MOST_TOKENS + 3])
    check_wkv5(staged["wkv5_of_64"], *WKV["wkv5_of_64"], lengths=[2 * MOST_TOKENS + 1, 5])


def without(text: str, which: int):
    """Leaves out one occurrence of ``text``."""

    def change(source: str) -> str:
        places = [match.start() for match in re.finditer(re.escape(text), source)]
        return source[: places[which]] + source[places[which] + len(text) :]

    return change


def replaced(pattern: str, replacement: str, which: int):
    def change(source: str) -> str:
        match = list(re.finditer(pattern, source))[which]
        return source[: match.start()] + match.expand(replacement) + source[match.end() :]

    return change


MUTATIONS = {  # and how many tokens it takes to see them; the source has what small blocks do, then what large ones do
    "small blocks do not wait for copies": ("deep_float16", without("async_wait(2);", 0), 33),
    "large blocks do not wait for copies": ("deep_float16", without("async_wait(1);", -1), 100),
    "large blocks wait for too few copies": ("deep_q4", replaced(r"async_wait\(1\)", "async_wait(2)", -1), 100),
    "small blocks have no barrier in their loop": ("deep_q4", without("__syncthreads();", 1), 33),
    "large blocks have no barrier in their loop": ("deep_float16", without("__syncthreads();", -1), 100),
    "a piece is read from another place": (
        "deep_float16",
        replaced(r"(load_matrices\(.*?)& 7\) >> 1", r"\1& 3) >> 1", -1),
        100,
    ),
    "a piece is written to another place": (
        "deep_q4",
        replaced(r"(\*\(uint4\*\)\(_ptr_\w+ \+ .*?)& 7\) >> 1", r"\1& 3) >> 1", -1),
        100,
    ),
    "one scale": ("deep_q4", stuck("w0_q_scale"), 33),
    "one gate": ("deep_float16", stuck("gate"), 33),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_checks_find_mistakes(mutation, kernels, cuda_device, libraries):
    name, change, tokens = MUTATIONS[mutation]
    changed = cuda_device.build({name: kernel_of(*name.split("_"))}, libraries, change)[name]
    cuda_device.schedule(COPIES_LATE)
    with pytest.raises((AssertionError, RuntimeError)):
        check_product(changed, *name.split("_"), tokens)


MUTATIONS_OF_WKV = {
    "stages are not waited for": without("async_wait(1);", 0),
    "no barrier before a stage": without("__syncthreads();", 0),
    "no barrier after a stage": without("__syncthreads();", 1),
    "one value": stuck("v"),
}


@pytest.mark.parametrize("mutation", MUTATIONS_OF_WKV)
def test_the_checks_of_staged_wkv_find_mistakes(mutation, cuda_device, libraries):
    kernel, change = wkv5(*WKV["wkv5"], in_place=True, async_copies=True), MUTATIONS_OF_WKV[mutation]
    changed = cuda_device.build({"wkv5": kernel}, libraries, change)["wkv5"]
    cuda_device.schedule(COPIES_LATE)
    with pytest.raises((AssertionError, RuntimeError)):
        check_wkv5(changed, lengths=[MOST_TOKENS, 3 * MOST_TOKENS + 3])


MUTATIONS_OF_FEW = {
    "no barrier": without("__syncthreads();", 0),
    "one scale": stuck("w0_q_scale"),
    "one gate": stuck("gate"),
    "threads give inputs of another group": replaced(r"(load_where\(.*?)\) == \(", r"\1) != (", 0),
    "fields that count 16 times count once": replaced("738208768", "1006648320", 0),
}


@pytest.mark.parametrize("mutation", MUTATIONS_OF_FEW)
def test_the_checks_of_few_tokens_find_mistakes(mutation, few, cuda_device, libraries):
    kernel, change = kernel_of("deep", "q4", gemv_tensor_core, tokens=8), MUTATIONS_OF_FEW[mutation]
    changed = cuda_device.build({"few": kernel}, libraries, change)["few"]
    with pytest.raises((AssertionError, RuntimeError)):
        check_product(changed, "deep", "q4", 7, bound=3 * EXACT, rounded=False)


@pytest.mark.parametrize("shape", [LARGE, SMALL])
def test_no_two_pieces_meet_in_a_bank(shape):
    """Eight threads at a time read or write 16 bytes each of the 128 that all banks hold: the same piece of eight rows in
    a row, or all pieces of as many rows as they make up."""

    def banks(places: list[tuple[int, int]]) -> set[int]:
        return {(row * shape.pieces * 4 + shape.place(row, piece)) % 32 for row, piece in places}

    for row in range(0, shape.rows, 8):
        for piece in range(shape.pieces):
            assert len(banks([(row + i, piece) for i in range(8)])) == 8
    together = 8 // shape.pieces
    for row in range(0, shape.rows, together):
        assert len(banks([(row + i, p) for i in range(together) for p in range(shape.pieces)])) == 8


@pytest.mark.parametrize("form", ["float16", "q8"])
def test_what_a_gpu_has_to_give(form, monkeypatch):
    """Two blocks find room on a multiprocessor: 48 KiB of shared memory, and registers for 128 threads. Small blocks and large
    ones have one barrier a chunk, and one before the first."""
    architectures = ["sm_75", "sm_90"]
    try:
        find_compiler(architectures)
    except UserError as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr(cuda, "find_compiler", find_compiler)
    kernel = gemm_tensor_core((Matrix(1024, "silu"), Matrix(1024)), 1024, FORMS[form][0], residual=True)
    source = source_of({form: kernel}, resolve_target("cuda").attributes)
    assert source.count("__syncthreads()") == 4
    images = [image for image in read_fatbin(compile_fatbin(source.encode(), architectures)) if image.is_machine_code]
    assert [image.architecture for image in images] == architectures
    for image in images:
        (resources,) = read_resources(image.code).values()
        assert resources.registers <= 255 and resources.stack == 0 and resources.shared == 48 << 10


@pytest.mark.parametrize("tokens", FEW.values())
@pytest.mark.parametrize("form", ["float16", "q4", "q8"])
def test_two_blocks_of_few_tokens_find_room(form, tokens, monkeypatch):
    """Registers for 512 threads on a multiprocessor, and no local memory."""
    try:
        find_compiler(["sm_90"])
    except UserError as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr(cuda, "find_compiler", find_compiler)
    kernel = gemv_tensor_core((Matrix(4096, "silu"), Matrix(4096)), 2048, FORMS[form][0], tokens=tokens)
    source = source_of({form: kernel}, resolve_target("cuda").attributes)
    image = next(image for image in read_fatbin(compile_fatbin(source.encode(), ["sm_90"])) if image.is_machine_code)
    (resources,) = read_resources(image.code).values()
    assert resources.registers <= 128 and resources.stack == 0 and resources.shared <= 16 << 10


def test_which_products_it_is_for():
    for form in ("float16", "q4", "q8"):
        assert fits_tensor_cores(40, FORMS[form][0], "float16")
        assert not fits_tensor_cores(44, FORMS[form][0], "float16")  # a row of x is no multiple of 16 bytes
        assert not fits_tensor_cores(40, FORMS[form][0], "float32")
    for form in ("float32", "q4_float32", "q3"):
        assert not fits_tensor_cores(40, FORMS[form][0], "float16")


@pytest.mark.parametrize("scheme", ["q0f16", "q4f16_0"])
def test_prompts(scheme, cuda_device, compiled, within):
    """Read by small blocks and by large ones; a state goes from one prompt to the next."""
    gpu = open_device("cuda")
    model = compiled(
        trained_like_weights("5.2"), scheme, "cuda -arch=sm_80", lambda library, stored: Runner(library, stored, gpu)
    )
    assert model.runner.prefill_chunk == LONGEST_PREFILL_CHUNK  # blocks of 128 tokens: fewer leave large GPUs idle
    tokens = np.random.default_rng(0).integers(0, 97, 150).tolist()
    expected, state = model.reference(tokens), model.runner.new_state()
    for first, end in [(0, 40), (40, 150)]:
        logits = model.runner.run("prefill", [tokens[first:end]], state)[0]
        within(f"prefill of {end - first}", error(logits, expected[end - 1]), 2 * ROUNDED)


def test_batches(cuda_device, compiled, within):
    """Every number of sequences reads its first token in one step."""
    gpu = open_device("cuda")
    model = compiled(
        trained_like_weights("5.2"), "q4f16_0", "cuda -arch=sm_80", lambda library, stored: Runner(library, stored, gpu)
    )
    expected = np.stack([model.reference([token])[0] for token in range(max(BATCHES))])
    for count in BATCHES:
        logits = model.runner.run("batch_decode", [[token] for token in range(count)], model.runner.new_state(count))
        within(f"batch of {count}", error(logits, expected[:count]), 2 * ROUNDED)
