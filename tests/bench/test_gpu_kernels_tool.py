"""``tools/benchmarks/gpu_kernels.py`` against counts made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc.compiler.cuda import compile_fatbin, find_compiler
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.errors import UserError
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import resolve
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.verification.fatbin import read_fatbin
from support.compiled import in_memory, only
from support.opencl_device import source_of
from support.synthetic import synthetic_checkpoint
from tir_kernels.gpu.gemm import gemm
from tir_kernels.gpu.gemm_tensor_core import gemm_tensor_core
from tir_kernels.gpu.gemv import gemv
from tir_kernels.gpu.gemv_or_gemm import gemv_or_gemm
from tir_kernels.gpu.gemv_tensor_core import gemv_tensor_core
from tir_kernels.gpu.wkv5 import wkv5
from tir_kernels.product import Matrix
from tir_kernels.rows import RowFloat, RowGroup

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "benchmarks"))

from families import same_values
from gpu_kernels import Count, as_kernels, count_each, main
from machine_code import disassemble, disassembler, read_assembly

FLOAT16 = RowFloat("float16")


def test_gemv_reads_weights_once():
    """Rows of 1024 float16: 128 threads along each, 4 rows of each of 2 groups of threads a block, which reads x once."""
    work = Count(
        gemv((Matrix(64), Matrix(16, plane=1)), 1024, FLOAT16, "float16", planes=2, float16_lanes=8), {"rows": 1}, {}
    ).run()
    weights, blocks = 80 * 1024 * 2, 10
    assert work.bytes_read == weights + blocks * 1024 * 2
    assert work.bytes_written == 80 * 4 and work.threads == blocks * 256
    assert work.least_bytes == weights + 2 * 1024 * 2 + 80 * 4
    assert work.least_operations == 2 * 80 * 1024 <= work.operations < 3 * 80 * 1024


def test_gemm_reads_tiles_again():
    """Tiles have 64 tokens and 64 rows: weights are read once for every tile of tokens, x once for every tile of rows."""
    columns, form = 96, RowGroup(4, 32, "float16")
    work = Count(gemm((Matrix(128),), columns, form, "float16"), {"rows": 192}, {}).run()
    weights, x, out = 128 * columns * 4.5 / 8, 192 * columns * 2, 192 * 128 * 4
    assert work.bytes_read == 3 * weights + 2 * x and work.bytes_written == out
    assert work.least_bytes == weights + x + out
    assert work.chain == columns // 32 * 32 / 4  # groups of inputs, 4 inputs at a time


def test_rows_that_leave_part_of_a_tile_are_written_once():
    work = Count(gemm((Matrix(70),), 64, FLOAT16, "float16"), {"rows": 65}, {}).run()
    assert work.bytes_written == 65 * 70 * 4


@pytest.mark.parametrize("tokens, tile, rows, depth", [(64, 32, 64, 64), (192, 128, 128, 32)])
def test_tensor_cores(tokens, tile, rows, depth):
    """Small blocks for a short prompt, large ones for others: whole tiles are multiplied, and what is inside is read."""
    columns, form, tiles = 104, RowGroup(4, 32, "float16"), -(-tokens // tile)
    work = Count(gemm_tensor_core((Matrix(128),), columns, form), {"rows": tokens}, {}).run()
    chunks, groups = -(-columns // depth), 4
    x, fields, out = tokens * columns * 2, 128 * groups * 16, tokens * 128 * 4
    scales = 128 * (1 + chunks) * depth // 32 * 2  # of the chunk after the last one again
    assert work.bytes_read == 128 // rows * x + tiles * (fields + scales) and work.bytes_written == out
    assert work.least_bytes == x + fields + 128 * groups * 2 + out
    assert work.least_operations == 2 * tokens * columns * 128
    assert work.on_tensor_cores == 2 * tiles * tile * 128 * chunks * depth
    assert work.operations == work.on_tensor_cores + tiles * 128 * chunks * depth * 2  # two instructions for a pair
    assert work.threads == 128 * tiles * 128 // rows and work.chain == chunks


@pytest.mark.parametrize("tokens", [1, 20])
def test_few_and_many_tokens(tokens):
    """One of two launches: four warps along a row, weights and scales once; or large products."""
    columns, form = 512, RowGroup(4, 32, "float16")
    work = Count(gemv_or_gemm((Matrix(64),), columns, form), {"rows": tokens}, {}).run()
    assert work.launch == (tokens > 16) and work.weights == 64 * columns
    if tokens == 1:
        blocks, fields = 2, 64 * columns // 2
        scales = 64 * columns // 32 * 2 * 2  # by two threads of four
        assert work.bytes_written == 64 * 4 and work.threads == blocks * 256 and work.chain == 1 and work.trips == []
        assert work.bytes_read >= fields + scales / 2
    else:
        assert work.threads == 128 and work.chain == columns // 64


ASSEMBLY = """
	.section	.text.k_kernel,"ax",@progbits
