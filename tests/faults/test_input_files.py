"""Files that are not what they say: playlists, drawings, links, pickles, bombs; modes of what is written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from outcomes import Sfpp, ends_well
from PIL import Image
from safetensors.torch import save_file

from sfpp_cli.errors import UserError
from sfpp_cli.video.reader import probe, read_frames, read_metadata

pytest_plugins = ["tiny_bundle", "film"]

SECRET = "secret.mp4"
REFERRING = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "hls-vod": "#EXTM3U\n#EXT-X-VERSION:7\n#EXTINF:1,\nfile:secret.ts\n#EXT-X-ENDLIST\n",
    "hls-map": '#EXTM3U\n#EXT-X-MAP:URI="secret.mp4"\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n',
    "hls-key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="secret.ts"\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n',
    "concat": "ffconcat version 1.0\nfile secret.mp4\n",
    "concat-twice": "ffconcat version 1.0\nfile secret.mp4\nduration 1\nfile secret.mp4\n",
    "dash": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT2S"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="9">'
        "<BaseURL>secret.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ),
    "svg": (
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" '
        'xmlns:x="http://www.w3.org/1999/xlink" width="64" height="64"><image x:href="secret.png" width="64" '
        'height="64"/></svg>'
    ),
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 33\n",
    "smil": '<smil><body><video src="secret.mp4"/></body></smil>',
    "asx": '<asx version="3.0"><entry><ref href="secret.mp4"/></entry></asx>',
    "pls": "[playlist]\nFile1=secret.mp4\nNumberOfEntries=1\n",
    "avs": 'AviSource("secret.avi")\n',
    "text": "root:x:0:0:root:/root:/bin/bash\n" * 50,
    "ttml": '<tt xmlns="http://www.w3.org/ns/ttml"><body><div><p begin="0s" end="1s">x</p></div></body></tt>',
    "image2": "P6 64 64 255\n" + "x" * 64 * 64 * 3,
}
NAMES = ("v.mp4", "v.webm", "v.mkv", "v.mov", "v.avi", "v.gif", "v.m3u8", "v.ffconcat", "v.mpd", "v.svg")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory, film: Path) -> Path:
    """A film that nobody asked for, in several forms."""
    folder = tmp_path_factory.mktemp("secrets")
    shutil.copy(film, folder / SECRET)
    exe = imageio_ffmpeg.get_ffmpeg_exe()
    for name in ("secret.ts", "secret.avi", "secret.png"):
        one = ["-frames:v", "1"] if name.endswith("png") else []
        command = [exe, "-v", "error", "-i", str(film), *one, str(folder / name)]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture
def folder(secrets: Path, tmp_path: Path) -> Path:
    """With copies of them."""
    return Path(shutil.copytree(secrets, tmp_path, dirs_exist_ok=True))


@pytest.mark.parametrize(
    "name", ["v.mp4", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
)
@pytest.mark.parametrize("kind", REFERRING)
def test_files_that_name_other_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    monkeypatch.chdir(folder)
    Path(name).write_text(REFERRING[kind])
    with pytest.raises(UserError, match=f"^{name} "):
        probe(Path(name))
    with pytest.raises(UserError):
        list(read_frames(Path(name)))
    with pytest.raises(UserError):
        read_metadata(Path(name))


def test_names_that_look_like_protocols_and_patterns(
    folder: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for name in ("concat:secret.mp4", "pic%03d.mp4", "file:x.mp4", "pipe:0", "-i.mp4", "http:x.mp4"):
        Path(name).write_bytes(film.read_bytes())
        assert probe(Path(name)).frames == 8
    with pytest.raises(UserError, match="does not exist"):
        probe(Path("http://127.0.0.1:9/v.mp4"))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    text = chunk(b"tEXt", b"fps\x008")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + text + chunk(b"IDAT", data) + chunk(b"IEND", b"")


PICTURES = {
    "bomb": png(60_000, 60_000, zlib.compress(bytes(1000))),
    "half-a-bomb": png(10_000, 10_000, zlib.compress(bytes(1000))),
    "damaged": png(8, 8, b"no zlib"),
    "cut": png(8, 8, zlib.compress(bytes(8 * 25)))[:60],
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "empty": b"",
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_that_are_none(sfpp: Sfpp, tmp_path: Path, kind: str) -> None:
    frames = tmp_path / "v"
    frames.mkdir()
    (frames / "v-000001.png").write_bytes(PICTURES[kind])
    assert not ends_well(sfpp, "evaluate", "v", "--no-cache")


@pytest.mark.parametrize("rate", ["nan", "0", "-1", "inf", "x", None])
def test_a_folder_of_pictures_needs_a_rate(sfpp: Sfpp, tmp_path: Path, rate: str | None) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if rate is not None:
        info.add_text("fps", rate)
    Image.new("RGB", (16, 16)).save(tmp_path / "1.png", pnginfo=info)
    code, out, err = sfpp("evaluate", str(tmp_path), "--no-cache")
    assert (code, out) == (2, "")
    assert "holds frames without a frame rate" in err


def test_what_generate_writes_as_pictures_is_measured(sfpp: Sfpp, tiny_bundle: Path) -> None:
    model = ["--model", str(tiny_bundle), "--frames", "9"]
    assert ends_well(sfpp, "generate", "a red circle", *model, "-o", "d/v.png")
    for place in ("d/v", "d"):
        code, out, err = sfpp("evaluate", place, "--no-cache", "--json")
        assert code == 0, err
        (video,) = json.loads(out)["videos"]
        assert (video["frames"], video["fps"], video["seed"], video["prompt"]) == (9, 8.0, 0, "a red circle")


class Runs:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("how", ["torch", "old-torch", "pickle"])
def test_pickles_run_nothing(sfpp: Sfpp, tmp_path: Path, suffix: str, how: str) -> None:
    path = tmp_path / f"w{suffix}"
    content = {"generator": {"patch_embedding.weight": torch.zeros(1)}, "step": Runs()}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    assert not ends_well(sfpp, "weights", "convert", path.name, "out", "--num-heads", "2")
    assert not (tmp_path / "ran").exists()


def test_numbers_of_numpy_beside_weights_are_no_code(sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path) -> None:
    """Training scripts store the step as one."""
    from safetensors.torch import load_file

    (file,) = (tiny_bundle / "transformer").glob("*.safetensors")
    torch.save(
        {"generator": load_file(file), "step": np.int64(3), "loss": np.float32(0.5)}, tmp_path / "w.pt"
    )
    assert ends_well(sfpp, "weights", "convert", "w.pt", "out", "--num-heads", "2")


def test_what_is_beside_tensors_in_safetensors(sfpp: Sfpp, own_bundle: Path) -> None:
    """Its metadata are text, whatever they say."""
    from safetensors.torch import load_file

    (file,) = (own_bundle / "transformer").glob("*.safetensors")
    for metadata in ({"format": "pt", "x": "\x1b[31m" * 1000}, {"format": "\x1b[31mtf"}, {}):
        save_file(load_file(file), file, metadata=metadata)
        ends_well(sfpp, "generate", "--model", str(own_bundle), "--frames", "1", "-o", "v.mp4", "--overwrite")


def test_an_index_names_files_beside_it_only(sfpp: Sfpp, own_bundle: Path, tmp_path: Path) -> None:
    part = own_bundle / "transformer"
    (file,) = part.glob("*.safetensors")
    file.rename(tmp_path / "elsewhere.safetensors")
    for name in ("../../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors"), "", ".", "\0"):
        index = {"metadata": {}, "weight_map": {"patch_embedding.weight": name}}
        (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        assert not ends_well(sfpp, "generate", "--model", str(own_bundle), "--frames", "1", "-o", "v.mp4")
        assert not ends_well(sfpp, "weights", "convert", str(part), "out", "--num-heads", "2")


LINKED = ("v.mp4", "v.json", "v.sheet.png", "v.safetensors")


@pytest.mark.parametrize("name", LINKED)
def test_links_in_the_place_of_results_are_replaced(
    sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    """What a link points at is another's: it stays as it was."""
    other = tmp_path / "other"
    other.write_text("precious")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).symlink_to(other)
    model = ["--model", str(tiny_bundle), "--frames", "1", "--sheet", "--save-latents", "--overwrite"]
    assert ends_well(sfpp, "generate", *model, "-o", "d/v.mp4")
    assert other.read_text() == "precious"
    assert not (tmp_path / "d" / name).is_symlink()


