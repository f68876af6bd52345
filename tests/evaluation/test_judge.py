"""The judge against a local server that speaks the two real protocols and fails as servers fail."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.judge.judge import Judgement, estimate, judge, visual_stability
from sfpp_cli.evaluation.judge.service import Clock, JudgeSettings
from sfpp_cli.video.writer import VideoWriter

KEY = "sk-test-0123456789abcdef"
PROMPT = 'a lighthouse at dusk, "quoted" and {braced}'
REASONED = "The start is even, the middle is even, the end is slightly bright.\n\nRating: 4"

Reply = Callable[["Handler"], None]


class Server(ThreadingHTTPServer):
    """Answers requests by a script; the last reply of the script is repeated."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Reply] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.released = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(
            (self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        )
        script = self.server.script
        (script.pop(0) if len(script) > 1 else script[0])(self)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


def reply(status: int, body: Any, promised: int | None = None, **headers: str) -> Reply:
    """A response; with `promised` its length is announced as that, and the connection closed early."""

    def send(handler: Handler) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(promised or len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = promised is not None

    return send


def hang(handler: Handler) -> None:
    handler.server.released.wait(10)
    handler.close_connection = True


def chat(text: str | None, finish: str = "stop") -> Reply:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return reply(
        200, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 9}}
    )


def gemini(text: str) -> Reply:
    parts = [{"text": "Rating: 1", "thought": True}, {"text": text}]
    return reply(
        200, {"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}]}
    )


class FakeClock(Clock):
    """Time that passes only by sleeping, and chance that says one half: back-off is exactly 1, 2, 4, ..."""

    def __init__(self) -> None:
        self.time, self.sleeps = 1000.0, list[float]()
        super().__init__(now=lambda: self.time, sleep=self._sleep, chance=lambda: 0.5)

    def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 PNG frames of 96x64 at 8 fps, brighter by 10 levels each; PNG, since ffmpeg is slow to start."""
    return make_film(tmp_path_factory.mktemp("film") / "film.png")


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as one file."""
    return make_film(tmp_path_factory.mktemp("movie") / "movie.mp4")


def make_film(path: Path, step: int = 10, frames: int = 24) -> Path:
    with VideoWriter(path, (96, 64), 8.0) as writer:
        for index in range(frames):
            writer.write(np.full((1, 64, 96, 3), step * index, np.uint8))
    return writer.path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def settings(server: Server) -> JudgeSettings:
    address = f"http://127.0.0.1:{server.server_port}/v1"
    return JudgeSettings("openai", "judge-1", address, frames=4, side=48, requests_per_minute=6e6, timeout=5)


def ask(
    film: Path, settings: JudgeSettings, folder: Path, clock: Clock | None = None, count: int = 1
) -> list[Judgement]:
    return judge(
        [{"path": film, "prompt": PROMPT}] * count, settings, folder, yes=True, clock=clock or FakeClock()
    )


# --- what is asked --------------------------------------------------------------------------------------


def test_chat_completions_with_frames(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    server.script = [chat(REASONED)]
    (verdict,) = ask(film, settings, tmp_path)
    assert (verdict.rating, verdict.missing, verdict.requests) == (4, None, 1)
    assert verdict.reasoning == REASONED.partition("\n\n")[0]

    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body.keys() == {"model", "messages"}
    assert body["model"] == "judge-1"
    (message,) = body["messages"]
    *media, question = message["content"]
    assert PROMPT in question["text"]
    assert question["text"].index("reasoning") < question["text"].index("Rating: N")
    assert "whole number" in question["text"]
    assert "unless the prompt itself asks" in question["text"]
    labels, pictures = media[::2], media[1::2]
    assert [label["text"] for label in labels] == ["0.0 s", "0.9 s", "1.9 s", "2.9 s"]
    levels = []
    for picture in pictures:
        scheme, _, data = picture["image_url"]["url"].partition(",")
        assert scheme == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert image.size == (48, 32)
        levels.append(float(np.asarray(image).mean()))
    assert levels == pytest.approx([0, 70, 150, 230], abs=3)


def test_gemini_gets_the_whole_video(
    server: Server, settings: JudgeSettings, movie: Path, tmp_path: Path
) -> None:
    server.script = [gemini(REASONED)]
    (verdict,) = ask(movie, replace(settings, back_end="gemini", model=None, temperature=0.5), tmp_path)
    assert verdict.rating == 4  # and not the 1 of a thought
    ((path, headers, body),) = server.requests
    assert path == "/v1/models/gemini-2.5-pro:generateContent"
    assert headers["x-goog-api-key"] == KEY
    assert "key=" not in path
    video, question = body["contents"][0]["parts"]
    assert video["inlineData"]["mimeType"] == "video/mp4"
    assert base64.b64decode(video["inlineData"]["data"], validate=True) == movie.read_bytes()
    assert PROMPT in question["text"]
    assert body["generationConfig"] == {"temperature": 0.5}


def test_gemini_gets_frames_of_a_large_video(
    server: Server, settings: JudgeSettings, movie: Path, tmp_path: Path
) -> None:
    server.script = [gemini(REASONED)]
    ask(movie, replace(settings, back_end="gemini", inline_bytes=movie.stat().st_size - 1), tmp_path)
    parts = server.requests[0][2]["contents"][0]["parts"]
    assert [part["inlineData"]["mimeType"] for part in parts if "inlineData" in part] == ["image/jpeg"] * 4
    assert parts[0] == {"text": "0.0 s"}
    assert "frames" in parts[-1]["text"].split("\n")[0]


def test_short_videos_and_small_frames_are_shown_as_they_are(
    server: Server, settings: JudgeSettings, tmp_path: Path
) -> None:
    server.script = [chat(REASONED)]
    ask(make_film(tmp_path / "short.png", frames=2), replace(settings, frames=32, side=512), tmp_path)
    pictures = server.requests[0][2]["messages"][0]["content"][1:-1:2]
    assert len(pictures) == 2
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]["image_url"]["url"].split(",")[1]))).size == (
        96,
        64,
    )


