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
    """Tokenizer and UMT5 encoder. Embeddings are padded with zeros to `length` tokens; the networks attend to all of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: UMT5EncoderModel, length: int) -> None:
        self.tokenizer, self.model, self.length = tokenizer, model, length
        self.device: torch.device = model.device

    def place(self, device: torch.device, *, layerwise: bool = False) -> None:
        """Run on `device`; `layerwise` keeps the weights in main memory and brings one layer at a time there."""
        self.device = device
        if layerwise:
            cpu_offload(self.model, device)
        else:
            self.model.to(device)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, length, D] of cleaned prompts. Differentiable; callers that only read wrap it in `no_grad`."""
        return _pad(self.unpadded(prompts), self.length)

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

    def cut(self, prompt: str) -> str:
        """The end of the prompt that does not fit into `length` tokens; empty if all of it does."""
        text = clean(prompt)
        tokens = self.tokenizer(text, return_offsets_mapping=True)
        if len(tokens.input_ids) <= self.length:
            return ""
        first_lost = max(0, self.length - self.tokenizer.num_special_tokens_to_add())
        return text[tokens.offset_mapping[first_lost][0] :].strip()


class EmbeddedPrompts:
    """Embeddings of a known set of prompts, computed once, kept without their padding; the encoder can be freed behind them."""

    @torch.no_grad()
    def __init__(self, encoder: TextEncoder, prompts: Iterable[str]) -> None:
        self.length = encoder.length
        self.embeddings = {prompt: encoder.unpadded([prompt])[0] for prompt in dict.fromkeys(prompts)}

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Padded embeddings [B, length, D]."""
        return _pad([self.embeddings[prompt] for prompt in prompts], self.length)


def _pad(rows: Sequence[Tensor], length: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, length - row.shape[0])) for row in rows])
