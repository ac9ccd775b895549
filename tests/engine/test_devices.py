"""The engine on any device: which one is chosen, parameters and states on it, and a library's functions run there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.s_tir import dlight
from tvm.script import tirx as T

from rwkv_mlc import Engine, UserError
from rwkv_mlc.compiler.link import export_library
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.engine import devices, parameters
from rwkv_mlc.engine.devices import choose_device, open_device, target_of
from rwkv_mlc.engine.parameters import load_parameters
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.engine.tvm_runtime import CPU, to_numpy
from rwkv_mlc.interfaces import INTERFACES
from rwkv_mlc.interfaces.native import FUNCTIONS
from rwkv_mlc.quantization.layouts import LAYOUTS
from rwkv_mlc.schema import LibraryMetadata, ParameterSpec, StateSpec
from support.vulkan_kernels import vulkan_device

ROOT = Path(__file__).parents[2]
DISCRETE, SOFTWARE = 2, 4  # Vulkan's types of devices
TOKENS = [3, 96, 0, 17]


@pytest.mark.parametrize("name", ["abacus", "", "cuda:", "cuda:x", "cpu:-1", "vulkan:1:2", "auto:0", "CPU"])
def test_names_of_no_device(name):
    for refused in (open_device, lambda name: choose_device(name, ["llvm"])):
        with pytest.raises(UserError, match=f"Unknown device '{name}'; valid devices are auto, cpu, cuda, metal"):
            refused(name)


@pytest.mark.parametrize("name", ["cpu:1", "vulkan:99"])
def test_devices_beyond_the_last(name):
    if name.startswith("vulkan"):
        vulkan_device()
    with pytest.raises(UserError, match=f"has no device {name}"):
        open_device(name)


NEEDS = {"cuda": "NVIDIA's driver", "metal": "a Mac", "opencl": "USE_OPENCL", "vulkan": "Vulkan device"}


@pytest.mark.parametrize("kind", NEEDS)
def test_devices_that_a_machine_lacks(kind):
    """In a process of its own, where no driver is found and no runtime is loaded."""
    code = (
        "import sys\nfrom rwkv_mlc import UserError\nfrom rwkv_mlc.engine import devices\n"
        "try: devices.open_device(sys.argv[1])\nexcept UserError as error: print(error)"
    )
    environment = os.environ | {"VK_ICD_FILENAMES": "/none", "VK_DRIVER_FILES": "/none", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, kind]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode == 0 and not result.stdout:
        pytest.skip(f"this machine has a {kind} device")
    assert result.returncode == 0 and result.stdout.count("\n") == 1, result.stderr
    assert NEEDS[kind] in result.stdout or f"no device {kind}" in result.stdout


def test_the_best_device_that_a_library_is_for(monkeypatch):
    vulkan_device()
    monkeypatch.setattr(devices, "vulkan_device_types", lambda: [SOFTWARE, DISCRETE])
    assert choose_device("auto", ["llvm", "vulkan"]) == "vulkan"
    assert choose_device("cpu", ["llvm", "vulkan"]) == "cpu"
    monkeypatch.setattr(devices, "vulkan_device_types", lambda: [SOFTWARE])
    assert choose_device("auto", ["llvm", "vulkan"]) == "cpu"
    assert choose_device("auto", ["vulkan", "android"]) == "vulkan"
    for none in (["llvm"], ["android"], []):
        assert choose_device("auto", none) == "cpu"
    assert [target_of(name) for name in ("cpu", "vulkan:1")] == ["llvm", "vulkan"]


def test_no_device_for_any_library():
    if devices.exists(devices.tvm_ffi.device("metal")):
        pytest.skip("this machine has a metal device")
    with pytest.raises(UserError, match="metal needs a Mac"):
        choose_device("auto", ["metal"])


def test_an_artifact_without_a_library_for_the_device(demo):
    with pytest.raises(UserError, match="has no library for vulkan .available: llvm.; run rwkv-mlc compile"):
        Engine(demo, "vulkan")
    assert Engine(demo).runner.device == CPU


@pytest.mark.parametrize("part_bytes", [512, 1 << 20])
def test_parameters_reach_the_device_as_they_reach_the_cpu(part_bytes, monkeypatch):
    monkeypatch.setattr(parameters, "PART_BYTES", part_bytes)
    device, rng, arrays, specs = vulkan_device(), np.random.default_rng(0), {}, []
    for layout in ("stored", "row_blocks", "column_blocks", "lines_16"):
        for dtype in ("float32", "float16", "uint32"):
            for shape in ((1, 1), (33, 20), (160, 64)):
                name = f"{layout} {dtype} {shape}"
                arrays[name] = rng.integers(0, 1000, shape).astype(dtype)
                in_memory = LAYOUTS[layout].shape(shape)
                specs.append(ParameterSpec(name=name, shape=in_memory, dtype=dtype, layout=layout))
    expected, found = load_parameters(specs, arrays), load_parameters(specs, arrays, device)
    assert all(tensor.device == device for tensor in found)
    for on_cpu, on_device in zip(expected, found):
        np.testing.assert_array_equal(to_numpy(on_device), to_numpy(on_cpu))


MEMORY = """
import json, sys
from pathlib import Path
import numpy as np
from rwkv_mlc.engine.devices import open_device
from rwkv_mlc.engine.parameters import load_parameters
from rwkv_mlc.engine.tvm_runtime import tensor
from rwkv_mlc.schema import ParameterSpec

