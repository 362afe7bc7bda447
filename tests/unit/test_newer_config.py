"""A config.json as transformers 5 writes it becomes the model that the same one of transformers 4 becomes.

Each case is a model in both forms: what is in the older one alone, and what transformers 5.24 has written for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from export import load
from export.errors import Refused
from export.model_files.newer_config import in_older_words
from export.recipe import Recipe
from tests.models import POSITIONS, edit_json, tiny_qwen3

_SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "initializer_range": 0.5,
}
_ORIGINAL = "original_max_position_embeddings"
_YARN = {"rope_type": "yarn", "factor": 4.0, _ORIGINAL: 16, "beta_fast": 16.0, "truncate": False}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, _ORIGINAL: 16}
_LISTS = {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [2.0, 3.0, 4.0, 5.0]}
_LAYERS = ["full_attention", "sliding_attention"] * 2
_BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}


def of(theta: float, kind: str = "default", **more: Any) -> dict[str, Any]:
    """rope_parameters."""
    return {"rope_theta": theta, "rope_type": kind, **more}


def both(full: Mapping[str, Any], sliding: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen3": ("qwen3", {"head_dim": 8}, {"rope_theta": 1e6}, {"rope_parameters": of(1e6)}),
    "old_type": ("llama", {}, {"rope_theta": 1e6}, {"rope_parameters": {"rope_theta": 1e6, "type": "default"}}),
    "yarn": (
        "qwen3",
        {"head_dim": 8},
        {"rope_theta": 1e6, "rope_scaling": _YARN},
        {"rope_parameters": {"rope_theta": 1e6, "attention_factor": None, **_YARN}},
    ),
    "llama3": ("llama", {}, {"rope_theta": 5e5, "rope_scaling": _LLAMA3}, {"rope_parameters": of(5e5) | _LLAMA3}),
    "dynamic": (
        "llama",
        {},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_parameters": of(5e5, "dynamic", factor=2.0)},
    ),
    "not_named": (
        "mistral",
        {"head_dim": 8},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": of(5e5, "linear", factor=2.0)},
    ),
    "longrope": (
        "qwen3",
        {"head_dim": 8},
        {"rope_theta": 5e5, _ORIGINAL: 16, "rope_scaling": {"rope_type": "longrope", **_LISTS}},
        {"rope_parameters": of(5e5, "longrope", factor=4.0, **{_ORIGINAL: 16}, **_LISTS)},
    ),
    "longrope_of_all": (
        "qwen3",
        {"head_dim": 8},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "longrope", "factor": 2.0, **_LISTS}},
        {"rope_parameters": of(5e5, "longrope", factor=2.0, **{_ORIGINAL: 64}, **_LISTS)},
    ),
    "phi3": (
        "phi3",
        {_ORIGINAL: 16},
        {"rope_theta": 5e4, "rope_scaling": {"type": "longrope", **_LISTS}},
        {"rope_parameters": of(5e4, "longrope", partial_rotary_factor=1.0, **{_ORIGINAL: 16}, **_LISTS)},
    ),
    "gpt_neox": (
        "gpt_neox",
        {},
        {"rotary_emb_base": 5000, "rotary_pct": 0.5},
        {"rope_parameters": of(5000.0, partial_rotary_factor=0.5)},
    ),
    "glm": (
        "glm",
        {"head_dim": 8},
        {"rope_theta": 5e5, "partial_rotary_factor": 0.75},
        {"rope_parameters": of(5e5, partial_rotary_factor=0.75)},
    ),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": 4, "layer_types": _LAYERS},
        {"rope_theta": 5e5, "rope_local_base_freq": 2e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        both(of(5e5, "linear", factor=8.0), of(2e3)),
    ),
    "modernbert": (
        "modernbert",
        {"local_attention": 6, "cls_token_id": 1, "sep_token_id": 1, "reference_compile": False},
        {"global_rope_theta": 5e5, "local_rope_theta": 2e3, "global_attn_every_n_layers": 2},
        {**both(of(5e5), of(2e3)), "layer_types": _LAYERS},
    ),
    "modernbert_decoder": (
        "modernbert-decoder",
        {"local_attention": 6, "cls_token_id": 1, "sep_token_id": 1, "layer_types": _LAYERS},
        {"global_rope_theta": 5e5, "local_rope_theta": 5e5},
        both(of(5e5), of(5e5)),
    ),
    "olmo3": (
        "olmo3",
        {"sliding_window": 4, "layer_types": _LAYERS},
        {"rope_theta": 5e5, "rope_scaling": _YARN},
        both(of(5e5) | _YARN, of(5e5)),
    ),
    "gpt_oss": (  # transformers 4 scales where nothing is said
        "gpt_oss",
        {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
        {"rope_theta": 5e4, "rope_scaling": None},
        {"rope_parameters": of(5e4), "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {"head_dim": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        {"rope_theta": 1e6, "num_experts": 4},
        {"rope_parameters": of(1e6), "num_local_experts": 4},
    ),
    "detr": (
        "detr",
        {
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "num_queries": 5,
            "backbone_config": _BACKBONE,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
        },
        {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None},
        {},
    ),
}


def model_of(kind: str, raw: Mapping[str, Any]) -> Any:
    """The seeded model of a config.json."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind].from_dict(json.loads(json.dumps(raw)))
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config, attn_implementation="eager").eval()


