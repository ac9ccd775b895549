"""The GPU graph as a whole: every generation compiles with symbolic lengths where there is no GPU, and computes what the
float64 reference does. It runs through Vulkan, on a CPU where that has no GPU (lavapipe), and on the CUDA device on the CPU."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tvm_ffi
from tvm import relax, tirx

from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import GENERATIONS, ModelOptions, resolve
from rwkv_mlc.quantization import schemes as registry
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.tokenizer import load_tokenizer
from rwkv_mlc.weights import open_checkpoint
from support.accuracy import DEMO_MODELS, PROMPTS, greedy, trained_like_weights
from support.compiled import Model, in_memory
from support.kernel_build import error
from support.paths import DEMOS
from support.plain import PLAIN
from support.synthetic import synthetic_checkpoint

TOKENS = np.random.default_rng(0).integers(0, 97, 70).tolist()
FULL, ROUNDED = 2e-5, 2e-3  # of the largest logit, with activations of float32 and of float16
ALONE = ("score", "decode")  # what many tests call
BOUNDS = {"q0f32": FULL, "q4f32_1": FULL}
SCHEMES = {  # every scheme, and what is most used for every generation
    "vulkan": {
        "4": ("q0f32", "q4f16_1", "q3f16_1"),
        "5.0": ("q4f16_1", "q4f16_0"),
        "5.1": ("q4f16_1", "q4f16_2"),
        "5.2": ("q0f32", "q0f16", "q4f16_1", "q4f32_1", "q8f16_1"),
        "6": ("q4f16_1",),
        "7": ("q0f32", "q4f16_1"),
        "7a": ("q4f16_1",),
    },
    "cuda": {
        "4": ("q0f32",),
        "5.0": ("q3f16_1",),
        "5.1": ("q4f16_1",),
        "5.2": ("q8f16_1",),
        "6": ("q8f16_1",),
        "7": ("q4f16_1",),
        "7a": ("q0f16",),
    },  # and q0f16 in demo models
}
MATRIX = [
    (gpu, generation, scheme)
    for gpu, generations in SCHEMES.items()
    for generation, schemes in generations.items()
    for scheme in schemes
]


def test_no_generation_and_no_scheme_is_left_out():
    assert all(generations.keys() == GENERATIONS.keys() for generations in SCHEMES.values())
    assert {scheme for schemes in SCHEMES["vulkan"].values() for scheme in schemes} == set(registry.SCHEMES)


on_vulkan = pytest.mark.parametrize("on_gpu", ["vulkan"], indirect=True)


@on_vulkan
@pytest.mark.parametrize("generation", ["4", "5.2"])
def test_a_time_mixing_of_its_own_size(generation, on_gpu, within):
    model = on_gpu(
        synthetic_checkpoint(generation, layers=1, head_size=32, attention_size=192), "q0f32", functions=ALONE
    )
    expected = model.reference(TOKENS)
    within("score", error(model.score(TOKENS), expected), FULL)
    within("decode", error(model.decode(TOKENS), expected), FULL)


@pytest.mark.parametrize("on_gpu, generation, scheme", MATRIX, indirect=["on_gpu"])
def test_logits(generation, scheme, on_gpu, within):
    """Prefilled at once, token by token, and in a batch whose sequences have slots of their own."""
    model, bound = on_gpu(trained_like_weights(generation), scheme), BOUNDS.get(scheme, ROUNDED)
    runner, expected = model.runner, model.reference(TOKENS)
    within("score", error(model.score(TOKENS), expected), bound)
    prefilled, decoded = runner.new_state(), runner.new_state()
    within("prefill", error(runner.run("prefill", [TOKENS], prefilled)[0], expected[-1]), bound)
    within("decode", error(model.decode(TOKENS, decoded), expected), bound)
    for name, found, array in zip(runner.state_names(), decoded.arrays(), prefilled.arrays()):
        assert error(found, array) < bound, name

    pool, slots, sequences = runner.new_state(5), [3, 0, 4], [TOKENS[:23], TOKENS[23:24], TOKENS[24:]]
    before = pool.arrays()
    together = [runner.run("prefill", [sequence[:-1] or sequence for sequence in sequences], pool, slots)]
    together.append(runner.run("batch_decode", [sequence[-1:] for sequence in sequences], pool, slots))
    alone = [model.reference(sequence if len(sequence) > 1 else sequence * 2)[-2:] for sequence in sequences]
    within("batch", error(np.stack(together), np.stack(alone, 1)), bound)
    for array, then in zip(pool.arrays(), before):
        assert np.array_equal(array[[1, 2]], then[[1, 2]])


@pytest.mark.parametrize(
    "on_gpu, generation, scheme",
    [*(("vulkan", *pair) for pair in PLAIN["vulkan"]), ("cuda", *PLAIN["cuda"][0])],
    indirect=["on_gpu"],
)
def test_logits_of_the_plain_family(generation, scheme, on_gpu, within):
    model = on_gpu(trained_like_weights(generation), scheme, functions=ALONE, family="plain")
    tokens = TOKENS[:16]
    expected = model.reference(tokens)
    within("score", error(model.score(tokens), expected), ROUNDED)
    within("decode", error(model.decode(tokens), expected), ROUNDED)


@pytest.mark.parametrize(
    "on_gpu, generation, vocab_size, hidden_size, head_size, intermediate_size, scheme",
    [
        ("vulkan", "5.2", 101, 40, 8, 90, "q3f16_1"),
        ("vulkan", "4", 1009, 97, 1, None, "q8f16_1"),
        ("cuda", "4", 97, 97, 1, None, "q8f16_1"),  # whose kernels of one thread TVM writes without bounds
    ],
    indirect=["on_gpu"],
)
def test_odd_widths(generation, vocab_size, hidden_size, head_size, intermediate_size, scheme, on_gpu, within):
    shape = {"vocab_size": vocab_size, "hidden_size": hidden_size, "layers": 1, "head_size": head_size}
    model = on_gpu(
        trained_like_weights(generation, **shape, intermediate_size=intermediate_size), scheme, functions=ALONE
    )
    expected, bound = model.reference(TOKENS), BOUNDS.get(scheme, ROUNDED)
    within("score", error(model.score(TOKENS), expected), bound)
    within("decode", error(model.decode(TOKENS[:9]), expected[:9]), bound)


def overflowing_weights() -> dict[str, np.ndarray]:
    """Squares of channel mixing up to a million in the first block, which the next matrix makes small again."""
    tensors = trained_like_weights("5.2", layers=2)
    tensors["blocks.0.ffn.key.weight"] *= 300
    tensors["blocks.0.ffn.value.weight"] /= 90000
    return tensors


@on_vulkan
@pytest.mark.parametrize("patterns", [("blocks.0.ffn.key",), ("blocks.0.*",)])
def test_values_that_float16_cannot_hold(patterns, on_gpu, within):
    checkpoint = in_memory(overflowing_weights())
    plain = on_gpu(checkpoint, "q0f16", functions=ALONE)
    expected = plain.reference(TOKENS)
    clipped = plain.score(TOKENS)
    assert np.isfinite(clipped).all() and error(clipped, expected) > 5 * ROUNDED
    model = on_gpu(checkpoint, "q0f16", ModelOptions(float32=patterns), ALONE)
    within("score", error(model.score(TOKENS), expected), ROUNDED)
    within("decode", error(model.decode(TOKENS), expected), ROUNDED)


@pytest.mark.parametrize(
    "on_gpu, name, family",
    [
        *(("vulkan", name, "fused") for name in DEMO_MODELS),
        ("cuda", DEMO_MODELS[0], "fused"),
        ("vulkan", DEMO_MODELS[1], "plain"),
    ],
    indirect=["on_gpu"],
)
def test_demo_text_is_that_of_the_cpu(name, family, on_gpu, compiled):
    """That of our kernels there."""
    checkpoint = open_checkpoint(str(DEMOS / name))
    tokenizer = load_tokenizer(DEMOS / name / "rwkv_vocab_demo.txt")

    def answer(model: Model) -> list[int]:
        state = model.runner.new_state()

        def step(tokens: list[int]) -> np.ndarray:
            return model.runner.run("decode" if len(tokens) == 1 else "prefill", [tokens], state)[0]

        return greedy(step, [0, *tokenizer.encode(PROMPTS[0])], 48)

    functions = ["prefill", "decode"]
    found = answer(on_gpu(checkpoint, "q0f16", functions=functions, family=family))
    assert found == answer(compiled(checkpoint, "q0f16", functions=functions))


def graph(generation: str, scheme: str, target: str, **options):
    config, _, _ = resolve(in_memory(synthetic_checkpoint(generation, layers=1)), ModelOptions(**options))
    return build_module(config, get_scheme(scheme), resolve_target(target))


@pytest.mark.parametrize(
    "generation, target", [*((g, "cuda") for g in GENERATIONS), ("5.2", "metal"), ("5.2", "opencl"), ("5.2", "vulkan")]
)
def test_compiles_without_a_gpu(generation, target):
    """One call may hold any number of tokens; in 2023 the group norm's reduction and cycles between fused groups made
    generation 5 fail here. No kernel is left to fusion or to TVM's schedules."""
    module = graph(generation, "q4f16_1", target)
    kernels = {name.name_hint: f for name, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}
    assert all(f.attrs["tirx.is_scheduled"] and f.attrs["op_pattern"] == 8 for f in kernels.values())
    for name in ("prefill", "score", "batch_decode"):
        assert isinstance(module[name].params[0].ty.shape[0], tirx.Var)
    (host,) = compile_module(module, resolve_target(target)).mod.imports
    (device,) = host.imports
    assert device.kind in (target, "const_loader")  # Vulkan's, where TVM has no runtime for it


