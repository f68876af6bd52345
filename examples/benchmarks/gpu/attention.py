"""Attention kernels at the real shapes; keys and values are slices of a ring, as in the product."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from gpu.measuring import Result, Section, error_of, rate
from gpu.networks import sizes

BACKENDS = {
    "default": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash2": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
OTHERS = (
    ("flash_attn.cute", "flash_attn_func"),
    ("flash_attn_interface", "flash_attn_func"),
    ("sageattention", "sageattn"),
)


def attention(s: Section) -> None:
    z = sizes(s.tiny)

    def random(frames: int, tokens: int = z.tokens) -> Tensor:
        return torch.randn(1, z.heads, frames * tokens, z.head_dim, device=s.device, dtype=torch.bfloat16)

    names = list(BACKENDS) if s.cuda else ["default", "flash2"]
    query = random(3)
    keys = random(21)
    values = random(21)
    for seen in (21, 9, 3):
        k = keys[:, :, : seen * z.tokens]
        v = values[:, :, : seen * z.tokens]
        for name in names:
            s.attempt(f"chunk sees {seen} frames, {name}", partial(measured, s, name, query, k, v))
    text = (random(1, z.text), random(1, z.text))
    for name in names:
        s.attempt(f"cross-attention, {name}", partial(measured, s, name, query, *text))
    for module, function in OTHERS:
        title = f"chunk sees 21 frames, {module}"
        s.attempt(title, partial(other, s, module, function, query, keys, values))
    whole = random(21)
    for name in ("default", "flash2"):
        s.attempt(f"teacher's 21 frames, {name}", partial(measured, s, name, whole, keys, values, n=3))
        both = partial(forward_and_backward, s, name, whole, keys, values)
        s.attempt(f"teacher's 21 frames forward and backward, {name}", both)
    if not s.tiny:
        s.attempt("chunk sees 21 frames, flex", partial(flex, s, query, keys, values), need=20)
        tma = partial(flex, s, query, keys, values, USE_TMA=True)
        s.attempt("chunk sees 21 frames, flex with TMA", tma, need=20)


def flop(query: Tensor, key: Tensor) -> float:
    return 4 * query.numel() * key.shape[2]


def attend(name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    backend = BACKENDS[name]
    if backend is None:
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel([backend]):
        return F.scaled_dot_product_attention(query, key, value)


def measured(s: Section, name: str, query: Tensor, key: Tensor, value: Tensor, n: int = 10) -> Result:
    """The rate, and the error of every head's first 64 queries against float32."""
    result = rate(s.timed(lambda: attend(name, query, key, value), n=n), flop(query, key))
    scores = query[:, :, :64].float() @ key.float().transpose(-1, -2) / query.shape[-1] ** 0.5
    exact = scores.softmax(-1) @ value.float()
    error = error_of(attend(name, query, key, value)[:, :, :64], exact)["relative"]
    return {**result, "error": round(error, 5)}


def other(s: Section, module: str, function: str, query: Tensor, key: Tensor, value: Tensor) -> Result:
    """A kernel of another package, if it is installed."""
    try:
        kernel = getattr(importlib.import_module(module), function)
    except ImportError:
        return {"skipped": f"{module} is not installed"}
    parts = [query, key, value]
    options = {"tensor_layout": "HND"} if module == "sageattention" else {}
    if not options:
        parts = [part.transpose(1, 2).contiguous() for part in parts]
    return rate(s.timed(lambda: kernel(*parts, **options)), flop(query, key))


def forward_and_backward(s: Section, name: str, query: Tensor, key: Tensor, value: Tensor) -> Result:
    q, k, v = (part.detach().clone().requires_grad_(True) for part in (query, key, value))

    def both() -> None:
        out = attend(name, q, k, v)
        out.backward(torch.ones_like(out))

    return rate(s.timed(both, n=2, warm=1), 3.5 * flop(query, key))


@torch.no_grad()
def flex(s: Section, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Result:
    kernel = torch.compile(flex_attention, dynamic=False)
    result = s.timed(lambda: kernel(query, key, value, kernel_options=options or None), n=5)
    return rate(result, flop(query, key))
