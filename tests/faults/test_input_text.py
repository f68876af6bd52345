"""Text from elsewhere on its way to a terminal: prompts, names, recipes, metadata, what files say."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from outcomes import OBEYED, Sfpp, ends_well

from sfpp_cli.commands import console

pytest_plugins = ["tiny_bundle", "film"]

HOSTILE = "a\x1b[31mb\x1b]0;title\x07c\rd\be\x9b2Jf\u202eg\u2066h\u2028i\x7fj[bold]k[/bold]:smile:\\"
NAMED = HOSTILE.replace("/", "")
"""As a name of a file: no slash."""


def test_names_of_files_and_models(sfpp: Sfpp, tiny_bundle: Path, film: Path, tmp_path: Path) -> None:
    copy = tmp_path / f"{NAMED}.mp4"
    copy.write_bytes(film.read_bytes())
    model = tmp_path / NAMED
    os.symlink(tiny_bundle, model)
    assert ends_well(sfpp, "evaluate", str(copy), "--no-cache")
    assert not ends_well(sfpp, "evaluate", f"{NAMED}.webm", "--no-cache")
    assert ends_well(sfpp, "weights", "show", str(model))
    assert not ends_well(sfpp, "weights", "show", f"{NAMED}x")
    assert ends_well(sfpp, "generate", "--model", str(model), "--frames", "1", "-o", f"{NAMED}-1.mp4")
    assert ends_well(sfpp, "generate", HOSTILE, "--model", str(model), "--frames", "1", "-o", "v.mp4")
    for command in ("generate", "train", "distill"):
        assert not ends_well(sfpp, command, "--device", HOSTILE)


def test_recipes_and_prompt_files(sfpp: Sfpp, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'objective = {json.dumps(HOSTILE)}\n"\\u001b[31m" = 3\n'.replace("\x7f", "\\u007f"))
    assert not ends_well(sfpp, "train", str(recipe), "--dry-run")
    assert not ends_well(sfpp, "train", str(recipe), "--dry-run", "--set", f"{HOSTILE}=1")
    (tmp_path / "p.jsonl").write_text(json.dumps({HOSTILE: 1, "prompt": "x", "out": f"../{HOSTILE}"}) + "\n")
    assert not ends_well(sfpp, "generate", "--prompts", "p.jsonl")


def test_what_damaged_files_say(sfpp: Sfpp, own_bundle: Path, tmp_path: Path) -> None:
    config = own_bundle / "transformer" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "_class_name": HOSTILE * 200}))
    assert not ends_well(sfpp, "generate", "--model", str(own_bundle), "--frames", "1")
    config.write_text(json.dumps({**content, "patch_size": HOSTILE * 200}))
    assert not ends_well(sfpp, "generate", "--model", str(own_bundle), "--frames", "1")
    header = json.dumps({HOSTILE: {"dtype": HOSTILE, "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    assert not ends_well(sfpp, "weights", "convert", "w.safetensors", "out")
    (tmp_path / "v.mp4").write_bytes(b"\0\0\0\x18ftypisom" + HOSTILE.encode() * 50)
    assert not ends_well(sfpp, "evaluate", "v.mp4", "--no-cache")


def test_a_strangers_description_beside_a_video(
    sfpp: Sfpp, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The video is measured once: what is beside it is read again all the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    video = tmp_path / "v.mp4"
    video.write_bytes(film.read_bytes())
    for field in ("prompt", "model", "seed", "fps", "seconds", "chunk", "horizon", "size"):
        for value in (HOSTILE, [[]], {"a": {}}, None, True, 1e999, float("nan"), 10**400, "\ud800", -1):
            (tmp_path / "v.json").write_text(json.dumps({"video": "v.mp4", field: value}))
            assert ends_well(sfpp, "evaluate", "v.mp4", "--json"), (field, value)
    for text in ("[" * 10**5, "{", '{"video": "v.mp4", "seed": ' + "9" * 5000 + "}", "null", '{"video": []}'):
        (tmp_path / "v.json").write_text(text)
        assert ends_well(sfpp, "evaluate", "v.mp4")
    (tmp_path / "v.json").write_text(json.dumps({"video": "v.mp4", "prompt": 3, "seed": "x"}))
    _, _, err = sfpp("evaluate", "v.mp4")
    assert "warning: v.json: prompt, seed cannot be what made the video" in err


MANIFESTS = {
    "deep": "[" * 10**5,
    "number": "3",
    "no-path": '[{"prompt": "x"}]',
    "path": '[{"path": 3}]',
    "nul": '[{"path": "a\\u0000b"}]',
    "seed": '[{"path": "v.mp4", "seed": "x"}]',
    "prompt": '[{"path": "v.mp4", "prompt": ["x"]}]',
    "system": '[{"path": "v.mp4", "system": {}}]',
    "escape": '[{"path": "\\u001b[31m.mp4"}]',
}


@pytest.mark.parametrize("how", MANIFESTS)
def test_manifests(sfpp: Sfpp, film: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "v.mp4").write_bytes(film.read_bytes())
    (tmp_path / "m.json").write_text(MANIFESTS[how])
    assert not ends_well(sfpp, "evaluate", "--manifest", "m.json", "--no-cache")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_path_that_the_encoding_of_stdout_lacks(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """The work is done when its result is printed; it must not fail then."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    console.result("видео.mp4")
    expected = "видео.mp4" if encoding == "utf-8" else r"\u0432\u0438\u0434\u0435\u043e.mp4"
    assert written.getvalue().decode(encoding) == f"{expected}\n"


