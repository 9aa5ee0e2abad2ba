// The page: sections with charts, tables with filters, and the history of a prompt. Data are unpacked when they are needed.
"use strict";

const ROWS_SHOWN = 50;
let book = null; // {colours, markers, history, piece, missing, endings, runs: [{name, facts, curves, prompts}]}
const packed = new Map();

async function unpack(id) {
  if (!packed.has(id)) packed.set(id, (async () => {
    const text = atob(document.getElementById(id).textContent.trim());
    const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  })());
  return packed.get(id);
}
const unpackJson = async (id) => JSON.parse(new TextDecoder().decode(await unpack(id)));

function style(run, kind = 0) {
  const place = book.runs.length > 1 ? run : kind;
  return { colour: book.colours[place % book.colours.length], marker: book.markers[place % book.markers.length], dash: DASHES[(book.runs.length > 1 ? kind : place) % DASHES.length] };
}
function named(run, kind) {
  if (book.runs.length === 1) return kind;
  return kind ? `${book.runs[run].name}: ${kind}` : book.runs[run].name;
}
// kinds: (curves) => [{name, y, low, high, x}]
function overlaid(kinds, options) {
  return () => lineChart(book.runs.flatMap((run, number) => kinds(run.curves).map((kind, place) =>
    ({ x: run.curves.step, ...kind, ...style(number, place), name: named(number, kind.name) }))), options);
}
function sideBySide(draw) {
  return () => book.runs.length === 1 ? draw(book.runs[0].curves) : element("div", { class: "side" },
    ...book.runs.map((run) => element("div", {}, element("p", { class: "quiet", text: run.name }), draw(run.curves))));
}
const around = (mean, error) => ({ y: mean, low: mean.map((one, n) => known(error[n]) ? one - error[n] : null), high: mean.map((one, n) => known(error[n]) ? one + error[n] : null) });
const dotted = (run) => Object.entries(run.late.groups);

