"""`sfpp generate` on the embedded model: what comes out, what a resume changes, what bad input leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Sfpp
from embedded import is_example, latent_shape
from PIL import Image
from safetensors.torch import load_file

from sfpp_cli.generation.job import Job
from sfpp_cli.video.reader import probe, read_metadata
from sfpp_cli.video.writer import VideoWriter

PROMPT = "a red circle bouncing over a blue background"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_a_prompt_becomes_a_video_with_everything_beside_it(sfpp: Sfpp, tmp_path: Path) -> None:
    code, out, err = sfpp(
        "generate", PROMPT, "--seconds", "1.5", "--seed", "4", "-o", "v.mp4", "--sheet", "--save-latents"
    )
    assert (code, out) == (0, "v.mp4\n")
    assert "end to end" in err
    assert "first frame after" in err
    assert probe(tmp_path / "v.mp4").frames == 24
    beside = json.loads((tmp_path / "v.json").read_text())
    assert (beside["prompt"], beside["seed"], beside["frames"], beside["fps"]) == (PROMPT, 4, 24, 16)
    assert set(beside["speed"]) == {
        *("loop_fps", "vae_fps", "end_to_end_fps", "time_to_first_frame_s", "warm_up_s")
    }
    inside = read_metadata(tmp_path / "v.mp4")
    assert (inside["prompt"], inside["seed"], inside["steps"]) == (PROMPT, "4", "[1000, 750, 500, 250]")
    assert inside["weights"] == beside["weights"]
    assert load_file(tmp_path / "v.safetensors")["latents"].shape == (7, *latent_shape())
    assert (tmp_path / "v.sheet.png").exists()
    assert sorted(files(tmp_path)) == ["v.json", "v.mp4", "v.safetensors", "v.sheet.png"]


def test_no_flag_at_all_makes_a_video(sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfpp_cli.generation.requests.DEFAULT_SECONDS", 0.5)
    code, out, _ = sfpp("generate", "--json")
    made = json.loads(out)["videos"][0]
    assert code == 0
    assert is_example(Path(made["path"]).stem)
    assert probe(tmp_path / made["path"]).frames == 8


def test_a_longer_video_begins_with_the_shorter_one(sfpp: Sfpp, tmp_path: Path) -> None:
    assert sfpp("generate", PROMPT, "--frames", "20", "-o", "short.png")[0] == 0
    assert sfpp("generate", PROMPT, "--frames", "70", "-o", "long.png")[0] == 0
    short, long = pictures(tmp_path / "short"), pictures(tmp_path / "long")
    assert (len(short), len(long)) == (20, 70)
    assert np.array_equal(short, long[:20])


def test_seeds_and_prompts_differ(sfpp: Sfpp, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"prompt": PROMPT, "seconds": 0.5, "out": "a.png"})
        + "\n"
        + json.dumps({"prompt": "a white square sliding over a brown background", "seed": 0, "seconds": 0.25})
    )
    code, out, _ = sfpp("generate", "--prompts", "p.jsonl", "--seeds", "9", "--out-dir", "videos")
    assert code == 0
    assert out.split() == ["videos/a", "videos/2-a-white-square-sliding-over-a-brown-background-0.mp4"]
    assert json.loads((tmp_path / "videos/a.json").read_text())["seed"] == 9
    assert probe(tmp_path / out.split()[1]).frames == 4


def test_an_interrupted_video_resumes_bit_for_bit(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("generate", PROMPT, "--seconds", "3", "-o")
    assert sfpp(*arguments, "whole/v.mp4")[0] == 0
    write = VideoWriter.write
    for stop in (1, 2, 4):
        calls = iter(range(100))

        def interrupted(self: VideoWriter, frames: np.ndarray, stop=stop, calls=calls) -> None:  # type: ignore[no-untyped-def]
            if next(calls) == stop:
                raise KeyboardInterrupt
            write(self, frames)

        parts = tmp_path / f"stopped-at-{stop}"
        with monkeypatch.context() as patched:
            patched.setattr(VideoWriter, "write", interrupted)
            code, out, err = sfpp(*arguments, f"{parts.name}/v.mp4")
        assert (code, out) == (130, "")
        assert "--resume" in err
        assert not (parts / "v.mp4").exists()
        code, _, _ = sfpp(*arguments, f"{parts.name}/v.mp4", "--resume")
        assert code == 0
        # The write that was stopped is of chunk stop - 1, since the first picture is one by itself; the
        # student was ahead of it.
        assert stop <= json.loads((parts / "v.json").read_text())["resumed_at_chunk"] <= 5
        assert (parts / "v.mp4").read_bytes() == (tmp_path / "whole/v.mp4").read_bytes()
        assert sorted(files(parts)) == ["v.json", "v.mp4"]


def test_finished_videos_are_known_by_their_request_not_their_name(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text(f"{PROMPT}\n")
    assert sfpp("generate", "--prompts", "p.txt", "--frames", "9", "--out-dir", "v")[0] == 0
    before = files(tmp_path / "v")
    (tmp_path / "p.txt").write_text(f"# now the second\na green square sliding over grey\n{PROMPT}\n")
    made = []
    run = Job.run
    monkeypatch.setattr(Job, "run", lambda self, *a, **b: made.append(self.request) or run(self, *a, **b))
    code, out, err = sfpp("generate", "--prompts", "p.txt", "--frames", "9", "--out-dir", "v", "--resume")
    assert code == 0
    assert [request.prompt for request in made] == ["a green square sliding over grey"]
    assert "is finished already" in err
    assert len(out.splitlines()) == 2
    assert before.items() <= files(tmp_path / "v").items()


def test_ranks_share_a_batch_and_none_is_made_twice(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text(
        "\n".join(f"a red circle number {word}" for word in ("one", "two", "three"))
    )
    made = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "29500")
        code, out, _ = sfpp("generate", "--prompts", "p.txt", "--frames", "5", "--out-dir", "v")
        assert code == 0
        made.append(out.split())
    assert [len(share) for share in made] == [2, 1]
    assert len({*made[0], *made[1]}) == 3
    assert len(list((tmp_path / "v").glob("*.mp4"))) == 3


@pytest.mark.slow
def test_killed_at_a_random_moment_a_batch_resumes_bit_for_bit(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text(f"{PROMPT}\na white square sliding over brown\na green triangle circling over grey\n")

    def start(folder: str, *more: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "sfpp_cli",
            "generate",
            "--prompts",
            str(prompts),
            "--seconds",
            "6",
            "--out-dir",
            folder,
        ]
        return subprocess.Popen(
            [*command, *more],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    assert start("whole").wait() == 0
    process = start("parts")
    while not list(tmp_path.glob("parts/.sfpp-*/latents.f32")):
        time.sleep(0.02)
    time.sleep(random.random() * 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start("parts", "--resume").wait() == 0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert {path.name for path in whole.iterdir()} == {path.name for path in parts.iterdir()}
    for path in whole.glob("*.mp4"):
        assert path.read_bytes() == (parts / path.name).read_bytes()


BAD: dict[str, tuple[list[str], str]] = {
    "empty prompt": (["  "], "empty"),
    "unknown model": ([PROMPT, "--model", "toyword"], "unknown model"),
    "odd size": ([PROMPT, "--size", "70x64"], "multiple of 16"),
    "no size": ([PROMPT, "--size", "big"], "WIDTHxHEIGHT"),
    "no length": ([PROMPT, "--seconds", "0"], "above 0"),
    "negative length": ([PROMPT, "--seconds", "-3"], "above 0"),
    "no frames": ([PROMPT, "--frames", "0"], "from 1 to"),
    "two lengths": ([PROMPT, "--frames", "8", "--seconds", "1"], "one of them"),
    "small context": ([PROMPT, "--context", "2"], "--context"),
    "all sink": ([PROMPT, "--sink", "20"], "--sink"),
    "absent CUDA": ([PROMPT, "--device", "cuda"], "no CUDA"),
    "unknown dtype": ([PROMPT, "--dtype", "float8"], "float32"),
    "unknown offload": ([PROMPT, "--offload", "disk"], "sequential"),
    "unknown kind": ([PROMPT, "-o", "v.avi"], ".mp4"),
    "bad seeds": ([PROMPT, "--seeds", "5-2"], "--seeds"),
    "unwritable": ([PROMPT, "-o", "/proc/none/v.mp4"], "cannot write"),
    "missing prompts": (["--prompts", "none.txt"], "none.txt"),
    "prompt twice": ([PROMPT, "--prompts", "none.txt"], "exclude"),
    "one name for many": ([PROMPT, "--seeds", "1-3", "-o", "v.mp4"], "--out-dir"),
    "bad fps": ([PROMPT, "--fps", "0"], "--fps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(sfpp: Sfpp, tmp_path: Path, case: str) -> None:
    arguments, expected = BAD[case]
    code, out, err = sfpp("generate", *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert files(tmp_path) == {}


def test_bad_lines_are_all_named_before_anything_starts(sfpp: Sfpp, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "ok"}\n{"promt": "x"}\n{"prompt": "y", "seconds": -1}\n')
    code, _, err = sfpp("generate", "--prompts", "p.jsonl", "--out-dir", "v")
    assert code == 2
    assert err.splitlines() == [
        "error: p.jsonl:2: 'prompt' is missing",
        "error: p.jsonl:2: unknown key 'promt'; did you mean 'prompt'?",
        "error: p.jsonl:3: 'seconds' must be above 0, not -1",
    ]
    assert sorted(files(tmp_path)) == ["p.jsonl"]


def test_two_videos_may_not_share_a_name(sfpp: Sfpp, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": "x", "out": out}) for out in ("a.mp4", "b.mp4", "a.gif", "b.gif")]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    code, _, err = sfpp("generate", "--prompts", "p.jsonl", "--out-dir", "v")
    assert code == 2
    assert "v/a.mp4 and v/a.gif share a name" in err
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "out": "a.mp4"}\n')
    assert sfpp("generate", "--prompts", "p.jsonl", "--seeds", "1,2", "--out-dir", "v")[0] == 2
    assert sorted(files(tmp_path)) == ["p.jsonl"]


def test_an_existing_video_is_kept_unless_told(sfpp: Sfpp, tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"precious")
    for more in ([], ["--resume"]):
        code, _, err = sfpp("generate", PROMPT, "--frames", "5", "-o", "v.mp4", *more)
        assert code == 2
        assert "--overwrite" in err
        assert files(tmp_path) == {"v.mp4": b"precious"}
    assert sfpp("generate", PROMPT, "--frames", "5", "-o", "v.mp4", "--overwrite")[0] == 0
    assert probe(tmp_path / "v.mp4").frames == 5


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(sfpp: Sfpp) -> None:
    code, _, err = sfpp("generate", PROMPT + " very" * 40 + " shiny", "--frames", "5", "-o", "v.mp4")
    assert code == 0
    assert "warning" in err
    assert "shiny" in err
