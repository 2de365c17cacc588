"""A WebTransport service by another hand: streams and datagrams come back as they are.

    aioquic_echo.py CERTIFICATE KEY

Serves on a port of the system's choosing and writes {"port": N} to standard output. The path
`/status/N` is answered with status N; of offered subprotocols the last is chosen, which no server
of ours would do; a stream whose text is `close` ends the session with code 61 and a reason.
"""

import asyncio
import json
import struct
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DatagramReceived, HeadersReceived, WebTransportStreamDataReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import stream_is_unidirectional
from aioquic.quic.events import ProtocolNegotiated

WT_CLOSE_SESSION = 0x2843


class Echo(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = None
        self.answers = {}
        self.heard = {}

    def quic_event_received(self, event):
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic, enable_webtransport=True)
        if self.http is None:
            return
        for http_event in self.http.handle_event(event):
            self.http_event_received(http_event)

    def http_event_received(self, event):
        if isinstance(event, HeadersReceived):
            self.request(event.stream_id, dict(event.headers))
        elif isinstance(event, DatagramReceived):
            self.http.send_datagram(event.stream_id, event.data)
        elif isinstance(event, WebTransportStreamDataReceived):
            self.echo(event)
        self.transmit()

    def request(self, stream, headers):
        path = headers.get(b":path", b"").split(b"?")[0]
        if b"/status/" in path:
            status = path.rsplit(b"/", 1)[1]
        elif headers.get(b":protocol") in (b"webtransport", b"webtransport-h3"):
            status = b"200"
        else:
            status = b"404"
        answer = [(b":status", status), (b"sec-webtransport-http3-draft", b"draft02")]
        offered = headers.get(b"wt-available-protocols")
        if offered:
            answer.append((b"wt-protocol", offered.split(b",")[-1].strip()))
        self.http.send_headers(stream, answer, end_stream=status != b"200")

    def echo(self, event):
        stream = event.stream_id
        if stream_is_unidirectional(stream):
            if stream not in self.answers:
                self.answers[stream] = self.http.create_webtransport_stream(
                    event.session_id, is_unidirectional=True
                )
            answer = self.answers[stream]
        else:
            answer = stream
            heard = self.heard[stream] = self.heard.get(stream, b"")[:5] + event.data
            if heard == b"close":
                self.close_session(event.session_id, 61, "asked to")
                return
        self._quic.send_stream_data(answer, event.data, event.stream_ended)

    def close_session(self, session, code, reason):
        body = struct.pack(">I", code) + reason.encode()
        capsule = encode_uint_var(WT_CLOSE_SESSION) + encode_uint_var(len(body)) + body
        self.http.send_data(session, capsule, end_stream=True)


async def main(certificate, key):
    configuration = QuicConfiguration(
        alpn_protocols=H3_ALPN, is_client=False, max_datagram_frame_size=65536
    )
    configuration.load_cert_chain(certificate, key)
    server = await serve(
        "127.0.0.1", 0, configuration=configuration, create_protocol=Echo
    )
    port = server._transport.get_extra_info("sockname")[1]
    print(json.dumps({"port": port}), flush=True)
    # Until whoever started this goes away.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