function sections() {
  const shares = (get, options) => sideBySide((curves) => {
    const found = get(curves);
    const all = [...new Set(book.runs.flatMap((run) => get(run.curves).names))].filter((name) => name !== book.rest);
    const order = all.length > book.colours.length ? found.names : all; // one colour for one name in all runs, where there are enough
    return stackChart(curves.step, found.share || found.seconds, { colours: found.names.map((name) => book.colours[order.indexOf(name) % book.colours.length]), rest: book.rest, categories: found.names, percent: !found.seconds, yRange: [0, found.seconds ? null : 1], ...options });
  });
  return [
    ["Learning", [
      ["Reward", "Mean reward in [0, 1] of the rollouts that ended; band: ± standard error. The sampler moves it: compare runs on validation.",
        overlaid((run) => [{ name: "", ...around(run.reward.mean, run.reward.error) }], { label: "reward" })],
      ["Validation", "verl's own numbers on held-out data, six at most; the others are under All numbers.",
        overlaid((run) => Object.entries(run.validation).slice(0, 6).map(([name, y]) => ({ name, y })), { label: "validation", empty: "No validation ran (trainer.test_freq)." })],
      ["Endings", "Why rollouts ended. Only trained ones are in the loss; outcomes of the others are evidence all the same.",
        shares((run) => run.endings, { label: "share of rollouts by ending" })],
    ]],
    ["Values", [
      ["Distribution of values", "Share of the prompts in each tenth of [0, 1] after each step. A band that stays at 0 or 1 gives no signal.",
        sideBySide((run) => element("div", {}, heatChart(run.step, run.values.share, { label: `values of ${run.values.of}`, colour: book.colours[0] }),
          run.values.of === "all prompts" ? null : element("p", { class: "help", text: "The run logged no values of all prompts: these are the values of its rollouts at dispatch." })))],
      ["Calibration", "Mean reward against the value that was frozen at dispatch; bars: 95 %. On the diagonal predictions are right.",
        overlaid((run) => Object.entries(run.calibration).map(([name, one]) => ({
          name: `${name}, mean gap ${shown(one.gap)}`, x: one.value, y: one.reward, bars: true, sizes: one.size,
          low: one.low, high: one.high })),
        { label: "mean reward", xLabel: "value at dispatch", xRange: [0, 1], yRange: [0, 1], diagonal: true })],
      ["Mean value", "Mean value of the prompts that were drawn, and of all prompts.",
        overlaid((run) => [{ name: "drawn", y: run.value.drawn }, { name: "all prompts", y: run.value.all }], { label: "value", yRange: [0, 1] })],
      ["Effective sample size", "How many outcomes a frozen value was worth, on average. It falls where evidence fades between visits.",
        overlaid((run) => [{ name: "", y: run.value.n_eff }], { label: "effective sample size", yRange: [0, null] })],
    ]],
    ["Curriculum", [
      ["By difficulty", "Rollouts by the value of their prompt at dispatch; dark is hard.",
        shares((run) => run.difficulty, { label: "share of rollouts by difficulty", ordered: true })],
      ["By data source", "Rollouts by data source.", shares((run) => run.sources, { label: "share of rollouts by data source" })],
      ["Reward by data source", "Mean reward of each data source.",
        overlaid((run) => run.sources.names.map((name, n) => ({ name, y: run.sources.reward[n] })), { label: "reward" })],
      ["Coverage", "Share of the prompts that a rollout has ended of.", overlaid((run) => [{ name: "", y: run.coverage }], { label: "coverage", percent: true, yRange: [0, 1] })],
      ["Rollouts per prompt", "How many prompts had how many rollouts.",
        () => lineChart(book.runs.map((run, n) => ({ x: run.curves.draws.names.map((_, place) => place), y: run.curves.draws.prompts, ...style(n), name: named(n, "") })),
          { label: "prompts", xLabel: "rollouts", yRange: [0, null], names: book.runs.map((run) => run.curves.draws.names).sort((a, b) => b.length - a.length)[0] })],
    ]],
    ["Forgetting", [
      ["Retention", "Share of a prompt's evidence that is kept at a visit: median, band 10 to 90 % of the prompts.",
        overlaid((run) => [{ name: "", y: run.rho.middle, low: run.rho.low, high: run.rho.high }], { label: "retention" })],
      ["Divergence", "How far the policy moved on a prompt's stored response: median, band 10 to 90 %, nats per token.",
        overlaid((run) => [{ name: "", y: run.divergence.middle, low: run.divergence.low, high: run.divergence.high }], { label: "divergence", yRange: [0, null], empty: "No divergence was measured (spo.forgetting.mode)." })],
      ["Retention at its floor", "Share of prompts with the lowest retention allowed. Near 100 %, everything is forgotten at every visit.",
        overlaid((run) => [{ name: "", y: run.rho.floor }], { label: "at the floor", percent: true, yRange: [0, 1] })],
    ]],
    ["Signal", [
      ["Advantages near zero", "Trained rollouts that teach nothing, and the share that groups of 8 would have lost at these values.",
        overlaid((run) => [{ name: "|raw advantage| ≤ 0.0001", y: run.near_zero["1e-4"] }, { name: "|raw advantage| ≤ 0.02", y: run.near_zero["0.02"] }, { name: "groups of 8 without signal", y: run.near_zero.group }],
          { label: "share of rollouts", percent: true, yRange: [0, 1] })],
      ["Bias of the values", "Mean reward minus value. It stays near 0 where the tracker is calibrated.",
        overlaid((run) => [{ name: "", y: run.advantage.mean }], { label: "mean raw advantage" })],
      ["Variance removed", "1 - variance of the raw advantage / variance of the reward. The paper sees about one half.",
        overlaid((run) => [{ name: "", y: run.advantage.removed }], { label: "variance removed", percent: true })],
    ]],
    ["First to finish", [
      ["Length over time", "Mean response tokens. Where rollouts that are not trained are longer, the batch prefers short responses.",
        overlaid((run) => dotted(run).map(([name, one]) => ({ name, y: one.tokens })), { label: "tokens", yRange: [0, null] })],
      ["Lengths", "Share of each group by response tokens.",
        overlaid((run) => dotted(run).map(([name, one]) => ({ name: `${name}, mean ${shown(one.mean)}`, x: run.late.edges.slice(1).map((edge, n) => (edge + run.late.edges[n]) / 2), y: one.share })),
          { label: "share", xLabel: "response tokens", percent: true, yRange: [0, null] })],
      ["Reward of late rollouts", "Mean reward of the same groups.",
        overlaid((run) => dotted(run).map(([name, one]) => ({ name, y: one.reward })), { label: "reward" })],
    ]],
    ["Time", [
      ["Parts of a step", "Seconds as verl times them (timing_s/*), the longest first.", shares((run) => run.parts, { label: "seconds", empty: "The run logged no times." })],
      ["SPO's own parts", "Seconds that the tracker and the extra forward add to a step (spo/seconds_total/*).",
        overlaid((run) => Object.entries(run.own_parts).map(([name, y]) => ({ name, y })), { label: "seconds", yRange: [0, null] })],
      ["Tokens per second", "Tokens per second and device, of prompts and responses (perf/throughput).",
        overlaid((run) => [{ name: "", y: run.throughput.tokens }], { label: "tokens per second", yRange: [0, null] })],
      ["Rollouts per second", "Trained rollouts per second of step.", overlaid((run) => [{ name: "", y: run.throughput.rollouts }], { label: "rollouts per second", yRange: [0, null] })],
    ]],
  ];
}

