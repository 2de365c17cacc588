// The demo: one session at a time, everything a session can do, and the same as functions on
// `window.wavry` for automation.

import { Plot } from "./plot.js";

const $ = (id) => document.getElementById(id);
const encoder = new TextEncoder();
const decoder = new TextDecoder();

const PING_INTERVAL_MS = 100;
const PING_LOST_MS = 3_000;
const MEASURE_MS = 3_000;
const CHUNK = encoder.encode(`${"0".repeat(63)}\n`.repeat(1024));
const MAX_LOG = 400;
const MAX_SHOWN = 200;

const plot = new Plot($("plot"));
let config = { gateway: "", certificate_hashes: [], services: [] };
let live = null;

function log(text, bad = false) {
  const line = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = new Date().toISOString().slice(11, 23);
  const message = document.createElement("span");
  message.textContent = text;
  message.className = bad ? "bad" : "";
  line.append(time, message);
  const list = $("log");
  const atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 8;
  list.append(line);
  while (list.childElementCount > MAX_LOG) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function show(state, text) {
  $("state").dataset.state = state;
  $("state").textContent = text;
  for (const control of document.querySelectorAll("[data-live]")) {
    control.disabled = state !== "live";
  }
}

const shorten = (text) => (text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text);
const milliseconds = (value) => (value === undefined ? "–" : `${value.toFixed(2)} ms`);
const rate = (value) => (value === null ? "–" : `${(value / 1e6).toFixed(1)} MB/s`);
const fromHex = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
const codeOf = (error) => error?.streamErrorCode ?? null;

function withDeadline(promise, ms, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Reads `/config.json` again: hashes and tokens change while the page is open. */
async function reload() {
  const answer = await fetch("config.json", { cache: "no-store" });
  if (!answer.ok) throw new Error(`config.json: status ${answer.status}`);
  config = await answer.json();
  return config;
}

class Live {
  constructor(transport) {
    this.transport = transport;
    this.over = false;
    this.streams = new Map();
    this.nextStream = 1;
    this.uniWaiters = [];
    this.datagramWaiters = [];
    this.pings = new Map();
    this.pinged = 0;
    this.lost = 0;
    const { datagrams } = transport;
    const writable = datagrams.createWritable ? datagrams.createWritable() : datagrams.writable;
    this.datagramWriter = writable.getWriter();
  }

  start() {
    for (const part of [this.readDatagrams(), this.readUni(), this.readBi(), this.ping(), this.pingStream()]) {
      part.catch((error) => this.tell(`stopped: ${error.message ?? error}`));
    }
  }

  /** Logs what went wrong, unless the session turns out to be over, which explains it. */
  tell(text) {
    setTimeout(() => this.over || log(text, true), 50);
  }

  async readDatagrams() {
    const reader = this.transport.datagrams.readable.getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const text = decoder.decode(value);
      const sentAt = this.pings.get(text);
      if (sentAt !== undefined) {
        this.pings.delete(text);
        plot.add("datagram", performance.now() - sentAt);
        continue;
      }
      const waiter = this.datagramWaiters.findIndex((w) => w.text === text);
      if (waiter >= 0) this.datagramWaiters.splice(waiter, 1)[0].resolve(text);
      log(`datagram ← ${shorten(text)}`);
    }
  }

  sendDatagram(text) {
    return this.datagramWriter.write(encoder.encode(text));
  }

  async ping() {
    while (!this.over) {
      const text = `${String(this.pinged++).padStart(19, "0")}\n`;
      const now = performance.now();
      this.pings.set(text, now);
      this.sendDatagram(text).catch(() => this.pings.delete(text));
      for (const [old, at] of this.pings) {
        if (now - at > PING_LOST_MS) {
          this.pings.delete(old);
          this.lost += 1;
        }
      }
      this.facts();
      await new Promise((resolve) => setTimeout(resolve, PING_INTERVAL_MS));
    }
  }

  async pingStream() {
    const stream = await this.transport.createBidirectionalStream();
    const writer = stream.writable.getWriter();
    const reader = stream.readable.getReader();
    for (let number = 0; !this.over; number += 1) {
      const line = encoder.encode(`${String(number).padStart(19, "0")}\n`);
      const start = performance.now();
      await writer.write(line);
      for (let missing = line.length; missing > 0; ) {
        const { value, done } = await reader.read();
        if (done) return;
        missing -= value.length;
      }
      plot.add("stream", performance.now() - start);
      await new Promise((resolve) => setTimeout(resolve, PING_INTERVAL_MS));
    }
  }

  facts() {
    const datagram = plot.percentiles("datagram");
    const stream = plot.percentiles("stream");
    $("datagram-p50").textContent = milliseconds(datagram.p50);
    $("datagram-p99").textContent = milliseconds(datagram.p99);
    $("stream-p50").textContent = milliseconds(stream.p50);
    $("stream-p99").textContent = milliseconds(stream.p99);
    $("datagram-lost").textContent = `${this.lost} of ${this.pinged}`;
  }

  /** Reads a stream to its end, tells of every chunk, and gives the whole text. */
  async drain(readable, label, entry) {
    const reader = readable.getReader();
    if (entry) entry.reader = reader;
    let text = "";
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const chunk = decoder.decode(value);
        text += chunk;
        entry?.received?.(text);
        log(`${label} ← ${shorten(chunk.trimEnd())}`);
      }
      log(`${label} ended`);
      return text;
    } catch (error) {
      this.tell(`${label} was reset with code ${codeOf(error) ?? "?"}`);
      throw error;
    } finally {
      if (entry) this.forget(entry);
    }
  }

  async readUni() {
    const reader = this.transport.incomingUnidirectionalStreams.getReader();
    for (let number = 1; ; number += 1) {
      const { value, done } = await reader.read();
      if (done) return;
      this.drain(value, `incoming uni ${number}`).then(
        (text) => {
          const waiter = this.uniWaiters.findIndex((w) => w.text === text);
          if (waiter >= 0) this.uniWaiters.splice(waiter, 1)[0].resolve(text);
        },
        () => {},
      );
    }
  }

  async readBi() {
    const reader = this.transport.incomingBidirectionalStreams.getReader();
    for (let number = 1; ; number += 1) {
      const { value, done } = await reader.read();
      if (done) return;
      this.drain(value.readable, `incoming bi ${number}`).catch(() => {});
      value.writable.close().catch(() => {});
    }
  }

  async open(kind) {
    const id = this.nextStream++;
    const label = `${kind} ${id}`;
    const bi = kind === "bi";
    const stream = bi
      ? await this.transport.createBidirectionalStream()
      : { writable: await this.transport.createUnidirectionalStream() };
    const entry = { id, label, writer: stream.writable.getWriter() };
    this.streams.set(id, entry);
    this.list(entry, bi);
    log(`${label} opened`);
    entry.writer.closed.then(
      () => bi || this.forget(entry),
      (error) => {
        this.tell(`${label} was stopped with code ${codeOf(error) ?? "?"}`);
        if (!bi) this.forget(entry);
      },
    );
    if (bi) {
      entry.whole = this.drain(stream.readable, label, entry);
      entry.whole.catch(() => {});
    }
    return entry;
  }

  async send(entry, text) {
    await entry.writer.write(encoder.encode(text));
    log(`${entry.label} → ${shorten(text.trimEnd())}`);
  }

  finish(entry) {
    return entry.writer.close();
  }

  reset(entry, code) {
    log(`${entry.label}: reset with code ${code}`);
    return entry.writer.abort(makeStreamError(code)).catch(() => {});
  }

  stop(entry, code) {
    log(`${entry.label}: stop with code ${code}`);
    return entry.reader?.cancel(makeStreamError(code)).catch(() => {});
  }

  list(entry, bi) {
    const item = document.createElement("li");
    const name = document.createElement("span");
    name.textContent = entry.label;
    entry.received = (text) => {
      name.textContent = `${entry.label}: ${shorten(text.trimEnd().split("\n").at(-1))}`;
    };
    const button = (text, action) => {
      const element = document.createElement("button");
      element.type = "button";
      element.textContent = text;
      element.setAttribute("aria-label", `${text} ${entry.label}`);
      element.addEventListener("click", () => attempt(action));
      return element;
    };
    const code = () => Number($("stream-code").value);
    item.append(
      name,
      button("Finish", () => this.finish(entry)),
      button("Reset", () => this.reset(entry, code())),
    );
    if (bi) item.append(button("Stop", () => this.stop(entry, code())));
    const option = document.createElement("option");
    option.value = String(entry.id);
    option.textContent = entry.label;
    entry.elements = [item, option];
    $("streams").append(item);
    $("target").append(option);
    $("target").value = option.value;
  }

  forget(entry) {
    this.streams.delete(entry.id);
    for (const element of entry.elements ?? []) element.remove();
  }

  end() {
    this.over = true;
    for (const entry of [...this.streams.values()]) this.forget(entry);
  }

  async measure(ms = MEASURE_MS) {
    const stream = await this.transport.createBidirectionalStream();
    const writer = stream.writable.getWriter();
    const start = performance.now();
    const up = (async () => {
      let bytes = 0;
      while (performance.now() - start < ms) {
        await writer.ready;
        await writer.write(CHUNK);
        bytes += CHUNK.length;
      }
      const seconds = (performance.now() - start) / 1000;
      await writer.close();
      return bytes / seconds;
    })();
    const down = (async () => {
      const reader = stream.readable.getReader();
      let bytes = 0;
      let last = start;
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        bytes += value.length;
        last = performance.now();
      }
      return bytes === 0 ? null : bytes / ((last - start) / 1000);
    })();
    const [upRate, downRate] = await Promise.all([up, down]);
    $("fact-up").textContent = rate(upRate);
    $("fact-down").textContent = rate(downRate);
    return { up_bytes_per_second: upRate, down_bytes_per_second: downRate };
  }
}

