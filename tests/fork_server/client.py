"""Have the fork server run a program with the arguments, files, directory and environment of this process.

`python client.py NAME MODULE [ARGUMENT ...]` exits as the program does. Signals that end a program are passed on, and
the server kills the program when this process is gone.
"""

import json
import os
import signal
import socket
import sys

FORWARDED = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    name, *arguments = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(f"\0{name}")  # Linux: an abstract socket has no file
        request = {"arguments": arguments, "directory": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        for number in FORWARDED:
            signal.signal(number, lambda seen, _: server.send(bytes([seen])))
        status = int.from_bytes(server.recv(1), "big", signed=True)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


main()
