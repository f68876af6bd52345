"""A batch of videos on this rank: what is finished is skipped, what was interrupted goes on, what fails is said in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.errors import Interrupted, UserError
from sfpp_cli.generation.generator import Generator, Options, Request
from sfpp_cli.generation.requests import Wish, plan, refuse_existing
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.progress import Watch


def make_all(
    wish: Wish,
    bundle: Bundle,
    device: torch.device,
    options: Options,
    ranks: Ranks,
    watch: Watch,
    *,
    overwrite: bool,
    resume: bool,
) -> list[dict[str, Any]]:
    """Make this rank's share of the videos; returns their descriptions, finished ones included."""
    requests = plan(wish, bundle)
    mine = [requests[i] for i in ranks.share(len(requests))]
    if not (overwrite or resume):
        refuse_existing(mine)
    _warn_beyond_horizon(requests, bundle, watch)
    with _explained():
        return _make_share(
            mine,
            Generator(bundle, device, options, [request.prompt for request in mine], watch),
            overwrite,
            resume,
        )


def _make_share(
    mine: Sequence[Request], generator: Generator, overwrite: bool, resume: bool
) -> list[dict[str, Any]]:
    finished = {request: generator.finished(request) if resume else None for request in mine}
    if resume and not overwrite:
        refuse_existing(
            [request for request in mine if finished[request] is None and not generator.interrupted(request)]
        )
    results = []
    for request in mine:
        done = finished[request]
        if done is not None:
            generator.watch.say(f"{done} is finished already")
            results.append(json.loads(done.with_suffix(".json").read_text()) | {"path": str(done)})
            continue
        results.append(_make(generator, request, resume))
    return results


def _make(generator: Generator, request: Request, resume: bool) -> dict[str, Any]:
    if not resume:
        generator.discard(request)
    made = generator.generate(request)
    speed = made["speed"]
    generator.watch.say(
        f"{made['path']}: {made['seconds']:g} s; loop {speed['loop_fps']:g} fps, VAE {speed['vae_fps']:g} fps, end to end "
        f"{speed['end_to_end_fps']:g} fps, first frame after {speed['time_to_first_frame_s']:g} s, {made['memory_mb']} MB"
    )
    return made


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


def _warn_beyond_horizon(requests: list[Request], bundle: Bundle, watch: Watch) -> None:
    settings = bundle.settings
    trained = bundle.compression.video_frames(settings.horizon)
    longest = max(request.frames for request in requests)
    if longest > trained:
        watch.warn(
            f"this student was trained on rollouts of {trained / settings.fps:.0f} s; beyond that, expect the picture to drift"
        )
