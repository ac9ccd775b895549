"""The GPU family: every operation a hand-written kernel, weights as they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax, tirx

from tir_kernels.gpu.embedding import embedding
from tir_kernels.gpu.fill import fill
from tir_kernels.gpu.gemm import gemm
from tir_kernels.gpu.gemm_tensor_core import fits_tensor_cores, gemm_tensor_core
from tir_kernels.gpu.gemv import gemv
from tir_kernels.gpu.group_norm import group_norm
from tir_kernels.gpu.halve import halve
from tir_kernels.gpu.last_rows import last_rows
from tir_kernels.gpu.layer_norm import layer_norm
from tir_kernels.gpu.norm_shift_mix import norm_shift_mix
from tir_kernels.gpu.stream import stream
from tir_kernels.gpu.wkv4 import wkv4
from tir_kernels.gpu.wkv5 import wkv5
from tir_kernels.product import Matrix
from tir_kernels.rows import RowFloat, RowGroup, Rows

from ...models import Parameter
from ...quantization.schemes import FloatForm, GroupForm
from ..weights import MatrixWeight, Norm
from .kernels import KernelOps

TOKENS = 4  # that share a load of the weights where there may be several
CHANNELS = 512  # that a block mixes in decoding, where a row alone would leave the GPU idle
PEAK_SIZE = 4096  # of a product that keeps a GPU busy


@dataclass
class GPUOps(KernelOps):
    """See ``rwkv_mlc.graph.ops``. What matrices read is in ``activation_dtype``, unless ``RWKVConfig.float32`` says otherwise:
    mixed inputs, the squares of channel mixing, what output matrices and the head read. The residual stream, receptance, key
    and value of time mixing, norms, wkv, gates, the state and the logits are float32, and so are all sums."""

    activation_dtype: str = "float16"

    @staticmethod
    def form_of(_: Parameter, form: FloatForm | GroupForm) -> Rows:
        """The form in which kernels read a parameter."""
        if isinstance(form, FloatForm):
            return RowFloat(form.dtype)
        return RowGroup(form.bits, form.group, form.scale_dtype)

    @staticmethod
    def layout_of(parameter: Parameter, form: FloatForm | GroupForm) -> tuple[str, ...]:
        """The layout of ``quantization.layouts`` in which the kernels want each of a parameter's stored tensors: by rows."""
        if isinstance(form, FloatForm):
            return ("stored",)
        return ("transposed" if form.transposed else "stored",) * 2

    def emit_probes(self) -> None:
        """``matmul_peak`` (x [1, T, N], weight [N, N] -> out [1, T, N]), N = ``PEAK_SIZE``, is the product with
        which prompts are read."""
        self.add_memory_probes(stream(), fill())
        size, rows, dtype = PEAK_SIZE, tirx.Var("rows", "int64"), self.activation_dtype
        kernel = self._product_of_prompts((Matrix(size),), size, RowFloat(dtype), dtype)
        inputs = {"x": relax.TensorType([1, rows, size], dtype), "weight": relax.TensorType([size, size], dtype)}
        self.add_probe("matmul_peak", kernel, inputs, relax.TensorType([1, rows, size], "float32"))

    def embedding(self, tokens, table: MatrixWeight):
        kernel = embedding(*table.shape, table.form)
        return self.call(kernel, [tokens, *table.tensors], [self._shape(table.shape[1])], [table.name])[0]

    def layer_norm(self, x, norm: Norm):
        """The first one begins the residual stream, the last one is what the head reads."""
        dtype = self._dtype(norm.name) if norm.name == "ln_out" else "float32"
        kernel = layer_norm(self.config.hidden_size, self.config.layer_norm_epsilon, dtype)
        return self.call(kernel, [x, norm.weight, norm.bias], [x.ty.shape], [norm.name], dtype)[0]

    def norm_shift_mix(self, x, norm: Norm, mixes: dict, previous):
        channels, names = self.config.hidden_size, self.mixed_names(norm.name, mixes)
        parts = next((n for n in (8, 4, 2) if channels % n == 0 and channels // n >= CHANNELS), 1)
        dtype, parts = self._dtype(*names), parts if self.phase == "decode" else 1
        epsilon = self.config.layer_norm_epsilon
        kernel = norm_shift_mix(channels, len(mixes), epsilon, self.phase, dtype, parts)
        args = [x, norm.weight, norm.bias, *mixes.values(), previous, *self._sequences()]
        shape = [len(mixes), self.rows, channels]
        (last,), (mixed,) = self.update(kernel, args, [3 + len(mixes)], [shape], [names], dtype)
        return mixed, last

    def linears(self, x, matrices: list[MatrixWeight], activations: list[str | None], gate=None, residual=None):
        form, columns, rows = matrices[0].form, matrices[0].shape[1], x.ty.shape[1]
        fused = {"gated": gate is not None, "residual": residual is not None}
        names = self.product_names([m.name for m in matrices], activations, **fused)
        dtypes = [
            self._dtype(m.name, name) if activation == "squared_relu" else "float32"
            for m, name, activation in zip(matrices, names, activations)
        ]
        outputs = tuple(Matrix(m.shape[0], *rest) for m, *rest in zip(matrices, activations, dtypes))
        if self.phase == "decode" or not rows.same_as(self.rows):  # single tokens, or the last ones that the head reads
            tokens = 1 if self.batch == 1 else TOKENS
            halves = self.target.vector_halves
            kernel = gemv(outputs, columns, form, x.ty.dtype, tokens=tokens, halves=halves, **fused)
        else:
            kernel = self._product_of_prompts(outputs, columns, form, x.ty.dtype, **fused)
        args = [x, *(tensor for m in matrices for tensor in m.tensors)]
        args += [extra for extra in (gate, residual) if extra is not None]
        return self.call(kernel, args, [[1, rows, m.rows] for m in outputs], names, dtypes)

    def linear(self, x, matrix: MatrixWeight, gate=None, residual=None):
        return self.linears(x, [matrix], [None], gate, residual)[0]

    def wkv4(self, r, k, v, w, u, previous):
        name = self.beside(k, "gated")
        dtype = self._dtype(name)
        kernel = wkv4(self.config.hidden_size, self.phase, in_place=True, dtype=dtype)
        args = [r, k, v, w, u, *previous, *self._sequences()]
        updated, (out,) = self.update(kernel, args, [5, 6, 7], [r.ty.shape], [name], dtype)
        return out, updated

    def wkv5(self, r, k, v, w, u, previous):
        kernel = wkv5(self.config.num_heads, self.config.head_size, self.phase, in_place=True)
        args = [r, k, v, w, u, previous, *self._sequences()]
        (updated,), (out,) = self.update(kernel, args, [5], [r.ty.shape], [self.beside(k, "wkv")])
        return out, updated

    def group_norm(self, x, norm: Norm, groups: int, epsilon: float, gate=None):
        name = norm.name if gate is None else self.beside(x, "gated")
        dtype = self._dtype(name)
        kernel = group_norm(groups, self.config.hidden_size // groups, epsilon, gate is not None, dtype)
        args = [x, norm.weight, norm.bias, *([] if gate is None else [gate])]
        return self.call(kernel, args, [x.ty.shape], [name], dtype)[0]

    def halve(self, x):
        return self.call(halve(self.config.hidden_size), [x], [x.ty.shape])[0]

    def last_rows(self, x):
        if self.phase == "decode":
            return x
        channels = self.config.hidden_size
        return self.call(last_rows(channels), [x, self.segment_ends], [[1, self.batch, channels]])[0]

    def _product_of_prompts(self, matrices: tuple[Matrix, ...], columns: int, form: Rows, dtype: str, **fused: bool):
        """The kernel of many tokens: on tensor cores where the target has them and the matrices suit them."""
        if self.target.tensor_cores and fits_tensor_cores(columns, form, dtype):
            return gemm_tensor_core(matrices, columns, form, **fused)
        return gemm(matrices, columns, form, dtype, halves=self.target.vector_halves, **fused)

    def _dtype(self, *names: str) -> str:
        """Of values of these names that matrices read."""
        return "float32" if any(map(self.config.is_float32, names)) else self.activation_dtype

    def _sequences(self):
        return [self.slots] if self.phase == "decode" else [self.segment_ends, self.slots]

    def _shape(self, channels: int):
        return [1, self.rows, channels]
