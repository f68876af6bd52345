"""Videos that a student in training makes of fixed prompts and seeds: a picture, and four gauges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from sfpp_cli.core.geometry import round_up
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.errors import UserError
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.decoders import DecoderFile, load_decoder
from sfpp_cli.models.settings import Settings
from sfpp_cli.models.vae import decoder_stream, to_uint8
from sfpp_cli.video import Frames
from sfpp_cli.video.sheet import SheetSampler, contact_sheet

COLUMNS = 8
"""Frames of a video on a sheet."""
REC_709 = (2126.0, 7152.0, 722.0)
"""Weights of luma in ten-thousandths: whole numbers, so that sums in float32 are exact."""
LEVEL = 10_000
"""One of the 255 levels of luma."""


class Previewer:
    """Rolls a student out from the same noise each time it is called, so that only the student differs.

    Video i has seed `seed + i` and lasts `seconds`, rounded up to whole chunks.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        text: Tensor,
        seconds: float,
        folder: Path,
        device: torch.device,
        seed: int,
        stop_on: Sequence[str] = (),
        decoder: DecoderFile | None = None,
    ) -> None:
        """`text` [B, L, D] holds the prompts' padded embeddings; `settings` are the student's.

        `stop_on` names verdicts of `sfpp evaluate` that no preview may have. `decoder` makes the pictures, if
        not the model's VAE.
        """
        self.stop_on = stop_on
        self.settings = settings
        self.sampler = settings.sampler()
        self.folder = folder
        self.text = text.to(device)
        self.decoder = load_decoder(decoder, bundle, device, torch.float32)
        compression = bundle.compression
        wanted = compression.latent_frames(max(1, round(seconds * settings.fps)))
        self.latent_frames = round_up(wanted, settings.chunk)
        self.frames = compression.video_frames(self.latent_frames)
        channels = bundle.transformer_config()["in_channels"]
        chunk_shape = (settings.chunk, channels, *bundle.latent_size)
        self.noise = VideoNoise(range(seed, seed + len(text)), chunk_shape, device)

    @torch.no_grad()
    def __call__(self, student: CausalWanModel, step: int, *, write: bool = True) -> dict[str, float]:
        """The gauges (see `gauges`) as `preview_NAME`, means over the prompts.

        Writes `folder/step-NNNNNN.png`, a row for each prompt, unless `write` is False: of several ranks
        only the first writes. UserError if one of `stop_on` fires.
        """
        measured: list[dict[str, float]] = []
        pictures: list[Frames] = []
        times: list[float] = []
        fired: list[str] = []
        for latents in self._latents(student).split(1):
            frames = self._decode(latents)
            measured.append(gauges(frames))
            if self.stop_on:
                fired += self._fired(frames, len(measured))
            sampler = SheetSampler(self.frames, COLUMNS)
            sampler.write(frames)
            pictures += sampler.frames
            times += sampler.times(self.settings.fps)
        if write:
            path = self.folder / f"step-{step:06d}.png"
            contact_sheet(pictures, times, path, columns=min(COLUMNS, self.frames))
        if fired:
            raise UserError(
                f"stopped at step {step}, before it was saved: {', '.join(fired)} in its preview; "
                "the last checkpoint stands"
            )
        return {f"preview_{name}": fmean(video[name] for video in measured) for name in measured[0]}

    def _fired(self, frames: Frames, number: int) -> list[str]:
        """The verdicts that stop a run, with the video and the second at which each sets in."""
        from sfpp_cli.evaluation.metrics.measure import judge  # OpenCV, which other objectives need not load

        found = judge(frames, self.settings.fps)
        return [
            f"{name} from {found[name]['onset_seconds']} s on in video {number}"
            for name in self.stop_on
            if found[name]["fired"]
        ]

    def _latents(self, student: CausalWanModel) -> Tensor:
        """Clean latents [B, F, C, h, w] of all prompts at once. The student keeps its mode."""
        training = student.training
        noise = self.noise.chunks(0, self.latent_frames // self.settings.chunk)
        chunks = self.sampler.rollout(student.eval(), noise, self.text, self.noise.draw)
        try:
            return torch.cat(list(chunks), dim=1)
        finally:
            student.train(training)

    def _decode(self, latents: Tensor) -> Frames:
        """Latents [1, F, C, h, w] -> frames uint8 [T, H, W, 3]; only a chunk of them is on the device."""
        decoder = decoder_stream(self.decoder)
        pieces = [to_uint8(decoder(chunk))[0].cpu() for chunk in latents.split(self.settings.chunk, dim=1)]
        return torch.cat(pieces).numpy()


def gauges(frames: Tensor | Frames) -> dict[str, float]:
    """Brightness, colour and motion of a video, uint8 [T, H, W, 3], each in 0..1.

    `luma`: mean brightness (Rec. 709). `saturation`: mean of (max - min) / max over RGB, 0 for black.
    `motion`: mean absolute change of luma from frame to frame, 0 for a single one. `clipped`: share of
    pixels with luma below 2/255 or above 253/255. Frames are read one by one, so that a long video needs no
    copy of itself.
    """
    rows = []
    before: Tensor | None = None
    for frame in torch.as_tensor(frames):
        pixels = frame.float()
        luma = (pixels * pixels.new_tensor(REC_709)).sum(-1)
        highest = pixels.amax(-1)
        lowest = pixels.amin(-1)
        saturation = (highest - lowest) / highest.clamp_min(1)
        change = torch.zeros_like(luma) if before is None else (luma - before).abs()
        clipped = ((luma < 2 * LEVEL) | (luma > 253 * LEVEL)).float()
        rows.append(torch.stack([part.mean() for part in (luma, saturation, change, clipped)]))
        before = luma
    luma_sum, saturation_sum, change_sum, clipped_sum = torch.stack(rows).double().sum(0).tolist()
    count = len(rows)
    white = 255 * LEVEL
    return {
        "luma": luma_sum / count / white,
        "saturation": saturation_sum / count,
        "motion": change_sum / max(count - 1, 1) / white,
        "clipped": clipped_sum / count,
    }
