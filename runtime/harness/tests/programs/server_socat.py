# A chain of socats: TCP, a Unix socket, a pipe to a program, TCP over IPv6, and back; each sees numbered bytes go by.
# //# Needs: program:socat
# //# Checkpoints: 3
# //# Where: host
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/servers")
from kit import *

first, last = port(), port()
echo = start("socat", f"TCP6-LISTEN:{last},bind=[::1],fork", "EXEC:cat")
middle = start("socat", f"UNIX-LISTEN:{folder}/middle,fork", f"TCP6:[::1]:{last}")
begin = start("socat", f"TCP-LISTEN:{first},bind=127.0.0.1,fork", f"UNIX-CONNECT:{folder}/middle")
connect(f"{folder}/middle").close()
kept = connect(first)


def go(s, n, length):
    data = noise(n, length)
    s.sendall(data)
    got = b""
    while len(got) < length:
        part = s.recv(65536)
        check(part, "the end came too soon")
        got += part
    check(got == data, f"what came back for {n}")


# The last of the chain may not listen yet when the first connects.
go(kept, 0, 10)


def step(n):
    go(kept, n, 1 + n * 313 % 60000)
    if n % 5 == 0:
        with connect(first) as s:
            go(s, n, 1000)


play(step)
kept.close()
for child in [begin, middle, echo]:
    end(child)
passed()
