"""What ``--target`` and ``--mcpu`` mean."""

from __future__ import annotations

import json
import sys

import pytest
import tvm
from tvm.target import codegen

from rwkv_mlc.compiler import targets
from rwkv_mlc.compiler.cuda import ARCHITECTURES
from rwkv_mlc.compiler.link import find_linker
from rwkv_mlc.compiler.targets import TARGETS, CompileTarget, resolve_target
from rwkv_mlc.errors import UserError
from rwkv_mlc.machine import cpu_features
from rwkv_mlc.machine.cpu_features import REQUIRED_FEATURES, host_architecture, host_features
from rwkv_mlc.machine.drivers import best_device

NAMES = "auto, llvm, cuda, metal, vulkan, opencl, android, android-cpu"
on_x86 = pytest.mark.skipif(host_architecture() != "x86_64", reason="names x86 CPUs of this machine's triple")


def described(target: CompileTarget) -> dict:
    return vars(target) | {"tvm": target.attributes}


def test_auto_is_the_best_of_this_machine():
    best = best_device()
    assert resolve_target("auto").name == {"cpu": "llvm"}.get(best, best)
    assert resolve_target("auto", codegen.llvm_get_system_cpu()).name == "llvm"


def test_llvm_is_this_machine():
    target = resolve_target("llvm")
    assert target.attributes["mcpu"] == tvm.get_global_func("target.llvm_get_system_cpu")()
    assert target.attributes["mtriple"].startswith(host_architecture())


@pytest.mark.skipif(host_features() is None, reason="this system does not tell its CPU's features")
def test_a_library_for_this_machine_needs_no_more_than_it_has():
    detected = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    detected = {str(name) for name, has in detected.items() if has} & set(REQUIRED_FEATURES)
    assert set(resolve_target("llvm").features) == detected & host_features()


