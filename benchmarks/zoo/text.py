"""Text models of nine architectures with any head: seeded random weights, tokenizers trained on the spot, no network.

Weights are drawn wide, so that scores of labels and tokens differ clearly and a wrong token, mask or segment shows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.zoo.case import Case, Stages, labelled, spread
from benchmarks.zoo.vocabulary import (
    ALBERT_TOKENS,
    ROBERTA_TOKENS,
    modernbert_tokenizer,
    roberta_tokenizer,
    sentence_pieces,
    word_piece_tokenizer,
)

HIDDEN = 32
POSITIONS = 128
_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


Spec: TypeAlias = tuple[str, Callable[[Path], Any], dict[str, Any]]
"""Name of the config class, what makes the tokenizer in a folder, and what the config says beside _SIZES."""


def tiny_model(folder: Path, architecture: str, auto_class: str, *, seed: int = 0, **config: Any) -> Path:
    """Write a model of `architecture` with the head of `auto_class` to `folder`; `config` goes into its config."""
    return model_of(folder, _ARCHITECTURES[architecture], auto_class, seed=seed, **config)


def model_of(folder: Path, spec: Spec, auto_class: str, *, seed: int = 0, **config: Any) -> Path:
    """Write a model of `spec`, as `tiny_model` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the libraries, at the import of some architectures
        return _model_of(folder, spec, auto_class, seed, config)


def _model_of(folder: Path, spec: Spec, auto_class: str, seed: int, config: dict[str, Any]) -> Path:
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    kind, make_tokenizer, settings = spec
    tokenizer = make_tokenizer(folder)
    tokenizer.model_max_length = POSITIONS
    settings = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **_SIZES, **settings, **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, auto_class).from_config(getattr(transformers, kind)(**settings))
    spread(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_ARCHITECTURES: dict[str, Spec] = {
    "bert": ("BertConfig", word_piece_tokenizer("BertTokenizerFast"), {"max_position_embeddings": POSITIONS}),
    "roberta": ("RobertaConfig", roberta_tokenizer, {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}),
    "distilbert": (
        "DistilBertConfig",
        word_piece_tokenizer("DistilBertTokenizerFast", do_lower_case=False),
        {"max_position_embeddings": POSITIONS, "dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "xlm-roberta": (
        "XLMRobertaConfig",
        sentence_pieces("XLMRobertaTokenizerFast", ROBERTA_TOKENS, "<s>", "</s>", "</s> $B:0 </s>:0"),
        {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
    ),
    "albert": (
        "AlbertConfig",
        sentence_pieces("AlbertTokenizerFast", ALBERT_TOKENS, "[CLS]", "[SEP]", "$B:1 [SEP]:1"),
        {"max_position_embeddings": POSITIONS, "embedding_size": 16},
    ),
    "electra": (
        "ElectraConfig",
        word_piece_tokenizer("ElectraTokenizerFast"),
        {"max_position_embeddings": POSITIONS, "embedding_size": 16},
    ),
    "deberta-v2": (
        "DebertaV2Config",
        sentence_pieces(
            "DebertaV2TokenizerFast", ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], "[CLS]", "[SEP]", "$B:1 [SEP]:1"
        ),
        # As in the published models: relative positions in log buckets, shared with the content's projections.
        {
            "max_position_embeddings": POSITIONS,
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": "p2c|c2p",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "mpnet": (
        "MPNetConfig",
        word_piece_tokenizer("MPNetTokenizerFast", ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]),
        {"max_position_embeddings": POSITIONS + 2},
    ),
    "modernbert": (
        "ModernBertConfig",
        modernbert_tokenizer,
        {
            "max_position_embeddings": POSITIONS,
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "reference_compile": False,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    ),
}
ARCHITECTURES = tuple(_ARCHITECTURES)

NLI = ("contradiction", "neutral", "entailment")
ENTITIES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")


HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "feature-extraction": ("AutoModel", {}),
    "sentence-similarity": ("AutoModel", {}),
    "text-classification": ("AutoModelForSequenceClassification", labelled("good", "bad", "mixed", "none")),
    "text-ranking": ("AutoModelForSequenceClassification", {"num_labels": 1}),
    "zero-shot-classification": ("AutoModelForSequenceClassification", labelled(*NLI)),
    "token-classification": ("AutoModelForTokenClassification", labelled(*ENTITIES)),
    "question-answering": ("AutoModelForQuestionAnswering", {}),
    "fill-mask": ("AutoModelForMaskedLM", {}),
    "sparse-encoder": ("AutoModelForMaskedLM", {}),
}
"""Task -> the class of its models, and what their config says beside sizes."""


def task_model(folder: Path, task: str, architecture: str, **config: Any) -> Path:
    """Write a small model of `architecture` for `task` to `folder`."""
    auto_class, settings = HEADS[task]
    return tiny_model(folder, architecture, auto_class, **{**settings, **config})


def _no_exporter(task: str, architecture: str) -> bool:
    # optimum 2.1 has no graph of ModernBERT's span head.
    return (task, architecture) == ("question-answering", "modernbert")


CASES = [
    Case(task, architecture, partial(task_model, task=task, architecture=architecture))
    for task in HEADS
    for architecture in ARCHITECTURES
    if not _no_exporter(task, architecture)
]

# As large as all-MiniLM-L6-v2, on which whatever is not the engine shows more than on larger models.
_MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "initializer_range": 0.02,
    "vocab_size": 30522,
}
_TEXT = "The quick brown fox jumps over the lazy dog while a small cat sleeps on the mat in London."
_PAYLOADS: dict[str, dict[str, Any]] = {
    "feature-extraction": {"text": _TEXT},
    "sentence-similarity": {"source_sentence": _TEXT, "sentences": [_TEXT.lower()]},
    "text-classification": {"text": _TEXT},
    "text-ranking": {"query": "Where does the cat sleep?", "documents": [_TEXT]},
    "zero-shot-classification": {"text": _TEXT, "candidate_labels": ["animals"]},
    "token-classification": {"text": _TEXT, "aggregation_strategy": "simple"},
    "question-answering": {"question": "Where does the cat sleep?", "context": _TEXT},
    "fill-mask": {"text": _TEXT.replace("dog", "[MASK]")},
    "sparse-encoder": {"text": _TEXT},
}
_ACTIVE = 200  # tokens with a weight above zero: what trained SPLADE models give a sentence


def _sparse_model(folder: Path) -> Path:
    """A masked language model whose bias leaves as few tokens above zero as a trained one does."""
    import torch
    import transformers

    task_model(folder, "sparse-encoder", "bert", **_MINILM)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        largest = model(**tokenizer(_TEXT, return_tensors="pt")).logits[0].max(0).values
        model.cls.predictions.bias -= largest.sort(descending=True).values[_ACTIVE]
    model.save_pretrained(folder)
    return folder


STAGES = [
    Stages(
        task,
        "BERT of MiniLM-L6's size",
        _sparse_model if task == "sparse-encoder" else partial(task_model, task=task, architecture="bert", **_MINILM),
        payload,
    )
    for task, payload in _PAYLOADS.items()
]
