"""Small models on sound: seeded random weights, feature extractors and CTC vocabularies made on the spot, no network.

Weights are drawn wide, so that tokens change from frame to frame and labels differ clearly.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from engine.tensors import Array

RATE = 16_000
LABELS = ["yes", "no", "up", "down", "left", "right", "stop"]
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
# architecture -> transformers' prefix of classes, settings, whether the feature extractor makes a mask
_SPEECH: dict[str, tuple[str, dict[str, Any], bool]] = {
    "wav2vec2": ("Wav2Vec2", {}, False),
    "wav2vec2-large": ("Wav2Vec2", _LAYER_NORM, True),
    "hubert": ("Hubert", {}, False),
    "unispeech": ("UniSpeech", {}, False),
    "unispeech-sat": ("UniSpeechSat", _LAYER_NORM, True),
    "wavlm": ("WavLM", {}, False),
    "sew": ("SEW", {"squeeze_factor": 2}, False),
}


def tiny_speech(folder: Path, architecture: str, head: str, *, seed: int = 0, **settings: Any) -> Path:
    """Write a speech model to `folder`; `head` is ForCTC or ForSequenceClassification."""
    import transformers

    prefix, of_architecture, mask = _SPEECH[architecture]
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
    sizes = {**_SIZES, "vocab_size": len(VOCABULARY), "pad_token_id": 0, **names, **of_architecture, **settings}
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

    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
    sizes = {name: _SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = transformers.ASTConfig(intermediate_size=64, max_length=128, num_mel_bins=64, **sizes, **names, **settings)
    _model(transformers.ASTForAudioClassification, config, seed).save_pretrained(folder)
    transformers.ASTFeatureExtractor(max_length=128, num_mel_bins=64).save_pretrained(folder)
    return folder


def _model(model_class: Any, config: Any, seed: int) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            if name.startswith(("lm_head", "classifier")):
                parameter *= 3
    return model.eval()


def _tokenizer(folder: Path) -> Any:
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(VOCABULARY)}))
    return transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))


def sounds() -> dict[str, Array]:
    """Recordings at RATE, float32, of many lengths."""
    draw = np.random.default_rng(7)

    def chirp(seconds: float, low: float, high: float, loudness: float = 0.3) -> Array:
        at = np.arange(int(seconds * RATE)) / RATE
        return loudness * np.sin(2 * np.pi * at * (low + (high - low) * at / (2 * seconds)))

    made = {
        "chirp": chirp(1.0, 100, 3000),
        "tone": chirp(0.61, 440, 440),
        "noise": 0.1 * draw.standard_normal(int(0.83 * RATE)),
        "short": chirp(0.03, 800, 900),
        "mixed": np.concatenate([chirp(0.4, 300, 200), np.zeros(2000), 0.2 * draw.standard_normal(7001)]),
        "long": np.concatenate([chirp(0.7, 150 * n, 100 + 90 * n * n) for n in (1, 3, 2, 5, 4)]),
    }
    return {name: samples.astype(np.float32) for name, samples in made.items()}


def encoded(samples: Array, rate: int = RATE, kind: str = "WAV", subtype: str | None = "FLOAT") -> str:
    """A file of `samples` in base64; WAV of floats holds them as they are."""
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind, subtype=subtype)
    return base64.b64encode(content.getvalue()).decode()
