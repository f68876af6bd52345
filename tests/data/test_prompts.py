"""Prompt files are read whole, refused whole, and name their videos safely."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sfpp_cli.data.prompts import PromptLine, read_prompts, slug
from sfpp_cli.errors import UserError


def written(directory: Path, name: str, data: str | bytes) -> Path:
    path = directory / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def complaints(path: Path) -> list[str]:
    """What a prompt file is refused with, a line a fault, without its path."""
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    return [line.removeprefix(f"{path}").lstrip(": ") for line in str(caught.value).split("\n")]


def complaint(path: Path) -> str:
    """What a prompt file with one fault is refused with."""
    (line,) = complaints(path)
    return line


def complaint_about(directory: Path, line: str) -> str:
    return complaint(written(directory, "a.jsonl", line)).removeprefix("1: ")


def test_text_file(tmp_path: Path) -> None:
    text = "\ufeff# heading\r\n\r\n  a cat  \r\n\t## note\r\n#\nan #orange dog\u2028barks\n\n一只猫\n#1 fan"
    assert read_prompts(written(tmp_path, "a.TXT", text)) == [
        PromptLine("a cat"),
        PromptLine("an #orange dog\u2028barks"),
        PromptLine("一只猫"),
        PromptLine("#1 fan"),
    ]


def test_jsonl_file(tmp_path: Path) -> None:
    text = (
        '\ufeff{"prompt": " a cat ", "seed": 0, "seconds": 60, "out": "cats/one.mp4"}\r\n\n'
        '{"prompt": "# dog", "seed": null, "seconds": 2.5}\n'
    )
    lines = read_prompts(written(tmp_path, "a.jsonl", text))
    assert lines == [PromptLine("a cat", 0, 60.0, "cats/one.mp4"), PromptLine("# dog", None, 2.5, None)]
    assert type(lines[0].seconds) is float


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, "'prompt' is missing"),
        ({"prompt": None}, "'prompt' must be text, not null"),
        ({"prompt": " \t"}, "'prompt' must be text that is not empty"),
        ({"prompt": 3}, "'prompt' must be text, not 3"),
        ({"prompt": "a", "promt": "b"}, "unknown key 'promt'; did you mean 'prompt'?"),
        ({"prompt": "a", "second": 1}, "unknown key 'second'; did you mean 'seconds'?"),
        (
            {"prompt": "a", "zzz": 1},
            "unknown key 'zzz' (known: prompt, seed, seconds, out, scenes, start, drop_start)",
        ),
        ({"prompt": "a", "seed": True}, "'seed' must be a whole number, not true"),
        ({"prompt": "a", "seed": 1.0}, "'seed' must be a whole number, not 1.0"),
        ({"prompt": "a", "seed": "1"}, "'seed' must be a whole number, not '1'"),
        ({"prompt": "a", "seed": []}, "'seed' must be a whole number, not []"),
        ({"prompt": "a", "seed": -1}, "'seed' must be at least 0, not -1"),
        ({"prompt": "a", "seed": 2**63}, f"'seed' must be below {2**63}, not {2**63}"),
        ({"prompt": "a", "seconds": False}, "'seconds' must be a number, not false"),
        ({"prompt": "a", "seconds": "60"}, "'seconds' must be a number, not '60'"),
        ({"prompt": "a", "seconds": 0}, "'seconds' must be above 0, not 0"),
        ({"prompt": "a", "seconds": -1}, "'seconds' must be above 0, not -1"),
        ({"prompt": "a", "seconds": float("nan")}, "'seconds' must be a finite number, not NaN"),
        ({"prompt": "a", "seconds": float("inf")}, "'seconds' must be a finite number, not Infinity"),
        ({"prompt": "a", "seconds": 10**400}, "'seconds' must be a number, not 1000000000"),
        ({"prompt": "a", "out": 1}, "'out' must be text, not 1"),
        *(
            ({"prompt": "a", "out": out}, "'out' must be a relative path that stays inside the output folder")
            for out in (
                *("/a.mp4", "../a.mp4", "b/../../a.mp4", "..\\a.mp4", "C:\\a.mp4", "\\a.mp4"),
                *("", " ", ".", "..", "a\0b"),
            )
        ),
    ],
)
def test_bad_values(tmp_path: Path, record: dict[str, object], expected: str) -> None:
    assert complaint_about(tmp_path, json.dumps(record)).startswith(expected)


ONE = {"prompt": "a"}


@pytest.mark.parametrize(
    ("scenes", "expected"),
    [
        ([], "'scenes' must hold a scene or more"),
        (3, "'scenes' must be a list, not 3"),
        ([{"prompt": " "}], "'scenes[0].prompt' must be text that is not empty"),
        ([{"at": 3}], "'scenes[0].prompt' is missing"),
        ([{"prompt": "a", "at": 3}], "'scenes[0]' is the first: it begins at 0 and has no 'how'"),
        ([{"prompt": "a", "how": "cut"}], "'scenes[0]' is the first: it begins at 0 and has no 'how'"),
        ([ONE, ONE], "'scenes[1]' has no 'at', and the scene before it no 'seconds': say when it begins"),
        ([ONE, {"prompt": "b", "at": 0}], "'scenes[1]' begins at 0 s, not after the one before it (0 s)"),
        ([ONE, {"prompt": "b", "at": -1}], "'scenes[1].at' must be at least 0, not -1"),
        (
            [{"prompt": "a", "seconds": 3}, {"prompt": "b", "at": 4}],
            "'scenes[1]' begins at 4 s, but the scene before it ends at 3 s",
        ),
        (
            [ONE, {"prompt": "b", "at": 4, "how": "fade"}],
            "'scenes[1].how' must be 'switch', 'recache' or 'cut', not 'fade'",
        ),
        ([ONE, {"prompt": "b", "att": 4}], "unknown key 'scenes[1].att'; did you mean 'at'?"),
        (
            [ONE, {"prompt": "b", "at": 4, "seconds": 4}],
            "'seconds' (9) is not where the last scene ends (8 s)",
        ),
    ],
)
def test_scenes_that_make_no_sense(tmp_path: Path, scenes: object, expected: str) -> None:
    assert complaint_about(tmp_path, json.dumps({"scenes": scenes, "seconds": 9})) == expected


def test_scenes_or_a_prompt(tmp_path: Path) -> None:
    assert complaint_about(tmp_path, json.dumps({"scenes": [ONE], "prompt": "a"})).startswith(
        "'prompt' and 'scenes' exclude each other"
    )


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_extreme_seeds(tmp_path: Path, seed: int) -> None:
    assert (
        read_prompts(written(tmp_path, "a.jsonl", json.dumps({"prompt": "a", "seed": seed})))[0].seed == seed
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "a",}', "broken JSON: trailing comma at column 16"),
        ('{"prompt": "a"} x', "broken JSON: trailing characters at column 17"),
        ('{"prompt": "half an emoji \\ud83d"}', "broken JSON: "),
        ('["a"]', 'must be a table of keys and values, not ["a"]'),
        ('"a"', "must be a table of keys and values, not 'a'"),
        ("9" * 5000, "broken JSON: number out of range"),
        ("[" * 100_000, "broken JSON: recursion limit exceeded"),
    ],
    ids=["comma", "more", "surrogate", "list", "text", "number", "deep"],
)
def test_bad_json(tmp_path: Path, line: str, expected: str) -> None:
    assert complaint_about(tmp_path, line).startswith(expected)


def test_all_bad_lines_are_reported_at_once(tmp_path: Path) -> None:
    data = b"""{"seed": -1, "sed": 2}
{"prompt": "fine", "out": "a.mp4"}

