# PostgreSQL with pgbench: whatever it has committed balances, at any moment.
# //# Needs: program:pg_ctlcluster
# //# Scenario: go-on, stop-restart
# //# Checkpoints: 3
# //# Where: host
# //# Memory: 2048
import glob
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/servers")
from kit import *

tools = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
nobody = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
data = f"{folder}/data"
os.chmod(folder, 0o777)
environment = dict(os.environ, LC_ALL="C", PGHOST=folder, PGUSER="postgres", PGDATABASE="postgres")
done = subprocess.run(nobody + [f"{tools}/initdb", "-D", data, "-A", "trust", "-N", "-U", "postgres"],
                      env=environment, cwd="/", capture_output=True)
check(done.returncode == 0, done.stderr)
server = start(*nobody, f"{tools}/postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off",
               "-c", "shared_buffers=16MB", "-c", "max_wal_size=64MB", env=environment, cwd="/")
connect(f"{folder}/.s.PGSQL.5432").close()
end_of_start = time.monotonic() + 60
while subprocess.run([f"{tools}/pg_isready", "-q"], env=environment).returncode != 0:
    check(time.monotonic() < end_of_start, "it does not get ready")
    time.sleep(0.02)
done = subprocess.run([f"{tools}/pgbench", "-i", "-q", "-s", "1"], env=environment, capture_output=True)
check(done.returncode == 0, done.stderr)
load = start(f"{tools}/pgbench", "-n", "-c", "4", "-j", "2", "-T", "3600", env=environment)
psql = subprocess.Popen([f"{tools}/psql", "-XAt"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
children.append(psql)
sums = """select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches),
  (select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta), 0) from pgbench_history),
  (select sum(bbalance) from pgbench_branches) = (select coalesce(sum(delta), 0) from pgbench_history),
  (select count(*) from pgbench_history);\n"""
before = 0


def step(n):
    global before
    count, end_of_wait = before, time.monotonic() + 60
    while count == before:
        psql.stdin.write(sums.replace("\n", " ").encode() + b"\n")
        psql.stdin.flush()
        line = psql.stdout.readline().decode().strip()
        check(line.startswith("t|t|t|"), f"it does not balance: {line}")
        count = int(line.split("|")[3])
        check(time.monotonic() < end_of_wait, "nothing is committed")
    check(count > before, f"{before} transactions were committed, now there are {count}")
    before = count


play(step)
end(load)
check("ERROR" not in output("pgbench") and "abort" not in output("pgbench"), output("pgbench"))
psql.stdin.close()
check(psql.wait(60) == 0, "psql")
children.remove(psql)
end(server, signal=2, statuses=(0,))
passed()
