"""Lay out the toy world's model before training: configurations, a tokenizer, random weights, a trained VAE.

python examples/toyworld/init_model.py --vae runs/vae/vae --out runs/init
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from sfpp_cli.core.teacher import Teacher
from sfpp_cli.data.latents import MID_STREAM
from sfpp_cli.data.toyworld.world import BACKGROUNDS, FPS, MOTIONS, OBJECT_COLORS, SHAPES, SYNONYMS, TEMPLATES

TEXT_LENGTH = 32
TRANSFORMER = {
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "in_channels": 8,
    "out_channels": 8,
    "text_dim": 64,
    "freq_dim": 128,
    "ffn_dim": 480,
    "num_layers": 5,
}
TEXT = {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 2, "dropout_rate": 0.0}
SETTINGS = {
    "chunk": 3,
    "context": 21,
    "sink": 0,
    "shift": 5.0,
    "steps": [1000, 750, 500, 250],
    "horizon": 21,
    "fps": FPS,
    "width": 64,
    "height": 64,
    "prompt": "a red circle bouncing over a blue background",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(out / "tokenizer")
    UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **TEXT)).save_pretrained(out / "text_encoder")
    Teacher(**TRANSFORMER).save_pretrained(out / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=SETTINGS["shift"]).save_pretrained(out / "scheduler")
    shutil.copytree(options.vae, out / "vae", dirs_exist_ok=True)
    (out / "sfpp.json").write_text(json.dumps({**SETTINGS, "text_length": TEXT_LENGTH}, indent=2) + "\n")
    print(out)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the world; every other word is <unk>, which training sprinkles over the captions so that
    it does no harm."""
    phrases = [
        *OBJECT_COLORS,
        *SHAPES,
        *MOTIONS,
        *BACKGROUNDS,
        *TEMPLATES,
        *(s for synonyms in SYNONYMS.values() for s in synonyms),
    ]
    words = sorted({word for phrase in phrases for word in phrase.split() if word.isalpha()} | {"an"})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words, MID_STREAM])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^a-z]+"), "removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
    )


if __name__ == "__main__":
    main()
