"""Tokenizers for the zoo, made on the spot: WordPiece, byte pairs and Unigram pieces, in architectures' own classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

CORPUS = [
    "The quick brown fox jumps over the lazy dog while a small cat sleeps on the mat in the old house.",
    "My name is Sarah and I live in London, but my brother Wolfgang works for Acme Corporation in Berlin.",
    "What is the answer to a question of medium length that says little, again and again? Nobody knows it.",
    "The film was great, and the music even better; the end, however, disappointed most of us who came late.",
    "In 2019, 3.5 million people lived in Berlin. Paris is the capital of France, Madrid the capital of Spain.",
    "Ein Satz auf Deutsch, etwas länger als der erste; ὀδυσσεύς ΟΔΥΣΣΕΥΣ 机器学习 שלום مرحبا naïve café",
    "numbers 0 1 2 3 4 5 6 7 8 9 and letters a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D",
]
_VOCABULARIES: dict[str, Any] = json.loads(Path(__file__).with_name("vocabularies.json").read_text(encoding="utf-8"))
"""Trained once on CORPUS and kept: training WordPiece and Unigram breaks ties by chance, and every process would get
other tokens, another model and other answers."""
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ALBERT_TOKENS = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]


def word_pieces(special: Sequence[str], *, lowercase: bool = True) -> list[str]:
    """A WordPiece vocabulary: `special` tokens, and 255 pieces of CORPUS."""
    return [*special, *_VOCABULARIES["lowercase" if lowercase else "cased"]]


def word_piece_tokenizer(name: str, special: list[str] = BERT_TOKENS, **options: Any) -> Callable[[Path], Any]:
    """WordPiece, in the class `name`."""

    def make(folder: Path) -> Any:
        import transformers

        vocabulary = folder / "vocab.txt"
        pieces = word_pieces(special, lowercase=options.get("do_lower_case", True))
        vocabulary.write_text("\n".join(pieces) + "\n", encoding="utf-8")
        return getattr(transformers, name)(str(vocabulary), **options)

    return make


def byte_pairs(special: list[str]) -> Any:
    """Byte-level pieces of CORPUS, of the tokenizers library."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, 420, special_tokens=special, show_progress=False)
    return trained


def roberta_tokenizer(folder: Path) -> Any:
    """Byte-level pieces between <s> and </s>."""
    import transformers

    vocabulary, merges = byte_pairs(ROBERTA_TOKENS).save_model(str(folder))
    return transformers.RobertaTokenizerFast(vocabulary, merges)


def end_of_text_tokenizer(folder: Path) -> Any:
    """Byte pairs with one special token, behind every text: what decoders that embed texts have."""
    import transformers

    end = "<|endoftext|>"
    trained = byte_pairs([end])._tokenizer
    trained.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:0 {end}:0", special_tokens=[(end, 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained, pad_token=end, eos_token=end, model_input_names=["input_ids", "attention_mask"]
    )


def modernbert_tokenizer(folder: Path) -> Any:
    """Byte-level pieces between [CLS] and [SEP]."""
    import transformers

    trained = byte_pairs(BERT_TOKENS)._tokenizer
    trained.post_processor = template("[CLS]", "[SEP]", trained, "$B:0 [SEP]:0")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BERT_TOKENS, strict=True)),
    )


def sentence_pieces(name: str, special: list[str], begin: str, end: str, pair: str) -> Callable[[Path], Any]:
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
        tokenizer.post_processor = template(begin, end, tokenizer, pair)
        file = folder / "trained.json"
        tokenizer.save(str(file))
        made = getattr(transformers, name)(tokenizer_file=str(file))
        file.unlink()
        return made

    return make


def template(begin: str, end: str, tokenizer: Tokenizer, pair: str) -> Any:
    """`begin` (which may be empty), a text, `end`, and what a second text adds."""
    ids = [(token, tokenizer.token_to_id(token)) for token in (begin, end) if token]
    return processors.TemplateProcessing(
        single=f"{begin} $A {end}".strip(), pair=f"{begin} $A {end} {pair}".strip(), special_tokens=ids
    )
