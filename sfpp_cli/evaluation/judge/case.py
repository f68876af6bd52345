"""One video and the question about it: what the judge is asked, what came back, and how that is read.

What an answer says is kept, one JSON file a question, before it is read: what was paid for once is never paid
for again. The rest of what comes back is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.judge.service import JudgeSettings, Unusable
from sfpp_cli.evaluation.source import digest
from sfpp_cli.files import atomic_write
from sfpp_cli.schema import load_json
from sfpp_cli.video.reader import probe

PROTOCOL = "sfpp-visual-stability-1"
"""Raised whenever the question or what is shown changes; answers to another version are not reused."""
HIGHEST = 5
"""The best rating; the worst is 0."""

QUESTION = """\
{shown} It was made by a text-to-video model. Your only task is to say how well its exposure holds from \
beginning to end.

The model was given this prompt:
<prompt>
{prompt}
</prompt>

Look for pictures that wash out towards white, sink into black, lose detail in clipped highlights or \
blocked shadows, burn out in colour, or drift steadily brighter or darker. Weigh how strong such faults are \
and how much of the video they cover; late parts count as much as early ones. Do not judge beauty, motion, \
or how well the prompt is followed. A washed-out, glowing or gloomy look counts as a fault even if it could \
pass for a style, unless the prompt itself asks for that look.

Scale:
5: well exposed all the way through
4: minor faults, easy to overlook
3: moderate faults, or stronger ones for a short while
2: noticeable faults over a good part of the video
1: severe faults over most of the video
0: catastrophic, nearly all of it white, black or without recognisable content

First write your reasoning: what the exposure does at the start, in the middle and at the end. Then give the \
verdict alone on the last line, as a whole number, in exactly this form:
Rating: N"""

_MIME = {".mp4": "video/mp4", ".webm": "video/webm", ".mov": "video/mov"}
_RATING = re.compile(
    r"^[\s*_#>`-]*rating[\s*_`]*[:=][\s*_`]*(-?\d+(?:\.\d+)?)\s*(?:/\s*5)?[\s*_`.]*$",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Judgement:
    """What is known of one video: a rating from 0 to `HIGHEST`, or why it is `missing`, and the file in which
    answers are `kept`. `requests` were sent this time: 0 where the answer was kept already."""

    path: str
    prompt: str | None
    rating: int | None
    reasoning: str = ""
    missing: str | None = None
    kept: str | None = None
    requests: int = 0


class Case:
    """A question about one video, and all that came back, in a file that is rewritten after each response."""

    def __init__(self, video: Mapping[str, Any], settings: JudgeSettings, folder: Path | None) -> None:
        self.path = Path(video["path"])
        self.prompt = video.get("prompt")
        self.settings = settings
        self.problem: str | None = None
        """Why nothing can be asked."""
        self.file: Path | None = None
        self.record: dict[str, Any] = {"responses": []}
        self.sent = 0
        """Requests of this run."""
        self.heard = False
        """Whether any of them was answered."""
        if not (self.prompt and self.prompt.strip()):
            self.problem = "no prompt is known, and the judge needs it: give --prompts or --manifest"
            return
        try:
            self.info = probe(self.path)
            self.mime = _inline_type(self.path, settings)
            shown = "You are watching a video."
            if not self.mime:
                shown = f"You are shown frames of a video of {self.info.seconds:.1f} s, evenly spaced and in "
                shown += "order, each with its time."
            self.question = QUESTION.format(shown=shown, prompt=self.prompt)
            self.record = self._request()
        except UserError as error:
            self.problem = str(error)
            return
        if folder:
            identity = {**self.record["asked"], "video": self.record["video"]["sha256"]}
            name = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
            self.file = folder / f"{name}.json"
            self.reload()

    def _request(self) -> dict[str, Any]:
        """What is kept beside the responses. `asked` and the video's content decide whether an answer can be
        used again."""
        settings = self.settings
        frames = {"frames": settings.frames, "side": settings.side, "quality": settings.quality}
        return {
            "asked": {
                "protocol": PROTOCOL,
                "back_end": settings.back_end,
                "model": settings.judge_model,
                "temperature": settings.temperature,
                "input": "video" if self.mime else frames,
                "question": self.question,
            },
            "video": {"name": self.path.name, "sha256": digest(self.path)},
            "prompt": self.prompt,
            "service": settings.url,
            "responses": [],
        }

    def reload(self) -> Case:
        """Read what is kept by now: another video with the same content may have been answered meanwhile."""
        if self.file and self.file.exists():
            try:
                responses = load_json(self.file)["responses"]
                self.record["responses"] = [{**response} for response in responses]
            except (OSError, ValueError, KeyError, TypeError) as error:
                remedy = "remove it to ask again"
                raise UserError(f"{self.file} is not a judge's record (damaged?): {remedy}") from error
        return self

    def save(self) -> None:
        """UserError where that fails; so it is called once before anything is spent."""
        assert self.file is not None
        atomic_write(self.file, json.dumps(self.record, indent=2) + "\n")

    def keep(self, response: dict[str, Any]) -> None:
        """Add a response, on disk before anything else happens."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.record["responses"].append({"at": now, **response})
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

    def judgement(self, missing: str | None = None) -> Judgement:
        """What is known now; `missing` says why nothing better is known."""
        path = str(self.path)
        if self.problem:
            return Judgement(path, self.prompt, None, missing=self.problem)
        kept = str(self.file) if self.record["responses"] else None
        rating, reasoning, wrong = self._read()
        if rating is not None:
            missing = None
        elif missing is None:
            count = f"answer {len(self.answers)} of {self.settings.asks}"
            missing = f"{wrong} ({count}); remove {self.file} to ask again"
        return Judgement(path, self.prompt, rating, reasoning, missing, kept, self.sent)

    def _read(self) -> tuple[int | None, str, str]:
        """(rating or None, reasoning, what is wrong) of the last answer."""
        if not self.answers:
            return None, "", "never answered"
        last = self.answers[-1]
        if not isinstance(text := last.get("text"), str):
            return None, "", str(last.get("unusable"))
        try:
            return *_verdict(text), ""
        except Unusable as error:
            return None, "", str(error)


def _verdict(text: str) -> tuple[int, str]:
    """(rating, reasoning) of an answer: its last `Rating: N`, and the text before it."""
    ratings = list(_RATING.finditer(text))
    if not ratings:
        raise Unusable("an answer without a rating")
    last = ratings[-1]
    if float(last[1]) not in range(HIGHEST + 1):
        raise Unusable(f"a rating of {last[1]}, which is not a whole number from 0 to {HIGHEST}")
    reasoning = text[: last.start()].strip()
    if not reasoning:
        raise Unusable("a rating without reasoning")
    return int(float(last[1])), reasoning


def _inline_type(path: Path, settings: JudgeSettings) -> str | None:
    """The MIME type under which the whole file goes into the request; None if frames go instead."""
    if settings.back_end != "gemini" or not path.is_file() or path.stat().st_size > settings.inline_bytes:
        return None
    return _MIME.get(path.suffix.lower())
