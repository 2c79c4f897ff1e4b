# redis-server, redis-benchmark, and a client that mirrors what it stores.
# //# Needs: program:redis-server, program:redis-benchmark
# //# Checkpoints: 3
# //# Where: host
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/servers")
from kit import *

at = port()
start("redis-server", "--port", str(at), "--save", "", "--appendonly", "no", "--dir", folder)
s = connect(at)
f = s.makefile("rb")
load = start("redis-benchmark", "-p", str(at), "-n", "1000000000", "-c", "20", "-r", "1000", "-d", "500", "-t", "set,get")
mirror = {}


def ask(*words):
    words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
    s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
    line = f.readline()
    check(line.endswith(b"\r\n") and line[:1] != b"-", line)
    if line[:1] != b"$":
        return line[1:-2]
    return f.read(int(line[1:]) + 2)[:-2]


def step(n):
    check(int(ask("INCR", "counter")) == n + 1, "counter")
    for i in range(20):
        key, value = f"mine:{(n * 20 + i) % 333}", noise(n * 20 + i, 10 + n * 37 % 20000)
        if key in mirror:
            check(ask("GET", key) == mirror[key], key)
        check(ask("SET", key, value) == b"OK", "SET")
        mirror[key] = value


play(step)
for key, value in mirror.items():
    check(ask("GET", key) == value, key)
end(load, statuses=(0, -15, 143, 1))
end(children[0])
passed()