/** An error that resets or stops a stream with a code. Firefox and Chromium differ in how. */
function makeStreamError(code) {
  try {
    return new WebTransportError("demo", { source: "stream", streamErrorCode: code });
  } catch {
    return new WebTransportError({ message: "demo", streamErrorCode: code });
  }
}

/** Connects to a service by name or URL; resolves once the session is live. */
async function connect(service, options = {}) {
  if (live) await close(0, "another session");
  await reload();
  const known = config.services.find((candidate) => candidate.name === service);
  const url = known?.url ?? service;
  const protocols = options.protocols ?? known?.subprotocols ?? [];
  const shown = url.split("?")[0];
  log(`connecting to ${shown}`);
  show("idle", "connecting");
  plot.clear();
  const start = performance.now();
  const transport = new WebTransport(url, {
    serverCertificateHashes: config.certificate_hashes.map((hash) => ({
      algorithm: "sha-256",
      value: fromHex(hash),
    })),
    protocols,
  });
  const closed = transport.closed.then(
    (info) => ({ code: info.closeCode ?? 0, reason: info.reason ?? "" }),
    (error) => ({ error: String(error.message ?? error) }),
  );
  try {
    await transport.ready;
  } catch (error) {
    show("failed", "refused");
    log(`refused: ${error.message ?? error}`, true);
    throw error;
  }
  const connectMs = performance.now() - start;
  const session = new Live(transport);
  live = session;
  session.closed = closed.then((info) => {
    session.end();
    if (live === session) live = null;
    const text = info.error ? `lost: ${info.error}` : `${info.code} ${info.reason}`.trim();
    $("fact-close").textContent = text;
    log(`closed: ${text}`, Boolean(info.error));
    if (!live) show(info.error ? "failed" : "idle", info.error ? "lost" : "closed");
    return info;
  });
  show("live", `connected to ${known?.name ?? new URL(url).pathname}`);
  $("fact-connect").textContent = milliseconds(connectMs);
  $("fact-protocol").textContent = transport.protocol || "none";
  $("fact-datagram").textContent = `${transport.datagrams.maxDatagramSize} bytes`;
  $("fact-close").textContent = "–";
  log(`connected in ${connectMs.toFixed(1)} ms`);
  session.start();
  return {
    connect_ms: connectMs,
    protocol: transport.protocol ?? null,
    max_datagram_bytes: transport.datagrams.maxDatagramSize,
  };
}

