"""Integer group scales on the activations of a real model: nearly as good as float ones on both operands."""

from __future__ import annotations

from functools import cache

import pytest
from recorded_activations import EVERY_LAYER, SOME, Layer, mean_errors, recorded

from apex4_probe.kernels.formats import Granularity


@cache
def layers() -> tuple[Layer, ...]:
    return recorded()


@cache
def errors(role: str | None = None) -> dict[Granularity, float]:
    return mean_errors(each for each in layers() if role in (None, each.role))


def test_the_layers_are_those_of_the_model() -> None:
    assert [each.name.partition(".")[0] for each in layers()] == [
        str(number) for number in range(0, 30, EVERY_LAYER) for _ in SOME
    ]
    assert [each.role for each in layers()] == list(SOME) * len(range(0, 30, EVERY_LAYER))
    for each in layers():
        k = 1536 if each.role == "down_proj" else 576
        assert (each.x.shape, each.weight.shape) == ((16, k), (32, k))


def test_mean_relative_errors_of_layer_outputs() -> None:
    assert errors() == pytest.approx({"channel": 0.1780, "a128i": 0.1516, "g128": 0.1365}, abs=0.0005)


@pytest.mark.parametrize("role", [None, *SOME])
def test_a128i_lies_nearer_to_g128_than_to_channel(role: str | None) -> None:
    found = errors(role)
    assert found["g128"] < found["a128i"] < (found["channel"] + found["g128"]) / 2
