"""Text models of nine architectures with any head: seeded random weights, tokenizers trained on the spot, no network.

Weights are drawn wide, so that scores of labels and tokens differ clearly and a wrong token, mask or segment shows.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from benchmarks.zoo.case import Case, Stages

HIDDEN = 32
POSITIONS = 128
CORPUS = [
    "The quick brown fox jumps over the lazy dog while a small cat sleeps on the mat in the old house.",
    "My name is Sarah and I live in London, but my brother Wolfgang works for Acme Corporation in Berlin.",
    "What is the answer to a question of medium length that says little, again and again? Nobody knows it.",
    "The film was great, and the music even better; the end, however, disappointed most of us who came late.",
    "In 2019, 3.5 million people lived in Berlin. Paris is the capital of France, Madrid the capital of Spain.",
    "Ein Satz auf Deutsch, etwas länger als der erste; ὀδυσσεύς ΟΔΥΣΣΕΥΣ 机器学习 שלום مرحبا naïve café",
    "numbers 0 1 2 3 4 5 6 7 8 9 and letters a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D",
]
_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
_VOCABULARIES: dict[str, Any] = json.loads(Path(__file__).with_name("vocabularies.json").read_text(encoding="utf-8"))
"""Trained once on CORPUS and kept: training WordPiece and Unigram breaks ties by chance, and every process would get
other tokens, another model and other answers."""
_BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def tiny_model(folder: Path, architecture: str, auto_class: str, *, seed: int = 0, **config: Any) -> Path:
    """Write a model of `architecture` with the head of `auto_class` to `folder`; `config` goes into its config."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the libraries, at the import of some architectures
        return _tiny_model(folder, architecture, auto_class, seed, config)


def _tiny_model(folder: Path, architecture: str, auto_class: str, seed: int, config: dict[str, Any]) -> Path:
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    kind, make_tokenizer, settings = _ARCHITECTURES[architecture]
    tokenizer = make_tokenizer(folder)
    tokenizer.model_max_length = POSITIONS
    settings = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **_SIZES, **settings, **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, auto_class).from_config(getattr(transformers, kind)(**settings))
    # Biases start at zero and normalisation at one; a graph that drops them would go unseen.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def word_pieces(special: Sequence[str], *, lowercase: bool = True) -> list[str]:
    """A WordPiece vocabulary: `special` tokens, and 255 pieces of CORPUS."""
    return [*special, *_VOCABULARIES["lowercase" if lowercase else "cased"]]


def _word_piece_tokenizer(name: str, special: list[str] = _BERT_TOKENS, **options: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        import transformers

        vocabulary = folder / "vocab.txt"
        pieces = word_pieces(special, lowercase=options.get("do_lower_case", True))
        vocabulary.write_text("\n".join(pieces) + "\n", encoding="utf-8")
        return getattr(transformers, name)(str(vocabulary), **options)

    return make


def _byte_pairs(special: list[str]) -> Any:
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, 420, special_tokens=special, show_progress=False)
    return trained


def _roberta(folder: Path) -> Any:
    import transformers

    vocabulary, merges = _byte_pairs(_ROBERTA_TOKENS).save_model(str(folder))
    return transformers.RobertaTokenizerFast(vocabulary, merges)


def _modernbert(folder: Path) -> Any:
    import transformers

    trained = _byte_pairs(_BERT_TOKENS)._tokenizer
    trained.post_processor = _template("[CLS]", "[SEP]", trained, "$B:0 [SEP]:0")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _BERT_TOKENS, strict=True)),
    )


def _sentence_pieces(name: str, special: list[str], begin: str, end: str, pair: str) -> Callable[[Path], Any]:
    """Unigram pieces as SentencePiece makes them, in the class of the architecture."""

    def make(folder: Path) -> Any:
        import transformers

        normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
        pieces = [(token, 0.0) for token in special] + [(piece, score) for piece, score in _VOCABULARIES["unigram"]]
        unknown = next(number for number, token in enumerate(special) if "unk" in token.lower())
        tokenizer = Tokenizer(Unigram(pieces, unk_id=unknown))
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        tokenizer.add_special_tokens(special)
        tokenizer.post_processor = _template(begin, end, tokenizer, pair)
        file = folder / "trained.json"
        tokenizer.save(str(file))
        made = getattr(transformers, name)(tokenizer_file=str(file))
        file.unlink()
        return made

    return make


def _template(begin: str, end: str, tokenizer: Tokenizer, pair: str) -> Any:
    ids = [(token, tokenizer.token_to_id(token)) for token in (begin, end)]
    return processors.TemplateProcessing(
        single=f"{begin} $A {end}", pair=f"{begin} $A {end} {pair}", special_tokens=ids
    )


_ALBERT_TOKENS = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
_ARCHITECTURES: dict[str, tuple[str, Callable[[Path], Any], dict[str, Any]]] = {
    "bert": ("BertConfig", _word_piece_tokenizer("BertTokenizerFast"), {"max_position_embeddings": POSITIONS}),
    "roberta": ("RobertaConfig", _roberta, {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}),
    "distilbert": (
        "DistilBertConfig",
        _word_piece_tokenizer("DistilBertTokenizerFast", do_lower_case=False),
        {"max_position_embeddings": POSITIONS, "dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "xlm-roberta": (
        "XLMRobertaConfig",
        _sentence_pieces("XLMRobertaTokenizerFast", _ROBERTA_TOKENS, "<s>", "</s>", "</s> $B:0 </s>:0"),
        {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
    ),
    "albert": (
        "AlbertConfig",
        _sentence_pieces("AlbertTokenizerFast", _ALBERT_TOKENS, "[CLS]", "[SEP]", "$B:1 [SEP]:1"),
        {"max_position_embeddings": POSITIONS, "embedding_size": 16},
    ),
    "electra": (
        "ElectraConfig",
        _word_piece_tokenizer("ElectraTokenizerFast"),
        {"max_position_embeddings": POSITIONS, "embedding_size": 16},
    ),
    "deberta-v2": (
        "DebertaV2Config",
        _sentence_pieces(
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
        _word_piece_tokenizer("MPNetTokenizerFast", ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]),
        {"max_position_embeddings": POSITIONS + 2},
    ),
    "modernbert": (
        "ModernBertConfig",
        _modernbert,
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


def _labelled(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}


HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "feature-extraction": ("AutoModel", {}),
    "sentence-similarity": ("AutoModel", {}),
    "text-classification": ("AutoModelForSequenceClassification", _labelled("good", "bad", "mixed", "none")),
    "text-ranking": ("AutoModelForSequenceClassification", {"num_labels": 1}),
    "zero-shot-classification": ("AutoModelForSequenceClassification", _labelled(*NLI)),
    "token-classification": ("AutoModelForTokenClassification", _labelled(*ENTITIES)),
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