{"prompt": "\xff"}
{
{"prompt": "b", "out": "./A.mp4"}"""
    assert complaints(written(tmp_path, "a.jsonl", data)) == [
        "1: 'prompt' is missing",
        "1: 'seed' must be at least 0, not -1",
        "1: unknown key 'sed'; did you mean 'seed'?",
        "4: not UTF-8 text",
        "5: broken JSON: EOF while parsing an object at column 1",
        "6: 'out' './A.mp4' is taken by line 2",
    ]


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    assert complaint(written(tmp_path, "a.txt", b"fine\ncaf\xe9\n")) == "2: not UTF-8 text"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_no_prompts(tmp_path: Path, name: str) -> None:
    assert complaint(written(tmp_path, name, "\n \n")) == "holds no prompts; write one a line"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    assert complaint(tmp_path / "a.txt").startswith("cannot be read (No such file")
    assert complaint(tmp_path / "folder.txt").startswith("cannot be read (")
    assert (
        complaint(written(tmp_path, "a.csv", "a")) == "unknown kind of prompt file '.csv'; use .txt or .jsonl"
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A cat, running!", "a-cat-running"),
        ("  --leading.dots../and_underscores  ", "leading-dots-and-underscores"),
        ("The cat's whiskers, and the dog\u2019s", "the-cats-whiskers-and-the-dogs"),
        ("Crème brûlée in Zürich — Straße", "creme-brulee-in-zurich-strasse"),
        ("\uff26\uff55\uff4c\uff4c width ½", "full-width-1-2"),
        ("一只猫 cat", "cat"),
        ("con", "prompt-con"),
        ("LPT1", "prompt-lpt1"),
        ("console", "console"),
        ("x" * 80, "x" * 60),
        ("word " * 20, "-".join(["word"] * 12)),
        ("a" * 60 + " b", "a" * 60),
    ],
)
def test_slug(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_slug_is_always_safe() -> None:
    for prompt in ("", "...", "一只猫", "😀😀", "-", "\ud800", "a\x00b", "ﬀ \u202e evil", "٣", "x_" * 99):
        for limit in (16, 60):
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug(prompt, limit))
            assert len(slug(prompt, limit)) <= limit


def test_slug_without_latin_letters_tells_prompts_apart() -> None:
    assert re.fullmatch(r"prompt-[0-9a-f]{8}", slug("一只猫"))
    assert slug("一只猫") == slug("一只猫") != slug("一只狗")
