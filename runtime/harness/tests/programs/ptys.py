# A child writes numbered lines to a pty as fast as it can, and its parent reads them slowly: at each checkpoint thousands of
# bytes lie between them, which must come once, in order, in both lives.
# //# Needs: file:/usr/bin/python3
# //# Checkpoints: 3
import os, pty, sys

child, master = pty.fork()
if child == 0:
    n, line = 0, b""
    while True:
        # A write that waits for room may end short when it is interrupted.
        line = line[os.write(1, line) :]
        if not line:
            line, n = b"%d\n" % n, n + 1

print("ready", flush=True)
n, rest = 0, b""
while not os.path.exists(os.environ["SW_STOP"]):
    rest += os.read(master, 700)
    *lines, rest = rest.split(b"\r\n")
    for line in lines:
        if line != b"%d" % n:
            sys.exit(f"line {n} is {line!r}")
        n += 1
    print("beat", n, flush=True)
os.kill(child, 9)
os.waitpid(child, 0)
print("PASS", flush=True)
