"""What the programs server_*.py have in common: a server that nobody here wrote, other people's load on it, and a client that knows
what every answer must be. All are one computation."""
import os, select, socket, subprocess, sys, tempfile, time

folder = tempfile.mkdtemp(prefix="slackwater-server-")
children = []


def fail(what):
    print("FAIL:", what, file=sys.stderr, flush=True)
    for child in children:
        child.kill()
    os._exit(1)


def check(condition, what):
    if not condition:
        fail(what)


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(*command, **options):
    """A process of the computation; its output goes to a file that is named by its first word."""
    name = os.path.basename(command[0])
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", open(f"{folder}/{name}.out", "ab"))
    options.setdefault("stderr", subprocess.STDOUT)
    child = subprocess.Popen(command, **options)
    children.append(child)
    return child


def output(name):
    with open(f"{folder}/{name}.out", errors="replace") as f:
        return f.read()


def alive():
    for child in children:
        if child.poll() is not None:
            name = os.path.basename(child.args[0])
            text = output(name)[-500:] if os.path.exists(f"{folder}/{name}.out") else ""
            fail(f"{name} ended with {child.returncode}: {text}")


def connect(where, patience=60):
    """Connects as soon as somebody listens: a port, or a path."""
    end = time.monotonic() + patience
    while True:
        s = socket.socket(socket.AF_INET if isinstance(where, int) else socket.AF_UNIX)
        try:
            s.connect(("127.0.0.1", where) if isinstance(where, int) else where)
            return s
        except OSError as e:
            s.close()
            alive()
            check(time.monotonic() < end, f"nobody listens at {where}: {e}")
            time.sleep(0.01)


def end(child, signal=15, statuses=(0, -15, 143)):
    children.remove(child)
    child.send_signal(signal)
    try:
        status = child.wait(60)
    except subprocess.TimeoutExpired:
        fail(f"{child.args[0]} does not end")
    name = os.path.basename(child.args[0])
    said = output(name)[-1500:] if os.path.exists(f"{folder}/{name}.out") else ""
    check(status in statuses, f"{name} ended with {status}: {said}")


def play(step):
    """step(n) does something and checks it, again and again until the test says stop."""
    print("ready", flush=True)
    n = 0
    while not os.path.exists(os.environ["SW_STOP"]):
        step(n)
        alive()
        print("beat", n, flush=True)
        n += 1
        time.sleep(0.01)


def passed():
    subprocess.run(["rm", "-rf", folder])
    print("PASS", flush=True)
    sys.exit(0)


def noise(n, length):
    """Bytes that follow from a number."""
    return (f"{n}:" * (length // 2 + 1)).encode()[:length]