function card(title, help, draw) {
  const drawn = draw();
  return element("section", { class: drawn.className === "side" ? "card wide" : "card" }, element("h3", { text: title }), element("p", { class: "help", text: help }), drawn);
}

function anyMetric() {
  const names = [...new Set(book.runs.flatMap((run) => Object.keys(run.curves.metrics)))].sort();
  const place = element("div", {});
  const choice = element("input", { type: "search", list: "metric-names", id: "metric", placeholder: "e.g. actor/pg_loss" });
  const draw = () => place.replaceChildren(names.includes(choice.value) ? overlaid((run) =>
    run.metrics[choice.value] ? [{ name: "", y: run.metrics[choice.value] }] : [], { label: choice.value })() :
    element("p", { class: "quiet", text: `${names.length} numbers per step: choose one.` }));
  choice.addEventListener("input", draw);
  draw();
  return element("section", { class: "card" }, element("h3", { text: "Any number of the steps" }),
    element("label", { class: "help", for: "metric", text: "Name of a metric " }), choice,
    element("datalist", { id: "metric-names" }, ...names.map((name) => element("option", { value: name }))), place);
}

// -- tables

function filtered(options) { // {id, fields, columns, rows, open, note}
  const state = { sort: options.sort, down: true, page: 0 };
  const inputs = {};
  const form = element("form", { id: `${options.id}-filter`, onsubmit: (event) => event.preventDefault() });
  for (const field of options.fields) {
    const input = field.choices ? element("select", {}, element("option", { value: "", text: "all" }), ...field.choices.map(([value, text]) => element("option", { value, text })))
      : element("input", { type: field.type, step: "any", placeholder: field.placeholder });
    input.id = `${options.id}-${field.id}`;
    inputs[field.id] = input;
    input.addEventListener("input", () => { state.page = 0; draw(); });
    form.append(element("label", { class: field.type === "checkbox" ? "check" : null, for: input.id }, element("span", { text: field.text }), input));
  }
  const body = element("tbody", {}), head = element("tr", {}), count = element("span", { id: `${options.id}-count`, role: "status" });
  for (const column of options.columns) head.append(element("th", { class: column.number ? "number" : null, scope: "col" },
    element("button", { type: "button", text: column.text, title: "Sort by this column", onclick: () => {
      state.down = state.sort === column.id ? !state.down : Boolean(column.number);
      state.sort = column.id; state.page = 0; draw();
    } })));
  const turn = (by) => () => { state.page += by; draw(); };
  const before = element("button", { type: "button", text: "Previous", onclick: turn(-1) }), after = element("button", { type: "button", text: "Next", onclick: turn(1) });

  function passes(row) {
    return options.fields.every((field) => {
      const input = inputs[field.id];
      if (field.type === "checkbox") return !input.checked || field.test(row);
      if (input.value === "") return true;
      return field.test(row, field.type === "number" ? Number(input.value) : input.value.toLowerCase());
    });
  }
  function draw() {
    const rows = options.rows.filter(passes);
    const column = options.columns.find((one) => one.id === state.sort);
    if (column) rows.sort((one, other) => {
      const [a, b] = [column.value(one), column.value(other)];
      const [none, noOther] = [a === null || a === undefined, b === null || b === undefined];
      if (none || noOther) return none - noOther; // what is not known comes last
      return (a < b ? -1 : a > b ? 1 : 0) * (state.down ? -1 : 1);
    });
    const pages = Math.max(1, Math.ceil(rows.length / ROWS_SHOWN));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const part = rows.slice(state.page * ROWS_SHOWN, (state.page + 1) * ROWS_SHOWN);
    body.replaceChildren(...part.map((row) => {
      const open = () => options.open(row);
      return element("tr", { class: "open", tabindex: 0, onclick: open, onkeydown: (event) => { if (event.key === "Enter") open(); } },
        ...options.columns.map((one) => element("td", { class: one.number ? "number" : one.long ? "text" : null, dir: one.long ? "auto" : null, text: one.number ? shown(one.value(row)) : one.value(row) ?? "–" })));
    }));
    count.textContent = `${rows.length.toLocaleString("en-US")} of ${options.rows.length.toLocaleString("en-US")}, page ${state.page + 1} of ${pages}`;
    before.disabled = state.page === 0;
    after.disabled = state.page === pages - 1;
    [...head.children].forEach((cell, n) => cell.setAttribute("aria-sort", options.columns[n].id === state.sort ? (state.down ? "descending" : "ascending") : "none"));
  }
  draw();
  return element("div", {}, element("p", { class: "help", text: options.note }), form, element("div", { class: "pager" }, before, after, count),
    element("div", { class: "scroll" }, element("table", { id: options.id }, element("thead", {}, head), body)));
}

