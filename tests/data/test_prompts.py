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


def complaint(path: Path) -> str:
    """The one line a prompt file is refused with, without its path."""
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}").lstrip(": ")


def complaint_about(directory: Path, line: str) -> str:
    return complaint(written(directory, "a.jsonl", line)).removeprefix("line 1: ")


def test_text_file(tmp_path: Path) -> None:
    text = "\ufeff# heading\r\n\r\n  a cat  \r\n\t# note\r\nan #orange dog\u2028barks\n\n一只猫"
    assert read_prompts(written(tmp_path, "a.TXT", text)) == [
        PromptLine("a cat", line=3),
        PromptLine("an #orange dog\u2028barks", line=5),
        PromptLine("一只猫", line=7),
    ]


def test_jsonl_file(tmp_path: Path) -> None:
    text = (
        '\ufeff{"prompt": " a cat ", "seed": 0, "seconds": 60, "out": "cats/one.mp4"}\r\n\n'
        '{"prompt": "# dog", "seed": null, "seconds": 2.5}\n'
    )
    lines = read_prompts(written(tmp_path, "a.jsonl", text))
    assert lines == [PromptLine("a cat", 0, 60.0, "cats/one.mp4", 1), PromptLine("# dog", None, 2.5, None, 3)]
    assert type(lines[0].seconds) is float


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, "no prompt"),
        ({"prompt": None}, "no prompt"),
        ({"prompt": " \t"}, "prompt must be text that is not empty"),
        ({"prompt": 3}, "prompt must be text that is not empty"),
        ({"prompt": "half an emoji \ud83d"}, "prompt must be text that is not empty"),
        ({"prompt": "a", "promt": "b"}, "unknown key 'promt'; did you mean 'prompt'?"),
        ({"prompt": "a", "second": 1}, "unknown key 'second'; did you mean 'seconds'?"),
        ({"prompt": "a", "zzz": 1}, "unknown key 'zzz' (known: prompt, seed, seconds, out)"),
        *(
            ({"prompt": "a", "seed": seed}, "seed must be a whole number from 0 to 2^63 - 1")
            for seed in (True, -1, 1.0, "1", 2**63, [])
        ),
        *(
            ({"prompt": "a", "seconds": seconds}, "seconds must be a number above 0")
            for seconds in (False, 0, -1, "60", float("nan"), float("inf"), 10**400)
        ),
        *(
            (
                {"prompt": "a", "out": out},
                "out must be a relative path that stays inside the output directory",
            )
            for out in (
                "/a.mp4",
                "../a.mp4",
                "b/../../a.mp4",
                "..\\a.mp4",
                "C:\\a.mp4",
                "\\a.mp4",
                "",
                ".",
                "..",
                1,
                "a\0b",
            )
        ),
    ],
)
def test_bad_values(tmp_path: Path, record: dict[str, object], expected: str) -> None:
    assert complaint_about(tmp_path, json.dumps(record)) == expected


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_extreme_seeds(tmp_path: Path, seed: int) -> None:
    assert (
        read_prompts(written(tmp_path, "a.jsonl", json.dumps({"prompt": "a", "seed": seed})))[0].seed == seed
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "a",}', "broken JSON, "),
        ('{"prompt": "a"} x', "broken JSON, Extra data at column 17"),
        ('["a"]', "not an object"),
        ('"a"', "not an object"),
        ("9" * 5000, "JSON that is too large to read"),
        ("[" * 100_000, "JSON that is too large to read"),
    ],
)
def test_bad_json(tmp_path: Path, line: str, expected: str) -> None:
    assert complaint_about(tmp_path, line).startswith(expected)


def test_all_bad_lines_are_reported_at_once(tmp_path: Path) -> None:
    data = b'{"seed": -1, "sed": 2}\n{"prompt": "fine", "out": "a.mp4"}\n\n{"prompt": "\xff"}\n{\n{"prompt": "b", "out": "./A.mp4"}'
    assert complaint(written(tmp_path, "a.jsonl", data)) == (
        "line 1: unknown key 'sed'; did you mean 'seed'?, seed must be a whole number from 0 to 2^63 - 1, no prompt; "
        "line 4: not UTF-8 text; "
        "line 5: broken JSON, Expecting property name enclosed in double quotes at column 2; "
        "line 6: out './A.mp4' is taken by line 2"
    )


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    assert complaint(written(tmp_path, "a.txt", b"fine\ncaf\xe9\n")) == "line 2: not UTF-8 text"


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
