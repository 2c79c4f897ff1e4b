# A parent types into a pty, and its child reads that much later: what has been typed before a checkpoint, whole lines, an end
# of file, half a line, or bytes without lines, has to come once, cut where it was cut, and to be echoed once.
# //# Needs: file:/usr/bin/python3
# //# Checkpoints: 4
# //# Scenario: go-on, restart, restart-twice
import os, pty, sys, tty

ask, answer = os.pipe(), os.pipe()
child, master = pty.fork()
if child == 0:
    cooked = tty.tcgetattr(0)
    while True:
        what = os.read(ask[0], 1)
        if what == b"r":
            tty.setraw(0)
        elif what == b"c":
            tty.tcsetattr(0, tty.TCSANOW, cooked)
        else:
            line = os.read(0, 4096)
            os.write(answer[1], b"%4d" % len(line) + line)
            continue
        os.write(answer[1], b"done")


def child_does(what):
    os.write(ask[1], what)
    return os.read(answer[0], 4)


def exactly(fd, n):
    out = b""
    while len(out) < n:
        out += os.read(fd, n - len(out))
    return out


def line():
    return exactly(answer[0], int(child_does(b"l")))


def same(what, is_, was):
    if is_ != was:
        sys.exit(f"{what}: {is_!r}, not {was!r}")


def beat(*text):
    print("beat", *text, flush=True)


print("ready", flush=True)
n = 0
while not os.path.exists(os.environ["SW_STOP"]):
    n += 1
    whole, half = b"line %d" % n, b"half of %d" % n
    os.write(master, whole + b"\n\x04" + half)
    beat(n, "lines")
    same("echo", exactly(master, len(whole + half) + 2), whole + b"\r\n" + half)
    os.write(master, b"!\x7f?\n")
    same("a whole line", line(), whole + b"\n")
    same("an end of file", line(), b"")
    beat(n, "the last line")
    same("a line of two halves", line(), half + b"?\n")
    same("echo", exactly(master, 7), b"!\b \b?\r\n")

    os.write(master, half)
    beat(n, "half a line")
    os.write(master, b"\n")
    same("a line of two halves", line(), half + b"\n")
    same("echo", exactly(master, len(half) + 2), half + b"\r\n")

    child_does(b"r")
    raw = bytes(range(256)) + b"%d" % n
    os.write(master, raw)
    beat(n, "bytes")
    same("bytes", line(), raw)
    child_does(b"c")
os.kill(child, 9)
os.waitpid(child, 0)
print("PASS", flush=True)