@pytest.mark.parametrize("target", ["cuda", "metal", "opencl", "vulkan"])
def test_limits_of_small_gpus(target):
    """256 threads and 16 KiB of shared memory a block, blocks of which a grid holds enough, vectors that exist. What copies
    asynchronously has the 48 KiB that every CUDA GPU gives without being asked."""
    lanes, shared, threads = set(), {}, set()
    for generation, scheme in (("5.2", "q3f16_1"), ("4", "q0f16")):
        for name, kernel in graph(generation, scheme, target).functions_items():
            if isinstance(kernel, tirx.PrimFunc):
                inspect(kernel, f"{scheme} {name.name_hint} {kernel.attrs['kernel']}", lanes, shared, threads)
    with_more = ("gemm_tensor_core", "gemv_or_gemm", "wkv5_staged")
    large = {name: size for name, size in shared.items() if any(kernel in name for kernel in with_more)}
    assert bool(large) == (target == "cuda") and max(large.values(), default=0) <= 48 << 10
    assert max(threads) <= 256 and max(size for name, size in shared.items() if name not in large) <= 16 << 10
    assert max(lanes) <= (8 if target in ("cuda", "opencl") else 4)


def inspect(kernel: tirx.PrimFunc, name: str, lanes: set, shared: dict, threads: set) -> None:
    """``shared`` gets the bytes of every launch."""
    launches = []

    def loop(node: tirx.For) -> None:
        if node.thread_binding is not None and str(node.thread_binding.thread_tag) == "threadIdx.x":
            threads.add(int(node.extent))
        if node.thread_binding is not None and str(node.thread_binding.thread_tag) == "blockIdx.x":
            launches.append(node)

    def ramp(node: tirx.Ramp) -> None:
        lanes.add(int(node.lanes))

    tvm_ffi.structural_walk(kernel.body, [(tirx.For, loop), (tirx.Ramp, ramp)])
    for number, launch in enumerate(launches):
        sizes = []

        def allocation(node: tirx.AllocBuffer) -> None:
            if node.buffer.scope() == "shared":
                sizes.append(int(np.prod([int(n) for n in node.buffer.shape])) * np.dtype(node.buffer.dtype).itemsize)

        tvm_ffi.structural_walk(launch, [(tirx.AllocBuffer, allocation)])
        shared[f"{name} {number}"] = sum(sizes)


