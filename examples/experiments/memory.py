"""Claim 7: what the rolling cache and the whole process hold, and what a second of video takes.

The model is run: its cache is asked for its bytes, and `sfpp generate` reports resident memory and frames a
second, for several contexts and lengths. Wan 1.3B is built on the meta device, which gives its tensors shapes
and no memory. The formula is 2 (key and value) x layers x heads x size of a head x tokens of a latent frame x
latent frames x bytes of an element.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from arms import CONTEXTS
from report import markdown

from sfpp_cli.core.cache import KVCache
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.data.landscape import FPS
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.settings import Settings

WAN = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128}
WAN_SIZE = (60, 104)
"""Latent height and width of 832x480."""
SHARES = (0.1, 0.5, 1.0)
"""Of the longest video."""


def table(model: str, longest: float) -> str:
    """Markdown: the cache of each model and context; then memory and time, up to `longest` seconds."""
    caches = []
    for context in CONTEXTS:
        own = [f"{size / 1e6:.3f} MB" for size in own_cache(model, context)]
        wan = [f"{size / 1e9:.3f} GB" for size in wan_cache(context)]
        caches += [["embedded, float32", str(context), *own], ["Wan 1.3B, bfloat16", str(context), *wan]]
    head = ["model", "context", "cache, as allocated", "formula"]
    runs = []
    for context in CONTEXTS:
        for seconds in (share * longest for share in SHARES):
            runs.append([str(context), f"{seconds:g}", *generate(model, context, seconds)])
    columns = ["context", "seconds of video", "resident, MB", "its peak, MB", "seconds for one of video"]
    return f"{markdown(head, sorted(caches))}\n\n{markdown(columns, runs)}"


def own_cache(model: str, context: int) -> tuple[int, int]:
    bundle = Bundle(model)
    student = bundle.load_student(torch.device("cpu"), torch.float32)
    return cache_bytes(student, bundle.latent_size, context)


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


def generate(model: str, context: int, seconds: float) -> list[str]:
    """Median and peak resident MB that `sfpp generate` reports, and wall seconds for a second of video."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--model", model, "--context", str(context), "--seconds", str(seconds)]
        words += ["-o", str(Path(folder) / "video.mp4"), "--json"]
        command = [sys.executable, "-m", "sfpp_cli", "generate", *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    made = json.loads(done.stdout)["videos"][0]
    took = FPS / made["speed"]["end_to_end_fps"]
    return [f"{made['memory_mb']}", f"{made['peak_memory_mb']}", f"{took:.2f}"]