def peak():
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

class Zeros:  # as rows in a file are: in memory once they are asked for
    shape, dtype = (4096, 1024), "float32"
    def __getitem__(self, rows):
        return np.zeros((rows.stop - rows.start, 1024), "float32")

device = open_device("vulkan")
tensor(np.zeros(1 << 20, "uint8"), device)
specs = [ParameterSpec(name=str(i), shape=(4096, 1024), dtype="float32", layout="stored") for i in range(16)]
before = peak()
tensors = load_parameters(specs, {spec.name: Zeros() for spec in specs}, device)
print(json.dumps(peak() - before))
"""


def test_the_host_holds_no_second_copy_of_the_parameters():
    """Where the device's memory is the host's, that is; elsewhere next to nothing is left."""
    vulkan_device()
    if not Path("/proc/self/status").exists():
        pytest.skip("reads Linux's account of a process's memory")
    result = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True)
    largest = 4096 * 1024 * 4
    assert json.loads(result.stdout) < 16 * largest + 2.5 * largest


CONFIG = RWKVConfig("4", vocab_size=97, hidden_size=64, num_hidden_layers=1, intermediate_size=64)
# As the library says, whatever generation 4 has.
STATES = (
    StateSpec(layer=0, role="att_x", shape=(64,)),
    StateSpec(layer=0, role="att_p", shape=(2, 3), initial=-1e38),
)


@T.prim_func(private=True, s_tir=True)
def advance(state: T.handle):
    T.func_attr({"tirx.is_scheduled": True})
    slots = T.int64()
    values = T.match_buffer(state, (slots, 64), "float32")
    for i in T.thread_binding(slots, thread="blockIdx.x"):
        for j in T.thread_binding(64, thread="threadIdx.x"):
            with T.sblock("advance"):
                vi, vj = T.axis.remap("SS", [i, j])
                values[vi, vj] = values[vi, vj] + T.float32(1)


def build_miniature(folder: Path) -> Path:
    """A library for Vulkan with a runner's functions: att_x grows by one, then logits = (emb[tokens] + att_x[0]) @ head.T."""
    builder, target, size = relax.BlockBuilder(), resolve_target("vulkan"), CONFIG.hidden_size
    shapes = {"emb": [CONFIG.vocab_size, size], "head": [CONFIG.vocab_size, size]}
    for name in FUNCTIONS:
        rows, batch, num_slots = (tirx.Var(name, "int64") for name in ("rows", "batch", "num_slots"))
        inputs = [relax.Var("tokens", relax.TensorType([rows], "int32"))]
        inputs += [relax.Var(name, relax.TensorType([batch], "int32")) for name in ("segment_ends", "slots")]
        states, params = (relax.Var(name, relax.ObjectType()) for name in ("states", "params"))
        with builder.function(name, [*inputs, states, params]):
            with builder.dataflow():

                def item(container: relax.Var, index: int, shape: list) -> relax.Var:
                    get, args = relax.ExternFunc("vm.builtin.tuple_getitem"), [container, tirx.IntImm("int64", index)]
                    ty_args = relax.TensorType(shape, "float32")
                    return builder.emit(relax.op.call_pure_packed(get, *args, ty_args=ty_args))

                emb, head = (item(params, i, shape) for i, shape in enumerate(shapes.values()))
                state = item(states, 0, [num_slots, size])
                state = builder.emit(
                    relax.op.call_tir_inplace(builder.add_func(advance, "advance"), [state], [0], [state.ty])
                )
                x = relax.op.take(emb, inputs[0], axis=0) + relax.op.take(state, relax.const(0, "int32"), axis=0)
                logits = builder.emit(relax.op.matmul(builder.normalize(x), relax.op.permute_dims(head)))
                logits = builder.emit_output(logits)
            builder.emit_func_output(logits)
    tensors = [
        ParameterSpec(name=name, shape=tuple(shape), dtype="float32", layout="stored", stored_shape=tuple(shape))
        for name, shape in shapes.items()
    ]
    metadata = LibraryMetadata(
        config=CONFIG,
        quantization="q0f32",
        target="vulkan",
        params=tuple(tensors),
        states=STATES,
        functions=INTERFACES["native"].functions(CONFIG),
    )
    with builder.function("_metadata", []):
        builder.emit_func_output(tvm.ir.StringImm(metadata.model_dump_json(by_alias=True)))
    module = relax.transform.LegalizeOps()(builder.finalize())
    with target.tvm:
        module = dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())(module)
    path = folder / "miniature.so"
    export_library(compile_module(module, target), target, path)
    return path