@pytest.mark.parametrize(
    "target, scheme, kernel",
    [
        ("cuda", "q0f16", "gemm_tensor_core"),
        ("cuda", "q4f16_0", "gemm_tensor_core"),
        ("cuda", "q8f16_1", "gemm_tensor_core"),
        ("cuda", "q3f16_1", "gemm"),
        ("cuda", "q4f32_1", "gemm"),
        ("metal", "q4f16_1", "gemm"),
    ],
)
def test_which_products_use_tensor_cores(target, scheme, kernel):
    module = graph("5.2", scheme, target)
    kinds = {name.name_hint: f.attrs["kernel"] for name, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}
    called = json.loads(module["_metadata"].body.body.value)["values"]["prefill"]
    assert {kinds[name] for name, _ in called if kinds[name].startswith("gemm")} == {kernel}


def test_which_values_are_float16():
    """Those that matrices read, and only those; none in schemes whose floats are float32; fewer where a model asks."""

    def dtypes(scheme: str, **changes) -> dict[str, str]:
        module = graph("5.2", scheme, "opencl", **changes)
        metadata = json.loads(module["_metadata"].body.body.value)
        kernels = {name.name_hint: f for name, f in module.functions_items()}
        found = {}
        for kernel, outputs in metadata["values"]["decode"]:
            for position, names in outputs.items():
                for name in [names] if isinstance(names, str) else names:
                    found[name] = str(kernels[kernel].params[int(position)].dtype)
        return found

    float16_values = {name for name, dtype in dtypes("q4f16_1").items() if dtype == "float16"}
    mixed = {f"blocks.0.att.mixed_{target}" for target in ("key", "value", "receptance", "gate")}
    mixed |= {"blocks.0.ffn.mixed_key", "blocks.0.ffn.mixed_receptance"}
    assert float16_values == {*mixed, "blocks.0.att.gated", "blocks.0.ffn.k_squared", "ln_out"}
    assert set(dtypes("q4f32_1").values()) == set(dtypes("q0f32").values()) == {"float32"}
    fewer = dtypes("q4f16_1", float32=("blocks.*.ffn.key", "blocks.0.att.gated"))
    assert float16_values - {n for n, d in fewer.items() if d == "float16"} == {
        "blocks.0.ffn.k_squared",
        "blocks.0.att.gated",
    }


def test_relax_calls_nothing_but_kernels():
    """No operation is left for TVM to lower."""
    module = graph("5.2", "q4f16_1", "cuda")
    allowed = {"relax.call_tir", "relax.call_tir_inplace", "relax.call_pure_packed"}
    found = set()

    def visit(node) -> None:
        if isinstance(node, relax.Call) and hasattr(node.op, "name"):
            found.add(node.op.name)

    for name in ("prefill", "decode", "score", "batch_decode"):
        relax.analysis.post_order_visit(module[name], visit)
    assert found <= allowed
