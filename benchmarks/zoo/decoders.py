"""Decoders as encoders of texts, an architecture each: causal attention, the last token speaks for a text.

Sizes are small, structures are the published ones: grouped and single key heads, rotary positions on a part of a head,
ALiBi, learned positions, sliding windows, capped scores, experts.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.zoo.case import Case
from benchmarks.zoo.text import HEADS, POSITIONS, Spec, model_of
from benchmarks.zoo.vocabulary import end_of_text_tokenizer

_VECTORS = "feature-extraction"
_END: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_ROTARY: dict[str, Any] = {"max_position_embeddings": POSITIONS, **_END}
_GROUPED: dict[str, Any] = {**_ROTARY, "num_key_value_heads": 2, "head_dim": 8}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": POSITIONS, **_END}

SPECS: dict[str, Spec] = {}
"""Architecture -> what it is made of."""


def _case(name: str, config: str, note: str = "", *, task: str = _VECTORS, refused: str = "", **settings: Any) -> Case:
    """The architecture of transformers' `config`; `settings` are what it says beside sizes."""
    SPECS[name] = f"{config}Config", end_of_text_tokenizer, settings
    options = {"pooling": "lasttoken"} if task == _VECTORS else {}
    return Case(task, name, partial(model, task=task, architecture=name), options, note, refused)


def model(folder: Path, task: str, architecture: str) -> Path:
    """Write a small model of `architecture` for `task` to `folder`."""
    auto_class, settings = HEADS[task]
    return model_of(folder, SPECS[architecture], auto_class, **settings)


_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
_DEEPSEEK: dict[str, Any] = {
    **_ROTARY,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
}
_LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_WINDOW: dict[str, Any] = {**_GROUPED, "sliding_window": 24}
_GEMMA: dict[str, Any] = {**_WINDOW, "query_pre_attn_scalar": 8}
_PAIRS: dict[str, Any] = {**_ROTARY, "num_key_value_heads": 2}

