"""The text encoder, by far the largest part of Wan, is gone before the first frame, and so is its memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from sfpp_cli.devices import peak_megabytes
from sfpp_cli.generation.generator import PromptEmbeddings
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.text import TextEncoder
from sfpp_cli.progress import Silent

pytest_plugins = ["tiny_bundle"]


class Watched(Bundle):
    """Notes the encoders that it loads; brings them by layers on a CPU, too."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.encoders: list[weakref.ref[nn.Module]] = []

    def load_text(self, device: torch.device, dtype: torch.dtype, *, layerwise: bool = False) -> TextEncoder:
        encoder = super().load_text(device, dtype)
        encoder.place(device, layerwise=layerwise)
        self.encoders.append(weakref.ref(encoder.model))
        return encoder


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed is freed at once, not when Python happens to look for cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("offload", ["text", "sequential", "none"])
@pytest.mark.usefixtures("no_collector")
def test_the_encoder_is_freed_unless_it_is_to_stay(offload: str, tiny_bundle: Path) -> None:
    """Layer by layer, too, though a layer and the hook that brings it refer to each other."""
    bundle = Watched(str(tiny_bundle))
    options = ModelOptions(device=torch.device("cpu"), dtype=torch.float32, offload=offload)
    text = PromptEmbeddings(bundle, options, Silent())
    text.add(["a red circle"])
    assert [encoder() is not None for encoder in bundle.encoders] == [offload == "none"]
    text.add(["a blue square"])
    assert len(bundle.encoders) == (1 if offload == "none" else 2)


@pytest.mark.gpu
def test_the_encoders_memory_is_given_back_and_is_not_the_videos_peak(tiny_bundle: Path) -> None:
    device = torch.device("cuda", 0)
    options = ModelOptions(device=device, dtype=torch.float32)
    text = PromptEmbeddings(Bundle(str(tiny_bundle)), options, Silent())
    large = torch.empty(2**28, device=device)  # what encoding might need, 1.07 GB
    del large
    assert torch.cuda.memory_reserved(device) > 1e9
    assert peak_megabytes(device) > 1e3
    text.add(["a red circle"])
    assert torch.cuda.memory_reserved(device) < 1e9
    assert peak_megabytes(device) < 1e3
