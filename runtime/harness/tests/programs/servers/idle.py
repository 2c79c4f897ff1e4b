"""Sockets of each kind with bytes that nobody reads while somebody watches; at the end they are all there."""
import os, socket, struct, sys, time

TEXT = b"unread " * 1000
ends = []


def pair(a, b, text=TEXT):
    a.sendall(text)
    ends.append((b, text))
    b.sendall(text)
    ends.append((a, text))


for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    with socket.create_server((host, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        pair(client, listener.accept()[0])
    sender, receiver = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
    for one in (sender, receiver):
        one.bind((host, 0))
    sender.connect(receiver.getsockname())
    receiver.connect(sender.getsockname())
    pair(sender, receiver)
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
    pair(*socket.socketpair(socket.AF_UNIX, kind))
listener = socket.create_server(("127.0.0.1", 0))
waiting = socket.create_connection(listener.getsockname())
print("ready", flush=True)
while not os.path.exists(os.environ["SW_STOP"]):
    print("beat", flush=True)
    time.sleep(0.05)
for end, text in ends:
    end.settimeout(10)
    got = b""
    while len(got) < len(text):
        got += end.recv(len(text))
    if got != text:
        sys.exit("FAIL: not what was sent")
listener.settimeout(10)
listener.accept()
print("PASS", flush=True)
