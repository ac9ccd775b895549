"""The vocabulary in which a generation's graph is written, one class a family of targets.

Every family has the same methods; values are Relax expressions, activations [1, T, C] with the tokens of all sequences of a
call one after the other, float32 but for what matrices read on GPUs (``gpu.GPUOps``):

    embedding(tokens, table)                                -> [1, T, C]
    layer_norm(x, (weight, bias))                           -> [1, T, C]
    norm_shift_mix(x, (weight, bias), mixes, previous)      -> mixed inputs for ``linears``, new previous
    linears(mixed, matrices, activations)                   -> one [1, T, N] a matrix
    linear(x, matrix, gate=None, residual=None)             -> [1, T, N]
    wkv4(r, k, v, w, u, (a, b, p))                          -> [1, T, C], new (a, b, p)
    wkv5(r, k, v, w, u, kv)                                 -> [1, T, C], new kv
    group_norm(x, (weight, bias), groups, epsilon, gate=None) -> [1, T, C]
    last_rows(x)                                            -> [1, B, C]
"""
