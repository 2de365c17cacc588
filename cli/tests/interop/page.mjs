// Every feature on a W3C WebTransport client: a browser's page or Deno. Gives what it sees, by the
// feature's name. It is sent into pages as text and so stands alone.
export async function interop({ base, hashes, silent, endless }) {
  const STEP_MS = 10_000;
  const SILENCE_MS = 2_000;
  // Where streams are known not to end, nothing is gained by waiting.
  const END_MS = endless ? 200 : 5_000;
  const encoder = new TextEncoder();
  const decoder = new TextDecoder();
  const long = "abcdefghijklmnopqrstuvwxyz".repeat(4_000).slice(0, 100_000);
  const hash = (hex) => Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));

  const session = async (path, options = {}) => {
    const transport = new WebTransport(`${base}/${path}`, {
      serverCertificateHashes: hashes.map((hex) => ({ algorithm: "sha-256", value: hash(hex) })),
      ...options,
    });
    transport.closed.catch(() => {});
    await transport.ready;
    return transport;
  };
  const late = (ms, value) => new Promise((resolve) => setTimeout(resolve, ms, value));
  const leave = (transport) => {
    transport.close();
    // Deno's `closed` stays open now and then.
    return Promise.race([transport.closed.catch(() => {}), late(SILENCE_MS)]);
  };
  const next = async (incoming) => {
    const reader = incoming.getReader();
    const { value } = await reader.read();
    reader.releaseLock();
    return value;
  };
  /** A stream's text to its end; without an end, as far as it comes. */
  const toEnd = async (readable, length = Infinity) => {
    const reader = readable.getReader();
    let text = "";
    for (;;) {
      const read = reader.read();
      const whole = text.length === length ? late(END_MS, {}) : read;
      const { value, done } = await Promise.race([read, whole]);
      if (!value) return done ? text : `${text} without an end`;
      text += decoder.decode(value, { stream: true });
    }
  };
  const say = async (writable, text) => {
    const writer = writable.getWriter();
    await writer.write(encoder.encode(text));
    await writer.close();
  };
  const echoes = async (transport) => {
    const stream = await transport.createBidirectionalStream();
    const back = toEnd(stream.readable, long.length);
    await say(stream.writable, long);
    return (await back).replace(long, "echo");
  };
  const seen = async (transport) => toEnd(await next(transport.incomingUnidirectionalStreams));
  const within = async (path, act, options) => {
    const transport = await session(path, options);
    const result = await act(transport);
    await leave(transport);
    return result;
  };
  const error = (code) => {
    try {
      return new WebTransportError("test", { source: "stream", streamErrorCode: code });
    } catch {
      return new WebTransportError({ message: "test", streamErrorCode: code });
    }
  };
  const code = (caught) => caught?.streamErrorCode ?? "an error without a code";
  /** A stream on which this side has written. */
  const write = async (transport) => {
    const stream = await transport.createBidirectionalStream();
    const writer = stream.writable.getWriter();
    await writer.write(encoder.encode("x"));
    return { writer, reader: stream.readable.getReader() };
  };
  /** A stream on which both sides have written. */
  const talk = async (transport) => {
    const stream = await write(transport);
    await stream.reader.read();
    return stream;
  };
  const refused = (status) => async () => {
    try {
      await leave(await session(`status/${status}`));
      return "connected";
    } catch {
      return "refused";
    }
  };

  const features = {
    connect: () => within("echo", () => "connected"),
    "status/403": refused(403),
    "status/404": refused(404),
    "status/429": refused(429),
    "status/431": refused(431),
    subprotocol: () =>
      within("subprotocol", ({ protocol }) => protocol ?? "no such attribute", {
        protocols: ["first", "last"],
      }),
    "bi by client": () => within("echo/bi", echoes),
    "bi by service": () =>
      within("open/bi", async (transport) => {
        const { readable, writable } = await next(transport.incomingBidirectionalStreams);
        const text = await toEnd(readable);
        await say(writable, "a client");
        await seen(transport);
        return text;
      }),
    "uni by client": () =>
      within("hear/uni", async (transport) => {
        await say(await transport.createUnidirectionalStream(), "a client");
        return seen(transport);
      }),
    "uni by service": () => within("open/uni", seen),
    datagrams: () =>
      within("echo/datagram", async ({ datagrams }) => {
        const writable = datagrams.createWritable ? datagrams.createWritable() : datagrams.writable;
        const writer = writable.getWriter();
        const send = () => writer.write(encoder.encode("a datagram")).catch(() => {});
        send();
        const again = setInterval(send, 100);
        const { value } = await datagrams.readable.getReader().read();
        clearInterval(again);
        return decoder.decode(value);
      }),
    "reset by client": () =>
      within("observe/reset", async (transport) => {
        const { writer } = await talk(transport);
        writer.abort(error(33)).catch(() => {});
        return seen(transport);
      }),
    "reset by service": () =>
      within("reset/33", async (transport) => {
        const { reader } = await write(transport);
        const closed = reader.closed.then(() => "an end", code);
        const seen = await Promise.race([closed, late(SILENCE_MS)]);
        // Deno looks at a stream only while it is read.
        return seen ?? reader.read().then(() => "nothing came", code);
      }),
    "stop by client": () =>
      within("observe/stop", async (transport) => {
        const { reader } = await talk(transport);
        reader.cancel(error(44)).catch(() => {});
        return seen(transport);
      }),
    // Chromium's network process tells the renderer of the code and closes the pipe of the data, and
    // whichever the renderer sees first wins: then the same error comes without its code.
    "stop by service": () =>
      within("stop/44", async (transport) => {
        for (let tries = 0; ; tries += 1) {
          const { writer } = await write(transport);
          const stopped = writer.closed.then(() => "an end", code);
          const seen = await Promise.race([stopped, late(SILENCE_MS)]);
          // Deno looks at a stream only when it is written.
          if (!seen) return writer.write(encoder.encode("x")).then(() => "nothing came", code);
          if (seen !== "an error without a code" || tries === 30) return seen;
        }
      }),
    "close by client": async () => {
      const transport = await session("closed");
      transport.close({ closeCode: 4242, reason: "done" });
      await transport.closed.catch(() => {});
      return "closed here";
    },
    "close by service": async () => {
      const transport = await session("close/4242/done");
      // The close may overtake the stream's own end.
      say(await transport.createUnidirectionalStream(), "a client").catch(() => {});
      const { closeCode, reason } = await transport.closed;
      return [closeCode, reason];
    },
    "drain by client": () => "no such call",
    "drain by service": () =>
      within("drain", async (transport) => {
        await talk(transport);
        const told = transport.draining?.then(() => "told") ?? "no such call";
        return [await Promise.race([told, late(SILENCE_MS, "not told")]), await echoes(transport)];
      }),
    "two sessions": async () => {
      const [first, second] = [await session("two/a"), await session("two/b")];
      const [here, there] = [await seen(first), await seen(second)];
      const both = [await echoes(first), await echoes(second)];
      await leave(first);
      const after = await echoes(second);
      await leave(second);
      return here === there ? [...both, after] : ["on two connections", ...both, after];
    },
  };
  const report = {};
  for (const [name, feature] of Object.entries(features)) {
    const shown = Promise.resolve()
      .then(feature)
      .catch((caught) => `${caught.name}: ${caught.message}`);
    const limit = silent.includes(name) ? SILENCE_MS : STEP_MS;
    report[name] = await Promise.race([shown, late(limit, "nothing came")]);
  }
  return report;
}
