"""A stand-in for the Hub on this machine: as much of its HTTP protocol as models and data sets take."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import transformers
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results


LICENSES = {"apache-2.0", "mit", "other", "unknown"}  # of the Hub's list those that a card of ours may name
TASKS = {"unconditional-image-generation", "image-classification"}


class HubStandIn:
    """Repositories in memory. `with HubStandIn() as hub:` serves at `hub.url`; `hub.files[repo]` is what it holds.

    `repo` is "user/name" of a model, "datasets/user/name" of a data set.

    Args:
        upload_mode: "regular" (in the commit) or "lfs" for *.safetensors.
        refuse: Answer 403 to every commit.
        broken_commits: So many commits lose their connection before they are answered, and are not kept.
        broken_uploads: So many uploads of LFS objects do.
    """

    def __init__(
        self, upload_mode: str = "regular", refuse: bool = False, broken_commits: int = 0, broken_uploads: int = 0
    ):
        self.upload_mode, self.refuse = upload_mode, refuse
        self.broken_commits, self.broken_uploads = broken_commits, broken_uploads
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.wishes: dict[str, dict] = {}  # what was asked for when a repository was created
        self.messages: dict[str, list[str]] = {}  # of the commits
        self.announced: dict[str, set[str]] = {}  # by preupload
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.problems: list[str] = []  # requests that no Hub would accept

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def handle_any(self):
                hub.requests.append(f"{self.command} {self.path.split('?')[0]}")
                status, headers, content = hub.answer(self.command, self.path.split("?")[0], self.body(), self.headers)
                if status is None:  # a connection that breaks
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    chunks = []
                    while size := int(self.rfile.readline(), 16):
                        chunks.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(chunks)
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method: str, path: str, body: bytes, headers):
        """(status, headers, content); a status of None breaks the connection."""
        parts = path.strip("/").split("/")
        is_write = method in ("POST", "PUT") and not path.startswith("/objects/")
        if is_write and path != "/api/validate-yaml" and not headers.get("Authorization", "").startswith("Bearer hf_"):
            return reply({"error": "Invalid username or password."}, status=401)
        if path == "/api/agent-harnesses":  # for the client's user agent; it does without
            return reply({"error": "not found"}, status=404)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body))
        if path.startswith("/objects/"):
            return self.upload(parts[-1], body)
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.url}/objects/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return reply({"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})
        if parts[:2] == ["api", "models"]:
            return self.repository("/".join(parts[2:4]), parts[4:], body)
        if parts[:2] == ["api", "datasets"]:
            return self.repository("/".join(parts[1:4]), parts[4:], body)
        if parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            return self.resolve("/".join(parts[:3]), parts[4], "/".join(parts[5:]))
        if len(parts) >= 5 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self.problems.append(f"{method} {path}")
        return reply({"error": "not found"}, status=404)

    def create(self, wish: dict):
        repo = f"{wish.get('organization', 'user')}/{wish['name']}"
        url = {"url": f"{self.url}/{repo}", "name": repo}
        if repo in self.files:
            return reply(url, status=409)
        self.wishes[repo] = wish
        self.files[repo], self.private[repo] = {}, bool(wish.get("private")) or wish.get("visibility") == "private"
        return reply(url)

    def validate(self, wish: dict):
        """What the Hub checks of a card's head, as far as the cards of models of ours use it."""
        head = wish["content"].partition("---\n")[2].partition("\n---")[0]
        try:
            data = yaml.safe_load(head)
            assert wish["repoType"] == "model"
            assert isinstance(data, dict), "no metadata"
            assert data.get("license") in {None, *LICENSES}, f"license {data.get('license')}"
            assert data.get("license") != "other" or data.get("license_name"), "license_name is missing"
            assert data.get("pipeline_tag") in {None, *TASKS}, f"pipeline_tag {data.get('pipeline_tag')}"
            assert all(name.count("/") == 1 for name in data.get("datasets", [])), f"datasets {data.get('datasets')}"
            if "model-index" in data:
                name, results = model_index_to_eval_results(data["model-index"])
                assert name
                assert all(isinstance(result.metric_value, int | float) for result in results)
        except (AssertionError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            self.problems.append(f"metadata: {error!r}")
            return reply({"errors": [{"message": repr(error)}], "warnings": []}, status=400)
        return reply({"errors": [], "warnings": []})

    def upload(self, oid: str, body: bytes):
        if self.broken_uploads:
            self.broken_uploads -= 1
            return None, {}, b""
        if hashlib.sha256(body).hexdigest() != oid:
            self.problems.append(f"object {oid} has another hash")
        self.objects[oid] = body
        return reply({})

    def repository(self, repo: str, rest: list[str], body: bytes):
        if repo not in self.files:
            return reply({"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"}, 404)
        files = self.files[repo]
        if rest[:1] == ["preupload"]:
            return self.preupload(repo, json.loads(body)["files"])
        if rest[:1] == ["commit"]:
            return self.commit(repo, [json.loads(line) for line in body.splitlines()])
        if rest[:1] == ["tree"] and len(rest) == 2:
            return reply([{"type": "file", "path": p, "size": len(c), "oid": blob(c)} for p, c in files.items()])
        if rest[:1] not in ([], ["revision"]):
            return reply({"error": "not found"}, {"X-Error-Code": "EntryNotFound"}, 404)
        siblings = [{"rfilename": name} for name in files]
        return reply({"id": repo, "modelId": repo, "sha": self.revision(repo), "siblings": siblings, "private": False,
                      "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def preupload(self, repo: str, files: list[dict]):
        answers = []
        for item in files:
            sample = base64.b64decode(item["sample"])
            if len(sample) != min(512, item["size"]):
                self.problems.append(f"{item['path']}: a sample of {len(sample)} of {item['size']} bytes")
            mode = self.upload_mode if item["path"].endswith(".safetensors") else "regular"
            content = self.files[repo].get(item["path"])
            oid = None if content is None else blob(content)
            answers.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.announced[repo] = {item["path"] for item in files}
        return reply({"files": answers})

    def commit(self, repo: str, lines: list[dict]):
        if self.refuse:
            return reply({"error": "forbidden"}, status=403)
        if self.broken_commits:
            self.broken_commits -= 1
            return None, {}, b""
        header, *entries = lines
        if header["key"] != "header" or not header["value"]["summary"]:
            self.problems.append(f"a commit begins with its header, not with {header}")
        self.messages.setdefault(repo, []).append(header["value"]["summary"])
        for entry in entries:
            value = entry["value"]
            if value["path"] not in self.announced[repo]:
                self.problems.append(f"{value['path']} was not announced")
            if entry["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.objects.get(value["oid"], b"")
                if len(content) != value["size"]:
                    self.problems.append(f"{value['path']} was committed before it was uploaded")
                self.files[repo][value["path"]] = content
        return reply({"success": True, "commitOid": self.revision(repo), "commitUrl": f"{self.url}/{repo}/commit/1"})

    def resolve(self, repo: str, revision: str, name: str):
        if repo in self.files and revision not in ("main", self.revision(repo)):
            self.problems.append(f"{repo} has no revision {revision}")
        content = self.files.get(repo, {}).get(name)
        if content is None:
            return reply({"error": "no such file"}, {"X-Error-Code": "EntryNotFound"}, 404)
        headers = {"ETag": f'"{blob(content)}"', "X-Repo-Commit": self.revision(repo)}
        return 200, {**headers, "Content-Length": str(len(content))}, content

    def revision(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.files[repo].items())).encode()).hexdigest()


def reply(content, headers=None, status: int = 200):
    return status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(content).encode()


def blob(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def connect(patch: pytest.MonkeyPatch, hub: HubStandIn, token: str | None = "hf_dummy"):
    """Let the client of this process, which has read its settings already, take the stand-in for the Hub."""
    patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    patch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(transformers.utils.hub, "_hf_api", None)
    patch.setattr("time.sleep", lambda seconds: None)
    patch.setenv("HF_TOKEN", token) if token else patch.delenv("HF_TOKEN", raising=False)
