"""Visual Stability: a video language model watches the video, reasons, and rates its exposure from 0 to 5.

The protocol of Self-Forcing++ (arXiv 2510.02283, section 3.4) in our own words: the judge knows the prompt,
writes its reasoning first and a whole number last, and style excuses nothing that the prompt did not ask
for. The paper's judge was Gemini 2.5 Pro on the whole video; any other judge, or one that sees frames only,
gives numbers of its own kind, so results name model and input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.judge.case import HIGHEST, Case, Judgement
from sfpp_cli.evaluation.judge.service import BACK_ENDS, Clock, JudgeSettings, Media, NoAnswer, Service
from sfpp_cli.evaluation.source import jpeg
from sfpp_cli.progress import Advance
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.sheet import SheetSampler

_IN_A_ROW = 3
"""After this many videos in a row without a usable response, the others are not asked for."""
_LETTERS_A_TOKEN = 4
_TOKENS_OUT = 2000
"""Of an answer, roughly."""
_TILE = 512
_TOKENS_A_TILE = 258
"""What services count for each started tile of 512 x 512 pixels, and for each second of a whole video."""


@dataclass(frozen=True)
class Estimate:
    """What judging will take, roughly: `requests` if every first answer is usable, and at most if none is.
    `cost` is that of `requests`, in the currency of the prices."""

    requests: int
    requests_at_most: int
    images: int
    whole_videos: int
    input_tokens: int
    output_tokens: int
    cost: float | None = None

    def __str__(self) -> str:
        counts = ((self.images, "pictures"), (self.whole_videos, "whole videos"))
        shown = " and ".join(f"{count} {what}" for count, what in counts if count) or "nothing"
        cost = "" if self.cost is None else f", cost about {self.cost:.2f}"
        return (
            f"{self.requests} to {self.requests_at_most} requests with {shown}, "
            f"about {self.input_tokens} tokens in and {self.output_tokens} out{cost}"
        )


def judge(
    videos: Sequence[Mapping[str, Any]],
    settings: JudgeSettings,
    folder: Path,
    advance: Advance = lambda done, figures: None,
    *,
    yes: bool = False,
    clock: Clock | None = None,
) -> list[Judgement]:
    """A judgement of each of `videos` ({"path", "prompt"}), in order; raw responses are kept in `folder`
    and reused.

    Nothing is sent without `yes`: UserError with the estimate if anything would have to be. A video that
    cannot be read, has no prompt, or gets no usable answer is reported as missing. UserError also where
    every further request would fail alike (key refused, quota spent, unknown model); answers so far are
    kept.
    """
    cases = [Case(video, settings, folder) for video in videos]
    pending = [case for case in cases if case.open]
    if pending and not yes:
        expected = _estimate(pending, None)
        raise UserError(f"judging would send {expected}; repeat with --yes (yes=True) to send that")
    service = Service(settings, clock or Clock()) if pending else None
    judgements: list[Judgement] = []
    unheard = 0
    for done, case in enumerate(cases, start=1):
        if service is None or not case.reload().open:
            judgements.append(case.judgement())
        elif unheard >= _IN_A_ROW:
            missing = f"not asked, since {_IN_A_ROW} videos before it got no usable response"
            judgements.append(case.judgement(missing))
        else:
            judgements.append(_ask(case, service))
            unheard = unheard + 1 if case.sent and not case.heard else 0
        rated = sum(judgement.rating is not None for judgement in judgements)
        advance(done, {"rated": str(rated)})
    return judgements


def estimate(
    videos: Sequence[Mapping[str, Any]],
    settings: JudgeSettings,
    folder: Path | None = None,
    prices: tuple[float, float] | None = None,
) -> Estimate:
    """What `judge` would send, without what `folder` holds; `prices` are for a million tokens (in, out)."""
    cases = [Case(video, settings, folder) for video in videos]
    return _estimate([case for case in cases if case.open], prices)


def visual_stability(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """`score`: 100 * mean rating / 5 over the videos that were rated, None without any. `rated` and `missing`
    count the videos with and without a rating."""
    ratings = [judgement.rating for judgement in judgements if judgement.rating is not None]
    score = 100 * fmean(ratings) / HIGHEST if ratings else None
    return {"score": score, "rated": len(ratings), "missing": len(judgements) - len(ratings)}


def _ask(case: Case, service: Service) -> Judgement:
    """Ask until the answer can be used, or as often as agreed."""
    try:
        media = _media(case)
    except UserError as error:
        return case.judgement(str(error))
    body = json.dumps(BACK_ENDS[case.settings.back_end].body(case.settings, case.question, media)).encode()
    case.save()
    try:
        while case.open:
            service.post(body, case.keep)
    except NoAnswer as error:
        return case.judgement(str(error))
    return case.judgement()


def _media(case: Case) -> Media:
    """The whole video, or frames of it with their times."""
    if case.mime:
        return [("", case.mime, case.path.read_bytes())]
    wanted = set(SheetSampler(case.info.frames, case.settings.frames).indices)
    return [
        (
            f"{index / case.info.fps:.1f} s",
            "image/jpeg",
            jpeg(frame, case.settings.side, case.settings.quality)[0],
        )
        for index, frame in enumerate(read_frames(case.path))
        if index in wanted
    ]


def _estimate(cases: Sequence[Case], prices: tuple[float, float] | None) -> Estimate:
    """Of open cases; the same question about the same content is asked once."""
    by_question = {case.file or (case.record["video"]["sha256"], case.question): case for case in cases}
    distinct = by_question.values()
    tokens_in = round(sum(_tokens_in(case) for case in distinct))
    tokens_out = _TOKENS_OUT * len(distinct)
    return Estimate(
        requests=len(distinct),
        requests_at_most=sum(case.settings.asks - len(case.answers) for case in distinct),
        images=sum(_images(case) for case in distinct),
        whole_videos=sum(case.mime is not None for case in distinct),
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cost=None if prices is None else (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6,
    )


def _images(case: Case) -> int:
    return 0 if case.mime else min(case.settings.frames, case.info.frames)


def _tokens_in(case: Case) -> float:
    question = len(case.question) / _LETTERS_A_TOKEN
    if case.mime:
        return question + _TOKENS_A_TILE * ceil(case.info.seconds)
    width, height = case.info.width, case.info.height
    shrink = min(1.0, case.settings.side / max(width, height))
    tiles = ceil(width * shrink / _TILE) * ceil(height * shrink / _TILE)
    return question + _images(case) * tiles * _TOKENS_A_TILE
