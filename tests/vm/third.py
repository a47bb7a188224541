"""Programs of the third host.

    third.py log FILE                 write every datagram that comes to port 7500 to FILE
    third.py stream ADDRESS PORT STOP send bytes and compare what comes back, until the file STOP exists; then say how many
    third.py check FILE               whether the numbers in FILE tell of one container, on one host after the other
"""

import os
import random
import socket
import sys
import threading
import time


def log(path):
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("", 7500))
    with open(path, "ab", buffering=0) as file:
        while True:
            file.write(peer.recv(4096))


def stream(address, port, stop):
    """Longer pauses than this are a failure: TCP itself would wait for a quarter of an hour."""
    peer = socket.create_connection((address, int(port)), timeout=120)
    sent, lock, failed = bytearray(), threading.Lock(), []
    pauses, total = [0.0], 0

    def send():
        generator = random.Random(1)
        try:
            while not os.path.exists(stop):
                block = generator.randbytes(4096)
                with lock:
                    sent.extend(block)
                peer.sendall(block)
                time.sleep(0.02)
            peer.shutdown(socket.SHUT_WR)
        except OSError as error:
            failed.append(f"sending: {error}")

    thread = threading.Thread(target=send)
    thread.start()
    while True:
        began = time.monotonic()
        back = peer.recv(1 << 16)
        pauses.append(time.monotonic() - began)
        if not back:
            break
        with lock:
            if bytes(sent[: len(back)]) != back:
                sys.exit(f"after {total} bytes something else came back than was sent")
            del sent[: len(back)]
        total += len(back)
    thread.join()
    if failed or sent:
        sys.exit(f"{failed}, {len(sent)} bytes did not come back after {total}")
    print(f"{total} bytes there and back, the longest pause {max(pauses):.1f} s")


def check(path):
    """A datagram may be lost. One that arrives twice means that there are two copies."""
    lines = [line.split() for line in open(path, encoding="utf-8")]
    hosts = []
    last = 0
    for host, number in lines:
        if int(number) <= last:
            sys.exit(f"{host} says {number} after {last}")
        last = int(number)
        if not hosts or hosts[-1] != host:
            hosts.append(host)
    if len(hosts) != len(set(hosts)):
        sys.exit(f"it was at {', '.join(hosts)}")
    print(f"{' '.join(hosts)} {last}")


{"log": log, "stream": stream, "check": check}[sys.argv[1]](*sys.argv[2:])
