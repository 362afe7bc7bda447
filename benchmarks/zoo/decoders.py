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

_END = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_ROTARY: dict[str, Any] = {"max_position_embeddings": POSITIONS, **_END}
_GROUPED: dict[str, Any] = {**_ROTARY, "num_key_value_heads": 2, "head_dim": 8}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": POSITIONS, **_END}


def _spec(config: str, settings: dict[str, Any]) -> Spec:
    return f"{config}Config", end_of_text_tokenizer, settings


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

SPECS: dict[str, Spec] = {
    "qwen2": _spec("Qwen2", _GROUPED),
    "qwen3": _spec("Qwen3", _GROUPED),
    "qwen3_moe": _spec(
        "Qwen3Moe", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    ),
    "deepseek_v3": _spec("DeepseekV3", _DEEPSEEK),
    "olmoe": _spec("Olmoe", {**_GROUPED, **_EXPERTS}),
    "granitemoe": _spec("GraniteMoe", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "glm4": _spec("Glm4", _GROUPED),
    "ernie4_5": _spec("Ernie4_5", _GROUPED),
    "seed_oss": _spec("SeedOss", _GROUPED),
    "hunyuan_v1_dense": _spec("HunYuanDenseV1", _GROUPED),
    "persimmon": _spec("Persimmon", _ROTARY),
    "vaultgemma": _spec("VaultGemma", {**_GROUPED, "sliding_window": 24, "query_pre_attn_scalar": 8}),
    "openai-gpt": _spec("OpenAIGPT", {**_GPT2, "afn": "gelu"}),
    "bert-generation": _spec("BertGeneration", _ROTARY),
    "gpt_neox_japanese": _spec("GPTNeoXJapanese", _ROTARY),
    "llama": _spec("Llama", _GROUPED),
    "mistral": _spec("Mistral", {**_GROUPED, "sliding_window": 24}),
    "gemma": _spec("Gemma", {**_ROTARY, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma2": _spec("Gemma2", {**_GROUPED, "sliding_window": 24, "query_pre_attn_scalar": 8}),
    "gemma3_text": _spec("Gemma3Text", {**_GROUPED, "sliding_window": 24, "query_pre_attn_scalar": 8}),
    "embedding_gemma": _spec(
        "Gemma3Text",
        {**_GROUPED, "sliding_window": 24, "query_pre_attn_scalar": 8, "use_bidirectional_attention": True},
    ),
    "phi": _spec("Phi", {**_ROTARY, "partial_rotary_factor": 0.5}),
    "phi3": _spec("Phi3", {**_GROUPED, "original_max_position_embeddings": POSITIONS}),
    "falcon": _spec("Falcon", {**_END, "multi_query": True, "parallel_attn": True, "bias": False}),
    "stablelm": _spec("StableLm", {**_ROTARY, "num_key_value_heads": 2, "partial_rotary_factor": 0.5}),
    "olmo": _spec("Olmo", {**_ROTARY, "num_key_value_heads": 2}),
    "olmo2": _spec("Olmo2", {**_ROTARY, "num_key_value_heads": 2}),
    "granite": _spec("Granite", {**_ROTARY, "num_key_value_heads": 2, "attention_multiplier": 0.3}),
    "cohere": _spec("Cohere", {**_ROTARY, "num_key_value_heads": 2}),
    "smollm3": _spec("SmolLM3", {**_GROUPED, "no_rope_layers": [1, 0], "layer_types": None}),
    "starcoder2": _spec("Starcoder2", {**_ROTARY, "num_key_value_heads": 2, "sliding_window": None}),
    "gpt2": _spec("GPT2", _GPT2),
    "gpt_bigcode": _spec("GPTBigCode", {**_GPT2, "multi_query": True}),
    "gptj": _spec("GPTJ", {**_GPT2, "rotary_dim": 4}),
    "codegen": _spec("CodeGen", {**_GPT2, "rotary_dim": 4}),
    "gpt_neo": _spec(
        "GPTNeo",
        {**_ROTARY, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 24},
    ),
    "gpt_neox": _spec("GPTNeoX", {**_ROTARY, "rotary_pct": 0.5}),
    "opt": _spec("OPT", {**_ROTARY, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": _spec("Bloom", {**_END, "n_layer": 2, "n_head": 4}),
    "cohere2": _spec("Cohere2", {**_GROUPED, "sliding_window": 24}),
    "glm": _spec("Glm", _GROUPED),
    "olmo3": _spec("Olmo3", {**_ROTARY, "num_key_value_heads": 2, "sliding_window": 24}),
    "ministral": _spec("Ministral", {**_GROUPED, "sliding_window": 24}),
    "exaone4": _spec("Exaone4", {**_GROUPED, "sliding_window": 24}),
    "gpt_oss": _spec("GptOss", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24}),
    "nemotron": _spec("Nemotron", {**_ROTARY, "num_key_value_heads": 2}),
    "arcee": _spec("Arcee", _GROUPED),
    "helium": _spec("Helium", _GROUPED),
    "lfm2": _spec("Lfm2", {**_GROUPED, "full_attn_idxs": [1]}),
    "modernbert-decoder": _spec(
        "ModernBertDecoder",
        {
            **_END,
            "max_position_embeddings": POSITIONS,
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 0,
            "sep_token_id": 0,
        },
    ),
    "biogpt": _spec("BioGpt", {"max_position_embeddings": POSITIONS, **_END}),
    "xglm": _spec(
        "XGLM",
        {
            **_END,
            "d_model": 32,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 64,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "mixtral": _spec("Mixtral", {**_GROUPED, "num_local_experts": 4}),
    "mpt": _spec("Mpt", {**_END, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": POSITIONS}),
}

# Architecture -> task, and what the row says.
_TASKS: dict[str, tuple[str, str]] = {
    "deepseek_v3": ("feature-extraction", "queries, keys and values squeezed; experts behind the first layer"),
    "olmoe": ("feature-extraction", "two experts of four a token"),
    "granitemoe": ("feature-extraction", "two experts of four a token"),
    "glm4": ("feature-extraction", ""),
    "ernie4_5": ("feature-extraction", ""),
    "seed_oss": ("feature-extraction", ""),
    "hunyuan_v1_dense": ("feature-extraction", ""),
    "persimmon": ("feature-extraction", "half of a head rotates"),
    "vaultgemma": ("feature-extraction", "sees 24 tokens back"),
    "openai-gpt": ("text-classification", "normalises behind each part"),
    "bert-generation": ("feature-extraction", ""),
    "gpt_neox_japanese": ("feature-extraction", ""),
    "qwen2": ("text-classification", "two heads of keys for four of queries"),
    "qwen3": ("feature-extraction", "queries and keys normalised"),
    "qwen3_moe": ("feature-extraction", "two experts of four a token"),
    "llama": ("feature-extraction", "two heads of keys for four of queries"),
    "mistral": ("feature-extraction", "sees 24 tokens back"),
    "gemma": ("feature-extraction", "one head of keys"),
    "gemma2": ("feature-extraction", "capped scores; every second layer sees 24 tokens back"),
    "gemma3_text": ("feature-extraction", "most layers see 24 tokens back, with angles of their own"),
    "embedding_gemma": ("feature-extraction", "gemma3_text that looks both ways"),
    "phi": ("feature-extraction", "half of a head rotates"),
    "phi3": ("feature-extraction", ""),
    "falcon": ("feature-extraction", "attention beside the feed-forward part"),
    "stablelm": ("feature-extraction", "half of a head rotates"),
    "olmo": ("feature-extraction", "normalisation without weights"),
    "olmo2": ("feature-extraction", ""),
    "granite": ("feature-extraction", ""),
    "cohere": ("feature-extraction", ""),
    "smollm3": ("feature-extraction", "every second layer without positions"),
    "starcoder2": ("feature-extraction", ""),
    "gpt2": ("feature-extraction", "learned positions"),
    "gpt_bigcode": ("feature-extraction", "one head of keys"),
    "gptj": ("feature-extraction", ""),
    "codegen": ("feature-extraction", ""),
    "gpt_neo": ("feature-extraction", "every second layer sees 24 tokens back"),
    "gpt_neox": ("feature-extraction", "half of a head rotates"),
    "opt": ("feature-extraction", "positions counted from the mask"),
    "bloom": ("feature-extraction", "ALiBi"),
    "mpt": ("feature-extraction", "ALiBi"),
    "cohere2": ("feature-extraction", "sees 24 tokens back"),
    "glm": ("feature-extraction", ""),
    "olmo3": ("feature-extraction", "sees 24 tokens back"),
    "ministral": ("feature-extraction", "sees 24 tokens back"),
    "exaone4": ("feature-extraction", ""),
    "gpt_oss": ("feature-extraction", "experts; a sink in every head"),
    "nemotron": ("feature-extraction", ""),
    "arcee": ("feature-extraction", ""),
    "helium": ("feature-extraction", ""),
    "lfm2": ("feature-extraction", "a convolution in place of every second attention"),
    "modernbert-decoder": ("feature-extraction", "normalisation without a bias"),
    "biogpt": ("feature-extraction", ""),
    "xglm": ("feature-extraction", ""),
}


def model(folder: Path, task: str, architecture: str) -> Path:
    """Write a small model of `architecture` for `task` to `folder`."""
    auto_class, settings = HEADS[task]
    return model_of(folder, SPECS[architecture], auto_class, **settings)


MORE = [
    *(
        Case(
            task,
            name,
            partial(model, task=task, architecture=name),
            {"pooling": "lasttoken"} if task == "feature-extraction" else {},
            note=note,
        )
        for name, (task, note) in _TASKS.items()
    ),
    Case(
        "feature-extraction",
        "mixtral",
        partial(model, task="feature-extraction", architecture="mixtral"),
        {"pooling": "lasttoken"},
        refused="Could not guard on data-dependent expression",
        note="which experts run depends on the tokens",
    ),
]
