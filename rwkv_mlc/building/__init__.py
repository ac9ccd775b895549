"""Checkpoint in, artifact out.

from rwkv_mlc import BuildOptions, build

built = build("RWKV-5-World-1B5.pth", target="llvm", quantization="q4f16_1", options=BuildOptions(rescale_every=6))
"""

from .options import BuildOptions
from .steps import Built, build, compile_artifact, convert_weight, gen_config

__all__ = ["BuildOptions", "Built", "build", "compile_artifact", "convert_weight", "gen_config"]
