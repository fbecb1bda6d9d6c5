"""A model hub on loopback that speaks what huggingface_hub asks when it publishes and reads back, over real HTTP.

Commits are whole: a repository's state is a list of commits, each a dictionary of files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse


class Hub:
    """What it holds, and what was asked of it."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuse: int | None = None
        self.address = ""

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """The commit that a branch, a tag or an id names: its id and its files."""
        commits = self.repos[repo]
        oid = self.tags[repo].get(revision, revision)
        number = len(commits) - 1 if oid == "main" else int(oid, 16)
        return f"{number:040x}", commits[number]


def _app(hub: Hub) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, go_on: Any) -> Response:
        hub.asked.append(f"{request.method} {request.url.path}")
        if hub.refuse:
            return JSONResponse({"error": "no"}, hub.refuse)
        if request.headers.get("authorization") != f"Bearer {hub.token}" and "/lfs/" not in request.url.path:
            return JSONResponse({"error": "who are you?"}, 401)
        return await go_on(request)

    @app.post("/api/repos/create")
    async def create(request: Request) -> Response:
        asked = await request.json()
        repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        url = {"url": f"{hub.address}/{repo}"}
        if repo in hub.repos:
            return JSONResponse({**url, "error": "You already created this model repo"}, 409)
        hub.repos[repo], hub.tags[repo] = [{".gitattributes": b"*.safetensors filter=lfs\n"}], {}
        hub.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
        return JSONResponse(url)

    @app.get("/api/models/{org}/{name}/refs")
    def refs(org: str, name: str) -> dict[str, Any]:
        repo = f"{org}/{name}"
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": hub.at(repo, "main")[0]}]
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in hub.tags[repo].items()]
        return {"branches": branches, "tags": tags, "converts": []}

    @app.get("/api/models/{org}/{name}")
    @app.get("/api/models/{org}/{name}/revision/{revision}")
    def info(org: str, name: str, revision: str = "main") -> dict[str, Any]:
        oid, files = hub.at(f"{org}/{name}", revision)
        siblings = [{"rfilename": path} for path in files]
        return {"id": f"{org}/{name}", "sha": oid, "private": True, "tags": [], "siblings": siblings, "downloads": 0,
                "likes": 0}  # fmt: skip

    @app.get("/api/models/{org}/{name}/tree/{revision}")
    @app.get("/api/models/{org}/{name}/tree/{revision}/{rest:path}")
    def tree(org: str, name: str, revision: str, rest: str = "") -> list[dict[str, Any]]:
        _, files = hub.at(f"{org}/{name}", revision)
        return [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]

    @app.post("/api/validate-yaml")
    def validate() -> dict[str, Any]:
        return {"errors": [], "warnings": []}

    @app.post("/api/models/{org}/{name}/preupload/{revision}")
    async def preupload(org: str, name: str, revision: str, request: Request) -> dict[str, Any]:
        asked = (await request.json())["files"]
        return {
            "files": [
                {"path": one["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                for one in asked
            ]
        }  # fmt: skip

    @app.post("/{org}/{name}.git/info/lfs/objects/batch")
    async def batch(org: str, name: str, request: Request) -> dict[str, Any]:
        asked = await request.json()
        actions = [
            {"oid": one["oid"], "size": one["size"], "authenticated": True,
             "actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}", "header": {}}}}
            for one in asked["objects"]
        ]  # fmt: skip
        return {"transfer": "basic", "objects": actions}

    @app.put("/lfs/{oid}")
    async def upload(oid: str, request: Request) -> Response:
        data = await request.body()
        assert hashlib.sha256(data).hexdigest() == oid
        hub.large[oid] = data
        return Response()

    @app.post("/api/models/{org}/{name}/commit/{revision}")
    async def commit(org: str, name: str, revision: str, request: Request) -> dict[str, Any]:
        repo = f"{org}/{name}"
        files = dict(hub.at(repo, "main")[1])
        for line in (await request.body()).decode().splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif step["key"] == "deletedFile":
                del files[value["path"]]
        hub.repos[repo].append(files)
        oid = hub.at(repo, "main")[0]
        return {"success": True, "commitOid": oid, "commitUrl": f"{hub.address}/{repo}/commit/{oid}",
                "hookOutput": ""}  # fmt: skip

    @app.post("/api/models/{org}/{name}/tag/{revision}")
    async def tag(org: str, name: str, revision: str, request: Request) -> Response:
        repo = f"{org}/{name}"
        hub.tags[repo][(await request.json())["tag"]] = hub.at(repo, revision)[0]
        return JSONResponse({})

    @app.head("/{org}/{name}/resolve/{revision}/{path:path}")
    @app.get("/{org}/{name}/resolve/{revision}/{path:path}")
    def resolve(org: str, name: str, revision: str, path: str) -> Response:
        oid, files = hub.at(f"{org}/{name}", revision)
        if path not in files:
            return JSONResponse({"error": "no such file"}, 404, headers={"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(files[path]).hexdigest()
        return Response(files[path], headers={"ETag": f'"{etag}"', "X-Repo-Commit": oid}, media_type="text/plain")

    return app


@contextmanager
def serving(token: str) -> Iterator[Hub]:
    """The hub, for as long."""
    import socket

    hub = Hub(token)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        hub.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(_app(hub), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield hub
        server.should_exit = True
        thread.join()
