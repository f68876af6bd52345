"""Prompts to embeddings: UMT5 as Wan uses it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path

import ftfy
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel


def clean(prompt: str) -> str:
    """Repair mojibake, undo HTML entities, fold white space: what Wan's prompts went through in training."""
    repaired = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", repaired).strip()


class TextEncoder:
    """Tokenizer and UMT5 encoder. Embeddings are padded with zeros to `length` tokens; the networks attend to all of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: UMT5EncoderModel, length: int) -> None:
        self.tokenizer, self.model, self.length = tokenizer, model, length

    @classmethod
    def load(cls, tokenizer: Path, model: Path, length: int, dtype: torch.dtype = torch.float32) -> TextEncoder:
        return cls(AutoTokenizer.from_pretrained(tokenizer), UMT5EncoderModel.from_pretrained(model, dtype=dtype), length)

    def __call__(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, length, D] of cleaned prompts. Differentiable; callers that only read wrap it in `no_grad`."""
        tokens = self.tokenizer(
            [clean(prompt) for prompt in prompts],
            padding="longest",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        hidden: Tensor = self.model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        hidden = hidden * tokens.attention_mask.unsqueeze(-1)
        return torch.nn.functional.pad(hidden, (0, 0, 0, self.length - hidden.shape[1]))

    def cut(self, prompt: str) -> str:
        """The end of the prompt that does not fit into `length` tokens; empty if all of it does."""
        text = clean(prompt)
        tokens = self.tokenizer(text, return_offsets_mapping=True)
        if len(tokens.input_ids) <= self.length:
            return ""
        last_kept = self.length - 1 - self.tokenizer.num_special_tokens_to_add()
        return text[tokens.offset_mapping[last_kept][1] :].strip()


class EmbeddedPrompts:
    """Embeddings of a known set of prompts, computed once, kept without their padding; the encoder can be freed behind them."""

    @torch.no_grad()
    def __init__(self, encoder: TextEncoder, prompts: Iterable[str]) -> None:
        self.length = encoder.length
        self.embeddings = {prompt: self._trim(encoder([prompt])[0]) for prompt in dict.fromkeys(prompts)}

    def __call__(self, prompts: list[str]) -> Tensor:
        """Padded embeddings [B, length, D]."""
        rows = [self.embeddings[prompt] for prompt in prompts]
        return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, self.length - row.shape[0])) for row in rows])

    @staticmethod
    def _trim(padded: Tensor) -> Tensor:
        used = padded.any(-1).nonzero()[-1].item() + 1
        return padded[: int(used)].clone()
