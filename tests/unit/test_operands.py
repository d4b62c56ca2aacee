"""Operand words: random, valid numbers of their type, and the four words that probes read by position."""

import numpy as np
import pytest

from apex4_probe.microbench.operands import MAGIC_ACCUMULATOR, RANDOM_WORDS, P, Q, operand_words


@pytest.mark.parametrize("kind", ["int", "f16", "bf16", "e4m3", "f32"])
def test_random_bits_and_tail(kind):
    words = operand_words(kind)
    assert words.shape == (RANDOM_WORDS + 4,)
    assert len(np.unique(words[:RANDOM_WORDS])) > RANDOM_WORDS * 0.9
    assert words[-4] == 0
    assert words[-3:-1].view(np.float32).tolist() == [P, Q]
    assert words[-1] == MAGIC_ACCUMULATOR
    assert (operand_words(kind) == words).all(), "operands repeat from run to run"
    assert (operand_words(kind, seed=1)[:RANDOM_WORDS] != words[:RANDOM_WORDS]).any()


def test_floating_kinds_hold_no_nan_and_no_infinity():
    assert np.isfinite(operand_words("f16")[:-4].view(np.float16)).all()
    assert np.isfinite(operand_words("f32")[:-4].view(np.float32)).all()
    halves = operand_words("bf16")[:-4].view(np.uint16).astype(np.uint32) << 16
    assert np.isfinite(halves.view(np.float32)).all()
    assert ((operand_words("e4m3")[:-4].view(np.uint8) & 0x7F) != 0x7F).all()


def test_magic_accumulator_reads_back_as_12582912():
    assert np.uint32(MAGIC_ACCUMULATOR).view(np.float32) == 12582912.0


def test_zeros():
    assert not operand_words("f16", zeros=True).any()