@on_x86
def test_features_that_a_virtual_machine_hides_are_switched_off(monkeypatch):
    shown = {"sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "avx", "avx2", "fma", "f16c", "bmi", "bmi2"}
    monkeypatch.setattr(targets, "host_features", lambda: shown)
    target = resolve_target("llvm")
    assert set(target.features) <= shown
    assert target.integer_dot == "avx2" and target.gemm_tile == (6, 1)


@on_x86
def test_features_beyond_the_name_of_the_cpu_are_switched_on(monkeypatch):
    monkeypatch.setattr(targets.codegen, "llvm_get_system_cpu", lambda: "x86-64")
    wanted = {"sse4.2", "avx2", "fma"} & (host_features() or set())
    assert wanted <= set(resolve_target("llvm").features)


@pytest.mark.parametrize(
    ("mcpu", "integer_dot", "tile"),
    [
        ("x86-64", None, (2, 1)),
        ("x86-64-v2", "ssse3", (2, 1)),
        ("sandybridge", "ssse3", (6, 1)),
        ("haswell", "avx2", (6, 1)),
        ("x86-64-v3", "avx2", (6, 1)),
        ("alderlake", "avxvnni", (6, 1)),
        ("skylake-avx512", "avx512", (6, 4)),
        ("x86-64-v4", "avx512", (6, 4)),
        ("cascadelake", "vnni", (6, 4)),
        ("znver4", "vnni", (6, 4)),
    ],
)
@on_x86
def test_kernels_follow_the_cpu(mcpu, integer_dot, tile):
    target = resolve_target("llvm", mcpu)
    assert (target.integer_dot_for(4), target.integer_dot_for(8), target.gemm_tile) == (integer_dot, integer_dot, tile)
    assert ("avx2" in target.features) == (mcpu not in ("x86-64", "x86-64-v2", "sandybridge"))
    assert target.converts_float16 == ("f16c" in target.features)
    assert target.attributes["mcpu"] == mcpu


@pytest.mark.parametrize(
    ("mcpu", "features", "dot_of_fields", "dot_of_bytes"),
    [
        ("cortex-a72", {"neon"}, None, None),
        ("neoverse-n1", {"neon", "fullfp16", "dotprod"}, "sdot", "sdot_of_bytes"),
        ("apple-m2", {"neon", "fullfp16", "dotprod", "i8mm", "bf16"}, "usdot", "usdot"),
    ],
)
def test_kernels_follow_the_arm_core(mcpu, features, dot_of_fields, dot_of_bytes):
    target = resolve_target(f"llvm -mtriple=aarch64-linux-gnu -mcpu={mcpu}")
    assert set(target.features) == features and target.converts_float16
    assert (target.integer_dot_for(4), target.integer_dot_for(8)) == (dot_of_fields, dot_of_bytes)
    assert target.gemm_tile == (6, 1)
    assert target.attributes["mtriple"] == "aarch64-linux-gnu"


@pytest.mark.parametrize(
    ("name", "kind", "threads", "shared", "warp", "suffix"),
    [
        ("cuda", "cuda", 1024, 49152, 32, ".so"),
        ("metal", "metal", 1024, 32768, 32, ".dylib"),
        ("vulkan", "vulkan", 256, 16384, 1, ".so"),
        ("opencl", "opencl", 256, 16384, 1, ".so"),
        ("android", "opencl", 256, 16384, 1, ".tar"),
    ],
)
def test_gpus_and_their_limits(monkeypatch, name, kind, threads, shared, warp, suffix):
    monkeypatch.delenv("ANDROID_NDK", raising=False)
    target = resolve_target(name)
    assert (target.name, target.device, target.suffix) == (name, "gpu", suffix)
    limits = ("kind", "max_num_threads", "max_threads_per_block", "max_shared_memory_per_block", "thread_warp_size")
    assert [target.attributes[limit] for limit in limits] == [kind, threads, threads, shared, warp]
    assert (target.features, target.integer_dot, target.gemm_tile, target.converts_float16) == ((), None, None, True)
    assert target.architectures == (ARCHITECTURES if name == "cuda" else ())
    assert target.tensor_cores == target.launch_graphs == (name == "cuda")
    assert target.float16_lanes == (4 if name in ("metal", "vulkan") else 8)
    machines = {"metal": "arm64-apple-macos11.0", "android": "aarch64-linux-android"}
    assert target.triple == machines.get(name, codegen.llvm_get_system_triple())


@pytest.mark.parametrize("name, chunk", [("llvm", 512), ("vulkan", 512), ("opencl", 512), ("cuda", 2048)])
def test_how_much_of_a_prompt_a_call_is_planned_for(name, chunk):
    assert resolve_target(name).prefill_chunk == chunk


def test_one_architecture_of_cuda():
    target = resolve_target("cuda -arch=sm_90")
    assert target.architectures == ("sm_90",) and target.attributes["arch"] == "sm_90"


def test_a_gpu_as_json():
    text = '{"kind": "opencl", "device": "adreno", "host": {"kind": "llvm", "mtriple": "aarch64-linux-android"}}'
    target = resolve_target(text)
    assert (target.name, target.triple, target.device) == ("opencl", "aarch64-linux-android", "gpu")
    assert "adreno" in target.attributes["keys"]
    assert resolve_target('{"kind": "vulkan", "max_num_threads": 512}').attributes["max_num_threads"] == 512


def test_the_cpu_of_a_phone(monkeypatch):
    monkeypatch.delenv("ANDROID_NDK", raising=False)
    target = resolve_target("android-cpu")
    assert (target.name, target.device, target.suffix, target.features) == ("android-cpu", "cpu", ".tar", ("neon",))
    assert target.triple == "aarch64-linux-android" and target.gemm_tile == (6, 1)
    assert resolve_target("android-cpu", "cortex-a76").integer_dot == "sdot"
    assert resolve_target("android-cpu -mattr=+i8mm").integer_dot == "usdot"


def test_three_ways_to_say_the_same():
    attributes = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell", "opt-level": 2}
    from_json = resolve_target(json.dumps(attributes))
    for text, mcpu in (("-mcpu=haswell -opt-level=2", None), ("-opt-level=2 -mcpu=znver4", "haswell")):
        assert described(resolve_target(f"llvm -mtriple=x86_64-linux-gnu {text}", mcpu)) == described(from_json)
    assert from_json.attributes | attributes == from_json.attributes


def test_mattr():
    target = resolve_target("llvm -mtriple=x86_64-linux-gnu -mcpu=cascadelake -mattr=-avx512vnni,+avx512vbmi")
    assert "avx512vnni" not in target.features and "avx512vbmi" in target.features
    assert target.integer_dot == "avx512"


@pytest.mark.parametrize(
    ("text", "mcpu", "message"),
    [
        ("", None, f"Unknown target ''; valid are {NAMES}."),
        ("lvm", None, f"Unknown target 'lvm'; did you mean llvm? Valid are {NAMES}."),
        ("vulcan", None, f"Unknown target 'vulcan'; did you mean vulkan? Valid are {NAMES}."),
        ("quantum", None, f"Unknown target 'quantum'; valid are {NAMES}."),
        ("llvm", "skylake-avx521", "LLVM knows no CPU 'skylake-avx521'; did you mean skylake-avx512?"),
        ("llvm -mtriple=foo", None, "LLVM knows no architecture 'foo'; check its name."),
        ("llvm haswell", None, "expected -key=value after the name, found 'haswell'."),
        ("llvm -mattr=+warp", None, "The target's mattr has '+warp'; expected +feature or -feature"),
        ("llvm -color=red", None, "(Unknown config option 'color')."),
        ("llvm -opt-level=high", None, "expected type 'int'"),
        ('{"kind": "llvm"', None, "is not valid JSON"),
        ('{"kind": "llvm", "mcpu": 3}', None, "The target's mcpu should be a str, not 3."),
        ('{"kind": "llvm", "mattr": "+avx"}', None, "The target's mattr should be a list, not '+avx'."),
        ('{"kind": 5}', None, "Unknown target '5'"),
        ('["llvm"]', None, "Unknown target"),
        ("cuda -arch=90", None, "The target's arch should be like sm_75, not 90."),
        ("metal", "apple-m1", "The target metal is no CPU; leave --mcpu out."),
        ("vulkan -color=red", None, "(Unknown config option 'color')."),
        ('{"kind": "opencl", "host": 3}', None, "TVM does not accept the target"),
        ('{"kind": "opencl", "host": {"kind": "c"}}', None, "The target's host should be a CPU with an mtriple"),
        ('{"kind": "llvm", "host": {"kind": "c"}}', None, "The target's host should be a CPU with an mtriple"),
        ("llvm -jit=none", None, "TVM does not accept the target 'llvm -jit=none' (invalid jit option none"),
        ('{"kind": "llvm", "mattr": [3]}', None, "expected type 'Array<str>'"),
    ],
)
@on_x86
def test_bad_targets(text, mcpu, message):
    with pytest.raises(UserError) as error:
        resolve_target(text, mcpu)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("bug", [ValueError, TypeError, AttributeError, KeyError, RuntimeError])
def test_a_bug_of_ours_is_no_wrong_target(bug, monkeypatch):
    def mistaken(options: dict):
        raise bug("ours")

    monkeypatch.setitem(TARGETS, "metal", mistaken)
    with pytest.raises(bug, match="ours"):
        resolve_target("metal")


def test_another_architecture_needs_a_linker_of_its_own(monkeypatch):
    other = "aarch64" if host_architecture() == "x86_64" else "x86_64"
    target = resolve_target(f"llvm -mtriple={other}-linux-gnu")
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(UserError, match="pip install ziglang"):
        find_linker(target, ".so")
    assert find_linker(target, ".tar")


def test_features_by_the_names_of_linux(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nflags\t: fpu pni sse4_1 avx512_vnni avx512f bmi1 abm\n", encoding="utf-8")
    monkeypatch.setattr(cpu_features, "Path", lambda _: cpuinfo)
    assert host_features() == {"sse3", "sse4.1", "avx512vnni", "avx512f", "bmi", "lzcnt"}
    cpuinfo.write_text("Features\t: fp asimd asimddp asimdhp i8mm sve\n", encoding="utf-8")
    assert host_features() == {"neon", "dotprod", "fullfp16", "i8mm", "sve"}
    cpuinfo.unlink()
    assert host_features() is None
