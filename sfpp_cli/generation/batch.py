"""A batch of videos on this rank: what is finished is skipped, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.errors import Interrupted, UserError, is_out_of_memory
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.job import Job, describe_model, jobs_of
from sfpp_cli.generation.kernels import check_kernel
from sfpp_cli.generation.limits import check_fits
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.outputs import check_outputs
from sfpp_cli.generation.requests import GenerateOptions, Request, plan
from sfpp_cli.generation.share import Share
from sfpp_cli.generation.together import follow, lead, tell
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.progress import Progress


def make_all(
    options: GenerateOptions, bundle: Bundle, model: ModelOptions, ranks: Ranks, progress: Progress
) -> list[dict[str, Any]]:
    """Make this rank's share of the videos; returns their descriptions, finished ones included.

    Several processes that make the same videos in the same folder share the work. Ranks that make every video
    together are led by the first, which has all the work to the others' eyes.
    """
    model.sampler(bundle.settings)  # refuses a context that cannot be, before anything else is done
    requests = plan(options, bundle)
    check_outputs(requests, options)
    for line in dict.fromkeys(line for request in requests for line in request.said()):
        progress.say(line)
    check_fits(requests, bundle, model)
    _warn_beyond_horizon(requests, bundle, progress)
    model = model.decided(max(request.frames / request.fps for request in requests))
    jobs = jobs_of(requests, describe_model(bundle, model))
    if model.split is not None:
        ranks.join(model.device)
        if not ranks.first:
            follow(bundle, model, progress)
            return []
    mine = jobs if model.split is not None else [jobs[i] for i in ranks.share(len(jobs))]
    with Share(mine, options, progress, wait=len(jobs) > 1) as share, _explained(share):

        @cache
        def load() -> Generator:
            """The model, once there is something to make: others may be at all that is left."""
            prompts = [prompt for job in share.left for prompt in job.request.prompts]
            if model.split is not None:
                tell(prompts)
            generator = Generator.load(bundle, model, prompts, progress)
            if model.split is not None:
                generator.lead = lead
            return generator

        made = share.run(lambda job: make(job, load(), options, progress))
        if model.split is not None:
            tell(None)
        return made


def make(job: Job, generator: Generator, options: GenerateOptions, progress: Progress) -> dict[str, Any]:
    """Make one video, or what is missing of it; returns its description."""
    progress.detail(f"CPU threads for an operation of each stage: {generator.threads(job.request)}")
    kernel = generator.attention_kernel(job.request)
    progress.detail(f"attention runs by the kernel '{kernel}'")
    if warning := check_kernel(kernel, generator.attention, generator.device):
        progress.warn(warning)
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


@contextmanager
def _explained(share: Share) -> Iterator[None]:
    """Ctrl-C and a full memory, with what is kept and what to do."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {_kept(share)}") from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "the memory is full: try --offload sequential, --tile 32, a smaller --size or --context; "
            "--resume goes on where videos were begun"
        ) from error


def _kept(share: Share) -> str:
    """What there is, and how to go on."""
    kept = [f"{len(share.done)} finished videos"] if share.done else []
    if share.current is not None and share.current.interrupted():
        kept.append(f"what was made of {share.current.path}")
    if not kept:
        return "nothing was made yet: the same command starts again"
    return f"{' and '.join(kept)} are kept: the same command with --resume goes on from here"
