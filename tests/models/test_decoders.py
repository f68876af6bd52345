"""`--decoder`: small decoders stream as a whole decode, load strictly, and belong to a video's identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Sfpp
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from test_convert import original_vae_name
from tiny import CONFIG, gaussian, randomize
from torch import Tensor

from sfpp_cli.core.geometry import Compression
from sfpp_cli.errors import UserError
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.job import describe_model
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.requests import Request
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.decoders import DecoderFile
from sfpp_cli.models.tiny_vae import TinyDecoder, TinyStream
from sfpp_cli.models.vae import StreamingDecoder, TiledDecoder, decoder_stream
from sfpp_cli.progress import Silent
from sfpp_cli.training.preview import Previewer

pytest_plugins = ["tiny_bundle"]

CPU = torch.device("cpu")
OPTIONS = ModelOptions(device=CPU, dtype=torch.float32)
CHANNELS = CONFIG["in_channels"]
WIDTHS = (12, 8, 6, 6)


def random_tiny(channels: int = CHANNELS) -> TinyDecoder:
    decoder = TinyDecoder(channels, WIDTHS)
    randomize(decoder)
    return decoder.eval()


def naive(weights: dict[str, Tensor], latents: Tensor) -> Tensor:
    """All of [F, C, h, w] at once, in float64, as the reference does it: enlarged first, then grown."""
    weights = {name: tensor.double() for name, tensor in weights.items()}

    def convolve(x: Tensor, name: str, padding: int = 1) -> Tensor:
        bias = weights.get(f"{name}.bias")
        return F.conv2d(x, weights[f"{name}.weight"], bias, padding=padding)

    x = 3 * torch.tanh(latents.double() / 3)
    x = F.relu(convolve(x, "decoder.1"))
    for first, times in ((3, 1), (9, 2), (15, 2)):
        for block in range(first, first + 3):
            before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
            inner = torch.cat([x, before], dim=1)
            for place in (0, 2):
                inner = F.relu(convolve(inner, f"decoder.{block}.conv.{place}"))
            x = F.relu(convolve(inner, f"decoder.{block}.conv.4") + x)
        x = x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
        x = convolve(x, f"decoder.{first + 4}.conv", padding=0)
        x = x.reshape(len(x) * times, -1, *x.shape[-2:])
        x = convolve(x, f"decoder.{first + 5}")
    x = convolve(F.relu(x), "decoder.22")
    return 2 * x[3:].clamp(0, 1) - 1


@pytest.fixture
def taehv(tmp_path: Path) -> Path:
    """A file as published, with the encoder that a decode does not need."""
    path = tmp_path / "taew2_1.safetensors"
    save_file(random_tiny().state_dict() | {"encoder.0.weight": torch.ones(4, 3, 3, 3)}, path)
    return path


@pytest.fixture
def lightvae(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny model's VAE, of another width, under Wan's names."""
    own = Bundle(str(tiny_bundle)).load_vae(CPU, torch.float32)
    config = {name: value for name, value in own.config.items() if not name.startswith("_")}
    narrow = AutoencoderKLWan(**{**config, "base_dim": 2})
    randomize(narrow, seed=9)
    path = tmp_path / "lightvaew2_1.safetensors"
    save_file({original_vae_name(name, narrow): tensor for name, tensor in narrow.state_dict().items()}, path)
    return path


def test_a_taehv_has_the_published_names_and_size() -> None:
    with torch.device("meta"):
        decoder = TinyDecoder(16)
    shapes = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    assert shapes["decoder.1.weight"] == (256, 16, 3, 3)
    assert shapes["decoder.5.conv.0.weight"] == (256, 512, 3, 3)
    assert [shapes[f"decoder.{place}.conv.weight"] for place in (7, 13, 19)] == [
        (256, 256, 1, 1),
        (256, 128, 1, 1),
        (128, 64, 1, 1),
    ]
    assert shapes["decoder.22.weight"] == (3, 64, 3, 3)
    assert not {f"decoder.{place}.bias" for place in (8, 14, 20)} & shapes.keys()
    assert round(sum(tensor.numel() for tensor in decoder.parameters()) / 1e6, 2) == 9.84


