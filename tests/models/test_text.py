"""The text encoder gives what Wan was trained on, whatever the prompt and however prompts are batched."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from tiny import rounding
from torch import Tensor

from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.text import EmbeddedPrompts, TextEncoder, clean

pytest_plugins = ["tiny_bundle"]

CPU = torch.device("cpu")
PROMPTS = [
    "a red circle",
    "the blue square moving left and right over a red circle",
    "",
    "a dog",
    "Über 🎬 圆形 красный",
]
DIRTY = [
    "  a\tred\n\n circle  ",
    "caf\u00c3\u00a9",
    "fish &amp;amp; chips &lt;b&gt;",
    "it\u00e2\u20ac\u2122s \u201cred\u201d",
    "\ufb01ne\u3000\u00a0print\x00\x07",
    "\x1b[31mred\x1b[0m",
    "lone \udcff surrogate",
    "&#128512; 🎬",
    "<i>&amp;lt;</i>",
    "",
]


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> TextEncoder:
    return Bundle(str(tiny_bundle)).load_text(CPU, torch.float32)


@pytest.fixture(scope="module")
def pipeline(encoder: TextEncoder, tiny_bundle: Path) -> WanPipeline:
    vae = Bundle(str(tiny_bundle)).load_vae(CPU, torch.float32)
    return WanPipeline(
        tokenizer=encoder.tokenizer, text_encoder=encoder.model, transformer=None, vae=vae, scheduler=None
    )


@pytest.mark.parametrize("prompt", DIRTY)
def test_prompts_are_cleaned_as_in_diffusers(prompt: str) -> None:
    assert clean(prompt) == prompt_clean(prompt)


def test_cleaning_is_what_it_claims() -> None:
    assert [clean(prompt) for prompt in DIRTY[:4]] == [
        "a red circle",
        "café",
        "fish & chips <b>",
        'it\'s "red"',
    ]
    assert clean(DIRTY[6]).encode()


@torch.no_grad()
@pytest.mark.parametrize("length", [4, 8, 30])
def test_embeddings_are_those_of_diffusers(encoder: TextEncoder, pipeline: WanPipeline, length: int) -> None:
    ours = TextEncoder(encoder.tokenizer, encoder.model, length)(PROMPTS + DIRTY)
    theirs = pipeline._get_t5_prompt_embeds(PROMPTS + DIRTY, max_sequence_length=length, device=CPU)
    assert ours.shape == (len(PROMPTS + DIRTY), length, encoder.model.config.d_model)
    torch.testing.assert_close(ours, theirs, atol=rounding(theirs), rtol=0)


@torch.no_grad()
def test_padding_is_exactly_zero_and_text_is_not(encoder: TextEncoder) -> None:
    embedded = encoder(PROMPTS)
    for row, used in zip(embedded, [4, 8, 1, 3, 2], strict=True):
        assert (row[:used].abs().amax(1) > 0.01).all()
        assert torch.equal(row[used:], torch.zeros_like(row[used:]))


@torch.no_grad()
def test_a_prompt_does_not_feel_its_neighbours(encoder: TextEncoder) -> None:
    together = encoder(PROMPTS)
    for prompt, row in zip(PROMPTS, together, strict=True):
        torch.testing.assert_close(encoder([prompt])[0], row, atol=rounding(together), rtol=0)
    assert (together[0] - together[3]).abs().max() > 0.1, "the prompts differ, so must their embeddings"


def test_gradient_reaches_the_encoder(encoder: TextEncoder) -> None:
    encoder.model.requires_grad_(True)
    try:
        (gradient,) = torch.autograd.grad(
            encoder(["a red circle"]).square().sum(), [encoder.model.shared.weight]
        )
    finally:
        encoder.model.requires_grad_(False)
    touched = gradient.abs().sum(1).nonzero().flatten().tolist()
    assert touched == sorted(encoder.tokenizer("a red circle").input_ids)


@pytest.mark.parametrize(
    ("prompt", "cut"),
    [
        ("a red circle", ""),
        ("", ""),
        ("a red circle moving left over the", ""),
        ("a red circle moving left over the blue square", "blue square"),
        ("A red,  circle; moving left over the &amp; BLUE square!", "BLUE square!"),
        ("a red circle moving left over the 🎬 zebra", "zebra"),
    ],
)
def test_what_does_not_fit_is_told(encoder: TextEncoder, prompt: str, cut: str) -> None:
    assert EmbeddedPrompts(encoder, [prompt]).cut == {prompt: cut}


def test_a_length_that_only_holds_the_end_mark(encoder: TextEncoder) -> None:
    shortest = TextEncoder(encoder.tokenizer, encoder.model, 1)
    assert EmbeddedPrompts(shortest, ["a red circle", ""]).cut == {"a red circle": "a red circle", "": ""}


@torch.no_grad()
def test_what_is_cut_has_no_effect_and_what_is_kept_has(encoder: TextEncoder) -> None:
    kept = "a red circle moving left over the"
    assert torch.equal(encoder([f"{kept} blue square"]), encoder([f"{kept} square under"]))
    assert not torch.equal(
        encoder([f"{kept} blue square"]), encoder(["a red circle moving left over a blue square"])
    )


@torch.no_grad()
def test_any_text_is_embedded(encoder: TextEncoder) -> None:
    rng = random.Random(0)
    wild = ["".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(60))) for _ in range(100)]
    wild += ["🎬" * 100, "\ud800", "\x00", "بت", "zebra " * 500, "<pad> </s> <unk>"]
    assert encoder(wild).isfinite().all()
    for prompt in wild:
        embedding, cut = encoder.embed(prompt)
        assert torch.equal(embedding, encoder.unpadded([prompt])[0])
        assert clean(prompt).endswith(cut)


@torch.no_grad()
def test_embedded_prompts_are_the_encoders(encoder: TextEncoder) -> None:
    embedded = EmbeddedPrompts(encoder, [*PROMPTS, PROMPTS[0]])
    asked = [PROMPTS[2], PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    expected = encoder(asked)
    torch.testing.assert_close(embedded(asked), expected, atol=rounding(expected), rtol=0)
    assert embedded.length == encoder.length
    assert [len(embedded.embeddings[prompt]) for prompt in PROMPTS] == [4, 8, 1, 3, 2]
    assert not embedded(asked).requires_grad


@torch.no_grad()
def test_a_token_whose_embedding_is_zero_is_no_padding(encoder: TextEncoder) -> None:
    class Mute(torch.nn.Module):
        """An encoder to which the end mark means nothing."""

        device = CPU

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
            out = encoder.model(input_ids, attention_mask=attention_mask)
            out.last_hidden_state = out.last_hidden_state * (
                input_ids != encoder.tokenizer.eos_token_id
            ).unsqueeze(-1)
            return out

    mute = TextEncoder(encoder.tokenizer, Mute(), encoder.length)
    embedded = EmbeddedPrompts(mute, ["", "a red circle"])
    assert [len(row) for row in embedded.embeddings.values()] == [1, 4]
    expected = mute(["", "a red circle"])
    torch.testing.assert_close(embedded(["", "a red circle"]), expected, atol=rounding(expected), rtol=0)
    assert not embedded([""]).any()


@torch.no_grad()
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_layer_by_layer_is_the_same(device: str, encoder: TextEncoder, tiny_bundle: Path) -> None:
    frugal = Bundle(str(tiny_bundle)).load_text(CPU, torch.float32)
    frugal.place(torch.device(device), layerwise=True)
    assert next(frugal.model.parameters()).device.type == "meta", "nothing was offloaded"
    embedded = frugal(PROMPTS)
    assert embedded.device.type == device
    expected = encoder(PROMPTS)
    torch.testing.assert_close(embedded.cpu(), expected, atol=rounding(expected), rtol=0)


def test_an_embedding_that_the_config_calls_untied_is_loaded_all_the_same(
    own_bundle: Path, encoder: TextEncoder
) -> None:
    """As in Wan's own text encoder; transformers 5.0 to 5.2 left the encoder's embedding at random."""
    path = own_bundle / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"tie_word_embeddings": False}))
    untied = Bundle(str(own_bundle)).load_text(CPU, torch.float32)
    assert torch.equal(untied(["a red circle"]), encoder(["a red circle"]))
