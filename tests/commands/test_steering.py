"""`sfpp generate` with scenes and starts, from the command line and from a batch file."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from clips import smooth
from conftest import Sfpp
from embedded import picture_size
from PIL import Image
from safetensors.torch import load_file, save_file

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.video.reader import probe, read_metadata

RED = "a red circle bouncing over a blue background"
WHITE = "a white square sliding over a brown background"


def test_scenes_and_a_picture_from_the_command_line(sfpp: Sfpp, tmp_path: Path) -> None:
    Image.fromarray(smooth(1, 90, 120)[0]).save(tmp_path / "p.png")
    arguments = ("--seconds", "1.5", "--then", f"0.7: {WHITE}", "--how", "cut", "--start", "p.png")
    code, out, err = sfpp("generate", RED, *arguments, "-o", "v.mp4", "--save-latents")
    assert (code, out) == (0, "v.mp4\n")
    width, height = picture_size()
    assert f"--start p.png: a picture, 120x90 scaled to {width}x{height}, " in err
    assert "a prompt changes between two chunks: at 0.75 s, not 0.7 s" in err
    assert probe(tmp_path / "v.mp4").frames == 25
    beside = json.loads((tmp_path / "v.json").read_text())
    assert beside["scenes"] == [
        {"at": 0.0, "prompt": RED, "how": None},
        {"at": 13 / 16, "prompt": WHITE, "how": "cut"},
    ]
    assert json.loads(read_metadata(tmp_path / "v.mp4")["scenes"]) == beside["scenes"]
    assert beside["start"]["through"] == "pixels"
    assert sum(map(len, load_file(tmp_path / "v.safetensors").values())) % 3 == 0


def test_what_cannot_be_is_one_line_and_leaves_nothing(sfpp: Sfpp, tmp_path: Path) -> None:
    for arguments in (("--then", "x"), ("--then", "99: b"), ("--start", "no.png"), ("--drop-start",)):
        code, out, err = sfpp("generate", RED, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_killed_at_random_moments_a_batch_with_scenes_starts_and_a_lora_resumes_bit_for_bit(
    tmp_path: Path,
) -> None:
    Image.fromarray(smooth(1, 90, 120)[0]).save(tmp_path / "p.png")
    scenes = [{"prompt": RED, "seconds": 1.5}, {"prompt": WHITE, "seconds": 1.5, "how": "switch"}]
    scenes.append({"prompt": "a green triangle circling over a grey background", "seconds": 1.5})
    lines = [
        {"scenes": scenes, "start": "p.png"},
        {"scenes": [scenes[0], scenes[1] | {"how": "cut"}, scenes[2]], "start": "p.png", "drop_start": True},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    student = Bundle(DEFAULT_MODEL).load_student(torch.device("cpu"), torch.float32)
    size = student.blocks[0].attn1.to_q.out_features
    query = "diffusion_model.blocks.0.self_attn.q"
    down, up = torch.randn(2, size), torch.randn(size, 2)
    save_file(
        {f"{query}.lora_down.weight": down, f"{query}.lora_up.weight": up}, tmp_path / "worn.safetensors"
    )

    def start(folder: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sfpp_cli", "generate", "--prompts", "p.jsonl", "--out-dir", folder]
        command += ["--lora", "worn.safetensors:0.1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*command, "--save-latents", *more], cwd=tmp_path, stderr=subprocess.DEVNULL, env=environment
        )

    assert start("whole").wait() == 0
    kills = 0
    process = start("parts")
    for _ in range(4):
        while process.poll() is None and not list(tmp_path.glob("parts/.sfpp-*/latents.f32")):
            time.sleep(0.02)
        time.sleep(random.random())
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        process = start("parts", "--resume")
    assert process.wait() == 0
    assert kills
    for video in (*tmp_path.glob("whole/*.mp4"), *tmp_path.glob("whole/*.safetensors")):
        assert (tmp_path / "parts" / video.name).read_bytes() == video.read_bytes()
    assert len(list(tmp_path.glob("parts/*.mp4"))) == 2
