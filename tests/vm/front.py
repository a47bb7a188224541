"""The network on which the containers have their addresses, and a third host in it.

    unshare --net python3 front.py DIRECTORY NAME

A hub: it passes every frame on to all other ports. Its ports are a socket for each machine, DIRECTORY/HOST.hub with QEMU's end at DIRECTORY/HOST.front, and an
interface in the network namespace of this process: the third host, 10.0.1.9. Frames for which there is no room are lost, as on a real network.
NAME only labels this process, so that it can be found.
"""

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x2, 0x1000
FRAME_BYTES = 65536

directory = sys.argv[1]
tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", b"front", IFF_TAP | IFF_NO_PI))
for words in ("link set lo up", "address add 10.0.1.9/24 dev front", "link set front up"):
    subprocess.run(["ip", *words.split()], check=True)

ports = {}
for host in ("source", "destination"):
    port = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    port.bind(f"{directory}/{host}.hub")
    ports[port] = f"{directory}/{host}.front"

while True:
    for reader in select.select([tap, *ports], [], [])[0]:
        try:
            frame = os.read(tap, FRAME_BYTES) if reader is tap else reader.recv(FRAME_BYTES)
        except OSError:
            continue
        for port, peer in ports.items():
            if port is not reader:
                try:
                    port.sendto(frame, peer)
                except OSError:
                    pass  # the machine is off, or behind
        if reader is not tap:
            try:
                os.write(tap, frame)
            except OSError:
                pass
