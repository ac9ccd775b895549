"""The GPU family: every operation a hand-written kernel, weights as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvm import relax, tirx

from tir_kernels.expansion import Expansion
from tir_kernels.gpu.embedding import embedding
from tir_kernels.gpu.expand import expand
from tir_kernels.gpu.expand_mix import expand_mix
from tir_kernels.gpu.fill import fill
from tir_kernels.gpu.gemm import gemm
from tir_kernels.gpu.gemm_tensor_core import gemm_tensor_core
from tir_kernels.gpu.gemv import gemv
from tir_kernels.gpu.gemv_or_gemm import gemv_or_gemm
from tir_kernels.gpu.gemv_tensor_core import gemv_tensor_core
from tir_kernels.gpu.group_norm import group_norm
from tir_kernels.gpu.halve import halve
from tir_kernels.gpu.last_rows import last_rows
from tir_kernels.gpu.layer_norm import layer_norm
from tir_kernels.gpu.norm_shift_mix import norm_shift_mix
from tir_kernels.gpu.sample import memory_shape, sample
from tir_kernels.gpu.stream import stream
from tir_kernels.gpu.tensor_core import fits_tensor_cores
from tir_kernels.gpu.token_matrix import token_matrix
from tir_kernels.product import Matrix
from tir_kernels.rows import RowFloat, Rows

from ...models import Parameter
from ...models.vocabulary import Unmixed
from ...quantization.schemes import FloatForm, GroupForm
from ..state import StateRef
from ..weights import MatrixWeight, Norm, row_form
from .kernels import CommonKernels, KernelOps, Plane, Product

TOKENS = 4  # that share a load of the weights where there may be several
TOKENS_OF_THIN = 8  # that share one of a thin matrix, in prompts
CHANNELS = 512  # that a block mixes in decoding, where a row alone would leave the GPU idle
PEAK_SIZE = 4096  # of a product that keeps a GPU busy


@dataclass
class GPUOps(KernelOps):
    """See ``models.vocabulary.Ops``. What matrices read is in the scheme's float type, unless ``RWKVConfig.float32`` says
    otherwise: mixed inputs, the squares of channel mixing, what output matrices and the head read. The residual stream,
    receptance, key and value of time mixing, norms, wkv, gates, the state and the logits are float32, and so are all
    sums."""

    device = "gpu"
    kernels = CommonKernels(embedding, halve, last_rows, stream, fill)
    merges_kernels = False

    @staticmethod
    def form_of(_: Parameter, form: FloatForm | GroupForm) -> Rows:
        return row_form(form)

    @staticmethod
    def layout_of(parameter: Parameter, form: FloatForm | GroupForm) -> tuple[str, ...]:
        """The layouts in which what is stored of a parameter lies by rows."""
        if isinstance(form, FloatForm):
            return ("stored",)
        return ("transposed" if form.transposed else "stored",) * 2

    def matrix_dtype(self, *names: str) -> str:
        return "float32" if any(map(self.config.is_float32, names)) else self.model.scheme.float_dtype

    def emit_sample(self) -> None:
        shape = memory_shape(self.config.vocab_size)
        self.add_sample(
            sample(self.config.vocab_size), lambda batch: [relax.TensorType([batch, *shape], "float32")] * 2
        )

    def emit_probes(self) -> None:
        """Beside those of every family ``matmul_peak`` (x [1, T, N], weight [N, N] -> out [1, T, N]), N = ``PEAK_SIZE``, which
        is the product with which prompts are read."""
        super().emit_probes()
        size, rows, dtype = PEAK_SIZE, tirx.Var("rows", "int64"), self.model.scheme.float_dtype
        kernel = self._product_of_prompts((Matrix(size),), size, RowFloat(dtype), dtype)
        inputs = {"x": relax.TensorType([1, rows, size], dtype), "weight": relax.TensorType([size, size], dtype)}
        self.add_function("matmul_peak", kernel, inputs, relax.TensorType([1, rows, size], "float32"))

    def layer_norm(self, x, norm: Norm):
        """The first one begins the residual stream, the last one is what the head reads."""
        dtype = self.matrix_dtype(norm.name) if norm.name == "ln_out" else "float32"
        kernel = layer_norm(self.config.hidden_size, self.config.norm_epsilon(norm.name), dtype)
        return self.call(kernel, [x, norm.weight, norm.bias], [x.ty.shape], [norm.name], dtype)[0]

    def norm_shift_mix(self, x, norm: Norm, mixes: dict, state: StateRef, unmixed: Unmixed = ()) -> dict[str, Plane]:
        channels, names = self.config.hidden_size, self.mixed_names(norm.name, mixes, unmixed)
        parts = next((n for n in (8, 4, 2) if channels % n == 0 and channels // n >= CHANNELS), 1)
        dtype, parts = self.matrix_dtype(*names), parts if self.phase == "decode" else 1
        epsilon = self.config.layer_norm_epsilon
        given = channels, len(mixes), epsilon, self.phase, dtype, parts, self.state.in_place, len(unmixed)
        planes, inputs = [*mixes, *unmixed], [x, norm.weight, norm.bias, *mixes.values()]
        shape = [len(planes), self.rows, channels]
        (mixed,) = self.update(norm_shift_mix(*given), inputs, [state], self.sequences, [shape], [names], dtype)
        return {target: Plane(mixed, i) for i, target in enumerate(planes)}

    def linears(self, products: Sequence[Product], gate=None, residual=None):
        x, form, columns = products[0][0].tensor, products[0][1].form, products[0][1].shape[1]
        rows = x.ty.shape[1]
        names = self.product_names(products, gate is not None, residual is not None)
        dtypes = [
            self.matrix_dtype(m.name, name) if activation == "squared_relu" else "float32"
            for (_, m, activation), name in zip(products, names)
        ]
        outputs = tuple(
            Matrix(m.shape[0], activation, dtype, plane.index)
            for (plane, m, activation), dtype in zip(products, dtypes)
        )
        given = {"planes": int(x.ty.shape[0]), "gated": gate is not None, "residual": residual is not None}
        if self.phase == "decode" or not rows.same_as(self.rows):  # single tokens, or the last ones that the head reads
            kernel = self._product_of_tokens(outputs, columns, form, x.ty.dtype, **given)
        else:
            kernel = self._product_of_prompts(outputs, columns, form, x.ty.dtype, **given)
        args = [x, *(tensor for _, m, _ in products for tensor in m.tensors)]
        args += [extra for extra in (gate, residual) if extra is not None]
        return self.call(kernel, args, [[1, rows, m.rows] for m in outputs], names, dtypes)

    def linear(self, x, matrix: MatrixWeight, gate=None, residual=None):
        return self.linears([(Plane(x, 0), matrix, None)], gate, residual)[0]

    def expand(self, products: Mapping[str, tuple], gate=None):
        (_, matrix, *_), *_ = products.values()
        outputs = tuple(
            Expansion(*m.shape, activation, bias is not None) for _, m, bias, activation in products.values()
        )
        names = [self.role_beside(matrix, role) for role in products]
        dtype = "float32" if gate is None else str(gate.ty.dtype.dtype)
        kernel = expand(
            outputs, matrix.form, self._tokens_of_thin(), gate is not None, dtype, self.target.float16_lanes
        )
        args = [h for h, *_ in products.values()]
        for _, m, bias, _ in products.values():
            args += [*m.tensors, *([] if bias is None else [bias])]
        args += [] if gate is None else [gate]
        return self.call(kernel, args, [self.row_shape(o.rows) for o in outputs], names, dtype)

    def expand_mix(self, mixed: Mapping[str, Plane], h, matrix: MatrixWeight, mixes: dict):
        (planes, now), (rows, rank), channels = mixed["now"], matrix.shape, self.config.hidden_size
        names = tuple(self.role_beside(matrix, f"att.mixed_{target}") for target in mixes)
        dtype, thin = str(planes.ty.dtype.dtype), (self._tokens_of_thin(), int(planes.ty.shape[0]), now)
        sizes = len(mixes), channels, rank, matrix.form, *thin, rows // len(mixes)
        kernel = expand_mix(*sizes, dtype, self.target.float16_lanes)
        args, shape = [h, *matrix.tensors, *mixes.values(), planes], [len(mixes), self.rows, channels]
        (out,) = self.call(kernel, args, [shape], [names], dtype)
        return {target: Plane(out, i) for i, target in enumerate(mixes)}

    def token_matrix(self, x, table: MatrixWeight, role: str):
        kernel = token_matrix(table.shape[0], int(x.ty.shape[2]), table.form)
        return self.call(kernel, [self.tokens, x, *table.tensors], [x.ty.shape], [self.role_beside(table, role)])[0]

    def _tokens_of_thin(self) -> int:
        """How many tokens share a load of a thin matrix."""
        if self.phase == "prefill":
            return TOKENS_OF_THIN
        return 1 if self.batch == 1 else TOKENS

    def group_norm(self, x, norm: Norm, groups: int, epsilon: float, gate=None, added=None):
        name = norm.name if gate is None else self.beside(x, "gated")
        dtype, size = self.matrix_dtype(name), self.config.attention_size // groups
        kernel = group_norm(groups, size, epsilon, gate is not None, dtype, added is not None)
        args = [x, norm.weight, norm.bias, *(extra for extra in (added, gate) if extra is not None)]
        return self.call(kernel, args, [x.ty.shape], [name], dtype)[0]

    def _product_of_tokens(self, matrices: tuple[Matrix, ...], columns: int, form: Rows, dtype: str, **fused: int):
        """The kernel of one token of every sequence: on tensor cores as that of prompts."""
        if self._uses_tensor_cores(columns, form, dtype):
            return (gemv_tensor_core if self.batch == 1 else gemv_or_gemm)(matrices, columns, form, **fused)
        tokens = 1 if self.batch == 1 else TOKENS
        return gemv(matrices, columns, form, dtype, tokens=tokens, float16_lanes=self.target.float16_lanes, **fused)

    def _product_of_prompts(self, matrices: tuple[Matrix, ...], columns: int, form: Rows, dtype: str, **fused: int):
        """The kernel of many tokens."""
        if self._uses_tensor_cores(columns, form, dtype):
            return gemm_tensor_core(matrices, columns, form, **fused)
        return gemm(matrices, columns, form, dtype, float16_lanes=self.target.float16_lanes, **fused)

    def _uses_tensor_cores(self, columns: int, form: Rows, dtype: str) -> bool:
        """Whether the target has them and the matrices suit them."""
        return self.target.tensor_cores and fits_tensor_cores(columns, form, dtype)