.text.k_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0020*/                   FADD R1, R2, R3 ;
        /*0030*/                   FADD R1, R2, R3 ;
        /*0040*/              @!P1 BRA `(.L_x_0) ;
        /*0050*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0060*/                   FMUL R1, R2, R3 ;
.L_x_2:
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3) ;
        /*0090*/                   NOP;
"""


def test_instructions_of_the_longest_way():
    """Two before the loop, three in it, two after."""
    (code,) = read_assembly(ASSEMBLY).values()
    assert code.loops() == [(2, 4)]
    assert code.longest([10]) == 2 + 3 * 10 + 2
    assert code.longest([0]) == 4  # the other way, round the loop
    assert code.longest([]) is None and code.longest([2, 2]) is None


def test_machine_code_of_few_tokens():
    """At most two instructions a weight in four bits, of all that a launch does."""
    if disassembler() is None:
        pytest.skip("nvdisasm is not installed")
    try:
        find_compiler(["sm_90"])
    except UserError as reason:
        pytest.skip(str(reason))
    kernel = gemv_tensor_core((Matrix(4096), Matrix(4096, plane=1)), 4096, RowGroup(4, 32, "float16"), planes=2)
    source = source_of({"few": kernel}, resolve_target("cuda").attributes).encode()
    cubin = next(image.code for image in read_fatbin(compile_fatbin(source, ["sm_90"])) if image.is_machine_code)
    work = Count(kernel, {"rows": 1}, {}).run()
    assert disassemble(cubin)["few_kernel"].longest(work.trips) * work.threads <= 2.0 * work.weights


@pytest.mark.parametrize("sequences", [1, 3])
def test_wkv_steps_through_a_sequence(sequences):
    rows, heads = 30, 2
    data = {"segment_ends": np.arange(1, sequences + 1) * (rows // sequences), "slots": np.arange(sequences)}
    sizes = {"rows": rows, "batch": sequences, "num_slots": sequences}
    work = Count(wkv5(heads, 64, "prefill", in_place=True), sizes, data).run()
    state, tokens = sequences * heads * 64 * 64 * 4, rows * heads * 64 * 4
    assert work.bytes_written == state + tokens and work.chain == rows // sequences
    ahead = (rows + sequences) / rows  # the first token of each sequence is loaded before the others
    constants, integers = sequences * 2 * heads * 64 * 4, sequences * heads * 3 * 4
    assert work.bytes_read == pytest.approx(state + 3 * tokens * ahead + constants + integers)
    assert work.threads == sequences * heads * 256


@pytest.mark.parametrize("function, rows", [("decode", 1), ("prefill", 40)])
def test_what_dlight_makes_of_products(function, rows):
    """Outputs are written once, and multiplied at least as often as there are weights; wkv is the same kernel in both families,
    and every call of both counts to some values."""
    size = 64
    config, _, _ = resolve(in_memory(synthetic_checkpoint("5.2", hidden_size=size, layers=1, head_size=32)))
    target, counted = resolve_target("cuda"), []
    for family in ("fused", "plain"):
        with only([function]):
            module = build_module(config, SCHEMES["q4f16_1"], target, family=family)
        counted.append(list(count_each(as_kernels(module, target), function, rows)))
    fused, plain = counted
    (key,) = (work for values, work in plain if "blocks.0.att.key" in values.outputs.values())
    assert key.bytes_written == rows * size * 4
    assert 2 * rows * size**2 <= key.operations <= 8 * max(rows, 32) * size**2
    assert key.bytes_read >= size * size * 4.5 / 8 + rows * size * 2
    groups = {values: calls for values, *calls in same_values(config, *([v for v, _ in side] for side in counted))}
    for side, calls in enumerate(counted):
        assert sorted(i for numbers in groups.values() for i in numbers[side]) == list(range(len(calls)))
    (ours,), (same,) = groups["att.wkv"]
    assert fused[ours][1] == plain[same][1]
    assert len(groups["att.key, att.value, att.receptance, att.gate_silu"][1]) == 5


def test_tables(capsys):
    main(["rwkv-5-world-0.1b", "--tokens", "128", "--device", "laptop"])
    shown = capsys.readouterr().out
    assert "decode of 1" in shown and "prefill of 128" in shown and "RTX 4060 Laptop" in shown
