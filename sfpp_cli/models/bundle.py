"""Loading a model's parts: strictly, from safetensors only, without a word from the libraries that do it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from transformers import AutoTokenizer, UMT5EncoderModel

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.errors import UserError, reason
from sfpp_cli.models.layout import Layout, headers, read_config, weight_files
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.text import TextEncoder
from sfpp_cli.models.vae import channels_last

_ENDS = 2**22


class Bundle(Layout):
    """Where a model's parts are, and how to load each. Nothing is loaded before it is asked for."""

    def __init__(self, model: str, student: str | None = None) -> None:
        quiet_libraries()
        super().__init__(model, student)

    def load_student(self, device: torch.device, dtype: torch.dtype) -> CausalWanModel:
        student: CausalWanModel = _load(CausalWanModel, self.require_student(), dtype).to(device)
        return student

    def load_teacher(self, device: torch.device, dtype: torch.dtype) -> Teacher:
        teacher: Teacher = _load(Teacher, self.require_teacher(), dtype).to(device)
        return teacher

    def load_vae(self, device: torch.device, dtype: torch.dtype) -> AutoencoderKLWan:
        if read_config(self.folder / "vae").get("is_residual"):
            raise UserError(
                f"{self.folder / 'vae'} is a residual VAE, as Wan 2.2's: sfpp streams those of Wan 2.1"
            )
        return channels_last(_load(AutoencoderKLWan, self.folder / "vae", dtype).to(device))

    def load_text(self, device: torch.device, dtype: torch.dtype, *, layerwise: bool = False) -> TextEncoder:
        """The text encoder; `layerwise` keeps it in main memory and brings it to the device by layers."""
        # Wan's config calls the encoder's embedding untied, but its file holds one for both names, and
        # transformers before 5.3 left the other at random (huggingface/transformers#43992).
        options = {"ignore_mismatched_sizes": True, "tie_word_embeddings": True}
        model = _load(UMT5EncoderModel, self.folder / "text_encoder", dtype, **options)
        tokenizer = _from_pretrained(AutoTokenizer, self.folder / "tokenizer", trust_remote_code=False)
        if not tokenizer.is_fast or tokenizer.pad_token is None or len(tokenizer) > model.config.vocab_size:
            raise UserError(
                f"{self.folder / 'tokenizer'} does not fit the text encoder: it takes a fast tokenizer with "
                f"a padding token and at most {model.config.vocab_size} tokens; fetch it again"
            )
        encoder = TextEncoder(tokenizer, model, self.settings.text_length)
        encoder.place(device, layerwise=layerwise and device.type != "cpu")
        return encoder


def fingerprint(bundle: Layout) -> str:
    """A digest that tells the weights a video is made with from all others."""
    return weights_digest(bundle.student, bundle.folder / "vae", bundle.folder / "text_encoder")


def weights_digest(*folders: Path) -> str:
    """A digest of weight files: their names and sizes, and both ends of each (names, shapes, last tensors).

    Reading Wan's text encoder in full would take as long as loading it.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for file in weight_files(folder):
            with file.open("rb") as opened:
                digest.update(f"{file.parent.name} {file.name} {file.stat().st_size}".encode())
                digest.update(opened.read(_ENDS))
                opened.seek(max(0, file.stat().st_size - _ENDS))
                digest.update(opened.read(_ENDS))
    return digest.hexdigest()[:16]


def _load(kind: Any, folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """A model for inference. UserError unless config and weights are whole and fit each other."""
    read_config(folder)
    headers(folder)
    options |= {"dtype" if kind is UMT5EncoderModel else "torch_dtype": dtype}
    model, report = _from_pretrained(kind, folder, use_safetensors=True, output_loading_info=True, **options)
    keys = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    wrong = sorted(key if isinstance(key, str) else key[0] for key in keys)
    if wrong:
        which = f"{wrong[0]} and {len(wrong) - 1} more differ"
        raise UserError(f"{folder}: its weights are not those of its config.json ({which})")
    return model.eval().requires_grad_(False)


def _from_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # a config that makes no sense can fail in any way there is
        raise UserError(f"{folder} cannot be loaded ({reason(error)}): fetch or convert it again") from error
