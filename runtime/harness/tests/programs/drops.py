# A child gives up its privileges, if it has any, and becomes another program, which has no way into the checkpoint folder, and
# which forks.
# //# Needs: file:/usr/bin/python3
# //# Checkpoints: 3
# //# Where: host
import os, subprocess, sys, time

CHILD = """
import os, sys
assert set(os.environ.get("SLACKWATER_SECRET", "x")) == {"x"}, "the secret shows"
user = os.getresuid()
read, write = os.pipe()
if os.fork() == 0:
    os.close(write)
    while line := os.read(read, 1):
        os.write(1, b"%d\\n" % os.getuid())
    os._exit(0)
os.close(read)
while line := sys.stdin.readline():
    assert os.getresuid() == user
    os.write(write, b"x")
"""


def drop():
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)


child = subprocess.Popen(["/usr/bin/python3", "-c", CHILD], preexec_fn=drop, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
expected = b"%d\n" % (os.getuid() or 65534)
print("ready", flush=True)
n = 0
while not os.path.exists(os.environ["SW_STOP"]):
    child.stdin.write(b"go\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    if answer != expected:
        sys.exit(f"FAIL: {answer}")
    print("beat", n, flush=True)
    n += 1
    time.sleep(0.02)
child.stdin.close()
if child.wait(60) != 0:
    sys.exit("FAIL: the child")
print("PASS")
