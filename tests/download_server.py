"""A server of model files that behaves, breaks off, and lies."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 20_000


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path, else ``content``; breaks off after ``limit`` bytes; knows
    ranges unless told not to.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.limit, self.ranges, self.requests = CONTENT, None, True, []
        self.files = {}
        self.url = f"http://127.0.0.1:{self.server_port}/download"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.files.get(self.path, self.server.content)
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        start = 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.limit])

    def log_message(self, *arguments):
        pass