def test_the_key_is_nowhere_on_disk(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    server.script = [
        reply(500, {"error": {"message": f"bad {KEY}"}}),
        reply(200, f"no {KEY} JSON".encode()),
        chat(f"{KEY}\nRating: 2"),
    ]
    (verdict,) = ask(film, settings, tmp_path / "kept")
    assert verdict.rating == 2
    kept = list((tmp_path / "kept").iterdir())
    assert [str(file) for file in kept] == [verdict.kept]
    assert KEY not in kept[0].read_text()
    assert "[key]" in kept[0].read_text()
    assert KEY not in repr(verdict)
    responses = json.loads(kept[0].read_text())["responses"]
    assert [response["status"] for response in responses] == [500, 200, 200]


FORMS = {
    "plain": lambda key: key,
    "upper": str.upper,
    "reversed": lambda key: key[::-1],
    "hex": lambda key: key.encode().hex(),
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64-of-header": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "base64-url": lambda key: base64.urlsafe_b64encode(f"k={key}".encode()).decode(),
    "base32": lambda key: base64.b32encode(key.encode()).decode(),
    "escaped": lambda key: "".join(f"\\u{ord(letter):04x}" for letter in key),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("status", [200, 400])
def test_a_server_that_echoes_the_key_does_not_get_it_onto_disk(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path, form: str, status: int
) -> None:
    said = FORMS[form](KEY)
    body = {
        "choices": [{"message": {"content": f"{said} is fine.\n\nRating: 4"}, "finish_reason": "stop"}],
        "error": {"message": said} if status == 400 else None,
        "debug": {"headers": said},
    }
    text = json.dumps(body).replace(json.dumps(said)[1:-1], said)  # an escape stays one
    server.script = [reply(status, text.encode())]
    (judgement,) = ask(film, settings, tmp_path)
    assert judgement.rating == (4 if status == 200 else None)
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json")) + str(judgement)
    kernel = FORMS[form](KEY)[8:24] if form != "escaped" else KEY[8:24]
    assert kernel not in kept
    assert "[key]" in kept


@pytest.mark.parametrize(
    "header", ["\u00b2", "9" * 5000, "-5", "1e9", "nan", "Thu, 99 Foo 9999 99:99:99 GMT", ""]
)
def test_retry_after_that_makes_no_sense(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path, header: str
) -> None:
    server.script = [reply(503, {}, Retry_After=header), chat(REASONED)]
    (judgement,) = ask(film, settings, tmp_path)
    assert judgement.rating == 4 or "given up" in str(judgement.missing)


@pytest.mark.parametrize("length", ["\u00b2", "9" * 400, "-1", "x"])
def test_lengths_that_make_no_sense(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path, length: str
) -> None:
    def send(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.wfile.write(b"{}")
        handler.close_connection = True

    server.script = [send]
    (judgement,) = ask(film, replace(settings, retries=0), tmp_path)
    assert judgement.rating is None
    assert judgement.missing


def test_an_answer_that_drips_has_a_deadline(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    """Every byte comes in time; the whole does not."""

    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(1000):
            if server.released.wait(0.05):
                break
            handler.wfile.write(b" ")
            handler.wfile.flush()
        handler.close_connection = True

    server.script = [drip]
    began = time.monotonic()
    (judgement,) = ask(film, replace(settings, retries=0, timeout=0.5), tmp_path)
    assert time.monotonic() - began < 10
    assert "no whole answer within 0.5 s" in str(judgement.missing)


def test_no_key_is_sent_to_a_server_that_needs_none(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server.script = [chat(REASONED)]
    assert ask(film, settings, tmp_path)[0].rating == 4
    assert "authorization" not in server.requests[0][1]


# --- spending -------------------------------------------------------------------------------------------


def test_nothing_is_sent_without_yes(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"would send 1 to 3 requests with 4 pictures, .* --yes"):
        judge([{"path": film, "prompt": PROMPT}], settings, tmp_path)
    assert not server.requests
    assert not list(tmp_path.iterdir())


def test_what_is_kept_is_not_paid_twice(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    server.script = [chat(REASONED)]
    first = ask(film, settings, tmp_path, count=2)
    assert len(server.requests) == 1  # the same video twice in one run
    assert [verdict.rating for verdict in first] == [4, 4]
    copy = shutil.copytree(film, tmp_path / "renamed")
    video = {"path": copy, "prompt": PROMPT}
    (again,) = judge([video], replace(settings, base_url="http://127.0.0.1:9/v1"), tmp_path)
    assert (again.rating, again.reasoning, again.requests) == (4, first[0].reasoning, 0)
    assert estimate([video], settings, tmp_path).requests == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "change", [{"model": "judge-2"}, {"frames": 3}, {"quality": 80}, {"temperature": 1.0}]
)
def test_another_question_is_paid_for(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    server.script = [chat(REASONED)]
    ask(film, settings, tmp_path)
    ask(film, replace(settings, **change), tmp_path)
    assert len(server.requests) == 2


def test_another_prompt_video_or_protocol_is_paid_for(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [chat(REASONED)]
    ask(film, settings, tmp_path)
    judge([{"path": film, "prompt": "another"}], settings, tmp_path, yes=True)
    ask(make_film(tmp_path / "other.png", step=9), settings, tmp_path)
    monkeypatch.setattr("sfpp_cli.evaluation.judge.case.PROTOCOL", "next")
    ask(film, settings, tmp_path)
    assert len(server.requests) == 4


def test_estimate_counts_and_prices(movie: Path, tmp_path: Path) -> None:
    videos = [
        {"path": movie, "prompt": PROMPT},
        {"path": movie, "prompt": "other"},
        {"path": movie, "prompt": None},
    ]
    frames = estimate(videos, JudgeSettings("openai", "m", frames=10), prices=(2.0, 10.0))
    assert (frames.requests, frames.requests_at_most, frames.images, frames.whole_videos) == (2, 6, 20, 0)
    assert 20 * 258 < frames.input_tokens < 20 * 258 + 1500
    assert frames.cost == pytest.approx((frames.input_tokens * 2 + frames.output_tokens * 10) / 1e6)
    assert "cost about 0.0" in str(frames)
    whole = estimate(videos, JudgeSettings())
    assert (whole.images, whole.whole_videos, whole.cost) == (0, 2, None)
    assert 2 * 3 * 258 < whole.input_tokens < 2 * 3 * 258 + 1500  # 3 s


def test_the_score_is_out_of_the_best_rating() -> None:
    verdicts = [Judgement("v", "p", rating) for rating in (5, 4, 0, None)]
    assert visual_stability(verdicts) == {"score": 60.0, "rated": 3, "missing": 1}
    assert visual_stability(verdicts[3:]) == {"score": None, "rated": 0, "missing": 1}


# --- failures -------------------------------------------------------------------------------------------


def test_too_many_requests_waits_as_told(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    clock = FakeClock()
    detail = {
        "error": {
            "code": 429,
            "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "21.5s"}],
        }
    }
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    server.script = [
        reply(429, {"error": {"message": "slow down"}}, Retry_After="17"),
        reply(429, detail),
        reply(503, {}, Retry_After=date),
        reply(429, {}, Retry_After="soon"),
        chat(REASONED),
    ]
    (verdict,) = ask(film, settings, tmp_path, clock)
    assert (verdict.rating, verdict.requests) == (4, 5)
    waits = [seconds for seconds in clock.sleeps if seconds > 0.1]
    assert waits == [17, 21.5, pytest.approx(100, abs=2), 8]


def test_server_errors_until_giving_up(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    clock = FakeClock()
    server.script = [reply(500, b"<html>oops</html>")]
    (verdict,) = ask(film, settings, tmp_path, clock)
    assert verdict.rating is None
    assert verdict.missing is not None
    assert "status 500 <html>oops</html> (given up after 6 attempts" in verdict.missing
    assert [seconds for seconds in clock.sleeps if seconds > 0.1] == [1, 2, 4, 8, 16]
    server.script = [chat(REASONED)]
    assert ask(film, settings, tmp_path)[0].rating == 4  # nothing was paid, so the next run asks again


def test_back_off_is_jittered(server: Server, settings: JudgeSettings, film: Path, tmp_path: Path) -> None:
    clock = FakeClock()
    chances = iter([0.0, 0.999, 0.25])
    clock.chance = lambda: next(chances)
    server.script = [reply(502, {}), reply(502, {}), reply(502, {}), chat(REASONED)]
    ask(film, settings, tmp_path, clock)
    assert [seconds for seconds in clock.sleeps if seconds > 0.1] == pytest.approx([0.5, 2.998, 3.0])


def test_a_wait_beyond_patience_gives_up(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    clock = FakeClock()
    server.script = [reply(429, {}, Retry_After="86400")]
    (verdict,) = ask(film, settings, tmp_path, clock)
    assert "given up after 1 attempts" in str(verdict.missing)
    assert max(clock.sleeps, default=0) < 1


def test_a_server_that_hangs_times_out(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    server.script = [hang, chat(REASONED)]
    (verdict,) = ask(film, replace(settings, timeout=0.2), tmp_path)
    assert (verdict.rating, verdict.requests) == (4, 2)
    assert verdict.kept is not None
    assert "timed out" in json.loads(Path(verdict.kept).read_text())["responses"][0]["error"]


def test_a_connection_closed_in_mid_body_is_repeated(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    server.script = [
        reply(200, b'{"choices": [', promised=4000),
        reply(503, b"{", promised=4000),
        chat(REASONED),
    ]
    (verdict,) = ask(film, replace(settings, asks=1), tmp_path)
    assert (verdict.rating, verdict.requests) == (4, 3)
    responses = json.loads(Path(str(verdict.kept)).read_text())["responses"]
    assert [response["status"] for response in responses] == [None, None, 200]


@pytest.mark.parametrize(
    ("error", "status"), [({"code": 429, "message": "busy"}, 429), ({"code": "odd"}, 502), ("busy", 502)]
)
def test_gateways_that_hide_failures_in_successes(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path, error: Any, status: int
) -> None:
    server.script = [reply(200, {"error": error}), chat(REASONED)]
    (verdict,) = ask(film, replace(settings, asks=1), tmp_path)
    assert verdict.rating == 4
    assert json.loads(Path(str(verdict.kept)).read_text())["responses"][0]["status"] == status


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(200, b'{"choices": [{"mess'), "a response that does not follow the protocol"),
        (
            reply(200, {"choices": [{"message": {"content": [1]}}]}),
            "a response that does not follow the protocol",
        ),
        (reply(200, []), "a response that does not follow the protocol"),
        (chat("It looks good throughout."), "an answer without a rating"),
        (chat("Rating: five"), "an answer without a rating"),
        (chat("Too bright.\nRating: 6"), "a rating of 6, which is not a whole number from 0 to 5"),
        (chat("Too bright.\nRating: -1"), "a rating of -1"),
        (chat("Fair.\nRating: 3.5"), "a rating of 3.5"),
        (chat("Rating: 3"), "a rating without reasoning"),
        (chat("", "content_filter"), r"an empty answer \(content_filter\)"),
        (chat(None), r"an empty answer \(stop\)"),
    ],
)
def test_unusable_answers_are_asked_again_and_then_missing(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path, answer: Reply, reason: str
) -> None:
    server.script = [answer, chat(REASONED)]
    assert ask(film, settings, tmp_path / "a")[0].rating == 4
    assert len(server.requests) == 2

    server.script = [answer]
    (verdict,) = ask(film, settings, tmp_path / "b")
    assert verdict.rating is None
    assert len(server.requests) == 2 + settings.asks
    assert re.match(f"{reason}.*\\(answer 3 of 3\\); remove .* to ask again", str(verdict.missing))
    (again,) = ask(film, settings, tmp_path / "b")
    assert again.missing == verdict.missing
    assert (
        len(server.requests) == 2 + settings.asks
    )  # three answers were paid for; a further run pays nothing


def test_a_blocked_prompt_of_gemini(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    server.script = [reply(200, {"promptFeedback": {"blockReason": "SAFETY"}})]
    (verdict,) = ask(film, replace(settings, back_end="gemini", asks=1), tmp_path)
    assert "an empty answer (SAFETY) (answer 1 of 1)" in str(verdict.missing)


@pytest.mark.parametrize(
    "text",
    [
        "Fine.\n**Rating: 4**",
        "Fine.\nRATING: 4/5",
        "Fine.\n\n  rating = 4.0 \n",
        "Rating: 1 would be harsh.\nRating: 2\nRating: 4.",
    ],
)
def test_ratings_are_read_however_they_are_dressed(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path, text: str
) -> None:
    server.script = [chat(text)]
    assert ask(film, settings, tmp_path)[0].rating == 4
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (
            reply(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
            r"status 401 .*\[key\]; check the key in OPENAI_API_KEY",
        ),
        (
            reply(404, {"error": {"message": "no such model"}}),
            r"no such model; check the judge's model \(judge-1\)",
        ),
        (
            reply(429, {"error": {"message": "pay", "code": "insufficient_quota"}}),
            "insufficient_quota pay; check the key",
        ),
        (
            reply(400, {"error": {"message": "bad", "details": [{"reason": "API_KEY_INVALID"}]}}),
            "API_KEY_INVALID bad; check the key",
        ),
        (reply(307, {}, Location="http://127.0.0.1:9/elsewhere"), "leads elsewhere"),
    ],
)
def test_what_the_user_must_mend_stops_everything(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path, answer: Reply, remedy: str
) -> None:
    server.script = [answer]
    with pytest.raises(UserError, match=remedy) as stopped:
        ask(film, settings, tmp_path)
    assert KEY not in str(stopped.value)
    assert len(server.requests) == 1


def test_a_refused_request_concerns_its_video_only(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    server.script = [reply(413, {"error": {"message": "too large"}}), chat(REASONED)]
    other = make_film(tmp_path / "other.png", step=9)
    verdicts = judge(
        [{"path": path, "prompt": PROMPT} for path in (film, other)],
        settings,
        tmp_path / "kept",
        yes=True,
        clock=FakeClock(),
    )
    assert [verdict.rating for verdict in verdicts] == [None, 4]
    assert verdicts[0].missing == "127.0.0.1: status 413 too large"


def test_bad_videos_and_missing_prompts_leave_the_others_alone(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    server.script = [chat(REASONED)]
    broken = tmp_path / "broken.mp4"
    broken.write_text("not a video")
    progress: list[int] = []
    videos = [
        {"path": broken, "prompt": PROMPT},
        {"path": film, "prompt": " "},
        {"path": film},
        {"path": film, "prompt": PROMPT},
    ]
    verdicts = judge(
        videos, settings, tmp_path / "kept", lambda done, figures: progress.append(done), yes=True
    )
    assert [verdict.rating for verdict in verdicts] == [None, None, None, 4]
    assert "cannot be read" in str(verdicts[0].missing)
    assert "no prompt is known" in str(verdicts[1].missing)
    assert progress == [1, 2, 3, 4]
    assert len(server.requests) == 1


def test_a_dead_service_is_not_asked_for_every_video(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    server.script = [reply(503, {})]
    videos = [{"path": film, "prompt": f"{PROMPT} {index}"} for index in range(5)]
    verdicts = judge(videos, replace(settings, retries=1), tmp_path, yes=True, clock=FakeClock())
    assert [verdict.requests for verdict in verdicts] == [2, 2, 2, 0, 0]
    assert "not asked" in str(verdicts[4].missing)


def test_nobody_listening(settings: JudgeSettings, film: Path, tmp_path: Path) -> None:
    (verdict,) = ask(film, replace(settings, base_url="http://127.0.0.1:9/v1", retries=0), tmp_path)
    assert "refused" in str(verdict.missing)


def test_requests_keep_their_pace(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    clock = FakeClock()
    server.script = [chat(REASONED)]
    videos = [{"path": film, "prompt": f"{PROMPT} {index}"} for index in range(4)]
    judge(videos, replace(settings, requests_per_minute=12), tmp_path, yes=True, clock=clock)
    assert clock.sleeps == pytest.approx([5, 5, 5])


def test_interrupted_in_the_middle_it_continues(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    server.script = [chat("no rating"), reply(500, {})]
    with pytest.raises(KeyboardInterrupt):
        ask(film, settings, tmp_path, Clock(sleep=interrupt, now=lambda: 0.0 if not server.requests else 1e9))
    server.script = [chat("no rating")]
    (verdict,) = ask(film, settings, tmp_path)
    assert verdict.requests == settings.asks - 1  # one answer was paid for before


def test_damaged_records_are_named(
    server: Server, settings: JudgeSettings, film: Path, tmp_path: Path
) -> None:
    server.script = [chat(REASONED)]
    (verdict,) = ask(film, settings, tmp_path)
    Path(str(verdict.kept)).write_text("{")
    with pytest.raises(UserError, match="remove it to ask again"):
        ask(film, settings, tmp_path)


# --- settings and keys ----------------------------------------------------------------------------------


def test_settings_name_all_problems_at_once() -> None:
    with pytest.raises(UserError) as stopped:
        JudgeSettings("claude", frames=0, timeout=-1, quality=99, base_url="https://me:secret@host/v1")
    said = str(stopped.value)
    for name in (
        "back_end must be one of openai, gemini",
        "frames must",
        "timeout must",
        "quality must",
        "base_url must",
    ):
        assert name in said
    assert "secret" not in said
    assert "\n" not in said
    with pytest.raises(UserError, match="model must be given"):
        JudgeSettings("openai")
    for address in (
        "",
        "ftp://host",
        "http://",
        "http://[half",
        "https://host/v1?key=secret",
        "https://a host",
    ):
        with pytest.raises(UserError, match="base_url must be an http"):
            JudgeSettings(base_url=address)


@pytest.mark.parametrize(
    ("key", "address", "remedy"),
    [
        (
            "",
            None,
            "GEMINI_API_KEY is not set: put the key of generativelanguage.googleapis.com into the "
            "environment",
        ),
        ("secret\nnext", None, "GEMINI_API_KEY holds characters"),
        ("secret", "http://judge.example/v1", "would travel in clear to judge.example"),
    ],
)
def test_keys_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, film: Path, tmp_path: Path, key: str, address: str | None, remedy: str
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", key)
    with pytest.raises(UserError, match=remedy) as stopped:
        ask(film, JudgeSettings(base_url=address), tmp_path)
    assert "secret" not in str(stopped.value)