def answer(model: Any) -> Any:
    import torch

    tokens = (torch.arange(14) * 7 % 90 + 2)[None]
    asked = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.main_input_name == "pixel_values":
        asked = {"pixel_values": torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64).float().sin()}
    with torch.inference_mode():
        return model(**asked).last_hidden_state


def translated(kind: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return in_older_words(raw, CONFIG_MAPPING[kind], "m")


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch.compile, in ModernBERT's source
@pytest.mark.parametrize("case", CASES)
def test_the_newer_form_is_the_model_of_the_older_one(case: str):
    import torch

    kind, same, older, newer = CASES[case]
    base = {"model_type": kind, **({} if kind == "detr" else _SIZES), **same}
    assert translated(kind, base | older) == {}
    assert translated(kind, base | older | newer) == {}  # the older keys beside the newer ones
    changes = translated(kind, base | newer)
    expected = answer(model_of(kind, base | older))
    assert torch.equal(answer(model_of(kind, base | newer | changes)), expected)
    assert changes.keys() <= older.keys()
    if kind not in ("detr", "qwen3_moe"):  # of which transformers 4 can make no model, or one of 128 experts
        assert not torch.allclose(answer(model_of(kind, base | newer)), expected, rtol=0.01)


def test_what_a_config_holds_parts_of():
    text = {"model_type": "qwen3", **_SIZES, "rope_parameters": of(1e6)}
    assert translated("llava", {"model_type": "llava", "text_config": text}) == {
        "text_config": {**text, "rope_theta": 1e6}
    }
    text.pop("rope_parameters")
    assert translated("llava", {"model_type": "llava", "text_config": text}) == {}
    with pytest.raises(
        Refused, match="cannot take it exactly: text_config has rope_parameters; write there in the key"
    ):
        translated("llava", {"model_type": "llava", "text_config": {"model_type": "new", "rope_parameters": of(1e6)}})


@pytest.mark.parametrize(
    ("kind", "newer", "why"),
    [
        (
            "qwen3",
            {"rope_parameters": of(1e6), "rope_theta": 10000.0},
            "rope_theta is 10000.0, its newer keys say 1000000",
        ),
        ("qwen3", {"rope_parameters": of(1e6), "rope_scaling": _YARN}, "rope_scaling is .*, its newer keys say null"),
        ("qwen3", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters has no rope_theta"),
        ("qwen3", {"rope_parameters": [1e6]}, r"rope_parameters is \[1000000.0\]"),
        ("qwen3", {"rope_parameters": of(1e6, "proportional")}, "qwen3 has no rope_type proportional"),
        ("qwen3", {"rope_parameters": of(1e6, mrope_section=[1, 2])}, "rope_parameters has mrope_section"),
        ("qwen3", {"rope_parameters": of(1e6, partial_rotary_factor=0.5)}, "qwen3 has no partial_rotary_factor"),
        ("nemotron", {"rope_parameters": of(1e6, "linear", factor=2.0)}, "nemotron has no rope_type linear"),
        ("bert", {"rope_parameters": of(1e6)}, "bert has no rope_theta"),
        ("qwen3", both(of(1e6), of(1e6)), "qwen3 has one rope_theta for all layers"),
        ("olmo3", both(of(1e6), of(1e4)), "olmo3 has one rope_theta for all layers"),
        ("modernbert-decoder", both(of(1e6), of(1e4)), "modernbert-decoder has one rope_theta for all layers"),
        ("gemma3_text", both(of(1e6), of(1e4, "linear", factor=2.0)), "rope_parameters scales sliding_attention"),
        ("gemma3_text", {"rope_parameters": of(1e6)}, "rope_parameters is not of full_attention and sliding_attention"),
        ("gemma3_text", {"rope_parameters": {"full_attention": of(1e6)}}, "rope_parameters is of full_attention"),
        ("modernbert", {"layer_types": _LAYERS[::-1]}, "layer_types is no full_attention every so many layers"),
        (
            "modernbert",
            {"layer_types": _LAYERS, "global_attn_every_n_layers": 3},
            "global_attn_every_n_layers is 3, its newer keys say 2",
        ),
        (
            "qwen3",
            {"rope_parameters": of(1e6, "longrope", factor=3.0, **{_ORIGINAL: 16}, **_LISTS)},
            "rope_parameters has factor 3.0, and longrope's is 4 there",
        ),
        ("qwen3", {"rope_parameters": of(1e6, "longrope", **_LISTS)}, f"rope_parameters has no {_ORIGINAL}"),
        (
            "phi3",
            {"rope_parameters": of(1e6, "longrope", attention_factor=1.5, **{_ORIGINAL: 16}, **_LISTS)},
            "phi3 has no more to scale by than longrope's two lists",
        ),
        ("gpt_oss", {"swiglu_limit": 10.0}, "swiglu_limit is 10.0, where it always has 7.0"),
        ("esm", {"rope_theta": 5000.0}, "rope_theta is 5000.0, where it always has 10000.0"),
    ],
)
def test_what_older_words_cannot_say_is_refused(kind: str, newer: dict[str, Any], why: str):
    with pytest.raises(Refused, match=rf"^m's config.json is of transformers 5, .* cannot take it exactly: {why}"):
        translated(kind, {"model_type": kind, **_SIZES, **newer})


def test_a_folder_in_the_newer_form_is_loaded_as_it_was_meant(tmp_path: Path):
    import torch

    def inv_freq(**keys: Any) -> torch.Tensor:
        folder = tiny_qwen3(tmp_path / "model", sentence_transformers=False)
        path = folder / "config.json"
        raw = json.loads(path.read_text())
        path.write_text(json.dumps({key: raw[key] for key in raw if key not in ("rope_theta", "rope_scaling")}))
        edit_json(path, **keys)
        source = load.load(Recipe(str(folder), "feature-extraction", Path("bundle")))
        assert source.is_changed == ("rope_parameters" in keys)
        assert source.max_length == POSITIONS
        model = source.load_model()
        assert model.config.rope_theta == source.config.rope_theta
        assert model.config._attn_implementation == "eager"
        found: torch.Tensor = model.rotary_emb.inv_freq
        return found

    newer = inv_freq(rope_parameters=of(1e6))
    assert torch.equal(newer, inv_freq(rope_theta=1e6))
    assert not torch.equal(newer, inv_freq(rope_theta=1e4))
