"""More encoders of texts, an architecture at a task or two: what `make test-zoo` adds to those of text.py.

Sizes are small, structures are the published ones: factorised embeddings, convolutions among the heads, grouped
projections, bottlenecks, rotary and disentangled positions, windows of attention.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.zoo.case import Case
from benchmarks.zoo.text import HEADS, POSITIONS, Spec, model_of, task_model
from benchmarks.zoo.vocabulary import (
    ALBERT_TOKENS,
    BERT_TOKENS,
    ROBERTA_TOKENS,
    byte_pairs,
    roberta_tokenizer,
    sentence_pieces,
    word_piece_tokenizer,
)

_POSITIONS: dict[str, Any] = {"max_position_embeddings": POSITIONS}
_BEHIND_PADDING: dict[str, Any] = {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
_BERT = word_piece_tokenizer("BertTokenizerFast")
_ALBERT_PAIR = ("[CLS]", "[SEP]", "$B:1 [SEP]:1")
_ROBERTA_PAIR = ("<s>", "</s>", "</s> $B:0 </s>:0")

_T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_T5_TOKENIZER = sentence_pieces("T5TokenizerFast", ["<pad>", "</s>", "<unk>"], "", "</s>", "$B:0 </s>:0")


def _deberta(folder: Path) -> Any:
    import transformers

    vocabulary, merges = byte_pairs(BERT_TOKENS).save_model(str(folder))
    return transformers.DebertaTokenizerFast(vocabulary, merges)


def _longformer(folder: Path) -> Any:
    import transformers

    vocabulary, merges = byte_pairs(ROBERTA_TOKENS).save_model(str(folder))
    return transformers.LongformerTokenizerFast(vocabulary, merges)


def _esm(folder: Path) -> Any:
    import transformers

    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCX", "<mask>"]))
    return transformers.EsmTokenizer(str(vocabulary))


SPECS: dict[str, Spec] = {
    "camembert": (
        "CamembertConfig",
        sentence_pieces("CamembertTokenizerFast", ROBERTA_TOKENS, *_ROBERTA_PAIR),
        _BEHIND_PADDING,
    ),
    "megatron-bert": ("MegatronBertConfig", _BERT, _POSITIONS),
    "big_bird": (
        "BigBirdConfig",
        sentence_pieces(
            "BigBirdTokenizerFast", ["<pad>", "<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"], *_ALBERT_PAIR
        ),
        {**_POSITIONS, "attention_type": "original_full"},
    ),
    "convbert": (
        "ConvBertConfig",
        word_piece_tokenizer("ConvBertTokenizerFast"),
        {**_POSITIONS, "embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 9},
    ),
    "squeezebert": (
        "SqueezeBertConfig",
        word_piece_tokenizer("SqueezeBertTokenizerFast"),
        {**_POSITIONS, "embedding_size": 32, "q_groups": 4, "k_groups": 4, "v_groups": 4, "post_attention_groups": 1},
    ),
    "mobilebert": (
        "MobileBertConfig",
        word_piece_tokenizer("MobileBertTokenizerFast"),
        {**_POSITIONS, "embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    ),
    "ibert": ("IBertConfig", roberta_tokenizer, {**_BEHIND_PADDING, "quant_mode": False}),
    "rembert": (
        "RemBertConfig",
        sentence_pieces("RemBertTokenizerFast", ALBERT_TOKENS, *_ALBERT_PAIR),
        {**_POSITIONS, "input_embedding_size": 16, "output_embedding_size": 24},
    ),
    "roformer": ("RoFormerConfig", _BERT, {**_POSITIONS, "embedding_size": 16, "rotary_value": False}),
    "splinter": (
        "SplinterConfig",
        word_piece_tokenizer("BertTokenizerFast", [*BERT_TOKENS, "[QUESTION]"]),
        {**_POSITIONS, "question_token_id": 5},
    ),
    "deberta": (
        "DebertaConfig",
        _deberta,
        {
            **_POSITIONS,
            "relative_attention": True,
            "max_relative_positions": 16,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "data2vec-text": ("Data2VecTextConfig", roberta_tokenizer, _BEHIND_PADDING),
    "longformer": ("LongformerConfig", _longformer, {**_BEHIND_PADDING, "attention_window": [16, 16]}),
    "nystromformer": (
        "NystromformerConfig",
        sentence_pieces("AlbertTokenizerFast", ALBERT_TOKENS, *_ALBERT_PAIR),
        {**_POSITIONS, "num_landmarks": 8, "segment_means_seq_len": 64, "conv_kernel_size": 5},
    ),
    "big_bird-sparse": (
        "BigBirdConfig",
        sentence_pieces(
            "BigBirdTokenizerFast", ["<pad>", "<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"], *_ALBERT_PAIR
        ),
        {**_POSITIONS, "attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 2},
    ),
    "ernie": ("ErnieConfig", _BERT, _POSITIONS),
    "xlm-roberta-xl": (
        "XLMRobertaXLConfig",
        sentence_pieces("XLMRobertaTokenizerFast", ROBERTA_TOKENS, *_ROBERTA_PAIR),
        _BEHIND_PADDING,
    ),
    "xlm": (
        "XLMConfig",
        _BERT,
        {"emb_dim": 32, "n_layers": 2, "n_heads": 4, **_POSITIONS},
    ),
    "flaubert": (
        "FlaubertConfig",
        _BERT,
        {"emb_dim": 32, "n_layers": 2, "n_heads": 4, **_POSITIONS},
    ),
    "luke": ("LukeConfig", roberta_tokenizer, {**_BEHIND_PADDING, "entity_vocab_size": 10, "entity_emb_size": 16}),
    "roc_bert": ("RoCBertConfig", _BERT, {**_POSITIONS, "enable_pronunciation": False, "enable_shape": False}),
    "xlnet": ("XLNetConfig", _BERT, {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    "roberta-prelayernorm": ("RobertaPreLayerNormConfig", roberta_tokenizer, _BEHIND_PADDING),
    "fnet": ("FNetConfig", sentence_pieces("AlbertTokenizerFast", ALBERT_TOKENS, *_ALBERT_PAIR), _POSITIONS),
    "esm": (
        "EsmConfig",
        _esm,
        {**_POSITIONS, "position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 25},
    ),
    "layoutlm": ("LayoutLMConfig", word_piece_tokenizer("LayoutLMTokenizerFast"), _POSITIONS),
    "t5": ("T5Config", _BERT, _T5),
    "t5-encoder": ("T5Config", _T5_TOKENIZER, _T5),
    "mt5-encoder": ("MT5Config", _T5_TOKENIZER, _T5),
    "umt5-encoder": ("UMT5Config", _T5_TOKENIZER, _T5),
    "nezha": ("NezhaConfig", _BERT, {**_POSITIONS, "max_relative_position": 16}),
    "layoutlmv3": ("LayoutLMv3Config", roberta_tokenizer, _BEHIND_PADDING),
    "xmod": (
        "XmodConfig",
        sentence_pieces("XLMRobertaTokenizerFast", ROBERTA_TOKENS, *_ROBERTA_PAIR),
        {**_BEHIND_PADDING, "languages": ("en_XX", "de_DE"), "default_language": "en_XX"},
    ),
    "bart": (
        "BartConfig",
        roberta_tokenizer,
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4},
    ),
}

# Architecture -> task, and what the row says.
_TASKS: dict[str, tuple[str, str]] = {
    "camembert": ("fill-mask", ""),
    "megatron-bert": ("text-classification", "normalises in front of each part"),
    "big_bird": ("question-answering", "attention_type original_full"),
    "squeezebert": ("text-ranking", "grouped convolutions for projections"),
    "ibert": ("feature-extraction", "quant_mode off"),
    "rembert": ("feature-extraction", "embeddings in and out of different sizes"),
    "roformer": ("sparse-encoder", "rotary positions"),
    "splinter": ("feature-extraction", ""),
    "deberta": ("zero-shot-classification", "disentangled relative positions"),
    "data2vec-text": ("sentence-similarity", ""),
    "ernie": ("text-classification", ""),
    "xlm-roberta-xl": ("feature-extraction", "normalises in front of each part"),
    "roberta-prelayernorm": ("text-ranking", "normalises in front of each part"),
    "convbert": ("token-classification", "heads of convolutions, which see no padding in a bundle"),
    "mobilebert": ("text-classification", "three tokens embedded at a time, which sees no padding in a bundle"),
    "esm": ("fill-mask", "proteins; rotary positions, token_dropout"),
    "t5-encoder": ("feature-extraction", "the encoder alone, as in sentence-t5; positions in buckets"),
    "mt5-encoder": ("feature-extraction", "the encoder alone; gated, positions in buckets"),
    "umt5-encoder": ("feature-extraction", "the encoder alone; every layer with buckets of its own"),
    "nezha": ("fill-mask", "relative positions in keys and values"),
    "xlm": ("text-classification", ""),
    "flaubert": ("fill-mask", ""),
    "luke": ("feature-extraction", "texts alone, without entities"),
    "roc_bert": ("feature-extraction", "without pronunciation and shape"),
}
_REFUSED: dict[str, tuple[str, str, str]] = {
    "big_bird-sparse": (
        "feature-extraction",
        "set attention_type to original_full",
        "from (5 + 2 x num_random_blocks) x block_size tokens on",
    ),
    "nystromformer": (
        "feature-extraction",
        "cannot be traced, by optimum: shape",
        "it takes rows of segment_means_seq_len tokens only",
    ),
    "fnet": (
        "fill-mask",
        "answers differ from the reference",
        "Fourier transforms over the whole row, padding included",
    ),
    "xlnet": ("text-classification", "cannot be traced by torch.export", "positions of its own kind"),
    "longformer": ("feature-extraction", "it reads global_attention_mask, not just text", ""),
    "xmod": ("fill-mask", "Could not guard on data-dependent expression", "an adapter a language"),
    "layoutlmv3": (
        "token-classification",
        "it reads bbox, pixel_values, not just text",
        "places on a page, and its image",
    ),
    "layoutlm": ("feature-extraction", "it reads bbox, not just text", "places on a page"),
    "t5": ("text-classification", "it is an encoder with a decoder", ""),
    "bart": ("text-classification", "it is an encoder with a decoder", ""),
}


def model(folder: Path, task: str, architecture: str) -> Path:
    """Write a small model of `architecture` for `task` to `folder`."""
    auto_class, settings = HEADS[task]
    return model_of(folder, SPECS[architecture], auto_class, **settings)


MORE = [
    Case(
        "question-answering",
        "modernbert-span",
        partial(task_model, task="question-answering", architecture="modernbert"),
        note="modernbert's head for spans, which optimum does not know; normalisation without a bias",
    ),
    *(
        Case(task, name, partial(model, task=task, architecture=name), note=note)
        for name, (task, note) in _TASKS.items()
    ),
    *(
        Case(task, name, partial(model, task=task, architecture=name), refused=words, note=why)
        for name, (task, words, why) in _REFUSED.items()
    ),
]
