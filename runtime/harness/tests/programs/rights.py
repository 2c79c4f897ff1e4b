# Descriptors under way in Unix sockets (SCM_RIGHTS), sent and not received for as long as the program runs: what nobody holds any
# more, what the sender holds, what another process holds. In each round as many are received as are sent.
# //# Needs: file:/usr/bin/python3
# //# Scenario: go-on, restart
# //# Checkpoints: 4
# //# Where: host
import os, socket, sys, tempfile, time

DEPTH = 5


def fail(text):
    sys.exit(f"FAIL: {text}")


def child(control):
    """Answers each byte with the next number of the file that both hold: one description, one offset."""
    while control.recv(1):
        control.send(shared.read(4))
    os._exit(0)


kinds = {"stream": socket.SOCK_STREAM, "packets": socket.SOCK_SEQPACKET, "datagrams": socket.SOCK_DGRAM}
pairs = {name: socket.socketpair(socket.AF_UNIX, kind) for name, kind in kinds.items()}
shared = tempfile.TemporaryFile(buffering=0)
shared.write(b"".join(b"%04d" % n for n in range(2500)))
shared.seek(0)
control, other = socket.socketpair()
if os.fork() == 0:
    control.close()
    child(other)
other.close()


def send(name, n):
    """Message n: bytes without, then with three descriptors: a pipe's reader, one end of a connection, the shared file."""
    sender = pairs[name][0]
    read, write = os.pipe()
    os.write(write, b"pipe %d" % n)
    near, far = socket.socketpair()
    near.send(b"socket %d" % n)
    if name == "stream":
        sender.send(b"plain %d;" % n)
    socket.send_fds(sender, [b"with %d;" % n], [read, far.fileno(), shared.fileno()])
    os.close(read)
    os.close(write)
    far.close()
    return near


def receive(name, n, near):
    receiver = pairs[name][1]
    expected = b"with %d;" % n
    if name == "stream":
        plain = b"plain %d;" % n
        data, fds, *_ = socket.recv_fds(receiver, 3, 8)
        if (data, fds) != (plain[:3], []):
            fail(f"{name} {n}: {data}, {fds} before the descriptors")
        expected = plain[3:] + expected
    data, fds, flags, _ = socket.recv_fds(receiver, 100, 8)
    if data != expected or len(fds) != 3 or flags & socket.MSG_CTRUNC:
        fail(f"{name} {n}: {data}, {fds}, {flags}")
    if os.read(fds[0], 100) != b"pipe %d" % n or os.read(fds[0], 1) != b"":
        fail(f"{name} {n}: the pipe")
    far = socket.socket(fileno=fds[1])
    if far.recv(100) != b"socket %d" % n:
        fail(f"{name} {n}: the socket")
    far.send(b"back")
    if near.recv(100) != b"back":
        fail(f"{name} {n}: the other way")
    far.close()
    near.close()
    if os.lseek(fds[2], 0, os.SEEK_CUR) != shared.seek(0, os.SEEK_CUR):
        fail(f"{name} {n}: the file's offset")
    for fd in (fds[0], fds[2]):
        os.close(fd)


ends = {name: [send(name, n) for n in range(DEPTH)] for name in kinds}
print("ready", flush=True)
n = 0
while not os.path.exists(os.environ["SW_STOP"]):
    for name in kinds:
        receive(name, n, ends[name].pop(0))
        ends[name].append(send(name, n + DEPTH))
    if n % 2500 == 0:
        shared.seek(0)
    control.send(b"?")
    if control.recv(4) != b"%04d" % (n % 2500):
        fail(f"the file at {n}")
    print("beat", n, flush=True)
    n += 1
    time.sleep(0.01)
print("PASS")