@pytest.mark.parametrize("pieces", [[7], [1, 6], [3, 3, 1], [1] * 7])
@torch.no_grad()
def test_a_stream_is_the_whole(pieces: list[int]) -> None:
    decoder = random_tiny()
    latents = gaussian(2, 7, CHANNELS, 4, 6)
    stream = TinyStream(decoder)
    made = [stream(piece) for piece in latents.split(pieces, dim=1)]
    assert [piece.shape[1] for piece in made] == [4 * count - 3 * (i == 0) for i, count in enumerate(pieces)]
    whole = torch.stack([naive(decoder.state_dict(), video) for video in latents])
    assert whole.std() > 0.1
    torch.testing.assert_close(torch.cat(made, dim=1).double(), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_stream_goes_on_from_its_state() -> None:
    decoder = random_tiny()
    first, second = gaussian(1, 6, CHANNELS, 4, 6).split(3, dim=1)
    stream = TinyStream(decoder)
    stream(first)
    resumed = TinyStream(decoder)
    resumed.memory, resumed.trim = dict(stream.memory), stream.trim
    assert torch.equal(resumed(second), stream(second))
    assert sum(tensor.shape[1] for tensor in stream.memory.values()) == 9, "one picture a block, ever"


@torch.no_grad()
def test_tiles_of_one_are_the_whole() -> None:
    decoder = random_tiny()
    latents = gaussian(1, 3, CHANNELS, 4, 6)
    torch.testing.assert_close(
        TiledDecoder(decoder, tile=6)(latents), TinyStream(decoder)(latents), atol=1e-6, rtol=0
    )


@torch.no_grad()
def test_raw_latents_are_what_a_light_tae_gets(tiny_bundle: Path, taehv: Path) -> None:
    bundle = Bundle(str(tiny_bundle))
    latents = gaussian(1, 3, CHANNELS, 4, 6)
    light = taehv.rename(taehv.with_name("lighttaew2_1.safetensors"))
    weights = load_file(light)

    def decoded(text: str) -> Tensor:
        file = DecoderFile.parse(text)
        assert file is not None
        return decoder_stream(file.load(bundle, CPU, torch.float32))(latents)[0].double()

    for text, given in {
        str(light): latents * 0.8 + 0.1,  # the tiny VAE's statistics
        f"{light}:raw": latents * 0.8 + 0.1,
        f"{light}:normalised": latents,
    }.items():
        torch.testing.assert_close(decoded(text), naive(weights, given[0]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_growth_of_more_pictures_keeps_the_last(tiny_bundle: Path, taehv: Path) -> None:
    weights = load_file(taehv)
    more = dict(weights)
    more["decoder.7.conv.weight"] = torch.cat([gaussian(12, 12, 1, 1), weights["decoder.7.conv.weight"]])
    save_file(more, taehv)
    decoder = DecoderFile(taehv).load(Bundle(str(tiny_bundle)), CPU, torch.float32)
    assert torch.equal(decoder.state_dict()["decoder.7.conv.weight"], weights["decoder.7.conv.weight"])


@torch.no_grad()
def test_a_light_vae_is_wans_with_fewer_channels(tiny_bundle: Path, lightvae: Path) -> None:
    decoder = DecoderFile(lightvae).load(Bundle(str(tiny_bundle)), CPU, torch.float64)
    assert isinstance(decoder, AutoencoderKLWan)
    assert decoder.config.base_dim == 2
    stored = load_file(lightvae)
    state = decoder.state_dict()
    assert len(stored) == len(state)
    assert all(torch.equal(state[name].float(), stored[original_vae_name(name, decoder)]) for name in state)
    latents = gaussian(1, 4, CHANNELS, 4, 6, dtype=torch.float64)
    stream = StreamingDecoder(decoder)
    pieces = torch.cat([stream(piece) for piece in latents.split([1, 2, 1], dim=1)], dim=1)
    mean, deviation = (0.1, 0.8)
    whole = decoder.decode((latents * deviation + mean).transpose(1, 2)).sample.transpose(1, 2)
    torch.testing.assert_close(pieces.clamp(-1, 1), whole, atol=1e-10, rtol=0)


def test_it_is_part_of_the_identity(tiny_bundle: Path, taehv: Path, lightvae: Path) -> None:
    bundle = Bundle(str(tiny_bundle))
    assert "decoder" not in describe_model(bundle, OPTIONS), "videos without keep their keys"
    assert DecoderFile.parse("wan") is None

    def described(text: str) -> str:
        model = describe_model(bundle, replace(OPTIONS, decoder=DecoderFile.parse(text)))
        return json.dumps(model["decoder"])

    told = [described(text) for text in (str(taehv), f"{taehv}:raw", f"{taehv}:normalised", str(lightvae))]
    assert told[0] == told[2]
    assert len(set(told)) == 3
    assert [json.loads(each)["latents"] for each in told] == ["normalised", "raw", "normalised", "raw"]


@pytest.mark.parametrize("kind", ["taehv", "lightvae"])
def test_videos_and_previews_are_made_with_it(
    kind: str, request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The same latents, other pictures, and as many of them."""
    file = DecoderFile(request.getfixturevalue(kind))
    bundle = Bundle(str(tiny_bundle))
    wanted = Request(prompt="a", seed=3, frames=30, width=64, height=48, fps=8, out=tmp_path / "v.mp4")
    videos = {}
    for name, options in {"own": OPTIONS, "file": replace(OPTIONS, decoder=file)}.items():
        generator = Generator.load(bundle, options, ["a"], Silent())
        videos[name] = torch.cat([torch.from_numpy(part) for part in generator.frames(wanted)])
    assert videos["own"].shape == videos["file"].shape == (30, 48, 64, 3)
    latents = torch.cat(list(generator.latents(wanted)), dim=1)
    with torch.no_grad():
        whole = decoder_stream(file.load(bundle, CPU, torch.float32))(latents)[0, :30].movedim(1, -1)
    given = videos["file"].float() / 127.5 - 1
    torch.testing.assert_close(given, whole.clamp(-1, 1), atol=1.01 / 255, rtol=0)
    assert not torch.equal(videos["own"], videos["file"])
    text = generator.text(["a"])
    previewer = Previewer(bundle, bundle.settings, text, 2.0, tmp_path, CPU, 3, decoder=file)
    own = Previewer(bundle, bundle.settings, text, 2.0, tmp_path, CPU, 3)
    assert previewer(generator.student, 1)["preview_luma"] != own(generator.student, 2)["preview_luma"]


def _drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.pop(name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_drop("decoder.8.weight"), "decoder.8.weight"),
        (_drop("decoder.5.conv.2.bias"), "missing: decoder.5.conv.2.bias"),
        (
            lambda weights: weights.update({"decoder.30.weight": torch.ones(1)}),
            "unexpected: decoder.30.weight",
        ),
        (
            lambda weights: weights.update({"decoder.22.weight": torch.ones(12, 6, 3, 3)}),
            "of another shape: decoder.22.weight [12, 6, 3, 3] instead of [3, 6, 3, 3]",
        ),
        (
            lambda weights: weights.update({"decoder.1.weight": torch.ones(12, 48, 3, 3)}),
            "decoder.1.weight [12, 48, 3, 3] instead of",
        ),
        (lambda weights: weights.clear() or weights.update(a=torch.ones(1)), "neither a VAE of Wan 2.1 nor"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    change: Callable[[dict[str, Tensor]], object], reason: str, tiny_bundle: Path, taehv: Path
) -> None:
    weights = load_file(taehv)
    change(weights)
    save_file(weights, taehv)
    with pytest.raises(UserError) as raised:
        DecoderFile(taehv).load(Bundle(str(tiny_bundle)), CPU, torch.float32)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_light_vae_of_another_model_is_refused(tiny_bundle: Path, lightvae: Path) -> None:
    weights = load_file(lightvae)
    weights.pop("encoder.conv1.weight")
    save_file(weights, lightvae)
    with pytest.raises(UserError, match=r"lightvaew2_1.safetensors lacks encoder.conv_in.weight"):
        DecoderFile(lightvae).load(Bundle(str(tiny_bundle)), CPU, torch.float32)


def test_a_taehv_fits_wans_compression_only(
    tiny_bundle: Path, taehv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "compression", Compression(temporal=4, spatial=4))
    with pytest.raises(UserError, match="makes 4 pictures of 8x8 pixels each, and this model others"):
        DecoderFile(taehv).load(Bundle(str(tiny_bundle)), CPU, torch.float32)


def test_on_the_command_line(
    sfpp: Sfpp, tiny_bundle: Path, taehv: Path, lightvae: Path, tmp_path: Path
) -> None:
    (tmp_path / "taew2_1.pth").write_bytes(b"anything")
    (tmp_path / "broken.safetensors").write_bytes(b"anything")

    def generate(text: str) -> tuple[int, str, str]:
        out = str(tmp_path / "v.mp4")
        return sfpp(
            *("generate", "a", "--frames", "5", "--model", str(tiny_bundle), "--out", out, "--decoder", text)
        )

    for text, reason in {
        str(tmp_path / "taew2_1.pth"): "is a pickle, which may hold code: take the .safetensors file",
        str(tmp_path / "none.safetensors"): "is not there: it takes wan, or a .safetensors file",
        str(tmp_path / "broken.safetensors"): "cannot be read",
        f"{lightvae}:normalised": "only a TAEHV is told what latents it takes",
    }.items():
        code, out, err = generate(text)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert reason in err
        assert not (tmp_path / "v.mp4").exists()
    code, _, err = generate(f"{taehv}:raw")
    assert code == 0, err
    assert json.loads((tmp_path / "v.json").read_text())["decoder"]["latents"] == "raw"
