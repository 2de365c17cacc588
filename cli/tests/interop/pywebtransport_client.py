"""Every feature on a pywebtransport client (script.py)."""

import asyncio
import contextlib

from pywebtransport import ClientConfig, WebTransportClient
from pywebtransport.exceptions import WebTransportError
from pywebtransport.types import EventType

from script import Refused, Script, main


def forget(task):
    """What was under way when a session closed fails, as it may."""
    if not task.cancelled():
        task.exception()


class Stream:
    """A stream with the calls that the script knows."""

    def __init__(self, stream):
        self.stream = stream
        self.stopped = asyncio.get_running_loop().create_future()
        self.was_reset = asyncio.get_running_loop().create_future()
        self.tasks = set()
        self.on(EventType.STREAM_STOP_SENDING_RECEIVED, self.stopped)
        self.on(EventType.STREAM_RESET_RECEIVED, self.was_reset)

    def on(self, kind, future):
        async def handler(event):
            if not future.done():
                future.set_result(event.data["error_code"])

        self.stream.events.on(event_type=kind, handler=handler)

    def start(self, call):
        task = asyncio.create_task(call)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(forget)

    def write(self, data, end=False):
        self.start(self.stream.write_all(data=data, end_stream=end))

    def reset(self, code):
        self.start(self.stream.reset(error_code=code))

    def stop(self, code):
        self.start(self.stream.stop_receiving(error_code=code))

    async def read(self):
        try:
            return await self.stream.read()
        except WebTransportError:
            return await self.was_reset

    async def to_end(self):
        text = b""
        while chunk := await self.read():
            if isinstance(chunk, int):
                return chunk
            text += chunk
        return text.decode()


class Session:
    """A session with the calls that the script knows."""

    def __init__(self, session):
        self.session = session
        loop = asyncio.get_running_loop()
        self.closed, self.draining = loop.create_future(), loop.create_future()
        self.uni, self.bi, self.datagrams = asyncio.Queue(), asyncio.Queue(), self
        self.get = session.read_datagram
        self.tasks = [
            asyncio.create_task(self.accept(session.incoming_unidirectional_streams(), self.uni)),
            asyncio.create_task(self.accept(session.incoming_bidirectional_streams(), self.bi)),
        ]

        async def closed(event):
            if not self.closed.done():
                self.closed.set_result([event.data["error_code"], event.data["reason"] or ""])

        async def draining(event):
            if not self.draining.done():
                self.draining.set_result(True)

        session.events.on(event_type=EventType.SESSION_CLOSED, handler=closed)
        session.events.on(event_type=EventType.SESSION_DRAINING, handler=draining)

    async def accept(self, incoming, queue):
        async for stream in incoming:
            queue.put_nowait(Stream(stream))

    def start(self, call):
        self.tasks.append(asyncio.create_task(call))
        self.tasks[-1].add_done_callback(forget)

    async def open(self, uni=False):
        opened = self.session.create_bidirectional_stream
        if uni:
            opened = self.session.create_unidirectional_stream
        return Stream(await opened())

    async def say(self, text):
        (await self.open(uni=True)).write(text, end=True)

    def send_datagram(self, data):
        self.start(self.session.send_datagram(data=data))

    def drain(self):
        self.start(self.session.connection.close_gracefully())

    def close(self, code, reason):
        self.start(self.session.close(error_code=code, reason=reason))


class Pywebtransport(Script):
    @contextlib.asynccontextmanager
    async def connection(self):
        config = ClientConfig(ca_certs=self.ca_file)
        async with WebTransportClient(config=config) as client:
            self.opened = None
            yield client

    async def session_on(self, client, path, offered=()):
        authority, path = f"{self.host}:{self.port}", f"{self.base}/{path}"
        offered = list(offered) or None
        try:
            if self.opened is None:
                url = f"https://{authority}{path}"
                session = await client.connect(url=url, wt_available_protocols=offered)
                self.opened = session.connection
            else:
                session = await self.opened.create_session(
                    authority=authority, path=path, wt_available_protocols=offered
                )
        except WebTransportError as error:
            raise Refused(str(error)) from error
        return Session(session), session.wt_protocol


if __name__ == "__main__":
    main(Pywebtransport)
