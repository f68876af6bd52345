"""`sfpp weights push`, with Hugging Face's own client, to a server that speaks what it needs of the hub."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Sfpp
from huggingface_hub import constants

from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.settings import SETTINGS

pytest_plugins = ["tiny_bundle"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the client's own

REPO = "owner/some-video"
Command = Callable[..., tuple[int, str, str]]


class Hub(ThreadingHTTPServer):
    """Keeps large objects by digest, and the files of the last commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.created: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.fails: dict[str, int] = {}
        """What to answer with, by a part of the path."""

    def answer(self, method: str, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.address}/{REPO}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            large = {name for name in names if name.endswith(".safetensors")}
            modes = {name: "lfs" if name in large else "regular" for name in names}
            return {
                "files": [{"path": name, "uploadMode": modes[name], "shouldIgnore": False} for name in names]
            }
        if path.endswith("/info/lfs/objects/batch"):
            return {
                "transfer": "basic",
                "objects": [self._action(asked) for asked in json.loads(body)["objects"]],
            }
        if method == "PUT":
            assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
            self.objects[path.rpartition("/")[2]] = body
            return {}
        if path != f"/api/models/{REPO}/commit/main":
            return {}  # what the client asks besides, about itself
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
        return {"commitUrl": f"{self.address}/{REPO}/commit/{'a' * 40}", "commitOid": "a" * 40}

    def _action(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.address}/objects/{asked['oid']}"}
        return {**asked, "actions": {"upload": upload}}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        body = b"".join(self._parts())
        self.server.tokens.add(self.headers.get("Authorization") if "/objects/" not in path else None)
        status = next((code for part, code in self.server.fails.items() if part in path), 200)
        answer = {"error": "no"} if status != 200 else self.server.answer(self.command, path, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _parts(self) -> Iterator[bytes]:
        """What a request brings; large files come in pieces, each after its length."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return
        while length := int(self.rfile.readline(), 16):
            yield self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HF_HUB_DISABLE_XET", True
    )  # its protocol is compiled and needs more of a hub
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def push(sfpp: Sfpp) -> Command:
    return lambda *arguments: sfpp("weights", "push", *map(str, arguments))


def write(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_model_arrives_whole_with_a_card(hub: Hub, push: Command, own_bundle: Path, tmp_path: Path) -> None:
    """What is sent is a model again; a run's state and strangers' files stay at home."""
    (own_bundle / "checkpoint.pt").write_bytes(b"optimiser")
    (own_bundle / "notes.txt").write_text("mine")
    code, out, err = push(own_bundle, REPO, "--private")
    assert (code, out) == (0, f"{hub.address}/{REPO}\n"), err
    assert hub.created[0]["visibility"] == "private"
    assert "Bearer hf_secret" in hub.tokens
    assert not {"checkpoint.pt", "notes.txt"} & hub.files.keys()
    sent = {name: (own_bundle / name).read_bytes() for name in hub.files if name != "README.md"}
    assert {name: hub.files[name] for name in sent} == sent
    again = Bundle(str(write(hub.files, tmp_path / "again")))
    assert again.settings == Bundle(str(own_bundle)).settings
    again.load_student(torch.device("cpu"), torch.float32)
    again.load_teacher(torch.device("cpu"), torch.float32)
    card = hub.files["README.md"].decode()
    assert f"--model {REPO}" in card
    assert "| steps | 1000, 750, 500, 250 |" in card
    assert card.startswith("---\npipeline_tag: text-to-video\n")


def test_a_student_alone_keeps_its_own_card(hub: Hub, push: Command, own_bundle: Path) -> None:
    student = own_bundle / "transformer"
    (student / SETTINGS).write_bytes((own_bundle / SETTINGS).read_bytes())
    assert push(student, REPO)[0] == 0
    assert f"--student {REPO}" in hub.files["README.md"].decode()
    assert set(hub.files) == {"README.md", SETTINGS, "config.json", "diffusion_pytorch_model.safetensors"}
    (student / "README.md").write_text("# Mine")
    assert push(student, REPO)[0] == 0
    assert hub.files["README.md"] == b"# Mine"


@pytest.mark.parametrize(
    ("fails", "repo", "pattern"),
    [
        (
            {"repos/create": 401, "api/models": 401},
            REPO,
            "does not let you write to 'owner/some-video': `hf auth login`",
        ),
        ({"commit/main": 403}, REPO, "does not let you write"),
        ({"preupload": 400}, REPO, "nothing was published as 'owner/some-video'"),
        ({"objects/batch": 404}, REPO, "nothing was published as"),
        ({}, "no/such/name", "it takes owner/name"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    fails: dict[str, int], repo: str, pattern: str, hub: Hub, push: Command, tiny_bundle: Path
) -> None:
    hub.fails = fails
    code, out, err = push(tiny_bundle, repo)
    assert (code, out) == (2, "")
    assert pattern in err.splitlines()[-1]
    assert hub.files == {}


def test_what_is_no_student_is_never_sent(hub: Hub, push: Command, own_bundle: Path, tmp_path: Path) -> None:
    for folder, pattern in {
        tmp_path / "none": "is no folder",
        own_bundle / "vae": "is no student and no model with one",
        own_bundle.parent: "holds no student",
    }.items():
        code, out, err = push(folder, REPO)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert pattern in err
    weights = own_bundle / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    code, _, err = push(own_bundle, REPO)
    assert code == 2
    assert "is damaged" in err
    assert hub.created == []
