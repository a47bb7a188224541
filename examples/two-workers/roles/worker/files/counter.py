#!/usr/bin/env python3
"""A web application whose state is in its memory only: each request gets the next number."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Counter(BaseHTTPRequestHandler):
    count = 0

    def do_GET(self):
        Counter.count += 1
        body = f"{Counter.count}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


HTTPServer(("", int(sys.argv[1])), Counter).serve_forever()
