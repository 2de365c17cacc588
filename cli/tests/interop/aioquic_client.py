"""Every feature on an aioquic client; prints what it sees as one JSON object.

    aioquic_client.py HOST PORT BASE_PATH CA_FILE
"""

import asyncio
import contextlib
import json
import sys

from aioquic.asyncio import connect
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration

from aioquic_session import Protocol, Session

STEP_S = 10
LONG = bytes(97 + n % 26 for n in range(100_000))


class Refused(Exception):
    pass


class Client(Protocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.answers = {}

    def answered(self, stream, headers):
        self.answers[stream].set_result(headers)

    async def ask(self, fields, session=False):
        stream = self._quic.get_next_available_stream_id()
        self.answers[stream] = asyncio.get_running_loop().create_future()
        if session:
            self.sessions[stream] = Session(self, stream)
        encoded = [(name.encode(), value.encode()) for name, value in fields]
        self.http.send_headers(stream, encoded, end_stream=not session)
        self.transmit()
        return stream, await self.answers[stream]


class Script:
    def __init__(self, host, port, base, ca_file):
        self.host, self.port, self.base, self.ca_file = host, int(port), base, ca_file

    @contextlib.asynccontextmanager
    async def connection(self):
        configuration = QuicConfiguration(
            alpn_protocols=H3_ALPN, is_client=True, max_datagram_frame_size=65536
        )
        configuration.load_verify_locations(self.ca_file)
        opening = connect(
            self.host, self.port, configuration=configuration, create_protocol=Client
        )
        async with opening as client:
            yield client

    def request(self, method, path, *more):
        authority = f"{self.host}:{self.port}"
        return [
            (":method", method),
            (":scheme", "https"),
            (":authority", authority),
            (":path", f"{self.base}/{path}"),
            *more,
        ]

    async def session_on(self, client, path, *more):
        draft = ("sec-webtransport-http3-draft02", "1")
        fields = self.request("CONNECT", path, (":protocol", "webtransport"), draft, *more)
        stream, answer = await client.ask(fields, session=True)
        if answer[":status"] != "200":
            raise Refused(int(answer[":status"]))
        return client.sessions[stream], answer

    @contextlib.asynccontextmanager
    async def session(self, path):
        async with self.connection() as client:
            session, _ = await self.session_on(client, path)
            yield session
            await self.leave(session)

    async def leave(self, session):
        session.close(0, "")
        await session.closed

    async def connect(self):
        async with self.session("echo"):
            return "connected"

    def status(self, status):
        async def refused():
            async with self.session(f"status/{status}"):
                return "connected"

        return refused

    async def subprotocol(self):
        offered = ("wt-available-protocols", '"first", "last"')
        async with self.connection() as client:
            session, answer = await self.session_on(client, "subprotocol", offered)
            await self.leave(session)
            return answer.get("wt-protocol", "").strip('"')

    async def echoes(self, session):
        stream = session.open()
        stream.write(LONG, end=True)
        back = await stream.to_end()
        return "echo" if back == LONG.decode() else back

    async def bi_by_client(self):
        async with self.session("echo/bi") as session:
            return await self.echoes(session)

    async def seen(self, session):
        return await (await session.uni.get()).to_end()

    async def bi_by_service(self):
        async with self.session("open/bi") as session:
            stream = await session.bi.get()
            heard = await stream.to_end()
            stream.write(b"a client", end=True)
            await self.seen(session)
            return heard

    async def uni_by_client(self):
        async with self.session("hear/uni") as session:
            session.say(b"a client")
            return await self.seen(session)

    async def uni_by_service(self):
        async with self.session("open/uni") as session:
            return await self.seen(session)

    async def datagrams(self):
        async with self.session("echo/datagram") as session:
            while True:
                session.send_datagram(b"a datagram")
                with contextlib.suppress(TimeoutError):
                    return (await asyncio.wait_for(session.datagrams.get(), 0.1)).decode()

    async def talk(self, session):
        stream = session.open()
        stream.write(b"x")
        await stream.read()
        return stream

    async def reset_by_client(self):
        async with self.session("observe/reset") as session:
            (await self.talk(session)).reset(33)
            return await self.seen(session)

    async def reset_by_service(self):
        async with self.session("reset/33") as session:
            stream = session.open()
            stream.write(b"x")
            return await stream.to_end()

    async def stop_by_client(self):
        async with self.session("observe/stop") as session:
            (await self.talk(session)).stop(44)
            return await self.seen(session)

    async def stop_by_service(self):
        async with self.session("stop/44") as session:
            stream = session.open()
            stream.write(b"x")
            return await stream.stopped

    async def close_by_client(self):
        async with self.connection() as client:
            session, _ = await self.session_on(client, "closed")
            session.close(4242, "done")
            await session.closed
            return "closed here"

    async def close_by_service(self):
        async with self.connection() as client:
            session, _ = await self.session_on(client, "close/4242/done")
            session.say(b"x")
            return await session.closed

    async def drain_by_client(self):
        async with self.session("drained") as session:
            session.drain()
            return await self.seen(session)

    async def drain_by_service(self):
        async with self.session("drain") as session:
            await self.talk(session)
            await session.draining
            return ["told", await self.echoes(session)]

    async def two_sessions(self):
        async with self.connection() as client:
            first, _ = await self.session_on(client, "two/a")
            second, _ = await self.session_on(client, "two/b")
            both = [await self.echoes(first), await self.echoes(second)]
            await self.leave(first)
            after = await self.echoes(second)
            await self.leave(second)
            return [*both, after]

    async def get(self):
        async with self.connection() as client:
            session, _ = await self.session_on(client, "echo/get")
            _, answer = await client.ask(self.request("GET", "nothing-here"))
            beside = await self.echoes(session)
            await self.leave(session)
            return [int(answer[":status"]), beside]

    async def run(self):
        steps = {
            "connect": self.connect,
            **{f"status/{n}": self.status(n) for n in (403, 404, 429, 431)},
            "subprotocol": self.subprotocol,
            "bi by client": self.bi_by_client,
            "bi by service": self.bi_by_service,
            "uni by client": self.uni_by_client,
            "uni by service": self.uni_by_service,
            "datagrams": self.datagrams,
            "reset by client": self.reset_by_client,
            "reset by service": self.reset_by_service,
            "stop by client": self.stop_by_client,
            "stop by service": self.stop_by_service,
            "close by client": self.close_by_client,
            "close by service": self.close_by_service,
            "drain by client": self.drain_by_client,
            "drain by service": self.drain_by_service,
            "two sessions": self.two_sessions,
            "get": self.get,
        }
        seen = {}
        for name, step in steps.items():
            try:
                seen[name] = await asyncio.wait_for(step(), STEP_S)
            except Refused as refused:
                seen[name] = refused.args[0]
            except TimeoutError:
                seen[name] = "nothing came"
            except ConnectionError:
                seen[name] = "lost"
        return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Script(*sys.argv[1:]).run())))