const between = (id, text, get) => [
  { id: `${id}-from`, text: `${text} from`, type: "number", test: (row, bound) => known(get(row)) && get(row) >= bound },
  { id: `${id}-to`, text: "to", type: "number", test: (row, bound) => known(get(row)) && get(row) <= bound }];
const oneLine = (text) => text ? text.slice(0, 160).replace(/\s+/g, " ") : null;
const holds = (get) => (row, wanted) => get(row).some((text) => text && text.toLowerCase().includes(wanted));
const choices = (values) => [...new Set(values)].sort().map((value) => [value, value]);
function ofRun(fields) {
  if (book.runs.length === 1) return fields;
  return [{ id: "run", text: "Run", choices: book.runs.map((run, number) => [String(number), run.name]), test: (row, wanted) => String(row.run) === wanted }, ...fields];
}
const runColumn = () => book.runs.length > 1 ? [{ id: "run", text: "Run", value: (row) => book.runs[row.run].name }] : [];

function promptRows() {
  return book.runs.flatMap((run, number) => run.prompts.key.map((key, place) => Object.fromEntries([["run", number], ["place", place],
    ...["key", "row", "source", "start", "value", "drift", "n_eff", "last", "reward", "draws", "text"].map((name) => [name, run.prompts[name][place]])])));
}

function promptTable(rows) {
  return filtered({ id: "prompts", rows, sort: "draws", open: (row) => openHistory(row.key, null),
    note: `${book.runs.map((run) => run.notes.prompts).join(" ")} Choose a row for its history.`,
    fields: ofRun([
      { id: "search", text: "Search", type: "search", placeholder: "text, key or row", test: holds((row) => [row.text, row.key, row.row === null ? null : String(row.row)]) },
      { id: "source", text: "Data source", choices: choices(rows.map((row) => row.source)), test: (row, wanted) => row.source.toLowerCase() === wanted },
      ...between("value", "Value", (row) => row.value), ...between("draws", "Rollouts", (row) => row.draws),
    ]),
    columns: [...runColumn(), { id: "row", text: "Row", number: true, value: (row) => row.row }, { id: "source", text: "Source", value: (row) => row.source },
      { id: "text", text: "Prompt", long: true, value: (row) => oneLine(row.text) || row.key },
      { id: "draws", text: "Rollouts", number: true, value: (row) => row.draws }, { id: "start", text: "Value at start", number: true, value: (row) => row.start },
      { id: "value", text: "Last value", number: true, value: (row) => row.value }, { id: "drift", text: "Change", number: true, value: (row) => row.drift },
      { id: "n_eff", text: "Evidence", number: true, value: (row) => row.n_eff }, { id: "reward", text: "Mean reward", number: true, value: (row) => row.reward },
      { id: "last", text: "Last step", number: true, value: (row) => row.last }] });
}

async function sampleRows() {
  const found = [];
  for (const [number, run] of book.runs.entries()) {
    const columns = await unpackJson(`samples-${number}`);
    const names = Object.keys(columns);
    run.samples = columns.step.map((_, place) => Object.fromEntries([["run", number], ...names.map((name) => [name, columns[name][place]])]));
    for (const row of run.samples) {
      row.key = run.prompts.key[row.prompt];
      row.source = run.prompts.source[row.prompt];
      row.text = run.prompts.text[row.prompt] ?? row.input;
      row.raw = known(row.reward) ? row.reward - row.value : null;
    }
    found.push(...run.samples);
  }
  return found;
}

