# memcached with threads, and a client that mirrors what it stores, over four connections.
# //# Needs: program:memcached
# //# Checkpoints: 3
# //# Where: host
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/servers")
from kit import *

at = port()
start("memcached", "-p", str(at), "-l", "127.0.0.1", "-u", "root", "-t", "4")
files = [(s, s.makefile("rb")) for s in (connect(at) for _ in range(4))]
mirror = {}


def step(n):
    for i in range(40):
        s, f = files[i % 4]
        key, value = f"k{(n * 40 + i) % 777}", noise(n * 40 + i, n * 91 % 30000)
        if key in mirror:
            s.sendall(f"get {key}\r\n".encode())
            check(f.readline() == f"VALUE {key} 0 {len(mirror[key])}\r\n".encode(), "VALUE")
            check(f.read(len(mirror[key]) + 7) == mirror[key] + b"\r\nEND\r\n", "value")
        s.sendall(f"set {key} 0 0 {len(value)}\r\n".encode() + value + b"\r\n")
        check(f.readline() == b"STORED\r\n", "set")
        mirror[key] = value


play(step)
end(children[0])
passed()
