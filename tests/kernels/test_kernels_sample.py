"""The kernel that chooses tokens against the sampler in NumPy: equal tokens for logits and settings of every kind."""

from __future__ import annotations

import pytest

from support.sampling import check_choices, check_faults
from tir_kernels.cpu.sample import sample

VOCABS = [1, 16, 1003, 65536]  # less than a vector, a whole one, several and a rest, that of World


@pytest.fixture(scope="module")
def kernels(build_kernels):
    return build_kernels({f"sample_{vocab}": sample(vocab) for vocab in VOCABS})


@pytest.mark.parametrize("vocab", VOCABS)
def test_choices(kernels, vocab):
    check_choices(kernels[f"sample_{vocab}"], vocab, steps=1 if vocab > 10000 else 3)


@pytest.mark.parametrize("vocab", VOCABS[1:])
def test_logits_that_are_not_finite(kernels, vocab):
    check_faults(kernels[f"sample_{vocab}"], vocab)
