"""A whole model of toy size, as fixtures: `pytest_plugins = ["tiny_bundle"]` brings them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from tiny import CONFIG, SIZE, make_student, make_teacher, randomize
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.settings import SETTINGS, Settings

TEXT_LENGTH = 8
WORDS = ["a", "the", "red", "blue", "circle", "square", "moving", "left", "right", "over", "and", "under"]


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, its teacher, VAE, text encoder, tokenizer and settings; to be read only."""
    quiet_libraries()
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_student().save_pretrained(folder / "transformer")
    make_teacher().save_pretrained(folder / "teacher")
    make_vae().save_pretrained(folder / "vae")
    make_text_encoder().save_pretrained(folder / "text_encoder")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(folder / "scheduler")
    settings = Settings(
        width=SIZE[1] * 8, height=SIZE[0] * 8, fps=8, text_length=TEXT_LENGTH, prompt="a red circle"
    )
    settings.write(folder / SETTINGS)
    return folder


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "model"))


def make_vae() -> AutoencoderKLWan:
    """Eight pixels and four frames to a latent, as Wan's."""
    channels = CONFIG["in_channels"]
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * channels,
        latents_std=[0.8] * channels,
    )
    randomize(vae)
    return vae


def make_text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=len(WORDS) + 3,
        d_model=CONFIG["text_dim"],
        d_kv=4,
        num_heads=4,
        d_ff=32,
        num_layers=2,
        dropout_rate=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return UMT5EncoderModel(config).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; other words are <unk>, and what is no Latin letter is nothing at all."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^a-z]+"), "removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=TEXT_LENGTH, **special)
