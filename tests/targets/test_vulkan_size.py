"""A model of a real size on Vulkan: dimensions, vocabulary and buffers that small models do not have."""

from __future__ import annotations

from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.weights.random import load_preset, random_checkpoint
from support.kernel_build import error
from support.vulkan_kernels import vulkan_device

TOKENS = [11, 60000, 4097, 33]
PRESET = "rwkv-5-world-0.1b"


def test_a_preset(compiled, within):
    device = vulkan_device()
    checkpoint = random_checkpoint(load_preset(PRESET), PRESET, seed=0)
    model = compiled(checkpoint, "q4f16_1", "vulkan", lambda library, stored: Runner(library, stored, device))
    expected, state = model.reference(TOKENS), model.runner.new_state()
    within("prefill", error(model.runner.run("prefill", [TOKENS[:3]], state)[0], expected[2]), 2e-2)
    within("decode", error(model.runner.run("decode", [TOKENS[3:]], state)[0], expected[3]), 2e-2)
