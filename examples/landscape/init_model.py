"""Lay out the landscape's model before training: configurations, tokenizer, random weights, the VAE.

python examples/landscape/init_model.py --work runs/landscape --minutes 1
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from road import TEACHER_SEED, Job, job_of, replace_folder
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from sfpp_cli.core.teacher import Teacher
from sfpp_cli.data.landscape import FPS, Attributes
from sfpp_cli.data.landscape.captions import DIRECTIONS, PACES, VARIANTS, caption
from sfpp_cli.data.landscape.palette import BALLOONS, LANDS, TIMES
from sfpp_cli.data.latents import MID_STREAM

TEXT_LENGTH = 32
TRANSFORMER = {
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 64,
    "freq_dim": 128,
    "ffn_dim": 512,
    "num_layers": 6,
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
    "text_length": TEXT_LENGTH,
    "prompt": "a red hot-air balloon drifts over green hills at sunset, the camera pans slowly to the left",
}


def run(job: Job) -> None:
    torch.manual_seed(TEACHER_SEED)
    replace_folder(job.work / "init", lambda folder: fill(folder, job))


def fill(folder: Path, job: Job) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **TEXT)).save_pretrained(folder / "text_encoder")
    Teacher(**TRANSFORMER).save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=SETTINGS["shift"]).save_pretrained(folder / "scheduler")
    shutil.copytree(job.work / "vae", folder / "vae")
    height, width = job.scale.size
    (folder / "sfpp.json").write_text(
        json.dumps({**SETTINGS, "width": width, "height": height}, indent=2) + "\n"
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the world; any other is <unk>, made harmless by sprinkling it over captions."""
    scenes = [
        Attributes(*words) for words in itertools.product(TIMES, LANDS, BALLOONS[:1], DIRECTIONS, PACES)
    ]
    sentences = [caption(scene, variant) for scene in scenes for variant in range(VARIANTS)]
    splitter = pre_tokenizers.Split(Regex(r"[^a-z]+"), "removed")
    pieces = {
        word
        for sentence in [*set(sentences), *BALLOONS, "an"]
        for word, _ in splitter.pre_tokenize_str(sentence)
    }
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(pieces), MID_STREAM])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = splitter
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
    run(job_of(__doc__))
