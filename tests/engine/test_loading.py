"""From shards to the kernels' memory: the values, how little is held beside them, and what a running process loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc.artifact import Artifact, ShardWriter
from rwkv_mlc.artifact.shards import StoredTensor, read_index
from rwkv_mlc.engine import parameters as parameters_module
from rwkv_mlc.engine.parameters import ALIGNMENT, load_parameters
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.errors import UserError
from rwkv_mlc.quantization.layouts import LAYOUTS, Layout
from rwkv_mlc.schema import LibraryMetadata, ParameterSpec

ROOT = Path(__file__).parents[2]
SHAPES = [(1, 1), (15, 3), (16, 8), (33, 20), (97, 64), (160, 33)]


def random_array(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)


def store(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, StoredTensor]:
    writer = ShardWriter(folder)
    for name, array in arrays.items():
        writer.add(name, array)
    writer.finish(1)
    return {name: tensor for shard in read_index(folder) for name, tensor in shard.tensors.items()}


def spec(name: str, array: np.ndarray, layout: str) -> ParameterSpec:
    shape = LAYOUTS[layout].shape(array.shape)
    return ParameterSpec(name=name, shape=shape, dtype=array.dtype.name, layout=layout)


def row_blocks(array: np.ndarray) -> np.ndarray:
    """[N, X] -> [ceil(N / 16), X, 16], element by element."""
    rows, columns = array.shape
    result = np.zeros((-(-rows // 16), columns, 16), array.dtype)
    for row in range(rows):
        result[row // 16, :, row % 16] = array[row]
    return result


EXPECTED = {"stored": np.array, "row_blocks": row_blocks, "column_blocks": lambda array: row_blocks(array.T)}


@pytest.mark.parametrize("length", [1, 7, 16, 50, 1000])
@pytest.mark.parametrize("layout", EXPECTED)
def test_parts_make_up_the_whole(layout, length):
    for shape in SHAPES:
        array, entry = random_array(shape, "float32"), LAYOUTS[layout]
        whole, times = np.full(entry.shape(shape), np.nan, "float32"), np.zeros(entry.shape(shape), int)
        for rows, place in entry.parts(shape, length):
            whole[place] = entry.permute(array[rows])
            times[place] += 1
            assert rows.stop - rows.start <= max(length, entry.rows)
        assert (times == 1).all()
        np.testing.assert_array_equal(whole, EXPECTED[layout](array))


@pytest.mark.parametrize("part_bytes", [1, 4096, 1 << 20])
@pytest.mark.parametrize("from_files", [True, False])
def test_tensors_are_permuted_into_memory(from_files, part_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(parameters_module, "PART_BYTES", part_bytes)
    reverse = Layout(lambda shape: shape[::-1], lambda array: array[::-1].T)
    monkeypatch.setitem(LAYOUTS, "reversed", reverse)
    expected = EXPECTED | {"reversed": lambda array: array[::-1].T}
    arrays, layouts = {"vector": random_array((37,), "float32"), "cube": random_array((1, 5, 6), "float32")}, {}
    for dtype in ("float32", "float16", "uint32"):
        for shape in SHAPES:
            for layout in expected:
                name = f"{layout} {shape} {dtype}"
                arrays[name], layouts[name] = random_array(shape, dtype), layout
    specs = [spec(name, array, layouts.get(name, "stored")) for name, array in arrays.items()]
    tensors = load_parameters(specs, store(tmp_path, arrays) if from_files else arrays)
    for (name, array), tensor in zip(arrays.items(), tensors, strict=True):
        assert tensor.data_ptr() % ALIGNMENT == 0
        np.testing.assert_array_equal(np.from_dlpack(tensor), expected[layouts.get(name, "stored")](array))


def test_rows_are_read_from_the_file(tmp_path):
    arrays = {"a": random_array((5, 7), "uint32"), "b": random_array((9, 2, 3), "float16"), "c": np.ones(4, "float32")}
    tensors = store(tmp_path, arrays)
    for name, array in arrays.items():
        for rows in (slice(0, len(array)), slice(1, 3), slice(2, None), slice(None, 100)):
            np.testing.assert_array_equal(tensors[name][rows], array[rows])
            assert tensors[name][rows].dtype == array.dtype
    os.truncate(tensors["c"].path, tensors["c"].offset + 8)
    with pytest.raises(UserError, match=f"{tensors['c'].path.name} is damaged: it ends too early"):
        load_parameters([spec(name, array, "stored") for name, array in arrays.items()], tensors)


def test_tables_stay_in_their_files(tmp_path):
    """One that begins where kernels can read it; its pages are the file's own. Others are read."""
    table = random_array((64, 1024), "float16")
    arrays = {"table": table, "vector": random_array((3,), "float32"), "second": random_array((5, 8), "float16")}
    tensors = store(tmp_path, arrays)
    specs = [spec(name, array, "stored" if name == "vector" else "mapped") for name, array in arrays.items()]
    loaded = dict(zip(arrays, load_parameters(specs, tensors)))
    for name, array in arrays.items():
        assert loaded[name].data_ptr() % ALIGNMENT == 0
        np.testing.assert_array_equal(np.from_dlpack(loaded[name]), array)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    inside = [range(int(line[0].split("-")[0], 16), int(line[0].split("-")[1], 16)) for line in maps]
    assert any(loaded["table"].data_ptr() in place for place in inside), "the table is in memory of its own"
    assert not any(loaded["second"].data_ptr() in place for place in inside)
    os.truncate(tensors["table"].path, 100)
    with pytest.raises(UserError, match="ends too early"):
        load_parameters(specs, tensors)


