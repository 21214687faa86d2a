"""An OpenAI-compatible server on this machine that misbehaves as it is told to."""

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GREETING = {"role": "user", "content": "hello"}


class ChatServer:
    """`behave(body, number)` says what becomes of request `number` (from 0): a text to reply, or a
    function of the request handler that does the reply itself. `bodies` are those received,
    `most_open` how many stood open at once, `keys` the Authorization headers."""

    def __init__(self, behave=lambda body, number: f"re: {body['messages'][-1]['content']}"):
        self.behave, self.bodies, self.keys, self.most_open, self._open = behave, [], [], 0, 0
        self._lock, self._port = threading.Lock(), 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Listens, at the port that it had before."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802 (http.server's name)
                outer._serve(self)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_):
                pass  # clients that have gone

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.keys.append(handler.headers["Authorization"])
            self._open += 1
            self.most_open = max(self.most_open, self._open)
        try:
            said = self.behave(body, number)
            with self._lock:
                self._open -= 1  # before the reply: the client may send its next at once
            said(handler) if callable(said) else reply(said)(handler)
        except OSError:
            pass  # the client has gone


def reply(text, finish="stop", **message):
    """A reply of 7 prompt and 3 completion tokens."""
    choice = {"index": 0, "finish_reason": finish}
    choice["message"] = {"role": "assistant", "content": text} | message
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    head = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return raw(200, json.dumps(head | {"choices": [choice], "usage": usage}))


def fails(status, message="", **headers):
    return raw(status, json.dumps({"error": {"message": message, "code": None}}), headers)


def raw(status, text, headers=None, kind="application/json"):
    def send(handler):
        data = text.encode()
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return send


def cuts(handler):
    """Half a reply, and the connection is gone."""
    with suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        handler.wfile.write(b'Content-Length: 500\r\n\r\n{"choices": [')
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)


def sleeps(seconds):
    def send(handler):
        time.sleep(seconds)
        reply("late")(handler)

    return send