MORE = [
    _case("qwen2", "Qwen2", "two heads of keys for four of queries", task="text-classification", **_GROUPED),
    _case("qwen3", "Qwen3", "queries and keys normalised", **_GROUPED),
    _case("qwen3_moe", "Qwen3Moe", "two experts of four a token", **_GROUPED, **_EXPERTS, moe_intermediate_size=32),
    _case(
        "deepseek_v3", "DeepseekV3", "queries, keys and values squeezed; experts behind the first layer", **_DEEPSEEK
    ),
    _case("olmoe", "Olmoe", "two experts of four a token", **_GROUPED, **_EXPERTS),
    _case("granitemoe", "GraniteMoe", "two experts of four a token", **_GROUPED, **_LOCAL),
    _case("glm4", "Glm4", **_GROUPED),
    _case("ernie4_5", "Ernie4_5", **_GROUPED),
    _case("seed_oss", "SeedOss", **_GROUPED),
    _case("hunyuan_v1_dense", "HunYuanDenseV1", **_GROUPED),
    _case("persimmon", "Persimmon", "half of a head rotates", **_ROTARY),
    _case("vaultgemma", "VaultGemma", "sees 24 tokens back", **_GEMMA),
    _case("openai-gpt", "OpenAIGPT", "normalises behind each part", task="text-classification", **_GPT2, afn="gelu"),
    _case("bert-generation", "BertGeneration", **_ROTARY),
    _case("gpt_neox_japanese", "GPTNeoXJapanese", **_ROTARY),
    _case("llama", "Llama", "two heads of keys for four of queries", **_GROUPED),
    _case("mistral", "Mistral", "sees 24 tokens back", **_WINDOW),
    _case("gemma", "Gemma", "one head of keys", **_ROTARY, num_key_value_heads=1, head_dim=8),
    _case("gemma2", "Gemma2", "capped scores; every second layer sees 24 tokens back", **_GEMMA),
    _case("gemma3_text", "Gemma3Text", "most layers see 24 tokens back, with angles of their own", **_GEMMA),
    _case(
        "embedding_gemma", "Gemma3Text", "gemma3_text that looks both ways", **_GEMMA, use_bidirectional_attention=True
    ),
    _case("phi", "Phi", "half of a head rotates", **_ROTARY, partial_rotary_factor=0.5),
    _case("phi3", "Phi3", **_GROUPED, original_max_position_embeddings=POSITIONS),
    _case(
        "falcon",
        "Falcon",
        "attention beside the feed-forward part",
        **_END,
        multi_query=True,
        parallel_attn=True,
        bias=False,
    ),
    _case("stablelm", "StableLm", "half of a head rotates", **_PAIRS, partial_rotary_factor=0.5),
    _case("olmo", "Olmo", "normalisation without weights", **_PAIRS),
    _case("olmo2", "Olmo2", **_PAIRS),
    _case("granite", "Granite", **_PAIRS, attention_multiplier=0.3),
    _case("cohere", "Cohere", **_PAIRS),
    _case(
        "smollm3",
        "SmolLM3",
        "every second layer without positions",
        **_GROUPED,
        no_rope_layers=[1, 0],
        layer_types=None,
    ),
    _case("starcoder2", "Starcoder2", **_PAIRS, sliding_window=None),
    _case("gpt2", "GPT2", "learned positions", **_GPT2),
    _case("gpt_bigcode", "GPTBigCode", "one head of keys", **_GPT2, multi_query=True),
    _case("gptj", "GPTJ", **_GPT2, rotary_dim=4),
    _case("codegen", "CodeGen", **_GPT2, rotary_dim=4),
    _case(
        "gpt_neo",
        "GPTNeo",
        "every second layer sees 24 tokens back",
        **_ROTARY,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=24,
    ),
    _case("gpt_neox", "GPTNeoX", "half of a head rotates", **_ROTARY, rotary_pct=0.5),
    _case("opt", "OPT", "positions counted from the mask", **_ROTARY, ffn_dim=64, word_embed_proj_dim=32),
    _case("bloom", "Bloom", "ALiBi", **_END, n_layer=2, n_head=4),
    _case("cohere2", "Cohere2", "sees 24 tokens back", **_WINDOW),
    _case("glm", "Glm", **_GROUPED),
    _case("olmo3", "Olmo3", "sees 24 tokens back", **_PAIRS, sliding_window=24),
    _case("ministral", "Ministral", "sees 24 tokens back", **_WINDOW),
    _case("exaone4", "Exaone4", **_WINDOW),
    _case("gpt_oss", "GptOss", "experts; a sink in every head", **_GROUPED, **_LOCAL, sliding_window=24),
    _case("nemotron", "Nemotron", **_PAIRS),
    _case("arcee", "Arcee", **_GROUPED),
    _case("helium", "Helium", **_GROUPED),
    _case("lfm2", "Lfm2", "a convolution in place of every second attention", **_GROUPED, full_attn_idxs=[1]),
    _case(
        "modernbert-decoder",
        "ModernBertDecoder",
        "normalisation without a bias",
        **_END,
        max_position_embeddings=POSITIONS,
        local_attention=16,
        global_attn_every_n_layers=2,
        cls_token_id=0,
        sep_token_id=0,
    ),
    _case("biogpt", "BioGpt", max_position_embeddings=POSITIONS, **_END),
    _case(
        "xglm",
        "XGLM",
        **_END,
        d_model=32,
        num_layers=2,
        attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=POSITIONS,
    ),
    _case(
        "mixtral",
        "Mixtral",
        "which experts run depends on the tokens",
        refused="Could not guard on data-dependent expression",
        **_GROUPED,
        num_local_experts=4,
    ),
    _case("mpt", "Mpt", "ALiBi", **_END, d_model=32, n_layers=2, n_heads=4, max_seq_len=POSITIONS),
]
