"""A stand-in for the Hub on this machine: as much of its HTTP protocol as pushing and loading a model takes."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubStandIn:
    """Repositories in memory. `with HubStandIn() as hub:` serves at `hub.url`; `hub.files[repo]` is what it holds.

    Args:
        upload_mode: "regular" (in the commit) or "lfs" for *.safetensors.
        refuse: Answer 403 to every commit.
        broken_commits: So many commits lose their connection before they are answered, and are not kept.
    """

    def __init__(self, upload_mode: str = "regular", refuse: bool = False, broken_commits: int = 0):
        self.upload_mode, self.refuse, self.broken_commits = upload_mode, refuse, broken_commits
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
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
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return reply({"errors": [], "warnings": []})
        if path.startswith("/objects/"):
            if hashlib.sha256(body).hexdigest() != parts[-1]:
                self.problems.append(f"object {parts[-1]} has another hash")
            self.objects[parts[-1]] = body
            return reply({})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.url}/objects/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return reply({"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})
        if parts[:2] == ["api", "models"]:
            return self.model(method, "/".join(parts[2:4]), parts[4:], body, headers)
        if len(parts) >= 5 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), "/".join(parts[4:]))
        self.problems.append(f"{method} {path}")
        return reply({"error": "not found"}, status=404)

    def create(self, wish: dict):
        repo = f"{wish.get('organization', 'user')}/{wish['name']}"
        url = {"url": f"{self.url}/{repo}", "name": repo}
        if repo in self.files:
            return reply(url, status=409)
        self.files[repo], self.private[repo] = {}, bool(wish.get("private")) or wish.get("visibility") == "private"
        return reply(url)

    def model(self, method: str, repo: str, rest: list[str], body: bytes, headers):
        if repo not in self.files:
            return reply({"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"}, 404)
        files = self.files[repo]
        if rest[:1] == ["preupload"]:
            modes = [
                {
                    "path": item["path"],
                    "uploadMode": self.upload_mode if item["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for item in json.loads(body)["files"]
            ]
            return reply({"files": modes})
        if rest[:1] == ["commit"]:
            return self.commit(repo, body, headers)
        if rest[:1] == ["tree"]:
            return reply([{"type": "file", "path": p, "size": len(c), "oid": sha(c)} for p, c in files.items()])
        siblings = [{"rfilename": name} for name in files]
        return reply({"id": repo, "modelId": repo, "sha": self.revision(repo), "siblings": siblings, "private": False,
                      "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def commit(self, repo: str, body: bytes, headers):
        if self.refuse or not headers.get("Authorization"):
            return reply({"error": "forbidden"}, status=403)
        if self.broken_commits:
            self.broken_commits -= 1
            return None, {}, b""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    self.problems.append(f"{value['path']} was committed before it was uploaded")
                self.files[repo][value["path"]] = self.objects.get(value["oid"], b"")
        return reply({"success": True, "commitOid": self.revision(repo), "commitUrl": f"{self.url}/{repo}/commit/1"})

    def resolve(self, repo: str, name: str):
        content = self.files.get(repo, {}).get(name)
        if content is None:
            return reply({"error": "no such file"}, {"X-Error-Code": "EntryNotFound"}, 404)
        headers = {"ETag": f'"{sha(content)}"', "X-Repo-Commit": self.revision(repo)}
        return 200, {**headers, "Content-Length": str(len(content))}, content

    def revision(self, repo: str) -> str:
        return sha(repr(sorted(self.files[repo].items())).encode())


def reply(content, headers=None, status: int = 200):
    return status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(content).encode()


def sha(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