@pytest.fixture(scope="module")
def miniature(tmp_path_factory) -> tuple[Runner, dict[str, np.ndarray]]:
    device, rng = vulkan_device(), np.random.default_rng(0)
    arrays = {name: rng.normal(size=(97, 64)).astype("float32") for name in ("emb", "head")}
    return Runner(build_miniature(tmp_path_factory.mktemp("miniature")), arrays, device), arrays


def test_functions_run_on_the_device(miniature):
    runner, arrays = miniature
    state = runner.new_state(len(TOKENS))
    assert all(tensor.device == runner.device for tensor in [*state.tensors, *runner.params])
    batch = [[token] for token in TOKENS]
    sequences = {"prefill": [TOKENS], "decode": batch[:1], "batch_decode": batch, "score": [TOKENS]}
    for step, function in enumerate([*FUNCTIONS, *FUNCTIONS]):
        tokens = list(chain.from_iterable(sequences[function]))
        logits = runner.run(function, sequences[function], state)
        assert logits.shape == (len(tokens), CONFIG.vocab_size) and logits.dtype == np.float32
        np.testing.assert_allclose(logits, (arrays["emb"][tokens] + step + 1) @ arrays["head"].T, rtol=0, atol=1e-3)


def test_states_on_the_device(miniature):
    runner, _ = miniature
    state = runner.new_state()
    assert [array.shape for array in state.arrays()] == [(1, 64), (1, 2, 3)]
    assert (state.arrays()[0] == 0).all() and (state.arrays()[1] == np.float32(-1e38)).all()
    assert runner.state_names() == ["blocks.0.att_x", "blocks.0.att_p"]
    runner.run("decode", [[1]], state)
    copy = state.copy()
    for _ in range(3):
        runner.run("decode", [[1]], copy)
    assert (state.arrays()[0] == 1).all() and (copy.arrays()[0] == 4).all()
    given = [array + 0.5 for array in state.arrays()]
    for found, expected in zip(runner.state_from(given).arrays(), given):
        np.testing.assert_array_equal(found, expected)
        assert found.flags.writeable


def test_slots_on_the_device(miniature):
    runner, _ = miniature
    given = [np.random.default_rng(0).normal(size=(3, *array.shape[1:])) for array in runner.new_state().arrays()]
    state, other = runner.state_from(array.astype(np.float32) for array in given), runner.new_state(2)
    state.copy_slot(2, state, 0)
    state.copy_slot(1, other, 1)
    for found, copied, fresh, array in zip(state.arrays(), other.arrays(), runner.new_state().arrays(), given):
        np.testing.assert_array_equal(found, array[[2, 1, 2]].astype(np.float32))
        np.testing.assert_array_equal(copied[1], array[1].astype(np.float32))
        np.testing.assert_array_equal(copied[0], fresh[0])


def test_logits_and_inputs_outlive_the_next_call(miniature):
    runner, arrays = miniature
    state = runner.new_state()
    logits = [runner.run("decode", [[token]], state) for token in TOKENS]
    for step, (token, found) in enumerate(zip(TOKENS, logits)):
        np.testing.assert_allclose(found[0], (arrays["emb"][token] + step + 1) @ arrays["head"].T, rtol=0, atol=1e-3)
