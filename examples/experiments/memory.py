"""Experiment 6: what the rolling cache and the whole process hold, for several contexts, against the formula.

The toy model is run: its cache is asked for its bytes, and `sfpp generate` reports the resident memory of 100
s of video. Wan 1.3B is built on the meta device, which gives its tensors shapes and no memory. The formula is
2 (key and value) x layers x heads x size of a head x tokens of a latent frame x latent frames x bytes of an
element.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from report import markdown

from sfpp_cli.core.cache import KVCache
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.settings import Settings

CONTEXTS = (9, 15, 21)
WAN = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128}
WAN_SIZE = (60, 104)
"""Latent height and width of 832x480."""


def table(seconds: float) -> str:
    """Markdown: a row for each model and context."""
    lines = []
    for context in CONTEXTS:
        sizes = [f"{size / 1e6:.3f} MB" for size in toy_cache(context)]
        lines.append(
            [
                "toy world, float32",
                str(context),
                *sizes,
                *(f"{used} MB" for used in generate(context, seconds)),
            ]
        )
    for context in CONTEXTS:
        lines.append(
            [
                "Wan 1.3B, bfloat16",
                str(context),
                *(f"{size / 1e9:.3f} GB" for size in wan_cache(context)),
                "-",
                "-",
            ]
        )
    return markdown(
        ["model", "context", "cache, as allocated", "formula", "resident memory", "its peak"], lines
    )


def toy_cache(context: int) -> tuple[int, int]:
    bundle = Bundle("toyworld")
    student = bundle.load_student(torch.device("cpu"), torch.float32)
    size = bundle.compression.latent_size(bundle.settings.width, bundle.settings.height)
    return cache_bytes(student, size, context)


def wan_cache(context: int) -> tuple[int, int]:
    with torch.device("meta"):
        return cache_bytes(CausalWanModel(**WAN).to(torch.bfloat16), WAN_SIZE, context)


@torch.no_grad()
def cache_bytes(student: CausalWanModel, size: tuple[int, int], context: int) -> tuple[int, int]:
    """Bytes that a ring of `context` latent frames allocates, and those of the formula."""
    config, parameter = student.config, next(student.parameters())
    text = parameter.new_zeros(1, Settings().text_length, config.text_dim)
    cache: KVCache = student.new_cache(text, size, context=context, sink=0)
    heads = config.num_attention_heads * config.attention_head_dim
    return cache.nbytes, 2 * config.num_layers * heads * student.tokens(
        size
    ) * context * parameter.element_size()


def generate(context: int, seconds: float) -> tuple[int, int]:
    """Median and peak resident MB that `sfpp generate` reports."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "--context",
            str(context),
            "--seconds",
            str(seconds),
            "-o",
            str(Path(folder) / "video.mp4"),
            "--json",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "sfpp_cli", "generate", *words], check=True, capture_output=True, text=True
        )
    made = json.loads(done.stdout)["videos"][0]
    return made["memory_mb"], made["peak_memory_mb"]