function sampleTable(rows) {
  return filtered({ id: "samples", rows, sort: null, open: (row) => openHistory(row.key, row),
    note: `${book.runs.map((run) => run.notes.samples).join(" ")} Choose a row for texts and history.`,
    fields: ofRun([
      { id: "search", text: "Search", type: "search", placeholder: "prompt, response, key or uid", test: holds((row) => [row.text, row.output, row.key, row.uid]) },
      { id: "source", text: "Data source", choices: choices(rows.map((row) => row.source)), test: (row, wanted) => row.source.toLowerCase() === wanted },
      { id: "ending", text: "Ending", choices: choices(rows.map((row) => row.ending)), test: (row, wanted) => row.ending === wanted },
      ...between("step", "Step", (row) => row.step), ...between("value", "Value", (row) => row.value), ...between("reward", "Reward", (row) => row.reward),
      { id: "response", text: "with a response", type: "checkbox", test: (row) => row.output !== null },
    ]),
    columns: [...runColumn(), { id: "step", text: "Step", number: true, value: (row) => row.step }, { id: "source", text: "Source", value: (row) => row.source },
      { id: "text", text: "Prompt", long: true, value: (row) => oneLine(row.text) || row.key }, { id: "output", text: "Response", long: true, value: (row) => oneLine(row.output) },
      { id: "reward", text: "Reward", number: true, value: (row) => row.reward }, { id: "value", text: "Value", number: true, value: (row) => row.value },
      { id: "raw", text: "Reward - value", number: true, value: (row) => row.raw }, { id: "advantage", text: "Advantage", number: true, value: (row) => row.advantage },
      { id: "tokens", text: "Tokens", number: true, value: (row) => row.tokens }, { id: "ending", text: "Ending", value: (row) => row.ending }] });
}

// -- the history of a prompt

async function historyOf(number, place) {
  const run = book.runs[number];
  const piece = Math.floor(place / book.piece);
  if (piece >= run.pieces) return null;
  const numbers = new Int32Array(await unpack(`history-${number}-${piece}`));
  const counts = run.prompts.draws.slice(piece * book.piece, (piece + 1) * book.piece);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const rows = sum(counts), start = sum(counts.slice(0, place - piece * book.piece)), count = run.prompts.draws[place];
  return [...Array(count).keys()].map((offset) => Object.fromEntries(book.history.map(([name, scale], column) => {
    const stored = numbers[column * rows + start + offset];
    return [name, stored === book.missing ? null : stored / scale];
  })));
}

function facts(pairs) {
  return element("dl", { class: "facts" }, ...pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) =>
    [element("dt", { text: name }), element("dd", { text: String(value) })]));
}

function texts(sample) {
  const parts = [];
  for (const [title, text] of [["Response", sample.output], ["Ground truth", sample.truth]])
    if (text !== null && text !== undefined) parts.push(element("h3", { text: title }), element("pre", { dir: "auto", text }));
  return parts;
}

