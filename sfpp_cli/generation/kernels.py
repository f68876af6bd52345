"""What the student computes with: the kernel of its attention, TF32, matrix products in eight bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.errors import UserError, suggest

KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""PyTorch's kernels for attention, the fastest on recent GPUs first; "math" suits everything and is slow."""
ON_CPU = ("flash", "math")
QUANTIZE = ("fp8",)
_EIGHT_BITS = (8, 9)
"""The first GPUs with matrix products in eight bits, as CUDA counts them: Ada and Hopper."""


def check_attention(name: str | None, device: torch.device) -> None:
    """UserError unless the device may have a kernel of this name; None leaves the choice to PyTorch."""
    known = ON_CPU if device.type == "cpu" else tuple(KERNELS)
    if name is not None and name not in known:
        raise UserError(
            f"--attention {name}: on {device.type} it takes {', '.join(known)}{suggest(name, known)}"
        )


@contextmanager
def attention(name: str | None, device: torch.device) -> Iterator[None]:
    """In the block, attention runs by the kernel of this name, or by the fastest that suits its shapes."""
    if name is None and device.type == "cpu":
        yield
        return
    # "math" suits all shapes. After the others come the rest, for the VAE's attention may run meanwhile.
    first = [] if name is None else [KERNELS[name]]
    rest = [] if name == "math" else [kernel for kernel in KERNELS.values() if kernel not in first]
    with sdpa_kernel([*first, *rest], set_priority=True):
        yield


def kernel_for(query: Tensor, key: Tensor) -> str:
    """The kernel that PyTorch takes now for a query and as many values as keys, each [B, heads, L, D]."""
    chosen = SDPBackend(torch._fused_sdp_choice(query, key, key))
    return next((name for name, kernel in KERNELS.items() if kernel == chosen), "none")


def check_kernel(runs: str, asked: str | None, device: torch.device) -> str | None:
    """What to warn of where attention `runs` by this kernel, if anything; UserError if another was asked."""
    if asked not in (None, runs):
        raise UserError(f"--attention {asked} does not run these shapes here, '{runs}' does: leave it out")
    if runs == "math" and asked is None and device.type == "cuda":
        return "PyTorch has no fast attention kernel for these shapes on this GPU, and runs the slow one"
    return None


def check_quantize(name: str | None, device: torch.device, dtype: torch.dtype) -> None:
    """UserError unless the student's matrix products can be done so here."""
    if name is None:
        return
    if name not in QUANTIZE:
        raise UserError(f"--quantize {name}: it takes {', '.join(QUANTIZE)}")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _EIGHT_BITS:
        raise UserError(
            "--quantize fp8 needs an NVIDIA GPU with matrix products in eight bits (compute capability "
            "8.9, such as Ada or Hopper): leave it out"
        )
    if dtype != torch.bfloat16:
        raise UserError("--quantize fp8 needs --dtype bfloat16")
    if find_spec("torchao") is None:
        raise UserError("--quantize fp8 needs the torchao library: pip install 'sfpp[fp8]'")


def quantize(student: CausalWanModel) -> None:
    """Let the linear layers of the blocks multiply in eight bits, with a scale for each row."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    quantize_(student.blocks, config, lambda layer, name: isinstance(layer, nn.Linear))


def multiply_fast(device: torch.device, dtype: torch.dtype) -> None:
    """Float32 products on a GPU by its tensor cores (TF32, 10 bits), without which they take far longer."""
    if device.type == "cuda" and dtype == torch.float32:
        torch.set_float32_matmul_precision("high")
