# An echo server of Python's asyncio in a process of its own, and clients that check every byte.
# //# Checkpoints: 4
# //# Where: host
import asyncio
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/servers")
from kit import *

SERVER = '''
import asyncio, sys
async def serve(reader, writer):
    while data := await reader.read(5000):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    unix = await asyncio.start_unix_server(serve, sys.argv[2])
    await asyncio.gather(server.serve_forever(), unix.serve_forever())
asyncio.run(main())
'''
at = port()
start(sys.executable, "-c", SERVER, str(at), f"{folder}/socket")
connect(f"{folder}/socket").close()
counts = [0] * 20


async def client(i):
    where = asyncio.open_connection("127.0.0.1", at) if i % 2 else asyncio.open_unix_connection(f"{folder}/socket")
    reader, writer = await where
    while not os.path.exists(os.environ["SW_STOP"]):
        data = noise(counts[i] * 31 + i, 1 + counts[i] * 997 % 30000)
        writer.write(data)
        check(await reader.readexactly(len(data)) == data, f"echo {counts[i]} of client {i}")
        counts[i] += 1
        await asyncio.sleep(0.001)
    writer.close()


async def main():
    clients = [asyncio.create_task(client(i)) for i in range(len(counts))]
    n, before = 0, 0
    print("ready", flush=True)
    while not all(c.done() for c in clients):
        await asyncio.sleep(0.02)
        alive()
        if all(counts) and sum(counts) > before:
            print("beat", n, flush=True)
            n, before = n + 1, sum(counts)
    await asyncio.gather(*clients)


asyncio.run(main())
end(children[0])
passed()
