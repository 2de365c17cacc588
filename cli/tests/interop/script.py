"""What a client in Python does to show each feature, whatever stack carries it.

A stack's own program takes four arguments, HOST PORT BASE_PATH CA_FILE, and prints what its client
sees as one JSON object.
"""

import asyncio
import contextlib
import json
import sys

STEP_S = 10
LONG = bytes(97 + n % 26 for n in range(100_000))


class Refused(Exception):
    pass


class Script:
    def __init__(self, host, port, base, ca_file):
        self.host, self.port, self.base, self.ca_file = host, int(port), base, ca_file

    def connection(self):
        """A context with a new connection."""
        raise NotImplementedError

    async def session_on(self, connection, path, offered=()):
        """A new session on a connection, and the subprotocol that was chosen for it."""
        raise NotImplementedError

    async def get_on(self, connection, path):
        """The status of a GET on a connection."""
        return "no such call"

    @contextlib.asynccontextmanager
    async def session(self, path):
        async with self.connection() as connection:
            session, _ = await self.session_on(connection, path)
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
        async with self.connection() as connection:
            offered = ("first", "last")
            session, chosen = await self.session_on(connection, "subprotocol", offered)
            await self.leave(session)
            return chosen

    async def echoes(self, session):
        stream = await session.open()
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
            await session.say(b"a client")
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
        stream = await session.open()
        stream.write(b"x")
        await stream.read()
        return stream

    async def reset_by_client(self):
        async with self.session("observe/reset") as session:
            (await self.talk(session)).reset(33)
            return await self.seen(session)

    async def reset_by_service(self):
        async with self.session("reset/33") as session:
            stream = await session.open()
            stream.write(b"x")
            return await stream.to_end()

    async def stop_by_client(self):
        async with self.session("observe/stop") as session:
            (await self.talk(session)).stop(44)
            return await self.seen(session)

    async def stop_by_service(self):
        async with self.session("stop/44") as session:
            stream = await session.open()
            stream.write(b"x")
            return await stream.stopped

    async def close_by_client(self):
        async with self.connection() as connection:
            session, _ = await self.session_on(connection, "closed")
            session.close(4242, "done")
            await session.closed
            return "closed here"

    async def close_by_service(self):
        async with self.connection() as connection:
            session, _ = await self.session_on(connection, "close/4242/done")
            await session.say(b"x")
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
        async with self.connection() as connection:
            first, _ = await self.session_on(connection, "two/a")
            second, _ = await self.session_on(connection, "two/b")
            both = [await self.echoes(first), await self.echoes(second)]
            await self.leave(first)
            after = await self.echoes(second)
            await self.leave(second)
            return [*both, after]

    async def get(self):
        async with self.connection() as connection:
            session, _ = await self.session_on(connection, "echo/get")
            status = await self.get_on(connection, "nothing-here")
            beside = await self.echoes(session)
            await self.leave(session)
            return [status, beside]

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


def main(script):
    print(json.dumps(asyncio.run(script(*sys.argv[1:]).run())))
