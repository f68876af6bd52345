"""Gates between the stages of the toy world: is the VAE, then the teacher, good enough to build on?

    python examples/toyworld/gates.py vae --vae runs/vae/vae
    python examples/toyworld/gates.py teacher --model runs/teacher-bundle --guidance 2
    python examples/toyworld/gates.py captions > runs/captions.txt  # to judge videos made elsewhere:
    python examples/toyworld/gates.py videos --videos runs/samples --span 95 100

Each prints what it measured and writes it as JSON. The exit code is 1 if a gate failed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import normal, seeded
from sfpp_cli.core.ode import trajectory
from sfpp_cli.data.toyworld.reader import judge_videos, read_frames
from sfpp_cli.data.toyworld.world import FPS, Scenes, ToyWorld
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.vae import StreamingDecoder, StreamingEncoder, to_uint8
from sfpp_cli.video.sheet import contact_sheet

FRAMES, SEGMENT, BATCH = 481, 16, 4
SPANS = {"0": (0, 0), "0..16": (0, 16), "40..80": (40, 80), "400..480": (400, 480)}
"""Video frames compared, first and last."""
WINDOWS = {"0..39": (0, 40), "10..49": (10, 50), "40..79": (40, 80), "81..120": (81, 121)}
"""Latent frames compared; the first latent frame is a single picture and has its own statistics."""


def main() -> None:
    options = parse()
    world = ToyWorld(options.seed)
    if options.command == "captions":
        print(*world.scenes(range(options.count)).captions(), sep="\n")
        return
    if options.command == "vae":
        report, gates = judge_vae(
            AutoencoderKLWan.from_pretrained(options.vae), world.scenes(range(options.count))
        )
    elif options.command == "teacher":
        scenes = world.scenes(range(options.count))
        videos = sample_teacher(Bundle(options.model), scenes.captions(), options.guidance, options.seed)
        save_sheet(videos, options.report.with_suffix(".png"))
        if options.save is not None:
            torch.save(videos, options.save)
        report, gates = judge_samples(videos, world)
    else:
        first, last = (round(FPS * second) for second in options.span)
        report, gates = judge_samples([video[first:last] for video in load_videos(options.videos)], world)
    for name, passed in gates.items():
        print(f"{'pass' if passed else 'FAIL'}  {name}")
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps({"seed": options.seed, **report, "gates": gates}, indent=2) + "\n")
    print(f"written to {options.report}")
    raise SystemExit(not all(gates.values()))


def judge_vae(vae: AutoencoderKLWan, scenes: Scenes) -> tuple[dict[str, object], dict[str, bool]]:
    """Stream long videos through the VAE: does it reconstruct as well at the end, are its latents those of
    the beginning?"""
    vae.eval()
    parts = [stream_vae(vae, scenes[i : i + BATCH]) for i in range(0, len(scenes), BATCH)]
    per_frame = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    latents = per_frame.pop("latents")

    spans = {name: span_report(per_frame, first, last) for name, (first, last) in SPANS.items()}
    windows = {name: window_report(latents[:, start:end]) for name, (start, end) in WINDOWS.items()}
    print_table("video frames", spans)
    print_table("latent frames", windows)
    early, late = spans["40..80"]["psnr"], spans["400..480"]["psnr"]
    change = windows["81..120"]["std"] / windows["10..49"]["std"] - 1
    gates = {
        f"PSNR of frames 400..480 is {late:.2f} dB, above 28": late > 28,
        f"and {late - early:+.2f} dB from frames 40..80, within 0.5": abs(late - early) < 0.5,
        f"latent std of the last window is {change:+.1%} from latents 10..49, within 5%": abs(change) < 0.05,
    }
    return {"videos": len(scenes), "spans": spans, "windows": windows}, gates


@torch.no_grad()
def stream_vae(vae: AutoencoderKLWan, scenes: Scenes) -> dict[str, Tensor]:
    """Squared error and the reader's agreement for each video frame, [B, T]; and latents, [B, F, C, h, w]."""
    encoder, decoder = StreamingEncoder(vae), StreamingDecoder(vae)
    pieces = []
    for start in range(1, FRAMES, SEGMENT):
        start, count = (0, 1 + SEGMENT) if start == 1 else (start, SEGMENT)
        frames = scenes.frames(start, count)
        latents = encoder(frames)
        decoded = decoder(latents).clamp(-1, 1)
        seen = read_frames(decoded.flatten(0, 1))
        color, shape = scenes.color.repeat_interleave(count), scenes.shape.repeat_interleave(count)
        agreement = {
            "present": seen.present,
            "color": seen.color == color,
            "shape": seen.shape == shape,
            "in_world": seen.in_world,
        }
        per_frame = {name: same.float().reshape(len(scenes), count) for name, same in agreement.items()}
        pieces.append({"error": (decoded - frames).square().mean((2, 3, 4)), "latents": latents, **per_frame})
    return {name: torch.cat([piece[name] for piece in pieces], dim=1) for name in pieces[0]}


def span_report(per_frame: Mapping[str, Tensor], first: int, last: int) -> dict[str, float]:
    means = {name: values[:, first : last + 1].mean() for name, values in per_frame.items()}
    psnr = 10 * torch.log10(4 / means.pop("error"))  # the data's range is 2
    return {"psnr": psnr.item(), **{name: mean.item() for name, mean in means.items()}}


