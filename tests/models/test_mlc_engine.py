"""mlc_llm's interface: a script does with a library what that engine does, and gets what our own engine does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from rwkv_mlc.compiler.link import export_library
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.engine.devices import open_device
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.engine.tvm_runtime import CPU, Device, to_numpy, tvm_ffi
from rwkv_mlc.interfaces import mlc
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import GENERATIONS, resolve
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.schema import INTERFACES_OF, Abi
from support.accuracy import FUNCTIONS, target_of, trained_like_weights
from support.compiled import QUICK, in_memory, resolve_quickly
from support.mlc_engine import ARGUMENTS, Script, session
from support.vulkan_kernels import vulkan_device

KNOWN = [name for name in GENERATIONS if name != "7a"]
ON_CPUS = list(product(KNOWN, ("q0f32", "q0f16", "q4f16_1")))
ON_GPUS = [("vulkan", "5.2", "q4f16_1"), ("vulkan", "6", "q4f16_1"), ("vulkan", "7", "q0f32"), ("cuda", "4", "q0f32")]
BOUND = 1e-5
ROUNDED = 2e-3  # where values between kernels are float16
V, HIDDEN = 97, 128


@pytest.fixture
def made(libraries) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    """Compile a library, once a test run: (generation, scheme, target, abi, sizes) -> (library, what is stored for it)."""

    def build(generation: str, scheme: str, target: str = QUICK, abi: Abi = "mlc", **sizes: int):
        config, parameters, tensors = resolve(in_memory(trained_like_weights(generation, **sizes)))
        stored: dict[str, np.ndarray] = {}
        for parameter in parameters:
            stored |= SCHEMES[scheme].quantize(parameter, parameter.convert(tensors[parameter.source].read()))
        resolved = resolve_quickly(target)
        key = hashlib.sha256(repr((config, resolved)).encode()).hexdigest()[:12]
        library = libraries / f"{abi}-rwkv{generation}-{scheme}-{key}.so"
        with FileLock(f"{library}.lock"):
            if not library.exists():
                module = build_module(config, SCHEMES[scheme], resolved, interfaces=INTERFACES_OF[abi])
                export_library(compile_module(module, resolved), resolved, library)
        return library, stored

    return build


def device_of(target: str) -> Device:
    return {"llvm": lambda: CPU, "vulkan": vulkan_device, "cuda": lambda: open_device("cuda")}[
        target.partition(" ")[0]
    ]()


@pytest.mark.parametrize("generation, scheme", ON_CPUS)
def test_a_session(generation, scheme, made, compiled, within):
    """Prompts are read with float32 here and with 21 bits by our functions."""
    library, stored = made(generation, scheme)
    own = compiled(trained_like_weights(generation), scheme, target_of(generation, scheme), functions=FUNCTIONS[scheme])
    script = Script(library, stored, CPU)
    usage = script.metadata["memory_usage"]
    assert usage.keys() == mlc.FUNCTIONS.keys() and min(usage.values()) > 0
    within("session", session(script, own.runner), BOUND)


@pytest.mark.parametrize("on_gpu, generation, scheme", ON_GPUS, indirect=["on_gpu"])
def test_a_session_on_a_gpu(generation, scheme, on_gpu, made, within, request):
    target = request.node.callspec.params["on_gpu"]
    own = on_gpu(trained_like_weights(generation), scheme)
    library, stored = made(generation, scheme, {"cuda": "cuda -arch=sm_80"}.get(target, target))
    bound = BOUND if scheme == "q0f32" else ROUNDED
    within("session", session(Script(library, stored, device_of(target)), own.runner), bound)


def test_a_library_with_both(made, compiled, within):
    """Our functions give the same bits as in a library of their own."""
    library, stored = made("5.2", "q4f16_1", abi="both")
    runner = Runner(library, stored)
    assert {name: spec.symbol for name, spec in runner.metadata.functions.items() if spec.symbol} == {
        name: f"native_{name}" for name in ("prefill", "decode", "batch_decode")
    }
    within("session", session(Script(library, stored, CPU), runner), BOUND)
    alone = compiled(trained_like_weights("5.2"), "q4f16_1", QUICK).runner
    for function, sequences in (("prefill", [[5, 6, 7], [8]]), ("score", [[5, 6, 7]]), ("decode", [[5]])):
        found = runner.run(function, sequences, runner.new_state(2))
        assert np.array_equal(found, alone.run(function, sequences, alone.new_state(2))), function


def test_all_logits_of_one_sequence_alone(made):
    """How long each of several is, the engine tells its state alone: they are refused and not taken for one."""
    library, stored = made("5.2", "q0f32")
    script = Script(library, stored, CPU)
    for sequence in (1, 2):
        script.keep("add_sequence", sequence)
    with pytest.raises(Exception, match="shape"):
        script.call("batch_verify", {1: [3, 4], 2: [5, 6]})


@pytest.mark.parametrize("target", [QUICK, "vulkan"])
def test_what_is_done_with_logits(target, made):
    library, stored = made("4", "q0f32", target)
    script, rng = Script(library, stored, device_of(target)), np.random.default_rng(0)
    (rows,) = script.run("alloc_embedding_tensor")
    assert rows.dtype == np.float32 and rows.shape == (script.metadata["prefill_chunk_size"], HIDDEN)

    logits, temperatures = 3 * rng.normal(size=(3, 1, V)).astype(np.float32), np.array([1, 0.5, 0], np.float32)
    logits[2, 0, [4, 9]] = 50
    (found,) = script.run("softmax_with_temperature", logits, temperatures)
    powers = np.exp((logits[:2, 0].astype(np.float64) - logits[:2, 0].max(-1, keepdims=True)) / temperatures[:2, None])
    np.testing.assert_allclose(found[:2, 0], powers / powers.sum(-1, keepdims=True), rtol=2e-6, atol=1e-12)
    assert found[2, 0, 4] == found[2, 0, 9] == 0.5 and found[2, 0].sum() == 1

    logits = rng.normal(size=(4, V)).astype(np.float32)
    rows, tokens = np.array([0, 0, 3], np.int32), np.array([5, 6, 60], np.int32)
    bias, expected = np.array([1, -2, 3], np.float32), logits.copy()
    expected[rows, tokens] += bias
    np.testing.assert_array_equal(script.run("apply_logit_bias_inplace", logits, rows, tokens, bias)[0], expected)

    sequences, of_entry, counts = (np.array(x, np.int32) for x in ([3, 1], [0, 0, 1], [2, 1, 5]))
    penalties, expected = np.array([[0.1, 0.2, 1.3], [0.3, 0.1, 2]], np.float32), logits.copy()
    for sequence, token, count in zip(of_entry, tokens, counts):
        presence, frequency, repetition = penalties[sequence]
        value = expected[sequences[sequence], token] - presence - count * frequency
        expected[sequences[sequence], token] = value * repetition if value < 0 else value / repetition
    (found,) = script.run("apply_penalty_inplace", logits, sequences, of_entry, tokens, counts, penalties)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    bits = rng.integers(-(2**31), 2**31, (4, -(-V // 32))).astype(np.int32)
    allowed = np.unpackbits(bits.view(np.uint8), axis=-1, bitorder="little")[:, :V].astype(bool)
    expected = np.where(allowed | ~np.isin(np.arange(4), sequences)[:, None], logits, np.finfo(np.float32).min)
    np.testing.assert_array_equal(script.run("apply_bitmask_inplace", logits, sequences, bits)[0], expected)


@pytest.mark.parametrize("sizes", [{}, {"vocab_size": 2500}], ids=["one tile", "three tiles"])
def test_how_a_gpu_chooses(sizes, made):
    """The sampler of the engine for GPUs, with equal probabilities among others, in a tile and in two of them."""
    library, stored = made("4", "q0f32", "vulkan", **sizes)
    script, rng = Script(library, stored, vulkan_device()), np.random.default_rng(1)
    vocab_size = sizes.get("vocab_size", V)
    probs = rng.dirichlet(np.ones(vocab_size) * 0.3, size=3).astype(np.float32)
    probs[1, 7] = probs[1, 8] = probs[1, -2] = probs[1, -1]
    ordered, tokens = script.run("argsort_probs", probs)
    np.testing.assert_array_equal(tokens, np.argsort(-probs, axis=-1, kind="stable"))
    np.testing.assert_array_equal(ordered, np.take_along_axis(probs, tokens, -1))

    drawn, rows = rng.random(500).astype(np.float32), rng.integers(0, 3, 500).astype(np.int32)
    sums = np.cumsum(probs.astype(np.float64), -1)

    def beyond(sums: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        return np.array([np.searchsorted(own, bound, "right") for own, bound in zip(sums, bounds)])

    (found,) = script.run("multinomial_from_uniform", probs, drawn, rows)
    assert np.count_nonzero(found != beyond(sums[rows], drawn * sums[rows, -1])) <= 1  # where a sum is rounded
    top_p, sums = np.array([0.5, 0.9, 1], np.float32), np.cumsum(ordered.astype(np.float64), -1)
    last = np.minimum(beyond(sums, top_p * sums[:, -1]), vocab_size - 1)
    (found,) = script.run("sample_with_top_p", ordered, tokens, drawn, rows, top_p)
    expected = tokens[rows, beyond(sums[rows], drawn * sums[rows, last[rows]])]
    assert np.count_nonzero(found != expected) <= 1
    places = np.array([0, 1, vocab_size, 2 * vocab_size + 3], np.int32)
    of_drawn, of_places, at_places = script.run("sampler_take_probs", probs, tokens, rows, found, places)
    np.testing.assert_array_equal(of_drawn, probs[rows, found])
    np.testing.assert_array_equal(at_places, tokens.reshape(-1)[places])
    np.testing.assert_array_equal(of_places, probs[places // vocab_size, at_places])


def _described(**changes: object) -> dict[str, Callable]:
    """``_metadata`` with other values; None leaves a key out."""

    def describe(original: Callable) -> Callable[[], str]:
        data = json.loads(original()) | changes
        return lambda: json.dumps({key: value for key, value in data.items() if value is not None})

    return {"_metadata": describe}


def _first_parameter(**changes: object) -> dict[str, Callable]:
    def describe(original: Callable) -> Callable[[], str]:
        data = json.loads(original())
        data["params"][0] |= changes
        return lambda: json.dumps(data)

    return {"_metadata": describe}


def _turned(original: Callable) -> Callable[[], str]:
    data = json.loads(original())
    alike = [i for i, spec in enumerate(data["params"]) if spec["name"].endswith(("ln1.weight", "ln2.weight"))]
    first, second = alike[:2]
    data["params"][first], data["params"][second] = data["params"][second], data["params"][first]
    return lambda: json.dumps(data)


def _results(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """A function whose logits, or rows, are changed."""

    def wrap(original: Callable) -> Callable:
        def call(*args):
            result = original(*args)
            if isinstance(result, tvm_ffi.Tensor):
                return tvm_ffi.from_dlpack(np.ascontiguousarray(change(to_numpy(result))))
            logits, state = result
            return tvm_ffi.from_dlpack(np.ascontiguousarray(change(to_numpy(logits)))), state

        return call

    return wrap


def _positions(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    def wrap(original: Callable) -> Callable:
        def call(rows, positions, *args):
            changed = np.ascontiguousarray(change(to_numpy(positions)).astype(np.int32))
            return original(rows, tvm_ffi.from_dlpack(changed), *args)

        return call

    return wrap


def _storage(get: Callable | None = None, put: Callable | None = None) -> dict[str, Callable]:
    """A state whose copies go another way: (storage [S, history, ...], slots, places in the history, tensor [B, ...])."""

    def rightly_got(storage, slots, places, out):
        out[...] = storage[slots, places]

    def rightly_put(storage, slots, places, data):
        storage[slots, (places + 1) % storage.shape[1]] = data

    def on_arrays(copy: Callable) -> Callable:
        return tvm_ffi.convert(lambda *tensors: copy(*(np.from_dlpack(tensor) for tensor in tensors)))

    def create(sequences, history):
        shapes = [(HIDDEN,), (2, 64, 64), (HIDDEN,)]
        gets, puts = ([on_arrays(copy)] * len(shapes) for copy in (get or rightly_got, put or rightly_put))
        initial = [tvm_ffi.from_dlpack(np.zeros(shape, np.float32)) for shape in shapes]
        return tvm_ffi.get_global_func("vm.builtin.rnn_state_create")(3, *sequences, *history, gets, puts, initial)

    return {"create_rnn_state": lambda _: create}


def _slot_0(storage, slots, places, out):
    out[...] = storage[0, places]


def _own_place(storage, slots, places, data):
    storage[slots, places] = data


def _transposed(storage, slots, places, out):
    found = storage[slots, places]
    out[...] = found if found.ndim == 2 else found.swapaxes(-1, -2)


MUTATIONS = {
    "a key that is missing": (_described(max_batch_size=None), "max_batch_size is missing"),
    "a number as text": (_described(prefill_chunk_size="4096"), "prefill_chunk_size is no int"),
    "a cache of keys and values": (_described(kv_state_kind="kv_cache"), "another kind of state"),
    "another model type": (_described(model_type="llama"), "no model type that keeps states"),
    "another name": (_first_parameter(name="x"), "names of parameters"),
    "another shape": (_first_parameter(shape=[1, 2]), "type of"),
    "another type": (_first_parameter(dtype="float64"), "type of"),
    "two parameters in each other's place": ({"_metadata": _turned}, None),
    "rows in float16": ({"embed": _results(lambda a: a.astype(np.float16))}, "rows of the embedding"),
    "logits in float64": ({"decode": _results(lambda a: a.astype(np.float64))}, "type of the logits"),
    "logits without an axis": ({"decode": _results(lambda a: a[0])}, "shape of the logits"),
    "logits of all rows": ({"prefill": _results(lambda a: np.repeat(a, 3, 1))}, "shape of the logits"),
    "sequences in another order": ({"batch_prefill": _results(lambda a: a[:, ::-1])}, None),
    "positions taken for ends": ({"batch_prefill": _positions(lambda a: np.maximum(a - 1, np.arange(len(a))))}, None),
    "arguments in another order": (
        {"decode": lambda f: lambda rows, state, params: f(state, rows, params)},
        "expect a Tensor but get",
    ),
    "a temperature left out": ({"softmax_with_temperature": lambda _: lambda x, _t: x}, "all of the likeliest token"),
    "states of the first slot": (_storage(get=_slot_0), None),
    "states that keep their place": (_storage(put=_own_place), None),
    "states that are transposed one way": (_storage(get=_transposed), None),
}


def _held(made, own: Runner, **changes) -> None:
    library, stored = made("5.2", "q0f32")
    worst = session(Script(library, stored, CPU, **changes), own)
    assert worst < BOUND, f"logits are off by {worst}"


def test_the_state_of_the_mutations_is_right_without_one(made, compiled):
    _held(made, compiled(trained_like_weights("5.2"), "q0f32", target_of("5.2", "q0f32")).runner, instead=_storage())


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_session_finds(mutation, made, compiled):
    instead, found = MUTATIONS[mutation]
    own = compiled(trained_like_weights("5.2"), "q0f32", target_of("5.2", "q0f32")).runner
    with pytest.raises(Exception, match=found or "logits are off|a fork|two steps back"):
        _held(made, own, instead=instead)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_session_finds_a_function_that_is_missing(name, made, compiled):
    own = compiled(trained_like_weights("5.2"), "q0f32", target_of("5.2", "q0f32")).runner
    with pytest.raises(AssertionError, match=f"{name} is missing"):
        _held(made, own, without=[name])
