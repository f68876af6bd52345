"""Visual Stability: a video language model watches the video, reasons, and rates its exposure from 0 to 5.

The protocol of Self-Forcing++ (arXiv 2510.02283, section 3.4) in our own words: the judge knows the prompt,
writes its reasoning first and a whole number last, and style excuses nothing that the prompt did not ask for.
The paper's judge was Gemini 2.5 Pro on the whole video; any other judge, or one that sees frames only, gives
numbers of its own kind, so results name model and input.

Everything that comes back is kept, one JSON file a question, before it is read: what was paid for once is
never paid for again.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.judge.service import (
    BACK_ENDS,
    Clock,
    JudgeSettings,
    Media,
    NoAnswer,
    Service,
    Unusable,
)
from sfpp_cli.evaluation.source import digest
from sfpp_cli.files import atomic_write
from sfpp_cli.progress import Advance
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import VideoInfo, probe, read_frames
from sfpp_cli.video.sheet import SheetSampler

PROTOCOL = "sfpp-visual-stability-1"
"""Raised whenever the question or what is shown changes; answers to another version are not reused."""
HIGHEST = 5

QUESTION = """\
{shown} It was made by a text-to-video model. Your only task is to say how well its exposure holds from beginning to end.

The model was given this prompt:
<prompt>
{prompt}
</prompt>

Look for pictures that wash out towards white, sink into black, lose detail in clipped highlights or blocked shadows, burn out in \
colour, or drift steadily brighter or darker. Weigh how strong such faults are and how much of the video they cover; late parts \
count as much as early ones. Do not judge beauty, motion, or how well the prompt is followed. A washed-out, glowing or gloomy look \
counts as a fault even if it could pass for a style, unless the prompt itself asks for that look.

Scale:
5: well exposed all the way through
4: minor faults, easy to overlook
3: moderate faults, or stronger ones for a short while
2: noticeable faults over a good part of the video
1: severe faults over most of the video
0: catastrophic, nearly all of it white, black or without recognisable content

