"""WebTransport sessions on aioquic: what its HTTP/3 layer leaves to the application.

aioquic frames streams, datagrams and requests. Capsules, the mapping of application codes, resets and
stops are done here; answers on a bidirectional stream that this side opened are registered with it.
Its own SETTINGS speak of draft-02 alone, which knows one session on a connection; the setting of
draft-07, which counts them, is added.
"""

import asyncio
import struct

from aioquic.asyncio import QuicConnectionProtocol
from aioquic.buffer import Buffer, BufferReadError, encode_uint_var
from aioquic.h3.connection import FrameType, H3Connection, H3Stream
from aioquic.h3.events import (
    DataReceived,
    DatagramReceived,
    HeadersReceived,
    WebTransportStreamDataReceived,
)
from aioquic.quic.connection import stream_is_unidirectional
from aioquic.quic.events import (
    ConnectionTerminated,
    ProtocolNegotiated,
    StopSendingReceived,
    StreamReset,
)

CLOSE, DRAIN = 0x2843, 0x78AE
MAX_SESSIONS_DRAFT07 = 0xC671706A
FIRST = 0x52E4A40FA8DB


def to_h3(code):
    return FIRST + code + code // 0x1E


def from_h3(code):
    shifted = code - FIRST
    return shifted - shifted // 0x1F


class Http(H3Connection):
    def _get_local_settings(self):
        return {**super()._get_local_settings(), MAX_SESSIONS_DRAFT07: 16}


class Stream:
    """One stream of a session, with what came on it."""

    def __init__(self, protocol, number):
        self.protocol, self.number = protocol, number
        self.chunks = asyncio.Queue()
        self.answer = None
        self.stopped = asyncio.get_running_loop().create_future()

    def write(self, data, end=False):
        self.protocol._quic.send_stream_data(self.number, data, end)
        self.protocol.transmit()

    def reset(self, code):
        self.protocol._quic.reset_stream(self.number, to_h3(code))
        self.protocol.transmit()

    def stop(self, code):
        self.protocol._quic.stop_stream(self.number, to_h3(code))
        self.protocol.transmit()

    def echo_to(self, answer):
        """Sends what comes on this stream on another, at once and until it ends."""
        self.answer = answer
        while not self.chunks.empty():
            self.received(self.chunks.get_nowait())
        self.protocol.transmit()

    def received(self, chunk):
        if self.answer is None:
            self.chunks.put_nowait(chunk)
        elif isinstance(chunk, bytes):
            quic = self.protocol._quic
            quic.send_stream_data(self.answer.number, chunk, end_stream=not chunk)

    async def read(self):
        """The next chunk; empty at the end; the code of a reset."""
        return await self.chunks.get()

    async def to_end(self):
        """The text to the end, or the code of a reset."""
        text = b""
        while True:
            chunk = await self.read()
            if isinstance(chunk, int):
                return chunk
            if not chunk:
                return text.decode()
            text += chunk


class Session:
    """One session of a connection."""

    def __init__(self, protocol, number):
        self.protocol, self.number = protocol, number
        self.streams = {}
        self.bi, self.uni = asyncio.Queue(), asyncio.Queue()
        self.datagrams = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.draining, self.closed = loop.create_future(), loop.create_future()
        self.capsules = b""

    def stream(self, number):
        if number not in self.streams:
            self.streams[number] = Stream(self.protocol, number)
        return self.streams[number]

    async def open(self, uni=False):
        number = self.protocol.http.create_webtransport_stream(self.number, uni)
        if not uni:
            stream = H3Stream(number)
            stream.frame_type = FrameType.WEBTRANSPORT_STREAM
            stream.session_id = self.number
            self.protocol.http._stream[number] = stream
        return self.stream(number)

    async def say(self, text):
        (await self.open(uni=True)).write(text, end=True)

    def send_datagram(self, data):
        self.protocol.http.send_datagram(self.number, data)
        self.protocol.transmit()

    def drain(self):
        self.send_capsule(DRAIN, b"")

    def close(self, code, reason):
        self.send_capsule(CLOSE, struct.pack(">I", code) + reason.encode(), end=True)

    def send_capsule(self, kind, body, end=False):
        capsule = encode_uint_var(kind) + encode_uint_var(len(body)) + body
        self.protocol.http.send_data(self.number, capsule, end_stream=end)
        self.protocol.transmit()

    def end(self, how):
        if not self.closed.done():
            self.closed.set_result(how)

    def data_received(self, data, ended):
        self.capsules += data
        while self.capsules:
            buffer = Buffer(data=self.capsules)
            try:
                kind, length = buffer.pull_uint_var(), buffer.pull_uint_var()
                body = buffer.pull_bytes(length)
            except BufferReadError:
                break
            self.capsules = self.capsules[buffer.tell() :]
            if kind == DRAIN and not self.draining.done():
                self.draining.set_result(True)
            elif kind == CLOSE and not self.closed.done():
                self.end([struct.unpack(">I", body[:4])[0], body[4:].decode()])
                self.protocol.http.send_data(self.number, b"", end_stream=True)
        if ended:
            self.end([0, ""])


class Protocol(QuicConnectionProtocol):
    """A connection with its sessions."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = None
        self.sessions = {}

    def requested(self, stream, headers):
        """A request came."""

    def answered(self, stream, headers):
        """An answer came."""

    def quic_event_received(self, event):
        if isinstance(event, ProtocolNegotiated):
            self.http = Http(self._quic, enable_webtransport=True)
        elif isinstance(event, ConnectionTerminated):
            for session in self.sessions.values():
                session.end("lost")
        elif isinstance(event, StreamReset):
            if session := self.sessions.get(event.stream_id):
                session.end("lost")
            for stream in self.streams_of(event.stream_id):
                stream.received(from_h3(event.error_code))
        elif isinstance(event, StopSendingReceived):
            for stream in self.streams_of(event.stream_id):
                if not stream.stopped.done():
                    stream.stopped.set_result(from_h3(event.error_code))
        if self.http is not None:
            for http_event in self.http.handle_event(event):
                self.http_event_received(http_event)
        self.transmit()

    def streams_of(self, number):
        return [s.streams[number] for s in self.sessions.values() if number in s.streams]

    def http_event_received(self, event):
        if isinstance(event, HeadersReceived):
            headers = {name.decode(): value.decode() for name, value in event.headers}
            if ":status" in headers:
                self.answered(event.stream_id, headers)
            else:
                self.requested(event.stream_id, headers)
        elif isinstance(event, DataReceived):
            if session := self.sessions.get(event.stream_id):
                session.data_received(event.data, event.stream_ended)
        elif isinstance(event, DatagramReceived):
            if session := self.sessions.get(event.stream_id):
                session.datagrams.put_nowait(event.data)
        elif isinstance(event, WebTransportStreamDataReceived):
            if session := self.sessions.get(event.session_id):
                number = event.stream_id
                known = number in session.streams
                stream = session.stream(number)
                if event.data:
                    stream.received(event.data)
                if event.stream_ended:
                    stream.received(b"")
                if not known:
                    uni = stream_is_unidirectional(number)
                    (session.uni if uni else session.bi).put_nowait(stream)