def test_parameters_of_another_model(reciter):
    artifact = Artifact.open(reciter)
    stored, library = artifact.parameters(), artifact.library("llvm").path
    name = "model.ln_out.weight"
    narrow, half = {name: stored[name][:-1]}, {name: stored[name].astype("float16")}
    rows, columns = stored["head.weight"].shape
    assert rows % 16, "a row more fits into the last block of rows"
    longer = {"head.weight": np.concatenate([stored["head.weight"], stored["head.weight"][:1]])}
    for changed, problem in (
        (
            stored | narrow,
            r"1 tensors are wrong: model.ln_out.weight is float32 \[127\], expected float32 \[128\]",
        ),
        (
            stored | half,
            r"1 tensors are wrong: model.ln_out.weight is float16 \[128\], expected float32 \[128\]",
        ),
        (
            stored | longer,
            rf"head.weight is float32 \[{rows + 1}, {columns}\], expected float32 \[{rows}, {columns}\]",
        ),
        (stored | {"surplus": stored[name]}, "1 tensors are wrong: unknown surplus; build the artifact again"),
        ({n: a for n, a in stored.items() if n != name}, "1 tensors are wrong: missing model.ln_out.weight; build"),
        ({"surplus": stored[name]}, r"\d\d tensors are wrong: missing .*; unknown surplus; build the artifact again"),
    ):
        with pytest.raises(UserError, match=f"The parameters do not fit .*-llvm.so, .*{problem}"):
            Runner(library, changed)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda metadata: {"interface": "other"},
            "has the functions of the interface other alone, and the engine calls those",
        ),
        (
            lambda metadata: {"functions": {**metadata.functions, "verify": metadata.functions["score"]}},
            "lacks verify: another version of rwkv_mlc built it; build it again",
        ),
    ],
)
def test_functions_of_another_library(reciter, monkeypatch, change, message):
    read = LibraryMetadata.read

    def changed(text: str, library: Path) -> LibraryMetadata:
        metadata = read(text, library)
        return metadata.model_copy(update=change(metadata))

    monkeypatch.setattr(LibraryMetadata, "read", changed)
    artifact = Artifact.open(reciter)
    with pytest.raises(UserError, match=f"-llvm.so {message}"):
        Runner(artifact.library("llvm").path, artifact.parameters())


def run(code: str, *arguments: object) -> dict:
    """What a fresh process prints as JSON in its last line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


MEMORY = """
import json, sys
from pathlib import Path
from rwkv_mlc.artifact.shards import read_index
from rwkv_mlc.engine.parameters import load_parameters
from rwkv_mlc.schema import ParameterSpec

def peak():
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

stored = {name: tensor for shard in read_index(Path(sys.argv[1])) for name, tensor in shard.tensors.items()}
specs = [ParameterSpec.model_validate_json(spec) for spec in json.loads(sys.argv[2])]
before = peak()
tensors = load_parameters(specs, stored)
print(json.dumps({"grown": peak() - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process's memory")
@pytest.mark.parametrize("layout", EXPECTED)
def test_memory_is_that_of_the_weights(layout, tmp_path):
    array = np.zeros((8208, 4096), "uint32")  # 134 MB
    arrays = {"large": array, "small": array[:4096]}
    store(tmp_path, arrays)
    specs = [spec(name, array, layout) for name, array in arrays.items()]
    nbytes = sum(array.nbytes for array in arrays.values())
    assert (
        nbytes < run(MEMORY, tmp_path, json.dumps([spec.model_dump_json() for spec in specs]))["grown"] < 1.15 * nbytes
    )


def test_running_loads_neither_the_compiler_nor_torch(demo):
    code = (
        "import json, sys\n"
        "from rwkv_mlc import Engine\n"
        "answer = Engine(sys.argv[1]).generate('Tom', max_tokens=3, temperature=0)\n"
        "heavy = sorted(sys.modules.keys() & {'tvm', 'torch', 'transformers'})\n"
        "import tvm, tvm.relax\n"
        "print(json.dumps({'text': answer.text, 'heavy': heavy, 'relax': tvm.relax.__name__}))"
    )
    result = run(code, demo)
    assert result["text"] and result["heavy"] == [] and result["relax"] == "tvm.relax"
