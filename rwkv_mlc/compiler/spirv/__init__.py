"""TIR kernels as SPIR-V compute shaders for Vulkan 1.1.

``words`` puts a shader together, ``narrowing`` proves which integers fit in 32 bits, ``vectors`` finds what is accessed
in vectors, ``arithmetic`` computes with values, ``memory`` loads and stores them, ``emitter`` walks over TIR,
``intrinsics`` rewrites mathematical functions, ``module`` writes what TVM's Vulkan runtime reads.
"""
