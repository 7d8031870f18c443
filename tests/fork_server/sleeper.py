"""A program that prints its process id and waits; a signal ends it with a code of its own."""

import os
import signal
import sys

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda seen, _: sys.exit(40 + seen))
print(os.getpid(), flush=True)
while True:
    signal.pause()
