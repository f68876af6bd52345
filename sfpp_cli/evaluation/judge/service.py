"""The two services that a video-LLM judge can be asked through: what goes over the wire, how patiently, and
how answers come back.

OpenAI-compatible chat completions take pictures; Gemini's generateContent takes pictures or a whole video.
Keys come from the environment, travel in a header, and are never written down.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from sfpp_cli.errors import UserError

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 529}
"""Statuses after which the same request may succeed later."""
_LONGEST_BODY = 16 << 20
"""Bytes of a response that are read."""
_LONGEST_TEXT = 20_000
"""Characters of an answer that are kept; its end, where the rating stands."""
T = TypeVar("T")
Media = list[tuple[str, str, bytes]]
"""(label, MIME type, data)."""


@dataclass(frozen=True)
class JudgeSettings:
    """Whom to ask, what to show and how patiently. UserError names all that is wrong at once.

    `back_end`: "gemini" (generateContent, the whole video where it fits) or "openai" (any chat-completions
    endpoint, frames as pictures). `frames` are spread evenly, first and last included; `side` is their
    longer side in pixels. Videos of up to `inline_bytes` go whole to Gemini, whose limit is 20 MB after
    base64. `asks` is how often an unusable answer is asked for in all, `retries` how often a failed request
    is repeated, `timeout` and `longest_wait` are in seconds.
    """

    back_end: str = "gemini"
    model: str | None = None
    base_url: str | None = None
    frames: int = 32
    side: int = 512
    quality: int = 90
    inline_bytes: int = 14_000_000
    asks: int = 3
    retries: int = 5
    requests_per_minute: float = 30.0
    timeout: float = 300.0
    longest_wait: float = 300.0
    temperature: float | None = None

    def __post_init__(self) -> None:
        known = self.back_end in BACK_ENDS
        address = "an http(s) address without user, query or fragment (keys come from the environment only)"
        positive = ("requests_per_minute", "timeout", "longest_wait")
        rules = {
            f"back_end must be one of {', '.join(BACK_ENDS)}": known,
            "model must be given, for this back end has no default": not known or bool(self.judge_model),
            f"base_url must be {address}": self.base_url is None or _is_address(self.base_url),
            **{f"{name} must be 1 or more": getattr(self, name) >= 1 for name in ("frames", "side", "asks")},
            **{f"{name} must be above 0": getattr(self, name) > 0 for name in positive},
            "quality must be from 1 to 95": 1 <= self.quality <= 95,
            "retries must be 0 or more": self.retries >= 0,
        }
        problems = [rule for rule, kept in rules.items() if not kept]
        if problems:
            raise UserError(f"judge: {'; '.join(problems)}")

    @property
    def judge_model(self) -> str:
        return self.model or BACK_ENDS[self.back_end].model

    @property
    def url(self) -> str:
        """Where the service is, without a slash at the end."""
        return (self.base_url or BACK_ENDS[self.back_end].url).rstrip("/")


@dataclass
class Clock:
    """Time and chance, so that tests need to wait for neither."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = field(default_factory=lambda: random.Random().random)


@dataclass(frozen=True)
class BackEnd:
    """A protocol: where it lives, how its key travels, how a question is put and where the answer stands."""

    url: str
    model: str
    variable: str
    path: Callable[[JudgeSettings], str]
    header: Callable[[str], dict[str, str]]
    body: Callable[[JudgeSettings, str, Media], dict[str, Any]]
    text: Callable[[Any], str]


def _chat_body(settings: JudgeSettings, question: str, media: Media) -> dict[str, Any]:
    """OpenAI's chat completions: every picture as a data URL, its time before it, the question last."""
    content: list[dict[str, Any]] = []
    for label, mime, data in media:
        url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
        content += [{"type": "text", "text": label}, {"type": "image_url", "image_url": {"url": url}}]
    content.append({"type": "text", "text": question})
    warmth = {} if settings.temperature is None else {"temperature": settings.temperature}
    return {"model": settings.judge_model, "messages": [{"role": "user", "content": content}], **warmth}


def _chat_text(body: Any) -> str:
    choice = body["choices"][0]
    content = choice["message"].get("content") or ""
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return _said(text, choice["message"].get("refusal") or choice.get("finish_reason"))


def _gemini_body(settings: JudgeSettings, question: str, media: Media) -> dict[str, Any]:
    """Gemini's generateContent: the video, or frames with their times, and then the question."""
    parts: list[dict[str, Any]] = []
    for label, mime, data in media:
        parts += [{"text": label}] if label else []
        parts.append({"inlineData": {"mimeType": mime, "data": base64.b64encode(data).decode()}})
    parts.append({"text": question})
    body: dict[str, Any] = {"contents": [{"role": "user", "parts": parts}]}
    if settings.temperature is not None:
        body["generationConfig"] = {"temperature": settings.temperature}
    return body


