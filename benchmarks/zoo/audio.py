"""Small models on sound: seeded random weights, feature extractors and CTC vocabularies made on the spot, no network.

Weights are drawn wide, so that tokens change from frame to frame and labels differ clearly.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.zoo.case import Case, Stages, labelled, spread
from engine.audio.example import recording

RATE = 16_000
LABELS = ["yes", "no", "up", "down", "left", "right", "stop"]
_NAMES = labelled(*LABELS)
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ", "<noise>", "."]
_CONVOLUTIONS = {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
    **_CONVOLUTIONS,
}
_LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SPEECH: dict[str, tuple[str, dict[str, Any], bool]] = {
    "wav2vec2": ("Wav2Vec2", {}, False),
    "wav2vec2-large": ("Wav2Vec2", _LAYER_NORM, True),
    "hubert": ("Hubert", {}, False),
    "unispeech": ("UniSpeech", {}, False),
    "unispeech-sat": ("UniSpeechSat", _LAYER_NORM, True),
    "wavlm": ("WavLM", {}, False),
    "data2vec-audio": ("Data2VecAudio", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}, False),
    "wav2vec2-conformer": ("Wav2Vec2Conformer", {**_LAYER_NORM, "position_embeddings_type": "relative"}, True),
    "wav2vec2-conformer-rope": ("Wav2Vec2Conformer", {**_LAYER_NORM, "position_embeddings_type": "rotary"}, False),
    "sew": ("SEW", {"squeeze_factor": 2}, False),
}
"""Architecture -> transformers' prefix of classes, settings, whether the feature extractor makes a mask."""


def tiny_speech(folder: Path, architecture: str, head: str, *, seed: int = 0, **settings: Any) -> Path:
    """Write a speech model to `folder`; `head` is ForCTC or ForSequenceClassification."""
    import transformers

    prefix, of_architecture, mask = SPEECH[architecture]
    sizes = {**_SIZES, "vocab_size": len(VOCABULARY), "pad_token_id": 0, **_NAMES, **of_architecture, **settings}
    model = _model(getattr(transformers, prefix + head), getattr(transformers, prefix + "Config")(**sizes), seed)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=mask, sampling_rate=RATE)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    if head == "ForCTC":
        _tokenizer(folder).save_pretrained(folder)
    return folder


def tiny_ast(folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write an Audio Spectrogram Transformer with its feature extractor to `folder`."""
    import transformers

    sizes = {name: _SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    small = {**sizes, "intermediate_size": 64, "max_length": 128, "num_mel_bins": 64, **_NAMES, **settings}
    config = transformers.ASTConfig(**small)
    _model(transformers.ASTForAudioClassification, config, seed).save_pretrained(folder)
    shape = {"max_length": config.max_length, "num_mel_bins": config.num_mel_bins}
    transformers.ASTFeatureExtractor(**shape).save_pretrained(folder)
    return folder


def _model(model_class: Any, config: Any, seed: int) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
    spread(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("lm_head", "classifier")):
                parameter *= 3
    return model.eval()


def _tokenizer(folder: Path) -> Any:
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(VOCABULARY)}))
    return transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))


CTC = ("wav2vec2", "wav2vec2-large", "hubert", "unispeech", "unispeech-sat", "wavlm")
CLASSIFIERS = ("wav2vec2", "wav2vec2-large", "hubert", "wavlm", "ast")


def classifier(folder: Path, architecture: str) -> Path:
    """Write a small classifier to `folder`."""
    if architecture == "ast":
        return tiny_ast(folder)
    return tiny_speech(folder, architecture, "ForSequenceClassification")


CASES = [
    *(Case("audio-classification", name, partial(classifier, architecture=name)) for name in CLASSIFIERS),
    *(
        Case("automatic-speech-recognition", name, partial(tiny_speech, architecture=name, head="ForCTC"))
        for name in CTC
    ),
]


def whisper(folder: Path) -> Path:
    """Write an encoder with a decoder to `folder`."""
    import transformers

    sizes = {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_mel_bins": 16}
    ends = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0, "vocab_size": 40}
    config = transformers.WhisperConfig(encoder_layers=1, decoder_layers=1, **sizes, **ends, suppress_tokens=None)
    _model(transformers.WhisperForConditionalGeneration, config, 0).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    return folder


MORE = [
    Case(
        "automatic-speech-recognition",
        "data2vec-audio",
        partial(tiny_speech, architecture="data2vec-audio", head="ForCTC"),
        note="positions from convolutions one behind the other, which see no padding in a bundle",
    ),
    Case(
        "audio-classification",
        "wav2vec2-conformer",
        partial(classifier, architecture="wav2vec2-conformer"),
        note="a convolution in every layer, which sees no padding in a bundle; relative positions",
    ),
    Case(
        "automatic-speech-recognition",
        "wav2vec2-conformer-rope",
        partial(tiny_speech, architecture="wav2vec2-conformer-rope", head="ForCTC"),
        note="rotary positions",
    ),
    Case(
        "automatic-speech-recognition",
        "sew",
        partial(tiny_speech, architecture="sew", head="ForCTC"),
        refused="is a sew; the worker takes",
        note="it averages neighbouring frames, padding among them",
    ),
    Case(
        "automatic-speech-recognition",
        "whisper",
        whisper,
        refused="does not fit automatic-speech-recognition",
        note="it writes its text token by token",
    ),
]

_AST_TINY: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "max_length": 1024,
    "num_mel_bins": 128,
}
_SPEECH_SMALL: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "conv_dim": [256] * 7,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
STAGES = [
    Stages("audio-classification", "AST-tiny, 1 s", partial(tiny_ast, **_AST_TINY), {"audio": recording(1.0)}),
    Stages(
        "automatic-speech-recognition",
        "wav2vec2 of half the width and depth of wav2vec2-base, 1 s",
        partial(tiny_speech, architecture="wav2vec2", head="ForCTC", **_SPEECH_SMALL),
        {"audio": recording(1.0)},
    ),
]
