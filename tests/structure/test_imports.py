"""Which part of the house may know which: read off the sources, and off what running processes have loaded."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest

from support.paths import ROOT

SHARED_BY_KERNELS = {
    "cpu": {"__init__", "blocks", "elements", "groups", "integer_dot", "lists", "outliers", "packed", "simd", "thin"},
    "gpu": {"__init__", "draw", "elements", "heads", "product", "stages", "tensor_core", "thin", "threads", "whole"},
}
TARGET_NAMES = ("llvm", "cuda", "vulkan", "metal", "opencl", "webgpu", "rocm")


def sources(*rooms: str) -> list[Path]:
    found = []
    for room in rooms:
        path = ROOT / room
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert found
    return found


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, by its absolute name."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{name.name}" for name in node.names)}
    return found


def importers(rooms: list[Path], *modules: str) -> set[str]:
    """Files that import one of the modules or something below it."""
    return {
        str(path.relative_to(ROOT))
        for path in rooms
        if any(name == module or name.startswith(f"{module}.") for name in imports(path) for module in modules)
    }


def test_kernels_do_not_know_models():
    assert importers(sources("tir_kernels"), "rwkv_mlc") == set()


def test_kernels_of_one_device_do_not_know_the_other():
    assert importers(sources("tir_kernels/cpu"), "tir_kernels.gpu") == set()
    assert importers(sources("tir_kernels/gpu"), "tir_kernels.cpu") == set()
    shared = [path for path in sources("tir_kernels") if path.parent.name == "tir_kernels"]
    assert importers(shared, "tir_kernels.cpu", "tir_kernels.gpu") == set()


def test_a_kernel_has_its_file():
    """Each factory is in the file of its name, one a file and device; the other files are what kernels share."""
    for device, shared in SHARED_BY_KERNELS.items():
        for path in sources(f"tir_kernels/{device}"):
            factories = {
                node.name
                for node in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(node, ast.FunctionDef) and any("lru_cache" in ast.unparse(d) for d in node.decorator_list)
            }
            assert factories == (set() if path.stem in shared else {path.stem}), path


def test_models_do_not_know_how_they_are_computed():
    """``models.generation.kernel_module`` alone loads by name: the kernel of a state, when a graph asks for it."""
    rooms = sources("rwkv_mlc/models", "rwkv_mlc/reference", "rwkv_mlc/quantization", "rwkv_mlc/weights")
    assert importers(rooms, "rwkv_mlc.compiler", "rwkv_mlc.graph", "rwkv_mlc.engine", "tir_kernels", "tvm") == set()
    assert importers(rooms, "importlib") == {"rwkv_mlc/models/generation.py"}


def test_running_does_not_know_compiling():
    rooms = sources("rwkv_mlc/engine", "rwkv_mlc/artifact", "rwkv_mlc/tokenizer", "rwkv_mlc/quantization")
    rooms += sources("rwkv_mlc/mlc_chat")
    rooms += sources(*(f"rwkv_mlc/cli/{verb}.py" for verb in ("chat", "generate", "logits", "inspect")))
    compiling = ("rwkv_mlc.compiler", "rwkv_mlc.graph", "rwkv_mlc.building", "tir_kernels")
    assert importers(rooms, *compiling, "tvm.relax", "tvm.script", "tvm.tirx", "tvm.s_tir") == set()


def test_the_engine_knows_no_model_but_by_what_its_library_says():
    unknown = ("rwkv_mlc.models", "rwkv_mlc.weights", "rwkv_mlc.reference", "rwkv_mlc.interfaces", "rwkv_mlc.debug")
    rooms = sources(
        "rwkv_mlc/engine",
        "rwkv_mlc/mlc_chat",
        *(f"rwkv_mlc/cli/{verb}.py" for verb in ("chat", "generate", "logits", "options")),
    )
    assert importers(rooms, *unknown) == {"rwkv_mlc/engine/older_libraries.py"}


def test_verifying_does_not_know_compiling():
    rooms = sources("rwkv_mlc/verification", "rwkv_mlc/library_format.py")
    assert importers(rooms, "rwkv_mlc.compiler", "rwkv_mlc.graph", "rwkv_mlc.building", "tir_kernels") == set()


def test_only_the_command_line_and_conversion_know_building():
    own = sources("rwkv_mlc/building", "rwkv_mlc/conversion", "rwkv_mlc/cli")
    others = [path for path in sources("rwkv_mlc") if path not in own]
    assert importers(others, "rwkv_mlc.building") == {"rwkv_mlc/__init__.py"}
    assert importers(sources("rwkv_mlc/building", "rwkv_mlc/conversion"), "rwkv_mlc.cli", "rwkv_mlc.debug") == set()
    assert importers(sources("rwkv_mlc/conversion"), "rwkv_mlc.building") == {"rwkv_mlc/conversion/huggingface.py"}
    assert importers(sources("rwkv_mlc"), "rwkv_mlc.conversion") <= {str(p.relative_to(ROOT)) for p in own}


def test_graphs_do_not_ask_for_their_target():
    for path in sources("rwkv_mlc/models", "rwkv_mlc/graph", "tir_kernels"):
        strings = {
            node.value.lower()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not strings & set(TARGET_NAMES), path


def test_nothing_but_a_measure_imports_torch():
    measures = sources(
        "rwkv_mlc/bench",
        "rwkv_mlc/debug/chatrwkv.py",
        *(f"rwkv_mlc/evaluation/{runner}.py" for runner in ("huggingface", "package")),
    )
    rooms = [path for path in sources("rwkv_mlc", "tir_kernels", "build.py") if path not in measures]
    assert importers(rooms, "torch", "transformers", "rwkv", "pickletools") == set()
    assert importers(rooms, "pickle") == {"rwkv_mlc/weights/pth.py", "rwkv_mlc/conversion/pth.py"}


def test_tests_share_through_the_package_of_helpers():
    tests = sources("tests", "tools")
    names = {path.stem for path in tests if path.stem.startswith(("test_", "conftest"))}
    importing = [path for path in tests if names & {part for module in imports(path) for part in module.split(".")}]
    assert len(names) > 40 and importing == []


def loaded_by(code: str, *arguments: str, path: Path | None = None) -> set[str]:
    """The modules that a process has loaded after ``code``; fails when it fails."""
    report = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(p) for p in (path, ROOT) if p)}
    command = [sys.executable, "-c", report, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_help_loads_nothing_heavy():
    code = (
        "from rwkv_mlc.cli.main import main\n"
        "for verb in ([], ['build'], ['chat'], ['generate']):\n"
        "    try: main([*verb, '--help'])\n"
        "    except SystemExit as exit: assert exit.code == 0"
    )
    assert not loaded_by(code) & {"numpy", "tvm", "tvm_ffi", "rich", "prompt_toolkit", "tokenizers", "huggingface_hub"}


def test_converting_does_not_load_the_compiler(tmp_path):
    code = "import sys\nfrom rwkv_mlc.cli.main import main\nassert main(sys.argv[1:]) == 0"
    demo = str(ROOT / "configs" / "demo" / "rwkv-5-village")
    unwanted = {"tvm", "tvm_ffi", "torch", "transformers", "rwkv_mlc.compiler", "tir_kernels"}
    assert not loaded_by(code, "convert-weight", "--model", demo, "-o", str(tmp_path / "demo")) & unwanted
    build = ("build", "--model", demo, "--artifact-path", str(tmp_path), "--convert-weights-only")
    assert not loaded_by(code, *build) & unwanted
    for command in ("convert-hf", "convert-pth", "convert-rwkv-cpp"):
        assert not loaded_by(code, command, demo, str(tmp_path / command)) & unwanted


@pytest.fixture(scope="session")
def runtime_only(tmp_path_factory) -> Path:
    """TVM as installed, by links, without its compiler library."""
    installed = Path(util.find_spec("tvm").origin).parent
    if not (installed / "lib" / "libtvm_compiler.so").exists():
        pytest.skip(f"apache-tvm {metadata.version('apache-tvm')} has no compiler library of its own here")
    folder = tmp_path_factory.mktemp("runtime-only")
    (folder / "tvm" / "lib").mkdir(parents=True)
    for entry in installed.iterdir():
        if entry.name != "lib":
            (folder / "tvm" / entry.name).symlink_to(entry)
    for entry in (installed / "lib").iterdir():
        if entry.name != "libtvm_compiler.so":
            (folder / "tvm" / "lib" / entry.name).symlink_to(entry)
    return folder


def test_an_artifact_runs_without_the_compiler(runtime_only, demo):
    code = (
        "import sys, tvm\n"
        "assert tvm._RUNTIME_ONLY, tvm.__file__\n"
        "from rwkv_mlc import Chat, Engine\n"
        "engine = Engine(sys.argv[1])\n"
        "assert engine.generate('Tom', max_tokens=4, temperature=0).text\n"
        "assert ''.join(Chat(engine).send('Hello.'))\n"
        "from rwkv_mlc.cli.main import main\n"
        "assert main(['generate', sys.argv[1], '--prompt', 'Tom', '--max-tokens', '2']) == 0"
    )
    loaded = loaded_by(code, str(demo), path=runtime_only) - loaded_by("import tvm.runtime.vm", path=runtime_only)
    unwanted = {"tvm.relax", "tvm.script", "tvm.tirx", "tvm.s_tir", "tir_kernels", "torch", "transformers"}
    rooms = ("compiler", "graph", "building", "models", "interfaces", "weights", "reference", "debug", "bench")
    unwanted |= {f"rwkv_mlc.{room}" for room in rooms}
    assert "rwkv_mlc.engine.runner" in loaded and not loaded & unwanted
