// Small charts in SVG. Texts only ever become text nodes, and no style attribute is written: a strict policy allows it all.
"use strict";

const WIDTH = 460, HEIGHT = 236, LEFT = 50, RIGHT = 10, TOP = 10, BOTTOM = 34;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 4", "1 4"];
const MOST_MARKERS = 9;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const element = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const shape = (name, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

function shown(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (value !== 0 && (size < 0.001 || size >= 1e7)) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(size >= 100 ? 4 : 3)));
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let number = Math.ceil(low / step - 1e-9); number * step <= high + step * 1e-9; number++) found.push(number * step);
  return found.map((one) => Number(one.toPrecision(12)));
}

function range(values, given) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) if (known(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low > high) [low, high] = [0, 1];
  if (given) [low, high] = [given[0] ?? low, given[1] ?? high];
  if (high - low < 1e-12) [low, high] = [low - (Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)];
  return [low, high];
}

function frame(options, xs, ys) {
  const [x0, x1] = range(xs, options.xRange), [y0, y1] = range(ys, options.yRange);
  const x = (value) => LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
  const picture = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": options.label });
  const format = options.percent ? (value) => `${shown(value * 100)} %` : shown;
  for (const tick of ticks(y0, y1, 4)) {
    picture.append(shape("line", { class: "grid-line", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
    picture.append(shape("text", { x: LEFT - 5, y: y(tick) + 4, "text-anchor": "end", text: format(tick) }));
  }
  const places = options.names ? options.names.map((_, number) => number) : ticks(x0, x1, 6);
  const every = options.names ? Math.ceil(places.length / 8) : 1;
  for (const tick of places.filter((_, number) => number % every === 0))
    picture.append(shape("text", { x: x(tick), y: HEIGHT - BOTTOM + 15, "text-anchor": x(tick) > WIDTH - 26 ? "end" : "middle",
      text: options.names ? options.names[tick] : shown(tick) }));
  picture.append(shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end", text: options.xLabel || "step" }));
  picture.append(shape("path", { class: "axis", d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` }));
  return { picture, x, y, x0, x1, y0, y1, format };
}

function marker(kind, x, y, colour, size = 3.6) {
  const s = size;
  const paths = { "o": `M${x - s} ${y}a${s} ${s} 0 1 0 ${2 * s} 0a${s} ${s} 0 1 0 ${-2 * s} 0`, "s": `M${x - s} ${y - s}h${2 * s}v${2 * s}h${-2 * s}Z`,
    "^": `M${x} ${y - s}l${s} ${2 * s}h${-2 * s}Z`, "D": `M${x} ${y - s}l${s} ${s}l${-s} ${s}l${-s} ${-s}Z`,
    "v": `M${x} ${y + s}l${s} ${-2 * s}h${-2 * s}Z`, "P": `M${x - 1.3} ${y - s}h2.6v${s - 1.3}h${s - 1.3}v2.6h${1.3 - s}v${s - 1.3}h-2.6v${1.3 - s}h${1.3 - s}v-2.6h${s - 1.3}Z` };
  return shape("path", { d: paths[kind] || paths.o, fill: colour });
}

function path(xs, ys, x, y) {
  let drawn = "", open = false;
  xs.forEach((at, number) => {
    if (!known(ys[number]) || !known(at)) { open = false; return; }
    drawn += `${open ? "L" : "M"}${x(at).toFixed(1)} ${y(ys[number]).toFixed(1)}`;
    open = true;
  });
  return drawn;
}

function area(xs, lows, highs, x, y) {
  let drawn = "", start = 0;
  for (let number = 0; number <= xs.length; number++) {
    if (number < xs.length && known(lows[number]) && known(highs[number]) && known(xs[number])) continue;
    if (number - start > 1) {
      const places = [...Array(number - start).keys()].map((offset) => start + offset);
      const there = places.map((one) => `${x(xs[one]).toFixed(1)} ${y(highs[one]).toFixed(1)}`);
      const back = places.reverse().map((one) => `${x(xs[one]).toFixed(1)} ${y(lows[one]).toFixed(1)}`);
      drawn += `M${there.join("L")}L${back.join("L")}Z`;
    }
    start = number + 1;
  }
  return drawn;
}

function legend(entries) {
  return element("ul", { class: "legend" }, ...entries.map((entry) => element("li", {},
    shape("svg", { viewBox: "0 0 30 12" }, ...entry.swatch), element("span", { text: entry.name }))));
}

const tip = {
  show(event, lines) {
    const box = document.getElementById("tip");
    box.textContent = lines.join("\n");
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    box.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - width - 8))}px`;
    box.style.top = `${event.clientY + height + 24 > window.innerHeight ? event.clientY - height - 12 : event.clientY + 14}px`;
  },
  hide() { document.getElementById("tip").hidden = true; },
};

function onHover(plot, describe) {
  const cursor = shape("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  plot.picture.append(cursor);
  plot.picture.addEventListener("pointermove", (event) => {
    const box = plot.picture.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * WIDTH, y = (event.clientY - box.top) / box.height * HEIGHT;
    const at = plot.x0 + (x - LEFT) / (WIDTH - LEFT - RIGHT) * (plot.x1 - plot.x0);
    const found = x >= LEFT - 6 && x <= WIDTH - RIGHT + 6 ? describe(at, y) : null;
    cursor.setAttribute("visibility", found ? "visible" : "hidden");
    if (!found) return tip.hide();
    cursor.setAttribute("x1", plot.x(found.x));
    cursor.setAttribute("x2", plot.x(found.x));
    return tip.show(event, found.lines);
  });
  plot.picture.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); tip.hide(); });
}

function nearest(xs, at) {
  let best = -1;
  xs.forEach((x, number) => { if (known(x) && (best < 0 || Math.abs(x - at) < Math.abs(xs[best] - at))) best = number; });
  return best;
}

// lines: {name, colour, marker, dash, x, y, low, high, dots}; options: label, xLabel, xRange, yRange, percent, diagonal, names.
function lineChart(lines, options) {
  lines = lines.filter((line) => line.y.some(known));
  if (!lines.length) return element("p", { class: "quiet", text: options.empty || "The run has no such numbers." });
  const plot = frame(options, lines.flatMap((line) => line.x),
    lines.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]));
  const { picture, x, y } = plot;
  if (options.diagonal) picture.append(shape("line", { class: "diagonal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
  for (const line of lines) {
    if (line.low && !line.bars)
      picture.append(shape("path", { d: area(line.x, line.low, line.high, x, y), fill: line.colour, "fill-opacity": 0.18 }));
    if (line.bars) line.x.forEach((at, number) => {
      if (known(at) && known(line.low[number])) picture.append(shape("line", { x1: x(at), x2: x(at), y1: y(line.low[number]), y2: y(line.high[number]), stroke: line.colour }));
    });
    if (!line.dots) picture.append(shape("path", { d: path(line.x, line.y, x, y), fill: "none", stroke: line.colour, "stroke-width": 1.8, "stroke-dasharray": line.dash || null }));
    const places = [...line.y.keys()].filter((number) => known(line.y[number]) && known(line.x[number]));
    const every = line.dots || line.bars ? 1 : Math.max(1, Math.ceil(places.length / MOST_MARKERS));
    places.filter((_, number) => number % every === 0).forEach((number) =>
      picture.append(marker(line.marker, x(line.x[number]), y(line.y[number]), line.colour)));
  }
  onHover(plot, (at) => {
    const number = nearest(lines[0].x, at);
    if (number < 0) return null;
    const middle = lines[0].x[number];
    const texts = lines.map((line) => {
      const one = nearest(line.x, middle);
      const more = line.low && known(line.low[one]) ? `  (${plot.format(line.low[one])} to ${plot.format(line.high[one])})` : "";
      return `${line.name || options.label}: ${one < 0 ? "–" : plot.format(line.y[one])}${more}${line.sizes ? `, ${shown(line.sizes[one])} rollouts` : ""}`;
    });
    return { x: middle, lines: [`${options.xLabel || "step"} ${options.names ? options.names[middle] : shown(middle)}`, ...texts] };
  });
  const entries = lines.filter((line) => line.name).map((line) => ({ name: line.name, swatch: [
    line.dots ? null : shape("line", { x1: 0, x2: 30, y1: 6, y2: 6, stroke: line.colour, "stroke-width": 1.8, "stroke-dasharray": line.dash || null }),
    marker(line.marker, 15, 6, line.colour)].filter(Boolean) }));
  return element("div", {}, picture, lines.length > 1 ? legend(entries) : null);
}

function stackFill(options, number) {
  if (options.ordered) return { fill: options.colours[0], "fill-opacity": 1 - 0.85 * number / Math.max(1, options.categories.length - 1) };
  return options.categories[number] === options.rest ? { class: "others" } : { fill: options.colours[number % options.colours.length] };
}

// Shares or amounts on top of each other, one column per step. rows: one list per category.
function stackChart(xs, rows, options) {
  if (!xs.length || !rows.length || !rows.some((row) => row.some((value) => known(value) && value > 0)))
    return element("p", { class: "quiet", text: options.empty || "The run has no such numbers." });
  const totals = xs.map((_, place) => rows.reduce((sum, row) => sum + (row[place] || 0), 0));
  const half = xs.length > 1 ? (xs[xs.length - 1] - xs[0]) / (xs.length - 1) / 2 : 0.5;
  const plot = frame({ ...options, xRange: [xs[0] - half, xs[xs.length - 1] + half] }, xs, [0, ...totals]);
  const { picture, x, y } = plot;
  const base = xs.map(() => 0);
  const edge = (place) => [place ? (xs[place - 1] + xs[place]) / 2 : xs[0] - half,
    place < xs.length - 1 ? (xs[place] + xs[place + 1]) / 2 : xs[place] + half].map((one) => x(one).toFixed(1));
  rows.forEach((row, number) => {
    let drawn = "";
    row.forEach((value, place) => {
      if (!known(value) || value <= 0) return;
      const [left, right] = edge(place);
      drawn += `M${left} ${y(base[place]).toFixed(1)}V${y(base[place] + value).toFixed(1)}H${right}V${y(base[place]).toFixed(1)}Z`;
      base[place] += value;
    });
    picture.append(shape("path", { d: drawn, ...stackFill(options, number) }));
  });
  onHover(plot, (at) => {
    const place = nearest(xs, at);
    return { x: xs[place], lines: [`step ${xs[place]}`, ...options.categories.map((name, number) => `${name}: ${plot.format(rows[number][place])}`).reverse()] };
  });
  return element("div", {}, picture, legend(options.categories.map((name, number) => ({ name,
    swatch: [shape("rect", { width: 30, height: 12, ...stackFill(options, number) })] })).reverse()));
}

// A share per cell as strength of one colour. rows: one list per bin, from the lowest.
function heatChart(xs, rows, options) {
  const most = Math.max(0, ...rows.flat().filter(known));
  if (!most) return element("p", { class: "quiet", text: options.empty || "The run has no such numbers." });
  const half = xs.length > 1 ? (xs[xs.length - 1] - xs[0]) / (xs.length - 1) / 2 : 0.5;
  const plot = frame({ ...options, xRange: [xs[0] - half, xs[xs.length - 1] + half], yRange: [0, 1] }, xs, []);
  const { picture, x, y } = plot;
  picture.append(shape("rect", { class: "frame", x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM }));
  const LEVELS = 12, drawn = Array(LEVELS + 1).fill("");
  rows.forEach((row, bin) => row.forEach((value, place) => {
    if (!known(value) || value <= 0) return;
    const left = x(place ? (xs[place - 1] + xs[place]) / 2 : xs[0] - half), right = x(place < xs.length - 1 ? (xs[place] + xs[place + 1]) / 2 : xs[place] + half);
    const low = y(bin / rows.length), high = y((bin + 1) / rows.length);
    drawn[Math.ceil(Math.sqrt(value / most) * LEVELS)] += `M${left.toFixed(1)} ${low.toFixed(1)}H${right.toFixed(1)}V${high.toFixed(1)}H${left.toFixed(1)}Z`;
  }));
  drawn.forEach((d, level) => { if (d) picture.append(shape("path", { d, fill: options.colour, "fill-opacity": level / LEVELS })); });
  onHover(plot, (at, height) => {
    const place = nearest(xs, at);
    const bin = Math.floor((plot.y0 + (HEIGHT - BOTTOM - height) / (HEIGHT - TOP - BOTTOM)) * rows.length);
    if (bin < 0 || bin >= rows.length) return null;
    const name = (number) => `${shown(number / rows.length)} to ${shown((number + 1) / rows.length)}`;
    const lines = rows.map((row, number) => `${number === bin ? "> " : "  "}${name(number)}: ${known(row[place]) ? `${shown(row[place] * 100)} %` : "–"}`);
    return { x: xs[place], lines: [`step ${xs[place]}`, ...lines.reverse()] };
  });
  return element("div", {}, picture, legend([0.05, 0.3, 1].map((part) => ({ name: `${shown(most * part * 100)} %`,
    swatch: [shape("rect", { class: "frame", width: 30, height: 12 }), shape("rect", { width: 30, height: 12, fill: options.colour, "fill-opacity": Math.sqrt(part) })] }))));
}
