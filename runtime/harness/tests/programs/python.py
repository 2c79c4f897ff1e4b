#//# Needs: file:/usr/bin/python3
#//# Scenario: go-on, restart
# Python as Debian has it: threads, C extensions (zlib, hashlib, sqlite3, ctypes), generators, random state, time-outs.
import ctypes, hashlib, os, queue, random, sqlite3, sys, threading, time, zlib

stop = threading.Event()
rounds = [0, 0, 0]
libc = ctypes.CDLL(None)
jobs = queue.Queue()
answers = queue.Queue()


def guard(function):
    def run(*args):
        try:
            function(*args)
        except BaseException as error:
            print(f"FAIL {function.__name__}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)

    return run


@guard
def compress():
    data = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(2000)) * 2
    known = hashlib.sha256(data).hexdigest()
    while not stop.is_set():
        assert hashlib.sha256(zlib.decompress(zlib.compress(data))).hexdigest() == known
        rounds[0] += 1


@guard
def worker():
    while (job := jobs.get()) is not None:
        answers.put(libc.abs(ctypes.c_int(-job)))
        rounds[1] += 1


@guard
def ticker():
    while not stop.is_set():
        before = time.monotonic()
        assert not stop.wait(0.05) or stop.is_set()
        assert stop.is_set() or time.monotonic() - before >= 0.049
        rounds[2] += 1


threads = [threading.Thread(target=f) for f in (compress, worker, ticker)]
database = sqlite3.connect(":memory:")
database.execute("create table t (n integer)")
generator = (i for i in range(10**9))
random.seed(5)
twin = random.Random(5)
for t in threads:
    t.start()
print("ready", flush=True)
n = 0
seen = rounds[:]
while True:
    jobs.put(n + 1)
    assert answers.get(timeout=60) == n + 1
    assert next(generator) == n
    assert random.random() == twin.random()
    database.execute("insert into t values (?)", (n,))
    assert database.execute("select count(*), sum(n) from t").fetchone() == (n + 1, n * (n + 1) // 2)
    while any(a == b for a, b in zip(seen, rounds)):
        time.sleep(0.001)
    seen = rounds[:]
    n += 1
    print("beat", n, flush=True)
    if os.path.exists(os.environ["SW_STOP"]):
        break
stop.set()
jobs.put(None)
for t in threads:
    t.join()
print("PASS", flush=True)
