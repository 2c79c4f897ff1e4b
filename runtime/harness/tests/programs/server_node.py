# A server and a client of node.js, HTTP and raw TCP between them; the client checks, and says how far it is.
# //# Needs: program:node
# //# Checkpoints: 3
# //# Where: host
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/servers")
from kit import *

SERVER = '''
const http = require("http"), net = require("net");
const [,, web, raw] = process.argv;
http.createServer((q, a) => { let n = 0; q.on("data", d => n += d.length); q.on("end", () => a.end(q.url + " " + n)); })
  .listen(+web, "127.0.0.1");
// A client that is killed at the end resets its connection.
net.createServer(s => { s.on("error", () => s.destroy()); s.pipe(s); }).listen(+raw, "127.0.0.1");
'''
CLIENT = '''
const http = require("http"), net = require("net");
const [,, web, raw] = process.argv;
const fail = e => { console.log("FAIL " + e); process.exit(1); };
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
let done = 0, echoed = 0;
function ask(n) {
  const body = "x".repeat(n * 331 % 50000);
  const q = http.request({ host: "127.0.0.1", port: +web, path: "/" + n, method: "POST", agent }, a => {
    let text = "";
    a.on("data", d => text += d);
    a.on("end", () => { if (text !== "/" + n + " " + body.length) fail(text); done++; setTimeout(ask, 1, n + 8); });
  });
  q.on("error", fail);
  q.end(body);
}
for (let i = 0; i < 8; i++) ask(i);
const s = net.connect(+raw, "127.0.0.1");
let sent = 0, got = 0;
s.on("error", fail); s.on("end", () => fail("the end"));
s.on("data", d => { for (const b of d) if (b !== got++ % 251) fail("byte " + got); echoed = got; });
function pump() {
  const b = Buffer.alloc(1 + sent % 4000);
  for (let i = 0; i < b.length; i++) b[i] = sent++ % 251;
  s.write(b) ? setTimeout(pump, 1) : s.once("drain", pump);
}
pump();
setInterval(() => console.log(done + " " + echoed), 20);
'''
web, raw = port(), port()
open(f"{folder}/server.js", "w").write(SERVER)
open(f"{folder}/client.js", "w").write(CLIENT)
start("node", f"{folder}/server.js", str(web), str(raw))
connect(raw).close()
client = start("node", f"{folder}/client.js", str(web), str(raw), stdout=subprocess.PIPE)
before = [-1, -1]


def step(n):
    global before
    for _ in range(200):
        line = client.stdout.readline().decode()
        check(line and not line.startswith("FAIL"), f"the client: {line}")
        now = [int(w) for w in line.split()]
        if now[0] > before[0] and now[1] > before[1]:
            before = now
            return
    fail(f"nothing moves: {before}")


play(step)
end(client)
end(children[0])
passed()