async function openHistory(key, sample) {
  const dialog = document.getElementById("history");
  const found = [];
  for (const [number, run] of book.runs.entries()) {
    const place = run.prompts.key.indexOf(key);
    if (place >= 0) found.push({ number, place, rows: await historyOf(number, place) });
  }
  if (!found.length) return;
  const { prompts } = book.runs[found[0].number];
  const place = found[0].place;
  const text = prompts.text[place] ?? (sample && sample.input);
  const lines = found.filter((one) => one.rows && one.rows.length).flatMap(({ number, rows }) => {
    const x = rows.map((row) => row.step);
    const many = book.runs.length > 1;
    return [["value at dispatch", "value", false], ["reward", "reward", true], ["retention", "rho", false]].map(([name, column, dots], kind) =>
      ({ name: named(number, name), x, y: rows.map((row) => row[column]), dots, colour: book.colours[(many ? number : kind) % book.colours.length],
        marker: book.markers[kind], dash: DASHES[kind] }));
  });
  const columns = [["step", "Step"], ["ending", "Ending"], ["reward", "Reward"], ["value", "Value"], ["n_eff", "Evidence"], ["advantage", "Advantage"],
    ["rho", "Retention"], ["divergence", "Divergence"], ["tokens", "Tokens"], ["version_dispatch", "Policy version"]];
  const cell = (row, name) => name === "ending" ? book.endings[row.ending] : shown(row[name]);
  const tables = found.map(({ number, rows }) => {
    const run = book.runs[number];
    if (!rows) return element("p", { class: "quiet", text: `${run.name}: this page had no room for the history. Print it with: spo-verl tracker prompt ${key} ${run.path}` });
    const responses = new Map((run.samples || []).filter((one) => one.key === key && one.output !== null).map((one) => [one.place, one]));
    return element("div", { class: "scroll" }, found.length > 1 ? element("h3", { text: run.name }) : null, rows.length ? element("table", { class: "draws" },
      element("thead", {}, element("tr", {}, ...columns.map(([name, title]) => element("th", { class: name === "ending" ? null : "number", scope: "col", text: title })), element("th", { scope: "col", text: "Response" }))),
      element("tbody", {}, ...rows.map((row, at) => {
        const dumped = responses.get(at);
        return element("tr", {}, ...columns.map(([name]) => element("td", { class: name === "ending" ? null : "number", text: cell(row, name) })),
          element("td", {}, dumped ? element("details", {}, element("summary", { text: "show" }), ...texts(dumped)) : "–"));
      }))) : element("p", { class: "quiet", text: "No rollout of this prompt has ended yet." }));
  });
  dialog.replaceChildren(
    element("button", { type: "button", class: "close", text: "Close", onclick: () => dialog.close() }),
    element("h2", { id: "history-title", text: "History of a prompt" }),
    facts([["key", key], ["row", prompts.row[place]], ["data source", prompts.source[place]], ["value at the start", known(prompts.start[place]) ? shown(prompts.start[place]) : null],
      ["rollouts", prompts.draws[place]], ["mean reward", known(prompts.reward[place]) ? shown(prompts.reward[place]) : null]]),
    element("h3", { text: "Prompt" }), element("pre", { dir: "auto", text: text ?? "(its text was not recorded)" }),
    ...(sample ? [element("h3", { text: `This rollout: step ${sample.step}, ${sample.ending}` }),
      facts([["reward", shown(sample.reward)], ["value", shown(sample.value)], ["reward - value", shown(sample.raw)], ["advantage", shown(sample.advantage)], ["tokens", shown(sample.tokens)], ["seconds", shown(sample.seconds)], ["uid", sample.uid]]),
      ...texts(sample)] : []),
    lines.length ? element("div", { class: "figure" }, lineChart(lines, { label: "value, reward and retention", yRange: [0, 1] })) : "", ...tables);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  history.replaceState(null, "", `#prompt=${key}`);
}

// -- opening

function overview() {
  const columns = ["run", ...book.facts];
  return element("table", {}, element("thead", {}, element("tr", {}, ...columns.map((name) => element("th", { scope: "col", text: name })))),
    element("tbody", {}, ...book.runs.map((run, number) => {
      const { colour, marker: kind } = style(number);
      const swatch = book.runs.length > 1 ? shape("svg", { viewBox: "0 0 12 12", width: 12, height: 12 }, marker(kind, 6, 6, colour, 5)) : null;
      return element("tr", {}, element("th", { scope: "row" }, swatch, ` ${run.name}`), ...book.facts.map((name) => element("td", { text: run.facts[name] })));
    })));
}

async function open() {
  book = await unpackJson("book");
  for (const [number, run] of book.runs.entries()) Object.assign(run, await unpackJson(`run-${number}`));
  const main = document.getElementById("main"), links = document.getElementById("sections");
  document.getElementById("runs").append(overview());
  main.replaceChildren();
  const add = (title, ...content) => {
    const id = `section-${title.toLowerCase().replaceAll(" ", "-")}`;
    links.append(element("a", { href: `#${id}`, text: title }));
    main.append(element("h2", { id, text: title }), ...content);
  };
  for (const [title, charts] of sections()) add(title, element("div", { class: "grid" }, ...charts.map(([name, help, draw]) => card(name, help, draw))));
  add("Samples", sampleTable(await sampleRows()));
  add("All prompts", promptTable(promptRows()));
  add("All numbers", anyMetric());
  document.getElementById("history").addEventListener("close", () => history.replaceState(null, "", "#section-all-prompts"));
  document.body.dataset.ready = "yes";
  const wanted = /^#prompt=([0-9a-f]+)$/.exec(location.hash);
  if (wanted) await openHistory(wanted[1], null);
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
open().catch((error) => {
  document.getElementById("main").replaceChildren(element("p", { text: `This page could not be opened (${error}). It needs a browser of 2023 or later; if yours is newer, the file is not complete: make it again.` }));
  throw error;
});
