# nginx with two workers, wrk on it, and a client that compares every page.
# //# Needs: program:nginx, program:wrk
# //# Checkpoints: 3
# //# Where: host
import http.client
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/servers")
from kit import *

at = port()
pages = {f"page{i}": noise(i, 1 + i * 5000) for i in range(20)}
os.chmod(folder, 0o755)
for name, text in pages.items():
    open(f"{folder}/{name}", "wb").write(text)
open(f"{folder}/conf", "w").write(f"""
user root; daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 256; }}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; server {{ listen 127.0.0.1:{at}; root {folder}; }} }}
""")
start("nginx", "-c", f"{folder}/conf", "-e", f"{folder}/errors")
connect(at).close()
# It times requests by the world's clock, which goes on while the computation is away.
load = start("wrk", "-t2", "-c40", "--timeout=600", "-d3600", f"http://127.0.0.1:{at}/page1")
kept = http.client.HTTPConnection("127.0.0.1", at)


def step(n):
    for i in range(10):
        name = f"page{(n + i) % len(pages)}"
        client = kept if i % 2 else http.client.HTTPConnection("127.0.0.1", at)
        client.request("GET", "/" + name)
        answer = client.getresponse()
        check(answer.status == 200 and answer.read() == pages[name], name)


play(step)
end(load, signal=2, statuses=(0,))
said = output("wrk")
check("requests in" in said and "Socket errors" not in said and "Non-2xx" not in said, said)
end(children[0], signal=3)
check("[alert]" not in open(f"{folder}/errors").read(), open(f"{folder}/errors").read())
passed()
