from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from apex4_probe.errors import ApexError
from apex4_probe.models import MAX_CONFIG_BYTES, PRESETS, Layer, load_model, shard

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**LLAMA, **changes}))
    return path


# Parameter counts as Hugging Face lists them for the checkpoints without biases.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("mistral-7b", 7_248_023_552),
    ],
)
def test_a_preset_has_exactly_the_parameters_of_its_checkpoint(name: str, parameters: int) -> None:
    assert load_model(name).parameters == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen2.5-72b", 72_706_203_648),
    ],
)
def test_a_qwen_preset_lacks_only_the_biases_of_q_k_v(name: str, parameters: int) -> None:
    model = load_model(name)
    biases = sum(layer.n * layer.count for layer in model.layers if layer.role in ("q", "k", "v"))
    assert model.parameters + biases == parameters


def test_layers_of_llama_3_8b() -> None:
    assert load_model("Llama-3-8B").layers == (
        Layer("q", 4096, 4096, 32),
        Layer("k", 1024, 4096, 32),
        Layer("v", 1024, 4096, 32),
        Layer("o", 4096, 4096, 32),
        Layer("gate", 14336, 4096, 32),
        Layer("up", 14336, 4096, 32),
        Layer("down", 4096, 14336, 32),
    )


def test_kv_cache_of_llama_3_8b() -> None:
    assert load_model("llama-3-8b").kv_bytes_per_token == 128 * 1024


def test_a_config_and_its_folder_equal_the_preset(tmp_path: Path) -> None:
    path = config(tmp_path)
    for where in (str(path), str(tmp_path)):
        model = load_model(where)
        assert (model.layers, model.other_parameters) == (
            load_model("llama-3-8b").layers,
            load_model("llama-3-8b").other_parameters,
        )
        assert (model.name, model.notes) == (tmp_path.name, ())


def test_head_dim_need_not_be_hidden_over_heads(tmp_path: Path) -> None:
    model = load_model(str(config(tmp_path, head_dim=256)))
    assert [(layer.n, layer.k) for layer in model.layers[:4]] == [
        (8192, 4096),
        (2048, 4096),
        (2048, 4096),
        (4096, 8192),
    ]


def test_missing_kv_heads_mean_one_a_head(tmp_path: Path) -> None:
    assert load_model(str(config(tmp_path, num_key_value_heads=None))).layers[1].n == 4096


def test_tied_embeddings_count_once(tmp_path: Path) -> None:
    untied = load_model(str(config(tmp_path))).other_parameters
    assert untied - load_model(str(config(tmp_path, tie_word_embeddings=True))).other_parameters == 128256 * 4096


def test_a_multimodal_config_holds_the_language_model_below(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mllama", "text_config": LLAMA}))
    assert load_model(str(path)).layers == load_model("llama-3-8b").layers


def test_a_mixture_of_experts_has_its_dense_layers_and_a_sentence(tmp_path: Path) -> None:
    mixtral = config(tmp_path, model_type="mixtral", num_local_experts=8, vocab_size=32000)
    model = load_model(str(mixtral))
    assert model.roles == ("q", "k", "v", "o")
    assert "mixture of 8 experts" in model.notes[0] and "attention layers" in model.notes[0]
    assert model.parameters == 46_702_792_704  # Mixtral-8x7B


def test_an_unknown_model_type_is_said(tmp_path: Path) -> None:
    assert "'newmodel' is unknown" in load_model(str(config(tmp_path, model_type="newmodel"))).notes[0]


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_sharding_splits_columns_along_n_and_rows_along_k(tp: int) -> None:
    whole, part = load_model("llama-3-70b"), shard(load_model("llama-3-70b"), tp)
    assert part.linear_parameters * tp == whole.linear_parameters
    for before, after in zip(whole.layers, part.layers, strict=True):
        split = (before.n, before.k // tp) if before.role in ("o", "down") else (before.n // tp, before.k)
        assert (after.n, after.k) == split
    assert part.kv_bytes_per_token * tp == whole.kv_bytes_per_token
    assert "all-reduce" in part.notes[-1]


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    part = shard(load_model("llama-3-70b"), 16)
    assert [(layer.role, layer.n) for layer in part.layers[:3]] == [("q", 512), ("k", 128), ("v", 128)]
    assert part.kv_heads == 1


@pytest.mark.parametrize(
    ("name", "tp", "message"),
    [
        ("llama-3-8b", 3, "q: its number of heads = 32 does not divide over 3 ranks"),
        ("llama-3-8b", 12, "8 KV heads do not spread evenly over 12 ranks"),
        ("qwen2.5-0.5b", 4, "q: its number of heads = 14 does not divide"),
        ("llama-3-8b", 0, "at least 1, not 0"),
    ],
)
def test_what_does_not_divide_is_refused(name: str, tp: int, message: str) -> None:
    with pytest.raises(ApexError, match=message):
        shard(load_model(name), tp)


def test_a_shard_is_not_sharded_again() -> None:
    with pytest.raises(ApexError, match="already sharded over 2 ranks"):
        shard(shard(load_model("llama-3-8b"), 2), 2)


@pytest.mark.parametrize("name", ["llama-9", "", "/no/such/folder", "x" * 10_000, "nul\0byte"])
def test_an_unknown_name_lists_the_presets(name: str) -> None:
    with pytest.raises(ApexError, match=r"unknown model .*llama-3-8b"):
        load_model(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "4096"}, "hidden_size must be an integer from 1"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"hidden_size": 4096.0}, "hidden_size must be an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer from 1"),
        ({"vocab_size": 10**30}, "vocab_size must be an integer"),
        ({"num_attention_heads": 30, "num_key_value_heads": 8}, "head_dim is missing"),
        ({"num_attention_heads": 12, "head_dim": 128}, "num_attention_heads = 12 is not a multiple"),
        ({"model_type": "gpt2"}, "model type 'gpt2' has no q, k, v"),
        ({"kv_lora_rank": 512}, "multi-head latent attention"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
        ({"intermediate_size": None, "num_experts": 8}, "without moe_intermediate_size"),
    ],
)
def test_a_config_that_does_not_fix_the_shapes_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = config(tmp_path, **changes)
    with pytest.raises(ApexError, match=message) as error:
        load_model(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"hidden_size": ', "not valid JSON"),
        (b"[1, 2]", "a JSON object is expected, not list"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not valid JSON .nested too deeply"),
        (b" " * (MAX_CONFIG_BYTES + 1), "larger than 1 MiB"),
        (b"", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ApexError, match=message):
        load_model(str(path))


def test_a_fifo_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    os.mkfifo(path)
    with pytest.raises(ApexError, match="not a regular file"):
        load_model(str(path))


def test_every_preset_holds_whole_groups_of_128() -> None:
    assert all(layer.k % 128 == 0 for name in PRESETS for layer in load_model(name).layers)