def _gemini_text(body: Any) -> str:
    if not body.get("candidates"):
        return _said("", body.get("promptFeedback", {}).get("blockReason"))
    candidate = body["candidates"][0]
    parts = candidate.get("content", {}).get("parts", [])
    text = "".join(part.get("text", "") for part in parts if not part.get("thought"))
    return _said(text, candidate.get("finishReason"))


def _said(text: str, ending: object) -> str:
    if not text.strip():
        raise Unusable(f"an empty answer ({ending or 'no reason given'})")
    # JSON can smuggle in halves of surrogate pairs, which no file takes
    return text.encode(errors="replace").decode()


BACK_ENDS = {
    "openai": BackEnd(
        url="https://api.openai.com/v1",
        model="",
        variable="OPENAI_API_KEY",
        path=lambda settings: "/chat/completions",
        header=lambda key: {"Authorization": f"Bearer {key}"},
        body=_chat_body,
        text=_chat_text,
    ),
    "gemini": BackEnd(
        url="https://generativelanguage.googleapis.com/v1beta",
        model="gemini-2.5-pro",
        variable="GEMINI_API_KEY",
        path=lambda settings: f"/models/{quote(settings.judge_model, safe='')}:generateContent",
        header=lambda key: {"x-goog-api-key": key},
        body=_gemini_body,
        text=_gemini_text,
    ),
}


def _is_address(text: str) -> bool:
    try:
        host = urlsplit(text).hostname
    except ValueError:  # half a pair of brackets
        return False
    return bool(host and re.match("https?://", text) and not re.search(r"[@?#\s]", text))


class Unusable(Exception):
    """An answer that is no verdict."""


