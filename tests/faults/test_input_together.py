"""Options, prompt lines and files that make no sense together: one line, code 2, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Sfpp
from PIL import Image

pytest_plugins = ["tiny_bundle"]

OPTIONS = {
    "--frames 5 --seconds 1": "say the same thing",
    "--frames 5 --then 5:b": "no chunk before the video's end",
    "--frames 50 --then 0:b": "not after the one before it",
    "--frames 50 --then 1:b --then 0.5:c": "not after the one before it",
    "--frames 50 --then 1.0001:b --then 1.0002:c": "in the same chunk",
    "--frames 50 --then 1e3:b": "write it as",
    "--frames 50 --then 1:": "write it as",
    "--frames 50 --then nan:b": "write it as",
    "--frames 50 --how cut": "give --then too",
    "--frames 50 --then 1:b --how CUT": "it takes switch, recache, cut",
    "--frames 50 --then 1:b --seeds 1,2 -o v.mp4": "use --out-dir",
    "--drop-start": "give --start too",
    "--start .": "is no file",
    "--start /dev/zero": "is no file",
    "--start notes.txt": "cannot be read as a video",
    "--lora nope": "is not there",
    "--lora :": "is not there",
    "--lora notes.txt:2": "of no known kind",
    "--lora notes.txt:nan": "finite",
    "--decoder nope": "is not there",
    "--decoder wan:raw": "is not there",
    "--decoder notes.txt": "notes.txt",
    "--split tails": "it takes heads",
    "--split heads --quantize fp8 --compile": "needs several processes",
    "--attention cudnn --dtype bfloat16": "it takes flash, math",
    "--attention efficient --device cpu": "it takes flash, math",
    "--quantize fp8 --dtype float16": "--quantize fp8",
    "--quantize fp4": "it takes fp8",
    "--decoder-device cuda --device cpu": "no CUDA device",
    "--context 3 --sink 1": "cannot hold a chunk",
    "--context -3 --sink -6": "cannot hold a chunk",
    "--tile 1 --context 99999999": "--tile 1",
    "--out v.mp4 --out-dir d": "give one of them",
    "--out notes.txt": "unknown kind of video",
    "--out folder.mp4": "is a directory",
    "--out folder.mp4 --overwrite": "is a directory",
    "--out notes.txt/v.mp4": "cannot write to notes.txt",
    "--prompts notes.txt --then 1:b": "exclude each other",
    "--prompts notes.txt --how cut": "give --then too",
    "--prompts two.txt --out v.mp4": "use --out-dir",
    "--prompts two.txt --out-dir notes.txt": "cannot write to notes.txt",
}
LINES = {
    '{"prompt": "a", "out": "../x.mp4"}': "stays inside",
    '{"prompt": "a", "out": "p.jsonl"}': "unknown kind of video",
    '{"prompt": "a", "out": "x.mp4"} {"prompt": "b", "out": "x.webm"}': "share a name",
    '{"prompt": "a", "out": "x.mp4"} {"prompt": "b", "out": "x.mp4/y.mp4"}': "a file of another video",
    '{"prompt": "a", "out": "x.json/y.mp4"} {"prompt": "b", "out": "x.mp4"}': "a file of another video",
    '{"prompt": "a", "start": "p.jsonl"}': "cannot be read as a video",
    '{"prompt": "a", "start": "."}': "is no file",
    '{"prompt": "a", "start": "a\\u0000b"}': "is no file",
    '{"prompt": "a", "out": "x.mp4"} {"prompt": "b", "start": "x.mp4"}': "p.jsonl, 'b': --start x.mp4",
    '{"prompt": "a", "drop_start": true}': "give --start too",
    '{"prompt": "a", "drop_start": "yes"}': "must be true or false",
    '{"prompt": "a", "scenes": []}': "exclude each other",
    '{"scenes": []}': "a scene or more",
    '{"scenes": [[]]}': "must be a table",
    '{"scenes": [{"prompt": "a", "how": "cut"}]}': "has no 'how'",
    '{"scenes": [{"prompt": "a"}, {"prompt": "b"}]}': "say when it begins",
    '{"scenes": [{"prompt": "a"}, {"prompt": "b", "at": 1e400}]}': "finite",
    '{"scenes": [{"prompt": "a"}, {"prompt": "b", "at": 1e300}]}': "no chunk before",
    '{"scenes": [{"prompt": "a", "seconds": 1e308}, {"prompt": "b", "seconds": 1e308}]}': "length above 0",
    '{"scenes": [{"prompt": "a", "seconds": 1}, {"prompt": "b", "seconds": 1}], "seconds": 3}': "scene ends",
    '{"scenes": [{"prompt": "a", "seconds": 0.001}, {"prompt": "b", "seconds": 0.001}]}': "no chunk before",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("notes\n")
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "folder.mp4").mkdir()
    Image.new("RGB", (30, 10)).save(tmp_path / "s.png")
    return tmp_path


def refused(sfpp: Sfpp, folder: Path, arguments: list[str], cause: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, out, err = sfpp("generate", *arguments)
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (2, "")
    assert cause in error
    assert err.endswith(f"{error}\n")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("options", OPTIONS)
def test_options_that_clash(sfpp: Sfpp, tiny_bundle: Path, folder: Path, options: str) -> None:
    prompt = [] if "--prompts" in options else ["a"]
    refused(sfpp, folder, [*prompt, "--model", str(tiny_bundle), *options.split()], OPTIONS[options])


@pytest.mark.parametrize("lines", LINES)
def test_lines_that_clash(sfpp: Sfpp, tiny_bundle: Path, folder: Path, lines: str) -> None:
    (folder / "p.jsonl").write_text(lines.replace("} {", "}\n{") + "\n")
    refused(sfpp, folder, ["--model", str(tiny_bundle), "--prompts", "p.jsonl"], LINES[lines])


def test_a_file_is_read_and_written_at_once(sfpp: Sfpp, tiny_bundle: Path, folder: Path) -> None:
    """What a video starts from may be what it replaces, if that is allowed."""
    start = ["a", "--model", str(tiny_bundle), "--frames", "5", "--start"]
    assert sfpp("generate", *start, "s.png", "-o", "v.mp4")[0] == 0
    first = (folder / "v.mp4").read_bytes()
    refused(sfpp, folder, [*start, "v.mp4", "-o", "v.mp4"], "v.mp4 exists: use --overwrite")
    assert sfpp("generate", *start, "v.mp4", "-o", "v.mp4", "--overwrite")[0] == 0
    assert json.loads((folder / "v.json").read_text())["start"]["through"] == "pixels"
    assert (folder / "v.mp4").read_bytes() != first
