"""Prompts to embeddings: UMT5 as Wan uses it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

import ftfy
import torch
from accelerate import cpu_offload
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel


def clean(prompt: str) -> str:
    """Repair mojibake, undo HTML entities, fold white space: what Wan's prompts went through in training."""
    repaired = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", repaired).strip()


class TextEncoder:
    """Tokenizer and UMT5 encoder. Networks attend to all `length` tokens, also to the zeros that pad them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: UMT5EncoderModel, length: int) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.length = length
        self.device: torch.device = model.device

    def place(self, device: torch.device, *, layerwise: bool = False) -> None:
        """Run on `device`; `layerwise` keeps weights in main memory and brings a layer at a time there."""
        self.device = device
        if layerwise:
            cpu_offload(self.model, device)
        else:
            self.model.to(device)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, length, D] of cleaned prompts; differentiable, so readers want `no_grad`."""
        return padded(self.unpadded(prompts), self.length)

    def unpadded(self, prompts: Sequence[str]) -> list[Tensor]:
        """The same without padding: for every prompt [n, D], n being its tokens."""
        tokens = self.tokenizer(
            [clean(prompt) for prompt in prompts],
            padding="longest",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        counts = tokens.attention_mask.sum(1).tolist()
        tokens = tokens.to(self.device)
        hidden: Tensor = self.model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return [row[:count] for row, count in zip(hidden, counts, strict=True)]

    def embed(self, prompt: str) -> tuple[Tensor, str]:
        """One prompt, tokenised once: its embeddings [n, D], and the end that did not fit into `length`."""
        text = clean(prompt)
        tokens = self.tokenizer(text, return_offsets_mapping=True)
        ids: list[int] = tokens.input_ids
        cut = ""
        if len(ids) > self.length:
            marks = self.tokenizer.num_special_tokens_to_add()  # UMT5's are at the end, and stay there
            kept = max(0, self.length - marks)
            cut = text[tokens.offset_mapping[kept][0] :].strip()
            ids = ids[:kept] + ids[len(ids) - marks :]
        batch = torch.tensor([ids], device=self.device)
        hidden: Tensor = self.model(batch, attention_mask=torch.ones_like(batch)).last_hidden_state
        return hidden[0], cut


class EmbeddedPrompts:
    """Embeddings of known prompts, computed once, kept without padding; the encoder can be freed after."""

    @torch.no_grad()
    def __init__(self, encoder: TextEncoder, prompts: Iterable[str]) -> None:
        self.length = encoder.length
        self.embeddings: dict[str, Tensor] = {}
        self.cut: dict[str, str] = {}
        """Of every prompt the end that did not fit, empty if all of it did."""
        for prompt in dict.fromkeys(prompts):
            self.embeddings[prompt], self.cut[prompt] = encoder.embed(prompt)

    @property
    def too_long(self) -> int:
        """How many prompts did not fit."""
        return sum(bool(end) for end in self.cut.values())

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Padded embeddings [B, length, D]."""
        return padded([self.embeddings[prompt] for prompt in prompts], self.length)


def padded(rows: Sequence[Tensor], length: int) -> Tensor:
    """Rows [n, D] of several lengths as one tensor [B, length, D], filled up with zeros."""
    return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, length - row.shape[0])) for row in rows])