def window_report(latents: Tensor) -> dict[str, float]:
    return {"mean": latents.mean().item(), "std": latents.std().item()}


@torch.no_grad()
def sample_teacher(bundle: Bundle, captions: list[str], guidance: float, seed: int) -> list[Tensor]:
    """Clips of the teacher's horizon by the sampler that makes the ODE pairs: [T, 3, H, W] in [-1, 1]."""
    cpu, settings = torch.device("cpu"), bundle.settings
    teacher, vae, text = (
        load(cpu, torch.float32) for load in (bundle.load_teacher, bundle.load_vae, bundle.load_text)
    )
    shape = (
        bundle.teacher_horizon,
        teacher.config.in_channels,
        *bundle.compression.latent_size(settings.width, settings.height),
    )
    videos: list[Tensor] = []
    for start in range(0, len(captions), 8):
        batch = captions[start : start + 8]
        noise = torch.stack([normal(shape, seeded(seed, start + i)) for i in range(len(batch))])
        path = trajectory(
            teacher,
            noise,
            text(batch),
            text([""] * len(batch)),
            schedule=FlowSchedule(settings.shift),
            steps=settings.steps,
            sampling_steps=48,
            guidance=guidance,
        )
        videos += StreamingDecoder(vae)(path[:, -1]).clamp(-1, 1)
        print(f"{len(videos)} of {len(captions)} clips", flush=True)
    return videos


def save_sheet(videos: list[Tensor], path: Path, rows: int = 8, columns: int = 9) -> None:
    """A contact sheet: a row for each of the first videos."""
    picked = [index * (len(videos[0]) - 1) // (columns - 1) for index in range(columns)]
    frames = [to_uint8(video[None, index, None])[0, 0].numpy() for video in videos[:rows] for index in picked]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(
        frames, [index / FPS for _ in videos[:rows] for index in picked], path, columns=columns, tile=128
    )


def judge_samples(videos: list[Tensor], world: ToyWorld) -> tuple[dict[str, object], dict[str, bool]]:
    """Do samples show what their captions say, moving as the world does? The videos are those of the first
    scenes, in order."""
    report = judge_videos(videos, world.scenes(range(len(videos))))
    print_table(f"{len(videos)} videos", {name: {"mean": mean} for name, mean in report.items()})
    gates = {
        f"an object of the captioned colour is in {report['object']:.1%} of the frames, at least 95%": report[
            "object"
        ]
        >= 0.95,
        (
            f"the captioned motion is the nearest in {report['nearest_motion']:.1%} of the clips, "
            "at least 67% (guessing: 33%)"
        ): report["nearest_motion"] >= 0.67,
        f"speed is {report['speed_ratio']:.2f} of the world's, within 20%": abs(report["speed_ratio"] - 1)
        < 0.2,
    }
    return {"videos": len(videos), "means": report}, gates


def load_videos(path: Path) -> list[Tensor]:
    """Videos [T, 3, H, W] in [-1, 1]: a tensor of them in a .pt or .safetensors file (named frames), or a
    folder of video files."""
    if path.suffix == ".pt":
        return list(torch.load(path, weights_only=True))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return list(load_file(path)["frames"])
    from sfpp_cli.video.reader import read_frames
    from sfpp_cli.video.writer import EXTENSIONS

    files = sorted(file for file in path.iterdir() if file.suffix in EXTENSIONS)
    stacks = [torch.from_numpy(np.stack(list(read_frames(file)))) for file in files]
    return [stack.permute(0, 3, 1, 2) / 127.5 - 1 for stack in stacks]


def print_table(head: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"{head:>14}" + "".join(f"{column:>14}" for column in columns))
    for name, row in rows.items():
        print(f"{name:>14}" + "".join(f"{row[column]:14.3f}" for column in columns))
    print()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--seed", type=int, default=2, help="the world's seed (the VAE trains on 0, the teacher on 1)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    captions = commands.add_parser(
        "captions", parents=[shared], help="print the scenes' captions, one a line"
    )
    captions.add_argument("--count", type=int, default=32, help="scenes")
    vae = commands.add_parser("vae", parents=[shared], help="long reconstructions")
    vae.add_argument("--vae", type=Path, required=True, help="folder of an AutoencoderKLWan")
    vae.add_argument("--count", type=int, default=16, help="scenes")
    vae.add_argument("--report", type=Path, default=Path("runs/gate_vae.json"))
    teacher = commands.add_parser("teacher", parents=[shared], help="clips sampled from a teacher")
    teacher.add_argument("--model", required=True, help="bundle that holds the teacher")
    teacher.add_argument("--guidance", type=float, default=2.0)
    teacher.add_argument("--count", type=int, default=32, help="scenes")
    teacher.add_argument("--save", type=Path, help="keep the clips in this .pt file")
    teacher.add_argument("--report", type=Path, default=Path("runs/gate_teacher.json"))
    videos = commands.add_parser("videos", parents=[shared], help="videos made from the scenes' captions")
    videos.add_argument(
        "--videos", type=Path, required=True, help="folder of video files in order, .safetensors or .pt"
    )
    videos.add_argument(
        "--span",
        type=float,
        nargs=2,
        default=(0.0, 1e6),
        metavar=("FROM", "TO"),
        help="judge these seconds only",
    )
    videos.add_argument("--report", type=Path, default=Path("runs/gate_videos.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
