"""A model's linear layers, from a preset or a Hugging Face ``config.json``: what a plan is made for.

Only shapes are read. A linear layer multiplies an activation [M, K] by a weight [N, K]; its role says where it sits in
the transformer block, because sensitivity to quantisation goes by role.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from apex4_probe.deployment import Role
from apex4_probe.errors import ApexError

DEFAULT_MODEL = "llama-3-8b"
MAX_CONFIG_BYTES = 1 << 20  # the largest config.json of a published model is a few tens of KiB
MAX_DIMENSION = 1 << 24  # vocabularies reach 2^18, intermediate sizes 2^17; beyond this a number is a mistake
ROLES: tuple[Role, ...] = ("q", "k", "v", "o", "gate", "up", "down")
ROW_PARALLEL: frozenset[Role] = frozenset({"o", "down"})  # sharded along K; the others along N (Megatron-LM's scheme)


@dataclass(frozen=True)
class Layer:
    """``count`` identical linear layers, one a transformer block; ``n`` outputs, ``k`` inputs."""

    role: Role
    n: int
    k: int
    count: int

    @property
    def parameters(self) -> int:
        return self.n * self.k * self.count


@dataclass(frozen=True)
class Model:
    """Shapes of one tensor-parallel rank.

    ``other_parameters``: embeddings, output head, norms and, in a mixture of experts, the experts and their router;
    they stay in 16 bit. ``kv_bytes_per_token``: of the KV cache in 16 bit.
    """

    name: str
    layers: tuple[Layer, ...]
    hidden_size: int
    head_dim: int
    kv_heads: int
    other_parameters: int
    kv_bytes_per_token: int
    tensor_parallel: int = 1
    notes: tuple[str, ...] = ()

    @property
    def linear_parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters

    @property
    def roles(self) -> tuple[Role, ...]:
        return tuple(layer.role for layer in self.layers)


@dataclass(frozen=True)
class Shape:
    """The fields of ``config.json`` that fix the shapes."""

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_dim: int
    tied: bool = False
    experts: int = 0
    expert_intermediate: int = 0

    def model(self, name: str, notes: tuple[str, ...] = ()) -> Model:
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention: list[tuple[Role, int, int]] = [
            ("q", query, self.hidden),
            ("k", key_value, self.hidden),
            ("v", key_value, self.hidden),
            ("o", self.hidden, query),
        ]
        mlp: list[tuple[Role, int, int]] = [
            ("gate", self.intermediate, self.hidden),
            ("up", self.intermediate, self.hidden),
            ("down", self.hidden, self.intermediate),
        ]
        other = self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.blocks + 1) * self.hidden
        if self.experts:
            other += self.blocks * self.experts * (3 * self.hidden * self.expert_intermediate + self.hidden)
            notes = (
                *notes,
                f"{name} is a mixture of {self.experts} experts a block: the verdict covers its attention layers. The "
                "experts are grouped GEMMs of few tokens each, which this plan does not describe; they stay in 16 bit.",
            )
        dense = attention if self.experts else attention + mlp
        return Model(
            name=name,
            layers=tuple(Layer(role, n, k, self.blocks) for role, n, k in dense),
            hidden_size=self.hidden,
            head_dim=self.head_dim,
            kv_heads=self.kv_heads,
            other_parameters=other,
            kv_bytes_per_token=2 * 2 * self.blocks * key_value,
            notes=notes,
        )


# hidden, intermediate, blocks, heads, KV heads, vocabulary, head dimension, tied; each model's config.json
PRESETS: dict[str, Shape] = {
    "llama-3-8b": Shape(4096, 14336, 32, 32, 8, 128256, 128),
    "llama-3-70b": Shape(8192, 28672, 80, 64, 8, 128256, 128),
    "llama-2-7b": Shape(4096, 11008, 32, 32, 32, 32000, 128),
    "llama-2-13b": Shape(5120, 13824, 40, 40, 40, 32000, 128),
    "llama-2-70b": Shape(8192, 28672, 80, 64, 8, 32000, 128),
    "mistral-7b": Shape(4096, 14336, 32, 32, 8, 32768, 128),
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2, 151936, 64, tied=True),
    "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2, 151936, 128, tied=True),
    "qwen2.5-3b": Shape(2048, 11008, 36, 16, 2, 151936, 128, tied=True),
    "qwen2.5-7b": Shape(3584, 18944, 28, 28, 4, 152064, 128),
    "qwen2.5-14b": Shape(5120, 13824, 48, 40, 8, 152064, 128),
    "qwen2.5-32b": Shape(5120, 27648, 64, 40, 8, 152064, 128),
    "qwen2.5-72b": Shape(8192, 29568, 80, 64, 8, 152064, 128),
}

# Model types of transformers with q, k, v, o and a gated MLP
GATED = frozenset({
    "llama", "mistral", "mixtral", "ministral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2",
    "gemma3_text", "phi3", "granite", "granitemoe", "olmo", "olmo2", "olmoe", "internlm2", "internlm3", "smollm3",
    "cohere", "cohere2", "stablelm", "baichuan", "exaone", "deepseek", "seed_oss", "glm", "glm4",
})  # fmt: skip
# Two-matrix MLPs, encoders, or no attention: other roles, other sensitivities
UNGATED = frozenset({
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "starcoder2", "gpt_bigcode", "mpt", "bert",
    "roberta", "t5", "whisper", "mamba", "mamba2",
})  # fmt: skip
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


def load_model(name_or_path: str) -> Model:
    """A preset's name, or the path of a Hugging Face ``config.json`` or of a folder that holds one.

    Raises ApexError for an unknown name, an unreadable or oversized file, and a config that does not fix the shapes.
    """
    key = name_or_path.strip().lower()
    if key in PRESETS:
        return PRESETS[key].model(key)
    path = Path(name_or_path).expanduser()
    try:
        if path.is_dir():
            path = path / "config.json"
        found = path.exists()
    except (OSError, ValueError):  # a name too long for the file system, an embedded NUL
        found = False
    if not found:
        raise ApexError(
            f"unknown model {name_or_path[:200]!r}: no path of a config.json and no preset ({', '.join(PRESETS)})"
        )
    return _from_config(path)


def shard(model: Model, tensor_parallel: int) -> Model:
    """One rank's shapes: q, k, v, gate, up split along N, o and down along K; KV heads are replicated where ranks
    outnumber them, as vLLM does. Raises ApexError where a width does not divide."""
    if tensor_parallel < 1:
        raise ApexError(f"tensor parallelism must be at least 1, not {tensor_parallel}")
    if model.tensor_parallel != 1:
        raise ApexError(f"{model.name} is already sharded over {model.tensor_parallel} ranks")
    if tensor_parallel == 1:
        return model
    if tensor_parallel > model.kv_heads and tensor_parallel % model.kv_heads:
        raise ApexError(
            f"{model.name}: {model.kv_heads} KV heads do not spread evenly over {tensor_parallel} ranks; choose --tp "
            f"as a divisor or a multiple of {model.kv_heads}"
        )
    kv_ranks = min(tensor_parallel, model.kv_heads)
    ranks = {False: tensor_parallel, True: kv_ranks}
    return replace(
        model,
        layers=tuple(_shard_layer(model, layer, ranks[layer.role in ("k", "v")]) for layer in model.layers),
        kv_heads=_divide(model.kv_heads, kv_ranks, f"{model.name}: the number of KV heads"),
        other_parameters=-(-model.other_parameters // tensor_parallel),
        kv_bytes_per_token=model.kv_bytes_per_token // kv_ranks,
        tensor_parallel=tensor_parallel,
        notes=(*model.notes, "The all-reduce after o and down is not counted: it is the same for every format."),
    )  # fmt: skip


def _shard_layer(model: Model, layer: Layer, ranks: int) -> Layer:
    where = f"{model.name}: {layer.role}"
    if layer.role in ("q", "k", "v", "o"):  # attention splits by whole heads
        heads = (layer.k if layer.role == "o" else layer.n) // model.head_dim
        _divide(heads, ranks, f"{where}: its number of heads")
    if layer.role in ROW_PARALLEL:
        return replace(layer, k=_divide(layer.k, ranks, f"{where}: K"))
    return replace(layer, n=_divide(layer.n, ranks, f"{where}: N"))


def _divide(width: int, ranks: int, what: str) -> int:
    if width % ranks:
        raise ApexError(f"{what} = {width} does not divide over {ranks} ranks; choose another --tp")
    return width // ranks


def _from_config(path: Path) -> Model:
    config = _read_json(path)
    text = config.get("text_config")
    if isinstance(text, dict):  # multimodal models keep the language model one level down
        config = text
    kind = config.get("model_type")
    kind = kind if isinstance(kind, str) else ""
    if kind in UNGATED:
        raise ApexError(
            f"{path}: model type {kind!r} has no q, k, v, o, gate, up and down layers, so it cannot be planned"
        )
    if config.get("kv_lora_rank"):
        raise ApexError(
            f"{path}: multi-head latent attention (kv_lora_rank) has no q, k, v layers of its own; it cannot be planned"
        )
    fields = _Fields(path, config)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    experts = next((fields.integer(name) for name in EXPERT_COUNTS if config.get(name)), 0)
    experts = experts if experts > 1 else 0
    intermediate = fields.integer("intermediate_size", 0 if experts else None)
    head_dim = fields.integer("head_dim", hidden // heads if hidden % heads == 0 else None)
    shape = Shape(
        hidden=hidden,
        intermediate=intermediate,
        blocks=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        vocabulary=fields.integer("vocab_size"),
        head_dim=head_dim,
        tied=bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),
        experts=experts,
        expert_intermediate=fields.integer("moe_intermediate_size", intermediate) if experts else 0,
    )
    if shape.heads % shape.kv_heads:
        raise ApexError(
            f"{path}: num_attention_heads = {shape.heads} is not a multiple of num_key_value_heads = {shape.kv_heads}"
        )
    if experts and not shape.expert_intermediate:
        raise ApexError(f"{path}: a mixture of experts without moe_intermediate_size or intermediate_size")
    name = path.resolve().parent.name or path.stem
    notes: tuple[str, ...] = ()
    if kind not in GATED:
        notes = (
            f"Model type {kind[:60]!r} is unknown here; its blocks are taken for Llama's (q, k, v, o, gate, up, down).",
        )
    return shape.model(name, notes)


@dataclass(frozen=True)
class _Fields:
    path: Path
    config: dict[str, object]

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.config.get(name)
        if value is None:
            if default is None:
                raise ApexError(f"{self.path}: {name} is missing; a Hugging Face config.json of a decoder model has it")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_DIMENSION:
            raise ApexError(
                f"{self.path}: {name} must be an integer from 1 to {MAX_DIMENSION}, not {str(value)[:60]!r}"
            )
        return value


def _read_json(path: Path) -> dict[str, object]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ApexError(f"{path}: not a regular file; give a config.json")
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ApexError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ApexError(f"{path}: larger than {MAX_CONFIG_BYTES >> 20} MiB, which no config.json is")
    try:
        config = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ApexError(f"{path}: not UTF-8 text; give a config.json") from None
    except (ValueError, RecursionError) as error:
        detail = str(error).splitlines()[0] if isinstance(error, ValueError) else "nested too deeply"
        raise ApexError(f"{path}: not valid JSON ({detail})") from None
    if not isinstance(config, dict):
        raise ApexError(f"{path}: a JSON object is expected, not {type(config).__name__}")
    return config
