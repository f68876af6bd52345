"""The streaming VAE against diffusers' own, which sees the whole video at once; in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from tiny import rounding
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from sfpp_cli.errors import UserError
from sfpp_cli.models import vae as vae_module
from sfpp_cli.models.vae import (
    CausalConv,
    StreamingDecoder,
    StreamingEncoder,
    TiledDecoder,
    channels_last,
    compile_decoder,
    denormalise,
    normalise,
    to_uint8,
)

LATENT_CHUNKS = [3, 1, 2, 5]
FRAME_CHUNKS = [9, 4, 8, 20]
ATOL = 1e-10
"""For values of order 1 to 5 in float64, which agree to 1e-14."""


@pytest.fixture(params=[None, 2], ids=["pixels", "patches"])
def vae(request: pytest.FixtureRequest) -> AutoencoderKLWan:
    return random_vae(request.param)


def random_vae(patch_size: int | None = None) -> AutoencoderKLWan:
    """Compressed 4 times in time and 4 or 8 times in space; weights large enough for outputs of order one."""
    torch.manual_seed(0)
    channels = 3 * (patch_size or 1) ** 2
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.5, -0.25, 0.0, 1.0],
        latents_std=[2.0, 1.0, 0.5, 1.5],
        in_channels=channels,
        out_channels=channels,
        patch_size=patch_size,
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            if parameter.ndim > 3:
                parameter.normal_(1.0, 0.1) if parameter[0].numel() == 1 else parameter.mul_(1.8)
    return vae.eval().double()


def video(vae: AutoencoderKLWan, frames: int) -> Tensor:
    side = 4 * (vae.config.patch_size or 1)
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, frames, 3, 2 * side, 3 * side, generator=generator, dtype=torch.float64) * 2 - 1


def latents(frames: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, frames, 4, 2, 3, generator=generator, dtype=torch.float64)


@torch.no_grad()
def test_streamed_decode_equals_the_whole(vae: AutoencoderKLWan) -> None:
    z = latents(sum(LATENT_CHUNKS))
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    whole = vae.decode((z * std + mean).transpose(1, 2)).sample.transpose(1, 2)
    decoder = StreamingDecoder(vae)
    pieces = [decoder(chunk) for chunk in z.split(LATENT_CHUNKS, dim=1)]
    assert [piece.shape[1] for piece in pieces] == [9, 4, 8, 20]
    assert whole.std() > 0.1
    torch.testing.assert_close(torch.cat(pieces, dim=1).clamp(-1, 1), whole, atol=ATOL, rtol=0)


@torch.no_grad()
def test_streamed_encode_equals_the_whole(vae: AutoencoderKLWan) -> None:
    frames = video(vae, sum(FRAME_CHUNKS))
    posterior = vae.encode(frames.transpose(1, 2)).latent_dist
    encoder = StreamingEncoder(vae)
    moments = [encoder.moments(chunk) for chunk in frames.split(FRAME_CHUNKS, dim=1)]
    mean, log_variance = (torch.cat(parts, dim=2) for parts in zip(*moments, strict=True))
    assert mean.std() > 0.1
    torch.testing.assert_close(mean, posterior.mean, atol=ATOL, rtol=0)
    torch.testing.assert_close(log_variance.clamp(-30, 20), posterior.logvar, atol=ATOL, rtol=0)

    encoder = StreamingEncoder(vae)
    z = torch.cat([encoder(chunk) for chunk in frames.split(FRAME_CHUNKS, dim=1)], dim=1)
    torch.testing.assert_close(denormalise(vae, z), posterior.mean.transpose(1, 2), atol=ATOL, rtol=0)


@torch.no_grad()
def test_interleaved_streams_do_not_disturb_each_other() -> None:
    vae = random_vae()
    videos = [latents(6, seed=3), latents(6, seed=4)]
    apart = [StreamingDecoder(vae)(z) for z in videos]
    decoders = [StreamingDecoder(vae), StreamingDecoder(vae)]
    together: list[list[Tensor]] = [[], []]
    for start in range(0, 6, 2):
        for decoder, z, pieces in zip(decoders, videos, together, strict=True):
            pieces.append(decoder(z[:, start : start + 2]))
        vae.decode(videos[0].transpose(1, 2))
    for pieces, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=ATOL, rtol=0)


def test_normalise_undoes_denormalise() -> None:
    vae = random_vae()
    z = latents(2)
    torch.testing.assert_close(normalise(vae, denormalise(vae, z)), z, atol=ATOL, rtol=0)


def test_detach_ends_back_propagation() -> None:
    vae = random_vae()
    decoder = StreamingDecoder(vae)
    first, second = (latents(1, seed=seed).requires_grad_() for seed in (5, 6))
    decoder(first)
    decoder.detach()
    decoder(second).sum().backward()
    assert first.grad is None
    assert second.grad is not None


@torch.no_grad()
def test_one_tile_is_no_tile(vae: AutoencoderKLWan) -> None:
    z = latents(4)
    torch.testing.assert_close(TiledDecoder(vae, tile=3)(z), StreamingDecoder(vae)(z), atol=ATOL, rtol=0)


@torch.no_grad()
def test_a_tiled_stream_does_not_depend_on_the_chunks(vae: AutoencoderKLWan) -> None:
    z = torch.randn(1, 6, 4, 5, 7, generator=torch.Generator().manual_seed(3)).double()
    whole, stream = TiledDecoder(vae, tile=4, overlap=2), TiledDecoder(vae, tile=4, overlap=2)
    pieces = torch.cat([stream(chunk) for chunk in z.split([1, 3, 2], dim=1)], dim=1)
    torch.testing.assert_close(pieces, whole(z), atol=ATOL, rtol=0)
    assert len(stream.decoders) == 6


def test_tiles_are_blended_to_the_whole_where_decoding_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    class Enlarge:
        def __init__(self, vae: object) -> None:
            pass

        def __call__(self, z: Tensor) -> Tensor:
            return z.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)

    monkeypatch.setattr(vae_module, "StreamingDecoder", Enlarge)
    z = torch.randn(1, 2, 3, 9, 11, dtype=torch.float64)
    tiled = TiledDecoder(None, tile=4)(z)  # type: ignore[arg-type]
    torch.testing.assert_close(tiled, Enlarge(None)(z), atol=ATOL, rtol=0)
    with pytest.raises(UserError, match="too small"):
        TiledDecoder(None, tile=1)  # type: ignore[arg-type]


def test_frames_become_bytes() -> None:
    frames = torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0]).expand(1, 2, 3, 4, 5)
    assert to_uint8(frames).shape == (1, 2, 4, 5, 3)
    assert to_uint8(frames)[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(frames).is_contiguous(), "or the host would interleave the colours"


class Constants(TorchDispatchMode):
    """Counts tensors made of Python's numbers."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += function is torch.ops.aten.lift_fresh.default
        return function(*args, **(kwargs or {}))


