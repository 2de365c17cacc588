"""Every feature on an aioquic client (script.py)."""

import asyncio
import contextlib

from aioquic.asyncio import connect
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration

from aioquic_session import Protocol, Session
from script import Refused, Script, main


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


class Aioquic(Script):
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
        return [
            (":method", method),
            (":scheme", "https"),
            (":authority", f"{self.host}:{self.port}"),
            (":path", f"{self.base}/{path}"),
            *more,
        ]

    async def session_on(self, client, path, offered=()):
        fields = self.request(
            "CONNECT",
            path,
            (":protocol", "webtransport"),
            ("sec-webtransport-http3-draft02", "1"),
        )
        if offered:
            quoted = ", ".join(f'"{name}"' for name in offered)
            fields.append(("wt-available-protocols", quoted))
        stream, answer = await client.ask(fields, session=True)
        if answer[":status"] != "200":
            raise Refused(int(answer[":status"]))
        return client.sessions[stream], answer.get("wt-protocol", "").strip('"')

    async def get_on(self, client, path):
        _, answer = await client.ask(self.request("GET", path))
        return int(answer[":status"])


if __name__ == "__main__":
    main(Aioquic)
