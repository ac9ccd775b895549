"""Where the tokens of each sequence lie among the rows of a ragged prefill, and which state slot each uses."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T


def sequence(b, slots, segment_ends):
    """State slot, first row and number of rows of sequence b, as int64 expressions inside a kernel, each of which provably
    fits in 32 bits.

    Without ``slots`` sequence b has slot b; without ``segment_ends`` it is the one row b."""
    slot = b if slots is None else T.bind(T.cast(slots[b], "int64"))
    if segment_ends is None:
        return slot, b, 1
    first = T.bind(T.if_then_else(b == 0, T.int64(0), T.cast(segment_ends[T.max(b - 1, T.int64(0))], "int64")))
    length = T.max(segment_ends[b] - T.cast(first, "int32"), T.int32(0))
    return slot, first, T.bind(T.cast(length, "int64"))
