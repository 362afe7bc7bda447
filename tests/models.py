"""Hugging Face models small enough to export in a second: random weights, a tokenizer trained on the spot, no network.

Weights are drawn wider than usual, so that every token counts and a wrong pooling is far from the right one. torch is
imported when a model is made, so that a test that writes only JSON files starts fast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from benchmarks.zoo.vocabulary import word_pieces

HIDDEN = 32
POSITIONS = 128
_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
_CORPUS = [
    "the quick brown fox jumps over the lazy dog while a small cat sleeps on the mat",
    "numbers 0 1 2 3 4 5 6 7 8 9 and letters a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "what is the answer to a question of medium length that says little, again and again?",
    "ein Satz auf Deutsch, etwas länger als der erste; ὀδυσσεύς ΟΔΥΣΣΕΥΣ 机器学习 שלום مرحبا",
]


def tiny_bert(folder: Path, **options: Any) -> Path:
    """WordPiece, [CLS] and [SEP], segments, absolute positions."""
    import transformers

    tokenizer = transformers.BertTokenizerFast(_word_pieces(folder, "[PAD] [UNK] [CLS] [SEP] [MASK]"))
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **_SIZES)
    return _write(folder, transformers.BertModel, config, tokenizer, **options)


def tiny_roberta(folder: Path, **options: Any) -> Path:
    """Byte-level BPE, no segments, positions that begin behind the index of padding."""
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        _CORPUS, 400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(folder))
    tokenizer = transformers.RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=POSITIONS + 2, type_vocab_size=1, **_SIZES
    )
    return _write(folder, transformers.RobertaModel, config, tokenizer, **options)


def tiny_mpnet(folder: Path, **options: Any) -> Path:
    """WordPiece with other special tokens, relative positions beside absolute ones."""
    import transformers

    tokenizer = transformers.MPNetTokenizerFast(_word_pieces(folder, "<s> <pad> </s> [UNK] <mask>"))
    config = transformers.MPNetConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS + 2, **_SIZES)
    return _write(folder, transformers.MPNetModel, config, tokenizer, **options)


def tiny_qwen3(folder: Path, **options: Any) -> Path:
    """A decoder: causal attention, rotary positions, an end-of-text token; pools the last token."""
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(_CORPUS, 400, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    )
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, num_key_value_heads=2, head_dim=8, **_SIZES
    )
    return _write(folder, transformers.Qwen3Model, config, tokenizer, **{"pooling": "lasttoken", **options})


def lora(base: Path, folder: Path, seed: int = 1, auto_class: str = "AutoModel", **options: Any) -> Path:
    """An adapter for the model in `base`, whose weights are drawn, both matrices, so that it changes every answer."""
    import peft
    import torch
    import transformers

    model = getattr(transformers, auto_class).from_pretrained(base)
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["query", "value"], **options})
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(str(folder))
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path`, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON object in place."""
    write_json(path, {**json.loads(path.read_text()), **changes})


def without_processor(folder: Path) -> Path:
    """The model in `folder`, whose tokenizer then adds no special tokens, nor says which of two texts a token is of."""
    edit_json(folder / "tokenizer.json", post_processor=None)
    return folder


def write_sentence_files(
    folder: Path, pooling: str = "mean", normalize: bool = True, max_length: int = 32, **settings: Any
) -> None:
    """The files of a sentence-transformers model, in the form that most models on the Hub have."""
    kinds = ["Transformer", "Pooling", "Normalize"] if normalize else ["Transformer", "Pooling"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    key = {"cls": "cls_token", "lasttoken": "lasttoken"}.get(pooling, f"{pooling}_tokens")
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": HIDDEN, f"pooling_mode_{key}": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"__version__": {}, **settings})


def _word_pieces(folder: Path, special_tokens: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(word_pieces(special_tokens.split())) + "\n", encoding="utf-8")
    return str(vocabulary)


def _write(
    folder: Path,
    model_class: Any,
    config: Any,
    tokenizer: Any,
    *,
    pooling: str = "mean",
    normalize: bool = True,
    sentence_transformers: bool = True,
    seed: int = 0,
    **settings: Any,
) -> Path:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
    # Biases start at zero and normalisation at one; a graph that drops them would go unseen.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    tokenizer.model_max_length = POSITIONS
    tokenizer.save_pretrained(folder)
    if sentence_transformers:
        write_sentence_files(folder, pooling, normalize, **settings)
    return folder
