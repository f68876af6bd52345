"""A batch of videos on this rank: what is finished is skipped, what was interrupted goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.errors import Interrupted, UserError
from sfpp_cli.generation.generator import Generator, ModelOptions
from sfpp_cli.generation.job import Job, describe_model
from sfpp_cli.generation.requests import GenerateOptions, Request, check_outputs, plan, refuse_existing
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.progress import Progress


def make_all(
    options: GenerateOptions, bundle: Bundle, model: ModelOptions, ranks: Ranks, progress: Progress
) -> list[dict[str, Any]]:
    """Make this rank's share of the videos; returns their descriptions, finished ones included."""
    model.sampler(bundle.settings)  # refuses a context that cannot be, before anything else is done
    requests = plan(options, bundle)
    check_outputs(requests)
    mine = [requests[i] for i in ranks.share(len(requests))]
    if not (options.overwrite or options.resume):
        refuse_existing(mine)
    _warn_beyond_horizon(requests, bundle, progress)
    with _explained():
        described = describe_model(bundle, model)
        jobs = [Job(request, described) for request in mine]
        finished = _finished(jobs, options)
        prompts = [job.request.prompt for job in jobs if job not in finished]
        if prompts:
            generator = Generator.load(bundle, model, prompts, progress)
        results = []
        for job in jobs:
            if job in finished:
                progress.say(f"{finished[job]['path']} is finished already")
                results.append(finished[job])
            else:
                results.append(make(job, generator, options, progress))
        return results


def make(job: Job, generator: Generator, options: GenerateOptions, progress: Progress) -> dict[str, Any]:
    """Make one video, or with `options.resume` what is missing of it; returns its description."""
    if not options.resume:
        job.discard()
    progress.detail(f"CPU threads for an operation of each stage: {generator.threads(job.request)}")
    description = job.run(generator, progress, sheet=options.sheet, save_latents=options.save_latents)
    speed = description["speed"]
    progress.say(
        f"{description['path']}: {description['seconds']:g} s; loop {speed['loop_fps']:g} fps, "
        f"VAE {speed['vae_fps']:g} fps, end to end {speed['end_to_end_fps']:g} fps, "
        f"first frame after {speed['time_to_first_frame_s']:g} s, {description['memory_mb']} MB"
    )
    return description


def _warn_beyond_horizon(requests: Sequence[Request], bundle: Bundle, progress: Progress) -> None:
    settings = bundle.settings
    trained = bundle.compression.video_frames(settings.horizon)
    longest = max(request.frames for request in requests)
    if longest > trained:
        known = f"this student was trained on rollouts of {trained / settings.fps:.0f} s"
        progress.warn(f"{known}; beyond that, expect the picture to drift")


def _finished(jobs: Sequence[Job], options: GenerateOptions) -> dict[Job, dict[str, Any]]:
    """Jobs whose videos are there already, with their descriptions; what has another's name is refused."""
    if not options.resume:
        return {}
    videos = {job: job.finished() for job in jobs}
    if not options.overwrite:
        refuse_existing([job.request for job in jobs if videos[job] is None and not job.interrupted()])
    return {
        job: json.loads(video.with_suffix(".json").read_text()) | {"path": str(video)}
        for job, video in videos.items()
        if video is not None
    }


@contextmanager
def _explained() -> Iterator[None]:
    """Ctrl-C and a full GPU, with what to do about them."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command with --resume goes on from here") from None
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU's memory is full: try --offload sequential, --tile 32, a smaller --size or --context; "
            "--resume goes on where videos were begun"
        ) from error
