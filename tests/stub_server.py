"""A server on this machine that speaks OpenAI's chat completions, or whatever else a test wants of it."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any], int], None]
"""Is given the handler, the body of the request, and its number."""


class Stub:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.url = ""


@contextmanager
def serving(answer: Answer) -> Iterator[Stub]:
    stub = Stub(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                number = len(stub.requests)
                stub.requests.append(body)
                stub.headers.append(dict(self.headers))
            stub.answer(self, body, number)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, body: Any, status: int = 200, **headers: str) -> None:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(text)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(text)


def completion(text: str, logprobs: dict[str, float] | None = None) -> dict[str, Any]:
    """
    Args:
        logprobs: token -> probability at the place of the verdict, which comes last.
    """
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if logprobs is not None:
        top = [{"token": token, "logprob": math.log(share)} for token, share in logprobs.items()]
        choice["logprobs"] = {"content": [{"token": text.split()[-1], "logprob": -0.1, "top_logprobs": top}]}
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 2}}


def longer_wins(handler: BaseHTTPRequestHandler, body: dict[str, Any], number: int) -> None:
    """Prefers the longer response and, a little, the first one; tells log-probabilities if it is asked."""
    text = body["messages"][0]["content"]
    first, second = text.split("Response 1:\n")[-1].split("\n\nResponse 2:\n")
    second = second.split("\n\n")[0]
    weight = math.exp(0.3 * (len(first) - len(second)) + 0.5)
    share = weight / (1 + weight)
    shares = {"1": 0.9 * share, "2": 0.9 * (1 - share), "The": 0.1}
    said = "1" if share > 0.5 else "2"
    send(handler, completion(said, shares if body.get("logprobs") else None))


def dripping(seconds: float) -> Answer:
    """Sends its answer byte by byte."""

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any], number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    return answer