function current() {
  if (!live) throw new Error("not connected");
  return live;
}

/** Closes the session; resolves with the code and reason that it ended with. */
async function close(code, reason) {
  const session = current();
  session.transport.close({ closeCode: code, reason });
  return session.closed;
}

const ECHO_MS = 10_000;

/** Sends text on a new bidirectional stream, ends it, and gives all that comes back. */
async function echoBi(text) {
  const session = current();
  const entry = await session.open("bi");
  await session.send(entry, text);
  await session.finish(entry);
  return withDeadline(entry.whole, ECHO_MS, "bidirectional stream");
}

/** Sends text on a new unidirectional stream and waits for one that comes back with the same. */
async function echoUni(text) {
  const session = current();
  const answer = new Promise((resolve) => session.uniWaiters.push({ text, resolve }));
  const entry = await session.open("uni");
  await session.send(entry, text);
  await session.finish(entry);
  return withDeadline(answer, ECHO_MS, "unidirectional stream");
}

/** Sends text as a datagram, again every 250 ms, until it comes back. */
async function echoDatagram(text) {
  const session = current();
  const answer = new Promise((resolve) => session.datagramWaiters.push({ text, resolve }));
  const again = setInterval(() => session.sendDatagram(text).catch(() => {}), 250);
  try {
    await session.sendDatagram(text);
    return await withDeadline(answer, ECHO_MS, "datagram");
  } finally {
    clearInterval(again);
  }
}

