"""A model for use from Python: `sfpp_cli.load` gives one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sfpp_cli.generation.batch import make
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.job import describe_model, jobs_of
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.outputs import check_outputs
from sfpp_cli.generation.requests import GenerateOptions, plan
from sfpp_cli.generation.share import Share
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.progress import Silent
from sfpp_cli.video import Frames


class Model:
    """A loaded student with its VAE and text encoder. What cannot be done as asked raises `UserError`."""

    def __init__(
        self,
        name: str,
        student: str | None = None,
        **options: Any,
    ) -> None:
        """As `sfpp_cli.load`, which says what the arguments mean."""
        self._progress = Silent()
        self._bundle = Bundle(name, student)
        self._options = ModelOptions.parse(**options)
        self._generator = Generator.load(self._bundle, self._options, [], self._progress)

    @property
    def fps(self) -> int:
        """Frames a second that the student was trained on."""
        return self._bundle.settings.fps

    def stream(
        self,
        prompt: str | None = None,
        *,
        seconds: float | None = None,
        frames: int | None = None,
        seed: int = 0,
        size: str | None = None,
        then: Sequence[str] = (),
        how: str | None = None,
        start: str | Path | None = None,
        drop_start: bool = False,
    ) -> Iterator[Frames]:
        """Frames as they are made, first one, then chunk by chunk: numpy uint8 [T, height, width, 3].

        A chunk is made while the one before it is decoded and the one before that is yours. The same frames
        as `sfpp generate` writes for the same seed. Without a prompt the model's example is shown; without
        `seconds` or a number of `frames`, 10 seconds of it. `size` is such as "64x64",
        each of `then` such as "20: the sun sets".
        """
        options = GenerateOptions(
            prompt=prompt,
            seconds=seconds,
            frames=frames,
            seed=seed,
            size=size,
            then=then,
            how=how,
            start=None if start is None else Path(start),
            drop_start=drop_start,
        )
        (request,) = plan(options, self._bundle)
        return self._generator.frames(request)

    def generate(
        self,
        prompt: str | None = None,
        *,
        out: str | Path,
        seconds: float | None = None,
        frames: int | None = None,
        seed: int = 0,
        size: str | None = None,
        then: Sequence[str] = (),
        how: str | None = None,
        start: str | Path | None = None,
        drop_start: bool = False,
        fps: float | None = None,
        sheet: bool = False,
        save_latents: bool = False,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Write a video and beside it a JSON file that describes it; returns that description and `path`.

        The same files as of `sfpp generate`, with flags of the same names: .mp4, .webm, .gif, or .png for a
        folder of pictures.
        """
        options = GenerateOptions(
            prompt=prompt,
            seconds=seconds,
            frames=frames,
            seed=seed,
            size=size,
            then=then,
            how=how,
            start=None if start is None else Path(start),
            drop_start=drop_start,
            fps=fps,
            out=Path(out),
            sheet=sheet,
            save_latents=save_latents,
            overwrite=overwrite,
        )
        requests = plan(options, self._bundle)
        check_outputs(requests, options)
        jobs = jobs_of(requests, self._description)
        with Share(jobs, options, self._progress, wait=False) as share:
            (made,) = share.run(lambda job: make(job, self._generator, options, self._progress))
        return made

    @cached_property
    def _description(self) -> dict[str, Any]:
        return describe_model(self._bundle, self._options)
