"""A web server on loopback that behaves as XAPI does, and misbehaves when the path says so.

server.py FOLDER [CERTIFICATE KEY]: prints its port, then serves until it is killed. What is PUT to
/import_raw_vdi?session_id=..&vdi=NAME&format=.. becomes FOLDER/NAME, which GET /export_raw_vdi?.. gives back. Every
request is noted as a line of JSON in FOLDER/requests. The first part of another path names what shall go wrong.
"""

import base64
import http.server
import json
import os
import ssl
import sys
import time
from urllib.parse import parse_qs, urlsplit

FOLDER = sys.argv[1]
SESSION = "OpaqueRef:5e551011"
CHUNK = 64 << 10


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def note(self, received):
        line = {"method": self.command, "path": self.path, "headers": dict(self.headers), "received": received}
        with open(os.path.join(FOLDER, "requests"), "a") as file:
            file.write(json.dumps(line) + "\n")

    def answer(self, status, text, headers=()):
        body = text.encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def refused(self):
        """Says no where the request is not as XAPI wants it."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        what = url.path.split("/")[1]
        if what == "auth" and self.headers.get("Authorization") != "Basic " + base64.b64encode(b"root:s3cret").decode():
            return self.answer(401, "who are you?") or True
        if what == "refuse":
            return self.answer(int(url.path.split("/")[2]), "\n<h1>No session %s</h1>\nmore\n" % query["session_id"]) or True
        if what == "redirect":
            place = self.path.removeprefix("/redirect")
            return self.answer(302, "", [("Location", place)]) or True
        if query.get("session_id") != SESSION:
            return self.answer(401, "no session") or True
        if query.get("format") not in ("vhd", "raw") or os.path.basename(query.get("vdi", "/")) != query["vdi"]:
            return self.answer(400, "what format?") or True
        self.file = os.path.join(FOLDER, query["vdi"])
        self.what = what
        return False

    def handle_expect_100(self):
        # Who is refused sends no body.
        if self.refused():
            self.note(0)
            return False
        return super().handle_expect_100()

    def do_PUT(self):
        if self.refused():
            return self.note(0)
        if "Content-Length" not in self.headers and "Transfer-Encoding" not in self.headers:
            return self.answer(411, "how long?")
        if self.headers.get("Transfer-Encoding") == "chunked":
            return self.chunked()
        left = int(self.headers["Content-Length"])
        stop = {"close-early": left - left // 2, "fail-half": left - left // 2}.get(self.what, 0)
        received = 0
        with open(self.file + ".part", "wb") as file:
            while left > stop:
                chunk = self.rfile.read(min(CHUNK, left - stop))
                if not chunk:
                    self.note(received)
                    self.close_connection = True
                    return
                file.write(chunk)
                left -= len(chunk)
                received += len(chunk)
        self.note(received)
        if self.what == "close-early":
            self.close_connection = True
        elif self.what == "fail-half":
            self.answer(500, "the disk is full")
        else:
            os.rename(self.file + ".part", self.file)
            self.answer(500 if self.what == "fail-after" else 200, "VDI_IO_ERROR" if self.what == "fail-after" else "")

    def chunked(self):
        received = 0
        with open(self.file + ".part", "wb") as file:
            while True:
                size = int(self.rfile.readline().split(b";")[0], 16)
                file.write(self.rfile.read(size))
                self.rfile.readline()
                received += size
                if size == 0:
                    break
        os.rename(self.file + ".part", self.file)
        self.note(received)
        self.answer(200, "")

    def do_GET(self):
        if self.refused():
            return self.note(0)
        self.note(0)
        size = os.path.getsize(self.file)
        said = {"too-long": size + 100, "too-short": size - 512}.get(self.what, size)
        most = {"cut": size // 2, "silent": 100000}.get(self.what, size)
        self.send_response(200)
        if self.what != "no-length":
            self.send_header("Content-Length", str(said))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with open(self.file, "rb") as file:
            sent = 0
            while sent < most:
                chunk = file.read(min(CHUNK, most - sent))
                self.wfile.write(chunk)
                sent += len(chunk)
        if self.what == "silent":
            self.wfile.flush()
            time.sleep(60)


server = Server(("127.0.0.1", 0), Handler)
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
