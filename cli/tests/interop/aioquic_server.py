"""The interop service on aioquic.

    aioquic_server.py CERTIFICATE KEY

Serves on a port of the system's choosing and writes {"port": N} to standard output, then a line
{"path": …, "saw": …} for everything that it notes. What is asked of it by path is listed in
answer.rs.
"""

import asyncio
import json
import sys

from aioquic.asyncio import serve
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration

from aioquic_session import Protocol, Session

SERVICE = b"the service"


class Service(Protocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tasks = set()

    def requested(self, stream, headers):
        path = headers.get(":path", "").split("?")[0]
        asked = path.strip("/").split("/")[1:] or ["echo"]
        is_session = headers.get(":protocol") in ("webtransport", "webtransport-h3")
        status = "200" if is_session else "404"
        if asked[0] == "status":
            status = asked[1]
            note(path, int(status))
        answer = [(":status", status), ("sec-webtransport-http3-draft", "draft02")]
        if offered := headers.get("wt-available-protocols"):
            offered = [name.strip() for name in offered.split(",")]
            note(path, [name.strip('"') for name in offered])
            answer.append(("wt-protocol", offered[-1]))
        encoded = [(name.encode(), value.encode()) for name, value in answer]
        if status == "200":
            self.sessions[stream] = Session(self, stream)
            task = asyncio.create_task(self.act(self.sessions[stream], path, asked))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        self.http.send_headers(stream, encoded, end_stream=status != "200")
        self.transmit()

    async def act(self, session, path, asked):
        match asked:
            case ["open", "bi"]:
                stream = await session.open()
                stream.write(SERVICE, end=True)
                note(path, await stream.to_end())
                await session.say(b"seen")
            case ["open", "uni"]:
                await session.say(SERVICE)
            case ["hear", "uni"]:
                stream = await session.uni.get()
                note(path, await stream.to_end())
                await session.say(b"seen")
            case ["observe", half]:
                stream = await session.bi.get()
                stream.write(await stream.read())
                note(path, await (stream.to_end() if half == "reset" else stream.stopped))
                await session.say(b"seen")
            case ["reset", code]:
                (await session.bi.get()).reset(int(code))
            case ["stop", code]:
                (await session.bi.get()).stop(int(code))
            case ["close", code, reason]:
                await session.uni.get()
                session.close(int(code), reason)
            case ["closed"]:
                note(path, await session.closed)
            case ["drained"]:
                note(path, await session.draining)
                await session.say(b"seen")
            case _:
                await self.echo(session, drain=asked == ["drain"])

    async def echo(self, session, drain):
        async def bi():
            while stream := await session.bi.get():
                if drain:
                    session.drain()
                stream.echo_to(stream)

        async def uni():
            while stream := await session.uni.get():
                stream.echo_to(await session.open(uni=True))

        async def datagrams():
            while True:
                session.send_datagram(await session.datagrams.get())

        await asyncio.gather(bi(), uni(), datagrams())


def note(path, saw):
    print(json.dumps({"path": path, "saw": saw}), flush=True)


async def main(certificate, key):
    configuration = QuicConfiguration(
        alpn_protocols=H3_ALPN, is_client=False, max_datagram_frame_size=65536
    )
    configuration.load_cert_chain(certificate, key)
    server = await serve(
        "127.0.0.1", 0, configuration=configuration, create_protocol=Service
    )
    port = server._transport.get_extra_info("sockname")[1]
    print(json.dumps({"port": port}), flush=True)
    # Until whoever started this goes away.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