@pytest.mark.parametrize(
    "mask", [0o027, *(pytest.param(mask, marks=pytest.mark.slow) for mask in (0o022, 0o002))]
)
def test_files_are_as_open_as_the_umask_says(
    sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        model = ["--model", str(tiny_bundle), "--frames", "1", "--sheet", "--save-latents"]
        assert ends_well(sfpp, "generate", *model, "-o", "o/v.mp4")
        assert ends_well(sfpp, "generate", *model, "-o", "o/w.png")
        assert ends_well(sfpp, "weights", "convert", f"{tiny_bundle}/transformer", "o/m", "--num-heads", "2")
    finally:
        os.umask(before)
    made = list((tmp_path / "o").rglob("*"))
    assert len(made) > 10
    modes = {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()}
    assert modes == {0o666 & ~mask}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o777 & ~mask}


def test_a_cache_that_cannot_be_written_costs_a_warning(
    sfpp: Sfpp, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nope")
    code, out, err = sfpp("evaluate", str(film))
    assert code == 0
    assert "film.mp4" in out
    assert err.count("warning: results are not kept for the next time") == 1


def test_an_account_without_a_home_can_measure(
    sfpp: Sfpp, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert ends_well(sfpp, "evaluate", str(film))


@pytest.mark.parametrize("json_", [False, True])
def test_stdout_is_empty_where_nothing_was_measured(sfpp: Sfpp, tmp_path: Path, json_: bool) -> None:
    (tmp_path / "v.mp4").write_text("no video")
    options = ["--no-cache", "--workers", "1", *(["--json"] if json_ else [])]
    code, out, err = sfpp("evaluate", "v.mp4", ".", *options)
    assert code == 2
    assert "v.mp4" in err
    assert bool(out) == json_
    if json_:
        assert json.loads(out)["failed"]


@pytest.mark.parametrize(
    ("ending", "flag"), [(".json", None), (".sheet.png", "--sheet"), (".safetensors", "--save-latents")]
)
def test_a_file_beside_a_video_is_not_replaced_unasked(
    sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path, ending: str, flag: str | None
) -> None:
    """Somebody's own, or of another video that differs in its kind alone."""
    mine = tmp_path / f"v{ending}"
    mine.write_text("mine")
    command = ["generate", "--model", str(tiny_bundle), "--frames", "1", "-o", "v.mp4", *filter(None, [flag])]
    for more in ([], ["--resume"]):
        code, _, err = sfpp(*command, *more)
        assert code == 2
        assert f"v{ending} exists: use --overwrite" in err
        assert mine.read_text() == "mine"
    assert sfpp(*command, "--overwrite")[0] == 0
    (tmp_path / "v.mp4").unlink()
    assert sfpp(*command)[0] == 0, "what is left of a video of this name is no obstacle"
    before = (tmp_path / "v.json").read_bytes()
    code, _, err = sfpp(*command[:-1], "v.gif") if flag is None else sfpp(*command, "-o", "v.gif")
    assert code == 2
    assert "v.json" in err
    assert (tmp_path / "v.json").read_bytes() == before


@pytest.mark.parametrize(
    "line", ['"scenes": [{"prompt": "b"}, {"prompt": "c", "at": 99}]', '"prompt": "b", "start": "no.mp4"']
)
def test_what_is_wrong_with_a_line_names_it(sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "a red circle"}}\n{{{line}}}\n')
    code, _, err = sfpp("generate", "--model", str(tiny_bundle), "--prompts", "p.jsonl")
    assert code == 2
    assert err.startswith("error: p.jsonl, 'b': ")
    assert err.count("\n") == 1
