"""Sample the teacher on captions of unseen scenes, and look at what it shows.

python examples/landscape/gate_teacher.py --work runs/landscape --minutes 10
"""

from __future__ import annotations

import torch
from bundle import assemble
from road import JUDGE_SEED, Job, job_of, save_state, sheet

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import normal, seeded
from sfpp_cli.core.ode import trajectory
from sfpp_cli.data.landscape import draw_scenes
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.vae import StreamingDecoder, to_uint8

GUIDANCE = 2.0
SAMPLING_STEPS = 48
ROWS = 8
SHOWN = (0, 16, 32, 48, 64, 80)
"""Rows and video frames of the contact sheet."""


@torch.no_grad()
def run(job: Job) -> None:
    bundle = Bundle(str(assemble(job.work, job.work / "teacher-bundle")))
    settings, device = bundle.settings, job.device
    teacher, vae, text = (
        load(device, torch.float32) for load in (bundle.load_teacher, bundle.load_vae, bundle.load_text)
    )
    scenes = draw_scenes(JUDGE_SEED, range(job.scale.judged))
    captions = scenes.captions()
    shape = (bundle.teacher_horizon, teacher.config.in_channels, *bundle.latent_size)
    batch = job.scale.pair_batch
    latents, videos = [], []
    for start in range(0, len(captions), batch):
        chosen = captions[start : start + batch]
        noise = torch.stack([normal(shape, seeded(JUDGE_SEED, start + i)) for i in range(len(chosen))]).to(
            device
        )
        with job.autocast():
            path = trajectory(
                teacher,
                noise,
                text(chosen),
                text([""] * len(chosen)),
                schedule=FlowSchedule(settings.shift),
                steps=settings.steps,
                sampling_steps=SAMPLING_STEPS,
                guidance=GUIDANCE,
            )
        latents.append(path[:, -1].half().cpu())
        videos += [
            to_uint8(StreamingDecoder(vae)(part).clamp(-1, 1)).cpu() for part in path[:, -1].float().split(8)
        ]
    together = torch.cat(videos)
    save_state(job.work / "teacher-samples.pt", {"latents": torch.cat(latents), "captions": captions})
    save_state(job.work / "teacher-videos.pt", {"frames": together})
    pixels = together[:ROWS, list(SHOWN)].float().movedim(-1, 2) / 127.5 - 1
    sheet([list(row) for row in pixels], job.work / "teacher.png", zoom=1 if job.cuda else 2)
    job.say(f"teacher: {len(captions)} clips sampled; rows of teacher.png: {' | '.join(captions[:ROWS])}")


if __name__ == "__main__":
    run(job_of(__doc__))