First write your reasoning: what the exposure does at the start, in the middle and at the end. Then give the verdict alone on the \
last line, as a whole number, in exactly this form:
Rating: N"""

_MIME = {".mp4": "video/mp4", ".webm": "video/webm", ".mov": "video/mov"}
_RATING = re.compile(
    r"^[\s*_#>`-]*rating[\s*_`]*[:=][\s*_`]*(-?\d+(?:\.\d+)?)\s*(?:/\s*5)?[\s*_`.]*$",
    re.IGNORECASE | re.MULTILINE,
)
_ROW = 3
"""After this many videos in a row without a usable response, the others are not asked for."""


# --- what people see ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """One video's verdict: `rating` 0..5 with its `reasoning`, or None and in `missing` why. `kept`: the file
    of raw responses.

    `requests` counts what was sent for it this time: 0 for an answer that was kept already.
    """

    path: str
    prompt: str | None
    rating: int | None
    reasoning: str = ""
    missing: str | None = None
    kept: str | None = None
    requests: int = 0


@dataclass(frozen=True)
class Estimate:
    """What judging will take, roughly. Tokens of pictures are counted as 258 for each started 512 x 512
    pixels (video: a second).

    `requests` if every first answer is usable, `requests_at_most` if none is; `cost` is for the former, in
    the prices' currency.
    """

    requests: int
    requests_at_most: int
    images: int
    whole_videos: int
    input_tokens: int
    output_tokens: int
    cost: float | None = None

    def __str__(self) -> str:
        shown = [
            f"{count} {what}"
            for count, what in ((self.images, "pictures"), (self.whole_videos, "whole videos"))
            if count
        ]
        cost = "" if self.cost is None else f", cost about {self.cost:.2f}"
        return (
            f"{self.requests} to {self.requests_at_most} requests with {' and '.join(shown) or 'nothing'}, about "
            f"{self.input_tokens} tokens in and {self.output_tokens} out{cost}"
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
    """A verdict for each of `videos` ({"path", "prompt"}), in order; raw responses are kept in `folder` and
    reused.

    Nothing is sent without `yes`: UserError with the estimate if anything would have to be. A video that
    cannot be read, has no prompt, or gets no usable answer is reported as missing. UserError also where every
    further request would fail alike (key refused, quota spent, unknown model); answers so far are kept.
    """
    cases = [_Case(video, settings, folder) for video in videos]
    pending = [case for case in cases if case.open]
    if pending and not yes:
        raise UserError(
            f"judging would send {_estimate(pending, settings, None)}; repeat with --yes (yes=True) to send that"
        )
    service = Service(settings, clock or Clock()) if pending else None
    judgements: list[Judgement] = []
    unheard = 0
    for done, case in enumerate(cases, start=1):
        if service is None or not case.reload().open:
            judgements.append(case.judgement())
        elif unheard >= _ROW:
            judgements.append(
                case.judgement(f"not asked, since {_ROW} videos before it got no usable response")
            )
        else:
            judgements.append(_ask(case, service))
            unheard = unheard + 1 if case.sent and not case.heard else 0
        advance(done, {"rated": str(sum(judgement.rating is not None for judgement in judgements))})
    return judgements


def estimate(
    videos: Sequence[Mapping[str, Any]],
    settings: JudgeSettings,
    folder: Path | None = None,
    prices: tuple[float, float] | None = None,
) -> Estimate:
    """What `judge` would send, less what `folder` holds already. `prices` are for a million tokens (in, out)."""
    cases = [_Case(video, settings, folder) for video in videos]
    return _estimate([case for case in cases if case.open], settings, prices)


def visual_stability(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """`score` = 100 * mean rating / 5 over the videos that were rated (None without any), how many those are, how many are not."""
    ratings = [judgement.rating for judgement in judgements if judgement.rating is not None]
    score = 100 * fmean(ratings) / HIGHEST if ratings else None
    return {"score": score, "rated": len(ratings), "missing": len(judgements) - len(ratings)}


# --- one video and what was answered about it -----------------------------------------------------------


class _Case:
    """A question about one video and, in one file that is rewritten after each response, all that came back."""

    def __init__(self, video: Mapping[str, Any], settings: JudgeSettings, folder: Path | None) -> None:
        self.path, self.prompt, self.settings = Path(video["path"]), video.get("prompt"), settings
        self.problem: str | None = None
        self.file: Path | None = None
        self.record: dict[str, Any] = {"responses": []}
        self.sent, self.heard = 0, False
        if not (self.prompt and self.prompt.strip()):
            self.problem = "no prompt is known, and the judge needs it: give --prompts or --manifest"
            return
        try:
            self.info = probe(self.path)
            self.mime = _inline_type(self.path, settings)
            self.question = QUESTION.format(shown=self._shown(), prompt=self.prompt)
            self.record = self._request()
        except UserError as error:
            self.problem = str(error)
            return
        if folder:
            identity = json.dumps(
                {**self.record["asked"], "video": self.record["video"]["sha256"]}, sort_keys=True
            )
            self.file = folder / f"{sha256(identity.encode()).hexdigest()[:32]}.json"
            self.reload()

    def _shown(self) -> str:
        if self.mime:
            return "You are watching a video."
        return f"You are shown frames of a video of {self.info.seconds:.1f} s, evenly spaced and in order, each with its time."

    def _request(self) -> dict[str, Any]:
        """What is kept beside the responses. `asked` decides, with the video's content, whether an answer can be reused."""
        settings = self.settings
        seen = (
            "video"
            if self.mime
            else {"frames": settings.frames, "side": settings.side, "quality": settings.quality}
        )
        return {
            "asked": {
                "protocol": PROTOCOL,
                "back_end": settings.back_end,
                "model": settings.judge_model,
                "temperature": settings.temperature,
                "input": seen,
                "question": self.question,
            },
            "video": {"name": self.path.name, "sha256": digest(self.path)},
            "prompt": self.prompt,
            "service": settings.url,
            "responses": [],
        }

    def reload(self) -> _Case:
        """Read what is kept by now: an earlier video of this very content may have been answered in the meantime."""
        if self.file and self.file.exists():
            try:
                responses = json.loads(self.file.read_bytes())["responses"]
                self.record["responses"] = [{**response} for response in responses]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.file} is not a judge's record (damaged?): remove it to ask again"
                ) from error
        return self

    def save(self) -> None:
        """UserError where that fails; so it is called once before anything is spent."""
        assert self.file is not None
        atomic_write(self.file, json.dumps(self.record, indent=2) + "\n")

    def keep(self, response: dict[str, Any]) -> None:
        """Add a response, on disk before anything else happens."""
        self.record["responses"].append({"at": datetime.now(UTC).isoformat(timespec="seconds"), **response})
        self.sent += 1
        self.heard |= response.get("status") == 200
        self.save()

    @property
    def answers(self) -> list[dict[str, Any]]:
        """Responses that were paid for."""
        return [response for response in self.record["responses"] if response.get("status") == 200]

    @property
    def open(self) -> bool:
        """Whether asking (again) makes sense: neither rated yet nor asked in vain as often as agreed."""
        return self.problem is None and len(self.answers) < self.settings.asks and self._read()[0] is None

    def _read(self) -> tuple[int | None, str, str]:
        """(rating or None, reasoning, what is wrong) of the last answer."""
        if not self.answers:
            return None, "", "never answered"
        try:
            return *_verdict(BACK_ENDS[self.settings.back_end].text(self.answers[-1]["body"])), ""
        except Unusable as error:
            return None, "", str(error)
        except (KeyError, IndexError, TypeError, AttributeError):
            return None, "", "a response that does not follow the protocol"

    def judgement(self, missing: str | None = None) -> Judgement:
        """The verdict as things stand; `missing` says why nothing better is known."""
        prompt, kept = self.prompt, str(self.file) if self.record["responses"] else None
        if self.problem:
            return Judgement(str(self.path), prompt, None, missing=self.problem)
        rating, reasoning, wrong = self._read()
        if rating is None and missing is None:
            missing = f"{wrong} (answer {len(self.answers)} of {self.settings.asks}); remove {self.file} to ask again"
        return Judgement(
            str(self.path),
            prompt,
            rating,
            reasoning,
            None if rating is not None else missing,
            kept,
            self.sent,
        )


