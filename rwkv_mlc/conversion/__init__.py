"""From a checkpoint to the files of other programs: Hugging Face's folder, BlinkDL's ``.pth``, rwkv.cpp's file.

Tensors are read, converted and written one after the other, beside the place that they take when all are there."""

from .huggingface import convert_hf
from .pth import convert_pth
from .rwkv_cpp import convert_rwkv_cpp

__all__ = ["convert_hf", "convert_pth", "convert_rwkv_cpp"]