class NoAnswer(Exception):
    """A question that got no answer however often it was sent."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Service:
    """Sends requests at an agreed pace, repeats what failed in passing, and never shows its key."""

    def __init__(self, settings: JudgeSettings, clock: Clock) -> None:
        back_end = BACK_ENDS[settings.back_end]
        self.settings = settings
        self.clock = clock
        self.address = settings.url + back_end.path(settings)
        self._key = os.environ.get(back_end.variable, "").strip()
        self._check_key(back_end.variable)
        self._headers = {"Content-Type": "application/json", "User-Agent": "sfpp"}
        if self._key:
            self._headers |= back_end.header(self._key)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._next = -float("inf")

    def _check_key(self, variable: str) -> None:
        address = urlsplit(self.address)
        if not self._key and self.settings.base_url is None:
            raise UserError(f"{variable} is not set: put the key of {address.hostname} into the environment")
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{variable} holds characters that no key has: set it again")
        local = address.hostname in ("localhost", "127.0.0.1", "::1")
        if self._key and address.scheme == "http" and not local:
            raise UserError(
                f"the key would travel in clear to {address.hostname}: use https, "
                f"or unset {variable} if it needs none"
            )

    def post(self, body: bytes, keep: Callable[[dict[str, Any]], None]) -> None:
        """Send until there is a response of status 200; `keep` gets each response. NoAnswer when patience
        ends; UserError where the next question would fare no better."""
        for attempt in range(self.settings.retries + 1):
            self._pace()
            response, wait = self._send(body)
            keep(response)
            status = response["status"]
            said = f"{urlsplit(self.address).hostname}: {response.get('complaint') or response.get('error')}"
            if status == 200:
                return
            self._refuse(status, said)
            wait = max(wait, min(60.0, 2.0**attempt) * (0.5 + self.clock.chance()))
            if status and status not in _TRANSIENT:
                raise NoAnswer(said)
            if attempt == self.settings.retries or wait > self.settings.longest_wait:
                raise NoAnswer(f"{said} (given up after {attempt + 1} attempts; the next run asks again)")
            self.clock.sleep(wait)

    def _pace(self) -> None:
        """Leave at least 60 / requests_per_minute seconds between the starts of two requests."""
        now = self.clock.now()
        if now < self._next:
            self.clock.sleep(self._next - now)
        self._next = max(now, self._next) + 60 / self.settings.requests_per_minute

    def _send(self, body: bytes) -> tuple[dict[str, Any], float]:
        """What came back, as it is kept (status None: nothing), and the seconds we were told to wait."""
        request = urllib.request.Request(self.address, body, self._headers)
        try:
            number, headers, data = _within(self.settings.timeout, lambda: self._exchange(request))
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            return {
                "status": None,
                "error": self._hide(str(cause) or type(error).__name__)[:_LONGEST_TEXT],
            }, 0.0
        text = data.decode(errors="replace")
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = text
        wait = _told_to_wait(headers.get("Retry-After"), text)
        status = _status(number, parsed)
        return {"status": status, **self._used(status, parsed)}, wait

    def _exchange(self, request: urllib.request.Request) -> tuple[int, Message, bytes]:
        """Status, headers and body of an answer."""
        try:
            answer = self._opener.open(request, timeout=self.settings.timeout)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            data = answer.read(_LONGEST_BODY)
        # `read` with a limit does not notice a connection that is closed early
        promised = re.fullmatch(r"[0-9]{1,12}", answer.headers.get("Content-Length", ""))
        if promised and len(data) < min(int(promised[0]), _LONGEST_BODY):
            raise http.client.IncompleteRead(data, int(promised[0]) - len(data))
        return answer.status, answer.headers, data

    def _used(self, status: int, parsed: Any) -> dict[str, Any]:
        """What is kept of a body: the text of an answer, or why there is none. Never the body itself, since a
        service can repeat the key in it in a form that nobody would look for."""
        if status != 200:
            return {"complaint": self._hide(_complaint(status, parsed))}
        try:
            said = BACK_ENDS[self.settings.back_end].text(parsed)
            return {"text": self._hide(said)[-_LONGEST_TEXT:]}
        except Unusable as error:
            return {"unusable": self._hide(str(error))[:_LONGEST_TEXT]}
        except (KeyError, IndexError, TypeError, AttributeError):
            return {"unusable": "a response that does not follow the protocol"}

    def _hide(self, text: str) -> str:
        """The text without the key, whatever its case, and in forms that any program reads back."""
        forms = sorted(_forms(self._key), key=len, reverse=True)
        return re.sub("|".join(map(re.escape, forms)), "[key]", text, flags=re.IGNORECASE) if forms else text

    def _refuse(self, status: int | None, said: str) -> None:
        """UserError for what no patience mends."""
        if status in (401, 402, 403) or "API_KEY_INVALID" in said or "insufficient_quota" in said:
            variable = BACK_ENDS[self.settings.back_end].variable
            raise UserError(f"{said}; check the key in {variable} and what its account may spend")
        url = self.settings.url
        if status == 404:
            model = self.settings.judge_model
            raise UserError(f"{said}; check the judge's model ({model}) and address ({url})")
        if status and 300 <= status < 400:
            raise UserError(f"{said}; the address {url} leads elsewhere: give the one it leads to")


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` answers, or TimeoutError: a service that sends a byte now and then would hold us."""
    answers: queue.Queue[T | BaseException] = queue.Queue(1)

    def run() -> None:
        try:
            answers.put(call())
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"timed out: no whole answer within {seconds:g} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _forms(key: str) -> set[str]:
    """A key as it is, backwards, and in usual encodings, those of base64 at all three of its alignments."""
    if len(key) < 8:
        return {key} if key else set()
    raw = key.encode()
    forms = {key, key[::-1], quote(key, safe=""), raw.hex(), base64.b32encode(raw).decode().rstrip("=")[:-1]}
    for before, skipped in ((0, 0), (1, 2), (2, 3)):
        encoded = base64.b64encode(bytes(before) + raw).decode().rstrip("=")[skipped:-1]
        forms |= {encoded, encoded.translate(str.maketrans("+/", "-_"))}
    return forms


def _status(status: int, body: Any) -> int:
    """What a response means: some gateways answer 200 and put the real status inside."""
    error = body.get("error") if isinstance(body, dict) else None
    if status != 200 or not error:
        return status
    code = error.get("code") if isinstance(error, dict) else None
    return code if type(code) is int and code >= 400 else 502


def _complaint(status: int, body: Any) -> str:
    """A service's words about what went wrong, short."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = str(error.get("message") or "") if isinstance(error, dict) else str(error)
    codes = re.findall(r"API_KEY_INVALID|insufficient_quota", json.dumps(body))
    return " ".join([f"status {status}", *codes[:1], *message.split()])[:240]


def _told_to_wait(header: str | None, text: str) -> float:
    """Seconds of a Retry-After header, or of the retryDelay in Gemini's details, or 0."""
    if header and re.fullmatch(r"\s*[0-9]{1,9}\s*", header):
        return float(header)
    if header:
        with suppress(ValueError, TypeError, OverflowError):
            return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    delay = re.search(r'"retryDelay":\s*"([0-9]{1,9}(?:\.[0-9]{1,9})?)s"', text)
    return float(delay[1]) if delay else 0.0