def _ask(case: _Case, service: Service) -> Judgement:
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


def _verdict(text: str) -> tuple[int, str]:
    """(rating, reasoning) of an answer: its last `Rating: N`, and what stands before it, which must not be empty."""
    found = list(_RATING.finditer(text))
    if not found:
        raise Unusable("an answer without a rating")
    value, reasoning = float(found[-1][1]), text[: found[-1].start()].strip()
    if value not in range(HIGHEST + 1):
        raise Unusable(f"a rating of {found[-1][1]}, which is not a whole number from 0 to {HIGHEST}")
    if not reasoning:
        raise Unusable("a rating without reasoning")
    return int(value), reasoning


# --- what is shown --------------------------------------------------------------------------------------


def _inline_type(path: Path, settings: JudgeSettings) -> str | None:
    """The MIME type under which the whole file goes into the request; None if frames go instead."""
    if settings.back_end != "gemini" or not path.is_file() or path.stat().st_size > settings.inline_bytes:
        return None
    return _MIME.get(path.suffix.lower())


def _media(case: _Case) -> Media:
    if case.mime:
        return [("", case.mime, case.path.read_bytes())]
    info, settings = case.info, case.settings
    wanted = SheetSampler(info.frames, settings.frames).indices
    chosen = ((index, frame) for index, frame in enumerate(read_frames(case.path)) if index in set(wanted))
    return [(f"{index / info.fps:.1f} s", "image/jpeg", _jpeg(frame, settings)) for index, frame in chosen]


def _jpeg(frame: Frames, settings: JudgeSettings) -> bytes:
    """A frame [H, W, 3], shrunk if its longer side is longer than asked for."""
    image, encoded = Image.fromarray(frame), io.BytesIO()
    image.thumbnail((settings.side, settings.side), Image.Resampling.LANCZOS)
    image.save(encoded, "JPEG", quality=settings.quality)
    return encoded.getvalue()


_TOKENS_A_TILE, _TILE, _LETTERS_A_TOKEN, _TOKENS_OUT = 258, 512, 4, 2000


def _estimate(
    cases: Sequence[_Case], settings: JudgeSettings, prices: tuple[float, float] | None
) -> Estimate:
    """Of open cases; the same question about the same content is asked once."""
    distinct = list(
        {case.file or (case.record["video"]["sha256"], case.question): case for case in cases}.values()
    )
    images = [0 if case.mime else min(settings.frames, case.info.frames) for case in distinct]
    tokens = [
        len(case.question) / _LETTERS_A_TOKEN
        + (
            _TOKENS_A_TILE * ceil(case.info.seconds)
            if case.mime
            else count * _picture_tokens(case.info, settings)
        )
        for case, count in zip(distinct, images, strict=True)
    ]
    tokens_in, tokens_out = round(sum(tokens)), _TOKENS_OUT * len(distinct)
    return Estimate(
        requests=len(distinct),
        requests_at_most=sum(settings.asks - len(case.answers) for case in distinct),
        images=sum(images),
        whole_videos=sum(case.mime is not None for case in distinct),
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cost=None if prices is None else (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6,
    )


def _picture_tokens(info: VideoInfo, settings: JudgeSettings) -> int:
    shrink = min(1.0, settings.side / max(info.width, info.height))
    return _TOKENS_A_TILE * ceil(info.width * shrink / _TILE) * ceil(info.height * shrink / _TILE)
