// Drives a real browser against a running system and prints what it saw as one JSON object.
//
//   node run.mjs chromium|firefox demo READY_FILE      the demo page of `wavry dev`
//   node run.mjs chromium|firefox session SPEC_FILE    one session to {"url", "certificate_hashes"}
//   node run.mjs chromium|firefox tokens SPEC_FILE     what {"urls", "certificate_hashes"} end with
//   node run.mjs chromium|firefox interop SPEC         every feature of ../interop/page.mjs
//
// Every check is by name in `checks`; one that does not hold ends the run with exit code 1 and a
// word on standard error. WAVRY_PEERS is the directory that scripts/test.sh installs puppeteer in.

import { X509Certificate, createHash } from "node:crypto";
import { createRequire } from "node:module";
import { createServer } from "node:http";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { interop as features } from "../interop/page.mjs";

const [browserName, mode, file] = process.argv.slice(2);
const puppeteer = createRequire(join(process.env.WAVRY_PEERS, "package.json"))("puppeteer-core");

const EXECUTABLES = {
  chromium: ["/usr/bin/chromium", "/usr/bin/google-chrome"],
  firefox: ["/usr/bin/firefox-esr", "/usr/bin/firefox"],
};
// Nothing is fetched from the browser makers' hosts.
const CHROMIUM_FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const FIREFOX_PREFERENCES = {
  "app.update.enabled": false,
  "browser.newtabpage.enabled": false,
  "datareporting.policy.dataSubmissionEnabled": false,
  "extensions.getAddons.cache.enabled": false,
  "network.captive-portal-service.enabled": false,
  "network.connectivity-service.enabled": false,
  "services.settings.server": "http://127.0.0.1:9/",
  "toolkit.telemetry.enabled": false,
};
const STEP_MS = 20_000;

const checks = {};

function fail(message) {
  throw new Error(message);
}

function check(name, value, expected) {
  checks[name] = value;
  if (JSON.stringify(value) !== JSON.stringify(expected)) {
    fail(`${name}: expected ${JSON.stringify(expected)}, saw ${JSON.stringify(value)}`);
  }
}

function holds(name, value, condition) {
  checks[name] = value;
  if (!condition) fail(`${name}: saw ${JSON.stringify(value)}`);
}

