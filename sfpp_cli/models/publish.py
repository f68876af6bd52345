"""A model's folder into a repository of the Hugging Face hub, with a card that says how it is run."""

from __future__ import annotations

from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, errors

from sfpp_cli.errors import UserError, reason
from sfpp_cli.models.hub import MODEL_FILES
from sfpp_cli.models.layout import STUDENTS, class_of, headers, student_folder
from sfpp_cli.models.settings import SETTINGS, Settings

CARD = "README.md"


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Send a student, or a model with one, as one commit to a repository, made if need be; returns its URL.

    Only files that `pull` fetches are sent, and the folder's README.md, or else a card made of its settings.
    UserError if there is no whole student in the folder, or if the hub refuses.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give a converted model, or the student of a run")
    student = student_folder(folder)
    if class_of(student) not in STUDENTS or student not in (folder, folder / "transformer"):
        raise UserError(f"{folder} is no student and no model with one: give {student}, or convert one")
    parameters = sum(header.elements for header in headers(student).values())
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    operations = [
        CommitOperationAdd(name, folder / name)
        for name in names
        if any(fnmatch(name, pattern) for pattern in (*MODEL_FILES, CARD))
    ]
    if not (folder / CARD).exists():
        operations.append(CommitOperationAdd(CARD, card(folder, repo, parameters).encode()))
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.create_commit(repo, operations, commit_message=f"{folder.name}, by sfpp weights push")
    except Exception as error:  # network, transfer library and hub fail each in its own way
        raise UserError(_explain(error, repo)) from error
    return f"{constants.ENDPOINT}/{repo}"


def card(folder: Path, repo: str, parameters: int) -> str:
    """Markdown with the hub's header."""
    whole = (folder / "vae").is_dir()
    settings = Settings.read(folder / SETTINGS) if (folder / SETTINGS).exists() else Settings()
    told = {name: value for name, value in asdict(settings).items() if value not in (None, "")}
    rows = [f"| {name} | {_shown(value)} |" for name, value in told.items() if name != "prompt"]
    what = "model" if whole else "student (it takes VAE and text encoder from a model of its family)"
    lines = [
        *("---", "pipeline_tag: text-to-video", "tags:", "- sfpp", "- self-forcing", "- wan", "---"),
        f"# {repo.rpartition('/')[2]}",
        "",
        f"A causal few-step video {what} of {parameters / 1e6:,.1f} M parameters, for sfpp:",
        "",
        "```sh",
        f'sfpp generate "..." --seconds 60 --{"model" if whole else "student"} {repo}',
        "```",
        "",
        "| setting | |",
        "|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _explain(error: Exception, repo: str) -> str:
    """Why a model cannot be sent, and what to do."""
    if isinstance(error, errors.HFValidationError):
        return f"'{repo}' is no name of a repository: it takes owner/name"
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):  # of a file among several
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
        return f"the hub does not let you write to '{repo}': `hf auth login` with a token that may"
    return f"nothing was published as '{repo}' ({reason(error)}): try again, files that arrived are kept"
