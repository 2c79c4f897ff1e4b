# sshd and ssh on loopback: a session that stays open, and new ones.
# //# Needs: program:sshd, program:ssh
# //# Checkpoints: 3
# //# Where: host
import pwd, shutil
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/servers")
from kit import *

at = port()
me = pwd.getpwuid(os.getuid()).pw_name
for name in ("host", "user"):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/{name}"], check=True)
shutil.copy(f"{folder}/user.pub", f"{folder}/authorized")
if os.getuid() == 0:
    os.makedirs("/run/sshd", exist_ok=True)
start(shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-o", f"Port={at}", "-o", "ListenAddress=127.0.0.1",
      "-o", f"HostKey={folder}/host", "-o", f"AuthorizedKeysFile={folder}/authorized", "-o", "StrictModes=no",
      "-o", f"PidFile={folder}/pid", "-o", "UsePAM=no", "-o", "PermitRootLogin=yes")
connect(at).close()
ssh = ["ssh", "-F", "/dev/null", "-p", str(at), "-i", f"{folder}/user", "-o", "StrictHostKeyChecking=no",
       "-o", f"UserKnownHostsFile={folder}/known", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", f"{me}@127.0.0.1"]
session = start(*ssh, "while read -r line; do echo got $line; done", stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def step(n):
    session.stdin.write(b"line %d\n" % n)
    session.stdin.flush()
    answer = session.stdout.readline()
    check(answer == b"got line %d\n" % n, answer)
    if n % 10 == 3:
        done = subprocess.run(ssh + [f"echo $(({n}+1)); cat"], input=noise(n, 50000), capture_output=True)
        check(done.stdout == b"%d\n" % (n + 1) + noise(n, 50000), done)


play(step)
session.stdin.close()
check(session.wait(60) == 0, "the session")
children.remove(session)
end(children[0], statuses=(0, 255, -15))
passed()
