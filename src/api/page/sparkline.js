// A figure over the last two minutes, as a line.

const SPAN_MS = 120_000;
const WIDTH = 300;
const HEIGHT = 56;
/** A longer silence is a gap in the line: nobody looked, or the server was unavailable. */
const GAP_MS = 3_500;

const shape = (name, attributes) => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

export class Sparkline {
  points = [];

  /** A line of `label`, in words such as "Decisions a second", whose values `format` writes. */
  constructor(place, label, format) {
    Object.assign(this, { label, format });
    this.svg = shape('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img' });
    this.area = shape('path', { class: 'area' });
    this.line = shape('path', { class: 'line' });
    this.svg.append(this.area, this.line);
    place.replaceChildren(this.svg);
    this.#describe();
  }

  peak() {
    return Math.max(...this.points.map(({ value }) => value));
  }

  /** Adds the value of now; null leaves a gap. */
  add(value) {
    const now = performance.now();
    if (value !== null) this.points.push({ at: now, value });
    this.points = this.points.filter(({ at }) => now - at <= SPAN_MS);
    this.#draw(now);
    this.#describe();
  }

  #describe() {
    const { label, format, points } = this;
    const values = points.map(({ value }) => value);
    const course = () => `now ${format(values.at(-1))}, between ${format(Math.min(...values))} and ${format(this.peak())}`;
    this.svg.setAttribute('aria-label', `${label} over the last two minutes: ${values.length > 0 ? course() : 'nothing yet'}.`);
  }

  #draw(now) {
    const top = Math.max(this.peak(), Number.MIN_VALUE);
    const runs = [];
    let before = -Infinity;
    for (const { at, value } of this.points) {
      if (at - before > GAP_MS) runs.push([]);
      before = at;
      const x = WIDTH * (1 - (now - at) / SPAN_MS);
      const y = HEIGHT - 2 - (HEIGHT - 4) * (value / top);
      runs.at(-1).push([x.toFixed(1), y.toFixed(1)]);
    }
    const path = (run) => `M${run.map((point) => point.join(' ')).join('L')}`;
    this.line.setAttribute('d', runs.map(path).join(''));
    this.area.setAttribute('d', runs.map((run) => `${path(run)}V${HEIGHT}H${run[0][0]}Z`).join(''));
  }
}
