"""Matrix products and whole models on aarch64, cross-compiled and run under qemu.

The kernels of ``test_kernels_rows`` and ``test_kernels_wkv`` run there too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.weights import open_checkpoint
from support.aarch64 import TARGET, Machine, RemoteRunner
from support.accuracy import BOUND, TOKENS, held_out, trained_like_weights
from support.compiled import Model
from support.cpu_products import CALLS, FORMS, GROUP_FORMS, check
from support.kernel_build import error
from support.paths import DEMO
from tir_kernels.cpu.gemm import gemm
from tir_kernels.cpu.gemv import gemv
from tir_kernels.cpu.quantize_activation import quantize_activation

DOTS = [
    (form, dot) for form in GROUP_FORMS for dot in ("sdot", "sdot_of_bytes", "usdot") if (form, dot) != ("q8", "sdot")
]


@dataclass(frozen=True)
class Core:
    """A CPU as qemu calls it, and its features beyond NEON in LLVM's names."""

    name: str
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def target(self) -> str:
        return f"{TARGET} -mattr={','.join('+' + name for name in ('neon', *self.features))}"


PLAIN = Core("cortex-a72")
DOTPROD = Core("cortex-a76", ("dotprod",))
I8MM = Core("max", ("dotprod", "i8mm"))
every_call = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(scope="module")
def kernels(aarch64, tmp_path_factory) -> dict[str, dict]:
    """For each form what takes floats, compiled for NEON alone, and the integer products."""
    tile, floats, integers = resolve_target(TARGET).gemm_tile, {}, {}
    for call, c in CALLS.items():
        shared = dict(planes=c.planes, gated=c.gated, residual=c.residual)
        for name, form in FORMS.items():
            floats[f"{name}.gemv_{call}"] = gemv(c.matrices, c.columns, form, **shared)
            floats[f"{name}.gemm_{call}"] = gemm(c.matrices, c.columns, form, tile, **shared)
        for name, dot in DOTS:
            integers[f"{name}.quantize_{call}"] = quantize_activation(c.columns, FORMS[name])
            integers[f"{name}.{dot}_{call}"] = gemv(c.matrices, c.columns, FORMS[name], dot, **shared)
    folder = tmp_path_factory.mktemp("kernels")
    built = aarch64.build(floats, folder) | aarch64.build(integers, folder, I8MM.target)
    kernels = {name: {} for name in FORMS}
    for name, function in built.items():
        form, _, kernel = name.partition(".")
        kernels[form][kernel] = function
    return kernels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", ["gemv", "gemm"])
@every_call
def test_float_products(kernels, form, kernel, name):
    check(kernels[form], FORMS[form], kernel, name, 7, 1e-6)


@pytest.mark.parametrize("form, dot", DOTS)
@every_call
def test_integer_products(kernels, form, dot, name):
    check(kernels[form], FORMS[form], dot, name, 5, 2e-6)


@pytest.fixture
def on_core(request, compiled) -> Callable[..., Model]:
    """``compiled`` for a core that has nothing else: what it lacks would end its process."""

    def build(core: Core, checkpoint, scheme: str) -> Model:
        machine = Machine(request.config.cache.mkdir("aarch64"), core.name)
        return compiled(checkpoint, scheme, core.target, partial(RemoteRunner, machine), functions=["score", "decode"])

    return build


@pytest.mark.parametrize("core, generation, scheme", [(PLAIN, "4", "q0f16"), (DOTPROD, "5.2", "q8f16_1")], ids=str)
def test_logits(core, generation, scheme, on_core, within):
    """Nothing a multiple of 16 or of a group: 40 channels, heads of 8, 90 channels inside."""
    shape = {"hidden_size": 40, "layers": 2, "head_size": 8, "intermediate_size": 90}
    model, tokens = on_core(core, trained_like_weights(generation, **shape), scheme), TOKENS[:60]
    expected = model.reference(tokens)
    within("score", error(model.score(tokens), expected), BOUND)
    within("decode", error(model.decode(tokens), expected), BOUND)


def test_demo_model(on_core, within):
    model, tokens = on_core(I8MM, open_checkpoint(str(DEMO)), "q4f16_1"), held_out(DEMO.name, 200)[:60]
    expected = model.reference(tokens)
    within("score", error(model.score(tokens), expected), BOUND)
    within("decode", error(model.decode(tokens), expected), BOUND)
