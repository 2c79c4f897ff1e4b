# iperf3, both ways at once.
# //# Needs: program:iperf3
# //# Checkpoints: 3
# //# Where: host
# //# Level: full
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/servers")
from kit import *

at = port()
start("iperf3", "-s", "-p", str(at))
end_of_start = time.monotonic() + 30
while f":{at:04X} 00000000:0000 0A" not in open("/proc/net/tcp").read() + open("/proc/net/tcp6").read().replace("0" * 24, ""):
    check(time.monotonic() < end_of_start, "it does not listen")
    time.sleep(0.01)
client = start("iperf3", "-c", "127.0.0.1", "-p", str(at), "-t", "3600", "-i", "0.1", "-P", "2", "--bidir", "--forceflush",
               stdout=subprocess.PIPE)
os.set_blocking(client.stdout.fileno(), False)
text = b""


def step(n):
    global text
    end_of_wait = time.monotonic() + 30
    while True:
        text += client.stdout.read() or b""
        lines = text.split(b"\n")
        # Bytes went through in this interval.
        moved = [l for l in lines[:-1] if l.startswith(b"[SUM]") and b" 0.00 Bytes" not in l]
        text = lines[-1]
        check(b"error" not in b"".join(lines), lines)
        if moved:
            return
        check(time.monotonic() < end_of_wait, "nothing goes through")
        time.sleep(0.01)


play(step)
os.set_blocking(client.stdout.fileno(), True)
end(client, signal=2, statuses=(0, 1, -2))
end(children[0], signal=15, statuses=(0, 1, -15))
passed()
