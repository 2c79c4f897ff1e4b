# Clients of this process and of another one connect, send and partly end, over TCP and Unix sockets; nobody accepts before the end.
# Then the server accepts all of them, in the order in which they came, and each has sent what it had sent, once.
# //# Needs: file:/usr/bin/python3
# //# Scenario: go-on, restart, stop-restart, restart-twice
# //# Checkpoints: 3
# //# Where: host
import fcntl, os, select, socket, sys, threading, time

STOPPED = os.environ["SW_STOP"]
here = "slackwater-backlog-%d-" % os.getpid()
# Nobody else's, so that no other program takes a port of a client that has ended, or waits for a restart.
own = "127.%d.%d.%d" % (os.getpid() >> 16 & 127 | 1, os.getpid() >> 8 & 255, os.getpid() & 255 | 1)
LARGE = bytes(range(256)) * 600


def text(n):
    return b"client %d\n" % n * (n + 1)


def listener(family, kind, name):
    server = socket.socket(family, kind)
    server.bind(name)
    server.listen(64)
    return server


servers = [
    listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
    listener(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
    # Both families in one.
    listener(socket.AF_INET6, socket.SOCK_STREAM, ("::", 0)),
    listener(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + here + "abstract"),
    listener(socket.AF_UNIX, socket.SOCK_STREAM, here + "path"),
    listener(socket.AF_UNIX, socket.SOCK_SEQPACKET, "\0" + here + "packets"),
]


def connect(server):
    name = server.getsockname()
    if name[0] == "::":
        client = socket.socket(socket.AF_INET)
        client.connect(("127.0.0.1", name[1]))
        return client
    client = socket.socket(server.family, server.type)
    if name[0] == "127.0.0.1":
        # IP_BIND_ADDRESS_NO_PORT
        client.setsockopt(socket.IPPROTO_IP, 24, 1)
        client.bind((own, 0))
    client.connect(name)
    return client


# What the clients of a listener do, in order. "other": in another process. Of Unix sockets a client's data is at most its buffer.
PLAN = ["text", "other text", "large", "nothing", "other shut", "closed", "other closed", "other large", "watched", "other blocked",
        "twice", "other nothing", "late"]


class Client:
    def __init__(self, server, n, what):
        self.n, self.what = n, what
        self.socket = connect(server)
        self.name = self.socket.getsockname()
        if what == "watched":
            self.set = select.epoll()
            self.set.register(self.socket, select.EPOLLIN | select.EPOLLRDHUP)
            self.socket.setblocking(False)
            os.set_inheritable(self.socket.fileno(), True)
        if what == "twice":
            self.other = self.socket.dup()
            if self.socket.family != socket.AF_UNIX:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if what == "large" and self.socket.type == socket.SOCK_STREAM:
            self.socket.sendall(LARGE)
        elif what != "nothing" and what != "late":
            self.socket.sendall(text(n))
        if what == "shut":
            self.socket.shutdown(socket.SHUT_WR)
        if what == "closed":
            self.socket.close()
        if what == "blocked":
            self.thread = threading.Thread(target=self.block, daemon=True)
            self.thread.start()

    def block(self):
        self.answer = self.socket.recv(100)

    def sent(self):
        if self.what == "large" and servers[self.n // 100].type == socket.SOCK_STREAM:
            return LARGE
        return text(self.n) if self.what not in ("nothing", "late") else b""

    # The server has accepted.
    def finish(self):
        if self.what == "closed":
            return
        assert self.socket.getsockname() == self.name, (self.socket.getsockname(), self.name)
        if self.what == "late":
            self.socket.sendall(b"late")
        if self.what == "watched":
            assert fcntl.fcntl(self.socket, fcntl.F_GETFL) & os.O_NONBLOCK
            assert os.get_inheritable(self.socket.fileno())
            (ready,) = self.set.poll(20)
            assert ready == (self.socket.fileno(), select.EPOLLIN), ready
        if self.what == "twice":
            assert os.fstat(self.other.fileno()).st_ino == os.fstat(self.socket.fileno()).st_ino
            if self.socket.family != socket.AF_UNIX:
                assert self.other.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if self.what == "blocked":
            self.thread.join()
            answer = self.answer
        else:
            answer = self.socket.recv(100)
        assert answer == b"answer %d" % self.n, (self.n, self.what, answer)


ends = socket.socketpair()
# One that both processes have.
shared = [Client(server, n * 100, "text") for n, server in enumerate(servers) if server.family != socket.AF_UNIX]
child = os.fork()
mine = ends[1] if child == 0 else ends[0]
(ends[0] if child == 0 else ends[1]).close()


def say(line):
    mine.sendall(line.encode() + b"\n")


lines = mine.makefile()
plan = [(server * 100 + at, what) for server in range(len(servers)) for at, what in enumerate(PLAN, 1)]
clients = []
if child == 0:
    for line in lines:
        word, *rest = line.split()
        if word == "connect":
            clients.append(Client(servers[int(rest[0]) // 100], int(rest[0]), rest[1]))
            say("done %s" % clients[-1].name[1] if isinstance(clients[-1].name, tuple) else "done 0")
        if word == "finish":
            for client in clients:
                client.finish()
            say("done 0")
            os._exit(0)
    os._exit(1)

ports = {client.n: client.name[1] for client in shared}
for n, what in plan:
    if what.startswith("other "):
        say("connect %d %s" % (n, what.split()[1]))
        word, port = lines.readline().split()
        assert word == "done"
        ports[n] = int(port)
    else:
        clients.append(Client(servers[n // 100], n, what))
        ports[n] = clients[-1].name[1] if isinstance(clients[-1].name, tuple) else 0

print("ready", flush=True)
while not os.path.exists(STOPPED):
    print("beat", flush=True)
    time.sleep(0.05)

accepted = []
for n, what in [(client.n, "text") for client in shared] + plan:
    server = servers[n // 100]
    server.settimeout(20)
    got, name = server.accept()
    if server.family == socket.AF_INET:
        assert name == (own, ports[n]), (n, name, ports[n])
    elif server.family == socket.AF_UNIX and "closed" not in what:
        pid = int.from_bytes(got.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)
        assert pid > 0, pid
    expected = LARGE if "large" in what and got.type == socket.SOCK_STREAM else text(n)
    if "nothing" in what or "late" in what:
        expected = b""
    data = b""
    got.settimeout(20)
    while len(data) < len(expected):
        try:
            part = got.recv(1 << 20)
        except TimeoutError:
            part = b""
        assert part, (n, what, len(data), len(expected))
        data += part
    assert data == expected, (n, what, len(data), len(expected))
    if "shut" in what or "closed" in what:
        assert got.recv(1) == b"", (n, what)
    else:
        try:
            got.setblocking(False)
            more = got.recv(1)
            assert False, (n, what, more)
        except BlockingIOError:
            pass
        got.setblocking(True)
    if "closed" not in what:
        got.sendall(b"answer %d" % n)
    accepted.append((n, what, got))
for server in servers:
    server.settimeout(0)
    try:
        server.accept()
        assert False, "one too many"
    except BlockingIOError:
        pass
say("finish")
for client in shared + clients:
    client.finish()
assert lines.readline() == "done 0\n"
for n, what, got in accepted:
    if what == "late":
        got.settimeout(20)
        assert got.recv(10) == b"late"
assert os.waitpid(child, 0)[1] == 0
os.unlink(here + "path")
print("PASS", flush=True)
