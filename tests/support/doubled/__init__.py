"""A made-up generation, RWKV-5 with a second gate, as somebody would add one: a model, a kernel and a reference file."""
