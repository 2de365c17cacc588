// Round trips over the last half minute, on a logarithmic scale: loopback and an ocean both fit.

const WINDOW_MS = 30_000;
const MAX_POINTS = 2_000;

export class Plot {
  #canvas;
  #series = new Map();
  #scheduled = false;

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.#schedule()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#schedule());
  }

  /** Adds a sample, in milliseconds, to a series named after its colour in the style sheet. */
  add(name, ms) {
    const points = this.#series.get(name) ?? [];
    this.#series.set(name, points);
    points.push({ at: performance.now(), ms });
    if (points.length > MAX_POINTS) points.shift();
    this.#schedule();
  }

  clear() {
    this.#series.clear();
    this.#schedule();
  }

  /** Percentiles of a series' window in milliseconds; undefined while there is no sample. */
  percentiles(name) {
    const from = performance.now() - WINDOW_MS;
    const sorted = (this.#series.get(name) ?? [])
      .filter((point) => point.at >= from)
      .map((point) => point.ms)
      .sort((a, b) => a - b);
    const rank = (percent) => sorted[Math.max(0, Math.ceil((sorted.length * percent) / 100) - 1)];
    return { p50: rank(50), p99: rank(99) };
  }

  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
    });
  }

  #draw() {
    const canvas = this.#canvas;
    const scale = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);

    // Custom properties do not resolve light-dark(); a real property does.
    const style = getComputedStyle(canvas);
    const colour = (property) => {
      canvas.style.color = `var(--${property})`;
      return style.color;
    };
    const left = 52;
    const bottom = height - 8;
    const top = 8;
    const lowest = -1.3;
    const highest = 3.3;
    const y = (ms) => {
      const exponent = Math.log10(Math.max(ms, 0.05));
      return bottom - ((exponent - lowest) / (highest - lowest)) * (bottom - top);
    };

    context.font = "12px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    const lineColour = colour("line");
    const textColour = colour("quiet");
    for (const ms of [0.1, 1, 10, 100, 1000]) {
      context.strokeStyle = lineColour;
      context.beginPath();
      context.moveTo(left, y(ms));
      context.lineTo(width, y(ms));
      context.stroke();
      context.fillStyle = textColour;
      context.fillText(ms < 1000 ? `${ms} ms` : "1 s", left - 6, y(ms));
    }

    const now = performance.now();
    for (const [name, points] of this.#series) {
      context.fillStyle = colour(name);
      for (const { at, ms } of points) {
        const x = width - ((now - at) / WINDOW_MS) * (width - left);
        if (x < left) continue;
        if (name === "stream") {
          context.fillRect(x - 2, y(ms) - 2, 4, 4);
        } else {
          context.beginPath();
          context.arc(x, y(ms), 2, 0, 2 * Math.PI);
          context.fill();
        }
      }
    }
  }
}
