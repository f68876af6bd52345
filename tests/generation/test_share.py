"""Who makes which video of a batch, when several processes work on it, die, or come late."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clips import shim

from sfpp_cli.errors import InUse, UserError
from sfpp_cli.generation import job as job_module
from sfpp_cli.generation.job import Job, jobs_of
from sfpp_cli.generation.outputs import check_outputs
from sfpp_cli.generation.requests import GenerateOptions, Request
from sfpp_cli.generation.share import Share
from sfpp_cli.progress import Silent

FRESH = GenerateOptions()
RESUME = GenerateOptions(resume=True)
OVERWRITE = GenerateOptions(overwrite=True)
MODEL = {"model": "tiny", "weights": "0123"}


def batch(folder: Path, prompts: Sequence[str] = "abcdef", suffix: str = ".mp4") -> list[Job]:
    requests = [
        Request(
            prompt=prompt, seed=0, frames=9, width=64, height=48, fps=8, out=folder / f"{i}-{prompt}{suffix}"
        )
        for i, prompt in enumerate(prompts)
    ]
    return jobs_of(requests, MODEL)


def begin(job: Job) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "request.json").write_text(json.dumps({"out": job.request.out.stem}))


def make(job: Job) -> dict[str, Any]:
    """What `Job.run` leaves, without a model."""
    begin(job)
    job.request.out.write_text("video")
    job.sidecar.write_text(json.dumps({"key": job.key, "video": job.request.out.name}))
    job.discard()
    return job.finished() or {}


def share(jobs: Sequence[Job], options: GenerateOptions = FRESH, *, wait: bool = True) -> Share:
    return Share(jobs, options, Silent(), wait=wait)


def names(descriptions: Sequence[dict[str, Any]]) -> list[str]:
    return [Path(description["path"]).name for description in descriptions]


def test_two_that_begin_together_make_each_video_once(tmp_path: Path) -> None:
    made: list[str] = []

    def slowly(job: Job) -> dict[str, Any]:
        made.append(job.request.prompt)
        time.sleep(0.05)
        return make(job)

    def work(_: int) -> list[str]:
        with share(batch(tmp_path)) as mine:
            return names(mine.run(slowly))

    with ThreadPoolExecutor(3) as pool:
        listed = list(pool.map(work, range(3)))
    assert sorted(made) == list("abcdef")
    assert listed == [[f"{i}-{prompt}.mp4" for i, prompt in enumerate("abcdef")]] * 3
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("options", [FRESH, RESUME])
def test_who_comes_late_counts_what_a_living_process_finished(
    tmp_path: Path, options: GenerateOptions
) -> None:
    made: list[str] = []

    def first(job: Job) -> dict[str, Any]:
        if job.request.prompt == "d":
            with share(batch(tmp_path, "abcde"), options) as late:
                taken = late.current
                assert taken is not None
                assert taken.request.prompt == "e"
                assert names(list(late.done.values())) == ["0-a.mp4", "1-b.mp4", "2-c.mp4"]
        made.append(job.request.prompt)
        return make(job)

    with share(batch(tmp_path, "abcde")) as early:
        early.run(first)
    assert made == list("abcde")


def test_of_a_finished_batch_nothing_is_made_again_unasked(tmp_path: Path) -> None:
    with share(batch(tmp_path)) as mine:
        mine.run(make)
    with pytest.raises(UserError, match=r"0-a\.mp4 and 5 more exist: .*--resume"):
        share(batch(tmp_path))
    with share(batch(tmp_path), RESUME) as mine:
        assert not mine.left
    with share(batch(tmp_path), OVERWRITE) as mine:
        assert len(mine.left) == 6


def test_a_single_video_has_one_owner(tmp_path: Path) -> None:
    with share(batch(tmp_path, "a")), pytest.raises(InUse, match=r"0-a\.mp4 is in use by process \d+ on "):
        share(batch(tmp_path, "a"), wait=False)
    with share(batch(tmp_path, "a"), wait=False) as mine:
        assert mine.current


@pytest.mark.parametrize("suffix", [".gif", ".webm"])
def test_a_name_has_one_owner_whatever_the_request(tmp_path: Path, suffix: str) -> None:
    """The file beside the video is the same for all formats."""
    with share(batch(tmp_path, "a")), pytest.raises(InUse):
        share(batch(tmp_path, "a", suffix), wait=False)


def test_a_dead_ones_video_is_taken_over_where_it_stands(tmp_path: Path) -> None:
    (job,) = batch(tmp_path, "a")
    dying = share([job])
    with share(batch(tmp_path, "ab")) as other:
        seen: list[tuple[str, bool]] = []

        def look(job: Job) -> dict[str, Any]:
            seen.append((job.request.prompt, job.interrupted()))
            if job.request.prompt == "b":
                begin(dying.current or job)
                with dying:
                    """It dies here."""
            return make(job)

        other.run(look)
    assert seen == [("b", False), ("a", True)]


@pytest.mark.parametrize(("options", "kept"), [(FRESH, False), (RESUME, True), (OVERWRITE, False)])
def test_an_interrupted_attempt_counts_where_it_is_to_be_resumed(
    tmp_path: Path, options: GenerateOptions, kept: bool
) -> None:
    begin(batch(tmp_path)[1])
    with share(batch(tmp_path), options) as mine:
        seen: list[bool] = []
        mine.run(lambda job: seen.append(job.interrupted()) or make(job))  # type: ignore[func-returns-value]
    assert seen == [False, kept, False, False, False, False]


def test_equal_requests_give_as_many_files_however_often_they_are_resumed(tmp_path: Path) -> None:
    prompts = "abba"
    for stop in range(5):

        def stopping(job: Job, left: list[int] = [stop]) -> dict[str, Any]:  # noqa: B006
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return make(job)

        folder = tmp_path / str(stop)
        folder.mkdir()
        try:
            with share(batch(folder, prompts)) as mine:
                mine.run(stopping)
        except KeyboardInterrupt:
            assert len(list(folder.glob("*.mp4"))) == stop
        with share(batch(folder, prompts), RESUME) as mine:
            assert names(mine.run(make)) == [f"{i}-{prompt}.mp4" for i, prompt in enumerate(prompts)]


def test_a_name_taken_in_the_meantime_is_refused(tmp_path: Path) -> None:
    def meddle(job: Job) -> dict[str, Any]:
        batch(tmp_path)[1].request.out.write_text("precious")
        return make(job)

    with share(batch(tmp_path)) as mine, pytest.raises(UserError, match=r"1-b\.mp4 exists"):
        mine.run(meddle)
    assert batch(tmp_path)[1].request.out.read_text() == "precious"
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_process_had_not_cleaned_up_goes(tmp_path: Path) -> None:
    jobs = batch(tmp_path, "ab")
    make(jobs[0])
    begin(jobs[0])
    (tmp_path / ".sfpp-0123.old").mkdir()
    (tmp_path / ".sfpp-4567.part").mkdir()
    (tmp_path / ".sfpp-4567.lock").touch()
    with share(jobs, RESUME) as mine:
        mine.run(make)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-a.json", "0-a.mp4", "1-b.json", "1-b.mp4"]


def test_a_video_of_other_versions_is_called_that(tmp_path: Path) -> None:
    (job,) = batch(tmp_path, "a")
    make(job)
    old = job.description | {"versions": {"torch": "1.0"}, "key": "old", "video": "0-a.mp4", "speed": {}}
    job.sidecar.write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"0-a\.mp4 is this very video, but made with other versions of sfpp"):
        share([job], RESUME)
    job.sidecar.write_text(json.dumps(old | {"seed": 1}))
    with pytest.raises(UserError, match=r"0-a\.mp4 exists"):
        share([job], RESUME)


def test_what_would_be_in_the_way_at_the_end_is_refused_at_once(tmp_path: Path) -> None:
    everything = GenerateOptions(sheet=True, save_latents=True, overwrite=True)
    for suffix in (".json", ".sheet.png", ".safetensors"):
        folder = tmp_path / suffix
        jobs = batch(folder, "a")
        jobs[0].request.out.with_suffix(suffix).mkdir(parents=True)
        with pytest.raises(UserError, match=r"0-a\.\w+(\.png)? is a directory"):
            check_outputs([job.request for job in jobs], everything)
        assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("suffix", "options", "fits"),
    [(".mp4", FRESH, 250), (".gif", GenerateOptions(save_latents=True), 243), (".png", FRESH, 244)],
)
def test_names_as_long_as_the_system_takes(
    tmp_path: Path, suffix: str, options: GenerateOptions, fits: int
) -> None:
    shorter, longer = (batch(tmp_path, ["x" * (fits - more)], suffix) for more in (2, 1))
    check_outputs([job.request for job in shorter], options)
    with share(shorter, options) as mine:
        assert mine.current
    with pytest.raises(UserError, match="a name of 256 bytes"):
        check_outputs([job.request for job in longer], options)


@pytest.mark.parametrize("script", ["exit 1", "echo no encoder >&2; exit 1"])
def test_an_ffmpeg_that_fails_is_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    shim(tmp_path, monkeypatch, script)
    with pytest.raises(UserError, match=r"0-a\.mp4: ffmpeg cannot encode 64x48 at 8 frames a second \(.+\)"):
        share(batch(tmp_path / "v", "a"))
    assert not (tmp_path / "v").exists()
    with share(batch(tmp_path / "v", "a", ".png")) as mine:
        assert mine.current, "which needs none"


def test_files_are_read_once_for_all_finished_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What grew with the square of their number."""
    for job in batch(tmp_path, [f"p{i}" for i in range(40)]):
        make(job)
    reads: list[Path] = []
    read: Callable[[Path], Any] = job_module._read_sidecar
    monkeypatch.setattr(job_module, "_read_sidecar", lambda path: reads.append(path) or read(path))
    with share(batch(tmp_path, [f"p{i}" for i in range(40)]), RESUME) as mine:
        assert len(mine.run(make)) == 40
    assert len(reads) == 40
