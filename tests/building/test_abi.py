"""``build --abi``: whose functions a library has, and what is refused rather than left to go wrong in mlc_llm's engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc.artifact import Artifact, add_library
from rwkv_mlc.artifact.names import VERIFIED
from rwkv_mlc.building.abi import choose_abi
from rwkv_mlc.building.options import BuildOptions
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.engine.engine import Engine
from rwkv_mlc.engine.tvm_runtime import CPU, tvm_ffi
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import resolve
from rwkv_mlc.quantization.schemes import SCHEMES
from support.build_inputs import write_vocabulary
from support.compiled import QUICK, in_memory
from support.mlc_engine import Script, session
from support.paths import DEMOS
from support.synthetic import synthetic_checkpoint

VILLAGE = ["build", "--model", str(DEMOS / "rwkv-4-village"), "--target", QUICK, "--quantization", "q8f16_1"]


def said(capsys) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def files(folder: Path) -> dict[Path, bytes]:
    """All but what was found out of shards when they were read."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != VERIFIED}


@pytest.fixture(scope="module")
def for_mlc(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mlc")
    assert main([*VILLAGE, "--artifact-path", str(folder), "--abi", "both"]) == 0
    return folder / "rwkv-4-village-q8f16_1"


class FromDisk(Script):
    """Whose parameters come from the artifact's shards through the loader that mlc_llm's engine has."""

    def __init__(self, artifact: Artifact, target: str):
        self.folder = artifact.path / "params"
        super().__init__(artifact.library(target).path, artifact.parameters(), CPU)

    def packed(self, arrays, names):
        call = tvm_ffi.get_global_func
        call("vm.builtin.tensor_cache.load")(str(self.folder), self.device.dlpack_device_type(), self.device.index)
        params = call("vm.builtin.param_array_from_cache_by_name")(list(names))
        call("vm.builtin.tensor_cache.clear")()
        return params


def test_an_artifact_is_loaded_as_mlc_llm_does(for_mlc, within):
    artifact = Artifact.open(for_mlc)
    within("session", session(FromDisk(artifact, "llvm"), Engine(for_mlc).runner), 1e-5)


def test_the_config_is_what_mlc_llm_reads(for_mlc):
    """Its parser tells doubles from integers; the engine goes by "rwkv" in the model's type."""
    config = json.loads((for_mlc / "params" / "mlc-chat-config.json").read_text())
    integers = ["vocab_size", "context_window_size", "sliding_window_size", "prefill_chunk_size", "attention_sink_size"]
    for key in [*integers, "tensor_parallel_shards"]:
        assert type(config[key]) is int, key
    for key in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        assert type(config[key]) is float, key
    assert "rwkv" in config["model_type"] and config["quantization"] == "q8f16_1"
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "head_size", "num_heads", "prefill_chunk_size"):
        assert type(config["model_config"][key]) is int, key
    conversation = config["conv_template"]
    assert 0 in conversation["stop_token_ids"] and conversation["stop_str"] and conversation["seps"]
    assert all((for_mlc / "params" / name).is_file() for name in config["tokenizer_files"])


def test_inspect_says_whose_functions(for_mlc, capsys):
    assert main(["inspect", str(for_mlc), "--json"]) == 0
    (library,) = json.loads(capsys.readouterr().out)["libraries"]
    assert library["abi"] == "both"
    assert main(["inspect", str(for_mlc)]) == 0
    assert "rwkv-mlc and mlc_llm" in said(capsys)


def test_a_library_for_mlc_llm_alone(for_mlc, tmp_path, capsys):
    assert main([*VILLAGE, "--artifact-path", str(tmp_path), "--abi", "mlc"]) == 0
    with pytest.raises(UserError, match="functions of the interface mlc alone.*build it with --abi both"):
        Engine(tmp_path / for_mlc.name)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / for_mlc.name)]) == 0


def abi_of(generation: str, scheme: str, target: str, tuned_state: bool = False, **options):
    config, _, _ = resolve(in_memory(synthetic_checkpoint(generation, layers=1)))
    return choose_abi(config, SCHEMES[scheme], resolve_target(target), tuned_state, BuildOptions(**options))


def test_what_is_taken_where_nothing_is_said():
    assert abi_of("5.2", "q4f16_1", "llvm").abi == "native"
    for target in ("vulkan", "cuda", "metal", "opencl", "android"):
        assert abi_of("5.2", "q4f16_1", target).abi == "both", target
    assert abi_of("5.2", "q4f16_1", "vulkan", abi="native").without_mlc is None


@pytest.mark.parametrize(
    "generation, scheme, tuned_state, options, reason",
    [
        ("7a", "q0f16", False, {}, "every layer of RWKV-7a reads the token"),
        ("4", "q4f16_0", False, {}, "q4f16_0 stores matrices transposed"),
        ("4", "q4f16_1", False, {"family": "plain"}, "the plain family has no functions for it"),
        ("5.2", "q4f16_1", True, {}, "this artifact has one of its own"),
    ],
)
def test_what_mlc_llm_cannot_run(generation, scheme, tuned_state, options, reason):
    left_out = abi_of(generation, scheme, "vulkan", tuned_state, **options)
    assert left_out.abi == "native" and reason in left_out.without_mlc
    assert abi_of(generation, scheme, "llvm", tuned_state, **options).without_mlc is None
    for abi in ("mlc", "both"):
        with pytest.raises(UserError, match=f"mlc_llm cannot run this model: .*{reason}"):
            abi_of(generation, scheme, "llvm", tuned_state, abi=abi, **options)


def test_a_refusal_comes_before_the_work(tmp_path, capsys):
    options = ["--quantization", "q4f16_0", "--artifact-path", str(tmp_path), "--abi", "both"]
    assert main([*VILLAGE, *options]) == 2
    assert "mlc_llm cannot run this model: q4f16_0" in said(capsys) and not [*tmp_path.iterdir()]
    assert main([*VILLAGE, "--artifact-path", str(tmp_path), "--abi", "mlc_llm"]) == 2
    assert "The interfaces are native, mlc, both" in said(capsys)


def test_a_state_of_its_own_beside_a_library_that_is_there(tmp_path, capsys):
    """Whether the state comes after the library, or the library from another artifact."""
    shape = {"layers": 1, "hidden_size": 64, "head_size": 32}
    model, state, vocabulary = (tmp_path / name for name in ("tiny.safetensors", "state.safetensors", "rwkv_vocab.txt"))
    save_file(synthetic_checkpoint("5.2", **shape), model)
    save_file({"blocks.0.att.time_state": np.ones((2, 32, 32), np.float32)}, state)
    write_vocabulary(vocabulary)
    folders = [tmp_path / name / "tiny-q0f32" for name in ("one", "other")]
    options = ["--model", str(model), "--quantization", "q0f32", "--tokenizer", str(vocabulary)]
    for folder in folders:
        command = ["build", *options, "--artifact-path", str(folder.parent), "--convert-weight-only"]
        assert main(command) == 0
    library = tmp_path / "library.so"
    library.write_bytes(b"of both")
    record = add_library(folders[0], library, "llvm", {}, [], abi="both")
    for command in (
        ["gen-config", *options, "--state", str(state), "-o", str(folders[0])],
        [
            "build",
            *options,
            "--state",
            str(state),
            "--artifact-path",
            str(tmp_path / "other"),
            "--reuse-lib",
            str(record.path),
        ],
    ):
        before = files(tmp_path)
        capsys.readouterr()
        assert main(command) == 2
        assert "The library for llvm has mlc_llm's functions" in (text := said(capsys))
        assert "compile the library with --abi native" in text
        assert files(tmp_path) == before