/** Sends a line and gives the code with which the service resets the stream. */
async function resetByService(line) {
  const session = current();
  const entry = await session.open("bi");
  await session.send(entry, line);
  try {
    await withDeadline(entry.whole, ECHO_MS, "reset");
    return null;
  } catch (error) {
    return codeOf(error);
  }
}

/** Opens a bidirectional stream, sends text and resets it with a code. */
async function resetStream(text, code) {
  const session = current();
  const entry = await session.open("bi");
  await session.send(entry, text);
  await session.reset(entry, code);
}

window.wavry = {
  reload,
  connect,
  close,
  echoBi,
  echoUni,
  echoDatagram,
  resetByService,
  resetStream,
  measure: (ms) => current().measure(ms),
  /** Resolves with `{code, reason}` or `{error}` when the session is over. */
  closed: () => current().closed,
  /** What the page shows: whether a session is live, and its round trips in milliseconds. */
  state: () => ({
    live: live !== null,
    datagram_rtt_ms: plot.percentiles("datagram"),
    stream_rtt_ms: plot.percentiles("stream"),
    config,
  }),
  transport: () => live?.transport ?? null,
};

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    log(String(error.message ?? error), true);
  }
}

function choose() {
  const service = config.services.find((candidate) => candidate.name === $("service").value);
  $("subprotocols").value = service?.subprotocols.join(", ") ?? "";
  $("about").textContent = service?.about ?? "";
}

$("service").addEventListener("change", choose);
$("connect-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const protocols = $("subprotocols").value.split(",").map((name) => name.trim()).filter(Boolean);
  attempt(() => connect($("service").value, { protocols }));
});
$("close-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => close(Number($("close-code").value), $("close-reason").value));
});
$("measure").addEventListener("click", () => attempt(() => current().measure()));
$("open-bi").addEventListener("click", () => attempt(() => current().open("bi")));
$("open-uni").addEventListener("click", () => attempt(() => current().open("uni")));
$("send-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    const session = current();
    const entry = session.streams.get(Number($("target").value));
    const text = $("text").value;
    if (entry) await session.send(entry, `${text}\n`);
    else {
      await session.sendDatagram(text);
      log(`datagram → ${shorten(text)}`);
    }
  });
});

show("idle", "not connected");
if (!("WebTransport" in window)) {
  show("failed", "this browser has no WebTransport");
}
attempt(async () => {
  await reload();
  for (const service of config.services) {
    const option = document.createElement("option");
    option.value = service.name;
    option.textContent = service.name;
    $("service").append(option);
  }
  choose();
  document.documentElement.dataset.ready = "true";
  log(`ready: ${config.services.length} services behind ${config.gateway}`);
});