async function step(name, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing within ${STEP_MS} ms`)), STEP_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } catch (error) {
    throw new Error(`${name}: ${error.message}`);
  } finally {
    clearTimeout(timer);
  }
}

/** What has a browser ask an origin over HTTP/3 at once, and trust the certificate there. */
function overHttp3({ base, certificate }) {
  const { host, hostname, port } = new URL(base);
  const spki = new X509Certificate(readFileSync(certificate)).publicKey.export({ type: "spki", format: "der" });
  const pin = createHash("sha256").update(spki).digest("base64");
  return {
    flags: [`--origin-to-force-quic-on=${host}`, `--ignore-certificate-errors-spki-list=${pin}`],
    preferences: {
      "network.http.http3.alt-svc-mapping-for-testing": `${hostname};h3=:${port}`,
      "network.http.http3.force-use-alt-svc-mapping-for-testing": true,
      "network.http.http3.disable_when_third_party_roots_found": false,
    },
  };
}

async function launch(profile, { flags = [], preferences = {} } = {}) {
  const executablePath = (EXECUTABLES[browserName] ?? fail(`no browser ${browserName}`)).find(existsSync);
  if (!executablePath) fail(`${browserName} is not installed: run ./scripts/test.sh`);
  const common = { executablePath, headless: true, timeout: 60_000 };
  return browserName === "chromium"
    ? puppeteer.launch({ ...common, browser: "chrome", userDataDir: profile, args: [...CHROMIUM_FLAGS, ...flags] })
    : puppeteer.launch({ ...common, browser: "firefox", extraPrefsFirefox: { ...FIREFOX_PREFERENCES, ...preferences }, acceptInsecureCerts: flags.length > 0 });
}

/** A page of another origin, on loopback and so a secure context. */
async function foreignPage(browser) {
  const server = createServer((_, answer) => {
    answer.setHeader("content-type", "text/html; charset=utf-8");
    answer.end("<!doctype html><html lang=en><link rel=icon href=data:,><title>elsewhere</title>");
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  server.unref();
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  return page;
}

/** Errors that the page's own console shows, and exceptions that nobody caught. */
function watch(page) {
  const errors = [];
  page.on("console", (message) => {
    if (message.type() === "error") errors.push(message.text());
  });
  page.on("pageerror", (error) => errors.push(String(error)));
  return errors;
}

/** Opens a session from a page and says whether that was refused. */
function refused(page, url, hashes) {
  return page.evaluate(
    async (url, hashes) => {
      const value = (hex) => Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
      const transport = new WebTransport(url, {
        serverCertificateHashes: hashes.map((hash) => ({ algorithm: "sha-256", value: value(hash) })),
      });
      transport.closed.catch(() => {});
      try {
        await transport.ready;
        transport.close();
        return false;
      } catch {
        return true;
      }
    },
    url,
    hashes,
  );
}

async function demo(browser, ready) {
  const page = await browser.newPage();
  const errors = watch(page);
  await step("the page loads", page.goto(ready.demo));
  await step("the page is ready", page.waitForSelector("html[data-ready=true]"));
  const session = (name, ...args) =>
    step(name, page.evaluate((name, args) => window.wavry[name](...args), name, args));

  // As a visitor does it: by the button.
  await page.select("#service", "echo");
  await page.click("#connect");
  await step("the page is connected", page.waitForSelector("#state[data-state=live]"));
  check("bidirectional", await session("echoBi", "there and back"), "there and back");
  check("unidirectional", await session("echoUni", "and on a new one"), "and on a new one");
  check("datagram", await session("echoDatagram", "perhaps"), "perhaps");
  const large = "0123456789abcdef".repeat(65_536);
  check("a_megabyte_is_exact", (await session("echoBi", large)) === large, true);

  // What this side does to a stream, the echo does to its other half. Firefox tells a page of a
  // reset without its code, and of a stop not at all.
  const codes = await step("codes", page.evaluate(async () => {
    const error = (code) => {
      try {
        return new WebTransportError("test", { source: "stream", streamErrorCode: code });
      } catch {
        return new WebTransportError({ message: "test", streamErrorCode: code });
      }
    };
    const open = async () => {
      const stream = await window.wavry.transport().createBidirectionalStream();
      const writer = stream.writable.getWriter();
      const reader = stream.readable.getReader();
      await writer.write(new Uint8Array([1]));
      await reader.read();
      return { writer, reader };
    };
    const code = (seen) => seen.streamErrorCode ?? "an error without a code";
    const soon = (promise) =>
      Promise.race([promise, new Promise((resolve) => setTimeout(resolve, 3_000, "nothing"))]);
    const reset = await open();
    const wasReset = reset.reader.closed.then(() => "an end", code);
    reset.writer.abort(error(77)).catch(() => {});
    // Chromium's network process tells the renderer of the code and closes the pipe of the data, and
    // whichever the renderer sees first wins: then the same error comes without its code.
    const stops = new Set();
    for (let tries = 0; tries < 30 && !stops.has(88); tries += 1) {
      const stop = await open();
      const wasStopped = stop.writer.closed.then(() => "an end", code);
      stop.reader.cancel(error(88)).catch(() => {});
      stops.add(await soon(wasStopped));
      if (stops.has("nothing")) break;
    }
    return { reset: await soon(wasReset), stops: [...stops] };
  }));
  const firefox = browserName === "firefox";
  check("reset_code_comes_back", codes.reset, firefox ? "an error without a code" : 77);
  const uncoded = codes.stops.filter((seen) => seen !== "an error without a code");
  check("stop_code_comes_back", uncoded, [firefox ? "nothing" : 88]);

  const rates = await session("measure", 500);
  holds("throughput_up", rates.up_bytes_per_second, rates.up_bytes_per_second > 0);
  holds("throughput_down", rates.down_bytes_per_second, rates.down_bytes_per_second > 0);
  // A loop of the page's own: puppeteer's way of waiting fails now and then in a busy Firefox.
  await step("round trips are shown", page.evaluate(async () => {
    const shown = ({ datagram_rtt_ms, stream_rtt_ms }) => datagram_rtt_ms.p50 > 0 && stream_rtt_ms.p50 > 0;
    while (!shown(window.wavry.state())) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }));
  const state = await session("state");
  checks.datagram_rtt_ms = state.datagram_rtt_ms;
  checks.stream_rtt_ms = state.stream_rtt_ms;
  check("client_close", await session("close", 4242, "done"), { code: 4242, reason: "done" });

  // A service that is a process of its own, with a token, a subprotocol and a mind of its own.
  const sample = await session("connect", "sample");
  const knows = await page.evaluate(() => "protocol" in WebTransport.prototype);
  check("subprotocol", sample.protocol, knows ? "wavry-clock.v1" : null);
  checks.max_datagram_bytes = sample.max_datagram_bytes;
  check("sample_answers", await session("echoBi", "loud\n"), "LOUD\n");
  check("service_reset_code", await session("resetByService", "reset 33\n"), firefox ? null : 33);
  const closed = page.evaluate(() => window.wavry.closed());
  session("echoBi", "close 7 enough\n").catch(() => {});
  check("service_close", await step("service_close", closed), { code: 7, reason: "enough" });

  check("console_errors", [...errors], []);

  // From here on the browser itself writes errors to the console, as it should.
  const hashes = ready.certificate_hashes;
  const echo = ready.services.echo;
  const unknown = new URL("/nobody-has-this", ready.gateway).href;
  check("unknown_service_refused", await step("unknown", refused(page, unknown, hashes)), true);
  const tokenless = new URL("/sample", ready.gateway).href;
  check("missing_token_refused", await step("tokenless", refused(page, tokenless, hashes)), true);
  const foreign = await foreignPage(browser);
  check("foreign_origin_refused", await step("foreign", refused(foreign, echo, hashes)), true);
  check("own_origin_refused", await step("own", refused(page, echo, hashes)), false);
}

async function session(browser, spec) {
  const page = await foreignPage(browser);
  const errors = watch(page);
  const seen = await step("session", page.evaluate(async ({ url, certificate_hashes }) => {
    const value = (hex) => Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
    const transport = new WebTransport(url, {
      serverCertificateHashes: certificate_hashes.map((hash) => ({
        algorithm: "sha-256",
        value: value(hash),
      })),
    });
    await transport.ready;
    const encoder = new TextEncoder();
    const decoder = new TextDecoder();
    const whole = async (readable) => {
      const reader = readable.getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return text;
        text += decoder.decode(value, { stream: true });
      }
    };
    const bidirectional = async (text) => {
      const stream = await transport.createBidirectionalStream();
      const writer = stream.writable.getWriter();
      const answer = whole(stream.readable);
      // Where there are no streams, the writer fails as well, and one of them tells.
      answer.catch(() => {});
      await writer.write(encoder.encode(text));
      await writer.close();
      return answer;
    };
    const datagram = async (text) => {
      const { datagrams } = transport;
      const writable = datagrams.createWritable ? datagrams.createWritable() : datagrams.writable;
      const writer = writable.getWriter();
      const reader = datagrams.readable.getReader();
      const send = () => writer.write(encoder.encode(text)).catch(() => {});
      const again = setInterval(send, 250);
      send();
      const { value } = await reader.read();
      clearInterval(again);
      return decoder.decode(value);
    };
    const attempt = (promise) => {
      const late = new Promise((resolve) => setTimeout(resolve, 5_000, null));
      return Promise.race([promise.catch((error) => `failed: ${error.message}`), late]);
    };
    const seen = {
      bidirectional: await attempt(bidirectional("a line of text\n")),
      datagram: await attempt(datagram("a datagram")),
    };
    transport.close({ closeCode: 9, reason: "enough" });
    return seen;
  }, spec));
  Object.assign(checks, seen);
  check("console_errors", errors, []);
}

/** What sessions that are opened one after the other are closed with; the first stays open. */
async function tokens(browser, { urls, certificate_hashes }) {
  const page = await foreignPage(browser);
  checks.closed = await step("tokens", page.evaluate(async (urls, hashes) => {
    const value = (hex) => Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
    const open = (url) => new WebTransport(url, {
      serverCertificateHashes: hashes.map((hash) => ({ algorithm: "sha-256", value: value(hash) })),
    });
    const live = open(urls[0]);
    await live.ready;
    const seen = [];
    for (const url of urls.slice(1)) {
      const told = open(url);
      await told.ready;
      const { closeCode, reason } = await told.closed;
      seen.push([closeCode, reason]);
    }
    const stream = await live.createBidirectionalStream();
    const writer = stream.writable.getWriter();
    await writer.write(new Uint8Array([7]));
    const back = await stream.readable.getReader().read();
    live.close();
    return [...seen, back.value[0]];
  }, urls, certificate_hashes));
}

/** What a page sees of every feature; nothing else is printed. */
async function interop(browser, spec) {
  const page = await foreignPage(browser);
  report = await page.evaluate(features, spec);
  report.get = await get(browser, page, spec);
}

/** The status of a GET while a session lives. Only HTTP/3 is served there. */
async function get(browser, page, { base, hashes }) {
  await page.evaluate(async (url, hashes) => {
    const value = (hex) => Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
    window.transport = new WebTransport(url, {
      serverCertificateHashes: hashes.map((hash) => ({ algorithm: "sha-256", value: value(hash) })),
    });
    await window.transport.ready;
  }, `${base}/echo/get`, hashes);
  const url = `${base}/nothing-here`;
  const answered = new Promise((resolve) => {
    page.on("response", (response) => {
      if (response.url() === url) resolve(response.status());
    });
    page.on("requestfailed", (request) => {
      if (request.url() === url) resolve(request.failure()?.errorText ?? "failed");
    });
  });
  await page.evaluate((url) => fetch(url, { mode: "no-cors" }).then(() => {}, () => {}), url);
  const status = await step("get", answered);
  const beside = await page.evaluate(async () => {
    const stream = await window.transport.createBidirectionalStream();
    const writer = stream.writable.getWriter();
    await writer.write(new Uint8Array([1]));
    const { value } = await stream.readable.getReader().read();
    window.transport.close();
    return value[0] === 1 ? "echo" : "another byte";
  });
  return [status, beside];
}

const profile = mkdtempSync(join(tmpdir(), "wavry-browser-"));
const modes = { demo, session, tokens, interop };
let browser;
let problem;
let report;
try {
  const input = JSON.parse(mode === "interop" ? file : readFileSync(file, "utf8"));
  browser = await launch(profile, mode === "interop" ? overHttp3(input) : {});
  await (modes[mode] ?? fail(`no mode ${mode}`))(browser, input);
} catch (error) {
  problem = error;
} finally {
  await browser?.close().catch(() => {});
  rmSync(profile, { recursive: true, force: true, maxRetries: 3 });
}
console.log(JSON.stringify(report ?? { browser: browserName, checks }));
if (problem) {
  console.error(`${browserName}: ${problem.message}`);
  process.exitCode = 1;
}