def test_names_that_the_font_of_pictures_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter each, as boxes would all look the same; matplotlib warns of every box."""
    from sfpp_cli.evaluation.report import drawing
    from sfpp_cli.evaluation.report.drift import Band, Drift

    legends = []
    monkeypatch.setattr(drawing, "write_png", lambda figure, path: legends.extend(figure.legends))
    two = np.array([1.0, 2.0])
    names = ("baseline é", "系统", "видео", "हिन्दी")
    bands = {name: Band(two, two, two, 1, 1.0, 2.0, color) for color, name in enumerate(names)}
    drawing.write_panels([Drift("luma", two, bands)], tmp_path / "drift.png")
    (legend,) = legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["baseline é", "B", "видео", "D"]
    with warnings.catch_warnings(action="error"):
        legend.get_figure().draw_without_rendering()


def test_a_real_terminal_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches a pseudo-terminal, whose escapes are rich's own colours, and no others."""
    from sfpp_cli.commands.console import Terminal, error

    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(console.err, "_file", terminal)
        Terminal().say(HOSTILE)
        Terminal().warn(HOSTILE)
        error(HOSTILE)
        with Terminal().stage(HOSTILE, 3) as advance:
            advance(1, {"x": "1"})
        terminal.flush()
        shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    own = re.sub(r"\x1b\[[0-9;?]*[A-Zhlm]|\r\n|\r", "", shown)
    assert not OBEYED.search(own), ascii(own)
    assert r"a\x1b[31mb\x1b]0;title\x07c\rd\x08e\x9b2Jf\u202eg\u2066h\u2028i\x7fj[bold]k[/bold]:smile:" in own


@settings(derandomize=True, deadline=None, max_examples=300)
@given(text=st.text(), longest=st.integers(300, 2000))
@example(text="x" * 10**6, longest=1000)
@example(text="می‌خواهم 👩‍👩‍👧 ünï", longest=1000)
def test_what_is_shown_is_visible_and_short(text: str, longest: int) -> None:
    from sfpp_cli.text import visible

    shown = visible(text, longest)
    kinds = {unicodedata.category(c) for c in shown if c not in "\n\t\u200c\u200d"}
    assert kinds.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert shown.count("\n") == text.count("\n")
    assert max(map(len, shown.split("\n"))) <= longest + 5
    if text.isprintable() and len(text) <= longest:
        assert shown == text
