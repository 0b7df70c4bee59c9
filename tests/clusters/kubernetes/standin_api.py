"""A stand-in for an API server, of `standin_cluster`: the paths, the codes and the log streams that our client meets, and
the ways in which a real one fails."""

import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.clusters.kubernetes.standin_cluster import Cluster
from tests.clusters.kubernetes.standin_container import Object, now

KINDS = {"trainjobs": "TrainJob", "trainingruntimes": "TrainingRuntime", "jobsets": "JobSet"}
REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "AlreadyExists", 410: "Expired",
           429: "TooManyRequests", 503: "ServiceUnavailable"}  # fmt: skip


class StatusError(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.code, self.headers = code, headers


class Server:
    """The API server. It can be stopped and started again; the cluster keeps its state."""

    def __init__(self, cluster: Cluster, port: int) -> None:
        self.cluster, self.port = cluster, port
        self.tokens = {"first"}
        self.forbidden: set[tuple[str, str]] = set()
        self.faults: list[StatusError] = []
        self.lost_answers = 0
        self.pages = False
        self.lines_per_stream: int | None = None
        self.requests: list[str] = []
        self.connections: set[socket.socket] = set()
        self.http: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        handler = type("Bound", (Handler,), {"server_of_test": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """End as a server that is killed does: every connection breaks."""
        if self.http is not None:
            self.http.shutdown()
            self.http.server_close()
            self.http = None
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_test: ClassVar[Server]

    def setup(self) -> None:
        super().setup()
        self.server_of_test.connections.add(self.connection)

    def finish(self) -> None:
        self.server_of_test.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def do_PATCH(self) -> None:
        self._handle("PATCH")

    def _handle(self, method: str) -> None:
        server = self.server_of_test
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        server.requests.append(f"{method} {url.path}")
        try:
            if self.headers.get("Authorization") not in {f"Bearer {token}" for token in server.tokens}:
                raise StatusError(401, "Unauthorized")
            if server.faults:
                raise server.faults.pop(0)
            if url.path.endswith("/log"):
                self._log(url.path, query)
                return
            answer = Answers(server, method, body, query).of(url.path)
        except StatusError as error:
            status = {"kind": "Status", "status": "Failure", "message": str(error), "code": error.code}
            self._send(error.code, {**status, "reason": REASONS.get(error.code, "")}, error.headers)
            return
        if method == "POST" and server.lost_answers:
            server.lost_answers -= 1
            self.close_connection = True
            return
        self._send(201 if method == "POST" else 200, answer, {})

    def _send(self, code: int, answer: Object, headers: dict[str, str]) -> None:
        data = b"<html>" if self.server_of_test.pages else json.dumps(answer).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _log(self, path: str, query: dict[str, str]) -> None:
        cluster = self.server_of_test.cluster
        match = re.fullmatch(r"/api/v1/namespaces/([^/]+)/pods/([^/]+)/log", path)
        assert match is not None
        pod = cluster.objects.get(("pods", match[1], match[2]))
        if pod is None:
            raise StatusError(404, f'pods "{match[2]}" not found')
        container = cluster.containers.get(pod["metadata"]["uid"])
        if container is None:
            raise StatusError(400, f'container "node" in pod "{match[2]}" is waiting to start: ContainerCreating')
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent, at, most = 0, 0, self.server_of_test.lines_per_stream
        while True:
            ended = container.ended()
            for stamp, line in container.lines[at:]:
                at += 1
                if stamp[:19] + "Z" >= query.get("sinceTime", ""):
                    data = f"{stamp} ".encode() + line + b"\n"
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                    sent += 1
                if most is not None and sent >= most:
                    self.close_connection = True  # without the last chunk: a stream that breaks
                    return
            self.wfile.flush()
            if ended:
                break
            time.sleep(0.05)
        self.wfile.write(b"0\r\n\r\n")


class Answers:
    """What one request does, and its answer."""

    def __init__(self, server: Server, method: str, body: Object, query: dict[str, str]) -> None:
        self.server, self.cluster, self.method, self.body, self.query = server, server.cluster, method, body, query

    def of(self, path: str) -> Object:
        with self.cluster.lock:
            return self._discovery(path) or self._named(path)

    def _discovery(self, path: str) -> Object | None:
        if match := re.fullmatch(r"/apis/([^/]+)/([^/]+)", path):
            plurals = self.cluster.apis.get(f"{match[1]}/{match[2]}")
            if plurals is None:
                raise StatusError(404, "the server could not find the requested resource")
            return {"kind": "APIResourceList", "resources": [{"name": plural} for plural in plurals]}
        if match := re.fullmatch(r"/apis/([^/]+)", path):
            versions = [api.partition("/")[2] for api in self.cluster.apis if api.startswith(f"{match[1]}/")]
            if not versions:
                raise StatusError(404, "the server could not find the requested resource")
            return {"kind": "APIGroup", "preferredVersion": {"version": versions[0]}}
        return None

    def _named(self, path: str) -> Object:
        match = re.fullmatch(r"/(?:api/v1|apis/([^/]+/[^/]+))(?:/namespaces/([^/]+))?(?:/([a-z]+))?(?:/([^/]+))?", path)
        assert match is not None, path
        version, space, plural, name = match[1] or "v1", match[2] or "", match[3], match[4]
        if plural is None:
            plural, name, space = "namespaces", space, ""
        if version != "v1" and plural not in self.cluster.apis.get(version, []):
            raise StatusError(404, "the server could not find the requested resource")
        if (self.method, plural) in self.server.forbidden:
            verb = {"GET": "get", "POST": "create", "DELETE": "delete", "PATCH": "patch"}[self.method]
            raise StatusError(
                403, f'{plural} is forbidden: User "jo" cannot {verb} resource "{plural}" in the namespace "{space}"'
            )
        if self.method == "POST":
            return self._create(plural, space)
        if name is None:
            return {"kind": "List", "items": list(self._selected(plural, space))}
        thing = self.cluster.objects.get((plural, space, name))
        if thing is None:
            raise StatusError(404, f'{plural} "{name}" not found')
        if self.method == "DELETE":
            self._delete(plural, thing)
        elif self.method == "PATCH":
            thing["metadata"] |= self.body["metadata"]
        return thing

    def _create(self, plural: str, space: str) -> Object:
        if ("namespaces", "", space) not in self.cluster.objects:
            raise StatusError(404, f'namespaces "{space}" not found')
        name = self.body["metadata"]["name"]
        if (plural, space, name) in self.cluster.objects:
            raise StatusError(409, f'{plural} "{name}" already exists')
        thing = self.cluster.add(plural, name, space, spec=self.body["spec"])
        thing |= {"apiVersion": self.body["apiVersion"], "kind": KINDS[plural]}
        thing["metadata"] |= {**self.body["metadata"], "uid": str(uuid.uuid4()), "creationTimestamp": now()}
        return thing

    def _delete(self, plural: str, thing: Object) -> None:
        if plural == "pods":
            self.cluster.delete_pod(thing, self.body.get("gracePeriodSeconds", 30))
        elif plural == "trainingruntimes":
            self.cluster.remove(plural, thing)
        else:
            thing["metadata"].setdefault("deletionTimestamp", now())

    def _selected(self, plural: str, space: str) -> Iterator[Any]:
        wanted = dict(part.split("=") for part in self.query.get("labelSelector", "").split(",") if part)
        for thing in self.cluster.all(plural, **wanted):
            if space in ("", thing["metadata"]["namespace"]):
                yield thing