def test_statistics_are_put_on_the_device_once(vae: AutoencoderKLWan) -> None:
    z = torch.randn(1, 2, 4, 5, 6, generator=torch.Generator().manual_seed(3))
    for dtype in (torch.float32, torch.bfloat16):
        decoded = denormalise(vae, z.to(dtype))
        with Constants() as constants:
            assert torch.equal(denormalise(vae, z.to(dtype)), decoded)
            normalise(vae, z.to(dtype))
        assert constants.count == 0
        assert decoded.dtype == dtype
    before = denormalise(vae, z)
    vae.register_to_config(latents_mean=[0.0] * 4)  # as one that is being trained finds its own
    assert not torch.equal(denormalise(vae, z), before)


def test_another_layout_gives_the_same_numbers(vae: AutoencoderKLWan) -> None:
    torch.manual_seed(1)
    frames = torch.rand(1, 9, 3, 32, 32, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        latents = StreamingEncoder(vae)(frames)
        pictures = StreamingDecoder(vae)(latents)
        assert channels_last(vae) is vae
        layouts = {"Conv2d": torch.channels_last, "CausalConv": torch.channels_last_3d}
        assert not any(type(module).__name__ == "WanCausalConv3d" for module in vae.modules())
        convolutions = [module for module in vae.modules() if type(module).__name__ in layouts]
        assert convolutions
        assert all(
            module.weight.is_contiguous(memory_format=layouts[type(module).__name__])
            for module in convolutions
        )
        torch.testing.assert_close(StreamingEncoder(vae)(frames), latents, atol=ATOL, rtol=0)
        torch.testing.assert_close(StreamingDecoder(vae)(latents), pictures, atol=ATOL, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("videos", "dtype"), [(1, torch.float64), (2, torch.float32)])
def test_a_decoder_is_compiled_to_one_graph(
    videos: int, dtype: torch.dtype, vae: AutoencoderKLWan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a break, and no second one over ten more chunks or for another video.

    Of one video alone every stride counts, since the batch's may be anything. In float32 a CPU's kernels
    answer one video in another layout than the compiler's: that is left to two.
    """
    channels_last(vae.to(dtype))
    z = latents(39)[:videos].to(dtype)
    expected = StreamingDecoder(vae)(z)
    counter = CompileCounter()
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    compile_decoder(vae)
    stream = StreamingDecoder(vae)
    found = torch.cat([stream(piece) for piece in z.split([1, 2, *(3,) * 12], dim=1)], dim=1)
    other = StreamingDecoder(vae)
    again = torch.cat([other(piece) for piece in z[:, :12].split(3, dim=1)], dim=1)
    assert counter.frame_count == 1
    assert not counters["graph_break"]
    tolerance = rounding(expected) if dtype is torch.float32 else ATOL
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(again, expected[:, : again.shape[1]], atol=tolerance, rtol=0)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("known", [0, 1, 2])
def test_a_causal_convolution_is_wans(kernel: tuple[int, int, int], known: int) -> None:
    """In float32, whose kernel on a CPU is another, and with gradients alike."""
    torch.manual_seed(2)
    padding = tuple(side // 2 for side in kernel)
    wans = WanCausalConv3d(4, 6, kernel, padding=padding)
    (ours,) = channels_last(torch.nn.Sequential(copy.deepcopy(wans)))
    assert type(ours) is CausalConv
    x = torch.randn(1, 4, 3, 5, 6, requires_grad=True)
    past = torch.randn(1, 4, known, 5, 6) if known else None
    expected = wans(x, past)
    answer = ours(x, past)
    torch.testing.assert_close(answer, expected, atol=rounding(expected), rtol=0)
    wanted = torch.autograd.grad(expected.square().sum(), [x, wans.weight, wans.bias])
    found = torch.autograd.grad(answer.square().sum(), [x, ours.weight, ours.bias])
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, atol=rounding(one), rtol=0)


def test_one_small_video_is_decoded_by_onednn() -> None:
    """PyTorch's own choice for it is an old kernel, several times slower."""
    vae = channels_last(random_vae().float())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        StreamingDecoder(vae)(torch.randn(1, 3, 4, 4, 4))
    kernels = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in kernels
    assert "aten::slow_conv3d_forward" not in kernels
