// The routing atlas: reads the experiments in the page and draws what the controls choose.
// The state lives in the address (#dataset=…&layer=…&a=…&b=…), so that a view can be kept and sent. A link may name
// one configuration instead (#config=…), which is shown beside the one that A is at first.
"use strict";

const atlas = JSON.parse(document.getElementById("atlas").textContent);
const ALL = "all", NONE = "none";
const FEWEST = 10; // tokens needed for a mean to be drawn
const NOT_SCORED = 65535, NO_GAIN = -32768, LOSS_UNITS = 1000; // of losses, see page.py
const NEVER = 1, NEUTRAL_LIFT = 128, LIFT_STEPS = 10; // codes of lift, see page.py
const FEWEST_EXPECTED = 5; // tokens that a pair of independent experts would share, to be listed
const COLOURS = { a: "#0b4f8a", b: "#c2560a" };
const DASHES = { a: "solid", b: "dash" }, SYMBOLS = { a: "circle", b: "diamond" };
// Viridis (van der Walt & Smith, 2015), light to dark: its lightness is monotone, so it can be read in grey.
const VIRIDIS = ["#fde725", "#b5de2b", "#6ece58", "#35b779", "#1f9e89", "#26828e", "#31688e", "#3e4989",
  "#482878", "#440154"];
const MORE = VIRIDIS.map((colour, i) => [i / (VIRIDIS.length - 1), colour]);
const GAINS = ["#d55e00", "#fdc899", "#ffffff", "#9ecae1", "#0072b2"]; // orange: a loss, blue: a gain
const DIVERGING = [[0, "#5e3c99"], [0.25, "#b2abd2"], [0.5, "#f7f7f7"], [0.75, "#fdb863"], [1, "#b35806"]];

const element = (id) => document.getElementById(id);
const range = (n, start = 0) => Array.from({ length: n }, (_, i) => i + start);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
const labelOf = (name) => atlas.configurations.find((one) => one.name === name).label;
const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\r/g, "␍");

// --- reading ---

const ARRAYS = { U8: Uint8Array, U16: Uint16Array, I16: Int16Array, U32: Uint32Array, I32: Int32Array,
  F32: Float32Array };

/** Reads a safetensors file: {name: {shape, data}}, and the metadata. */
function parseSafetensors(buffer) {
  const headerSize = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, headerSize)));
  const metadata = header.__metadata__;
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [start, stop] }] of Object.entries(header)) {
    tensors[name] = { shape, data: new ARRAYS[dtype](buffer.slice(8 + headerSize + start, 8 + headerSize + stop)) };
  }
  return { tensors, metadata };
}

const loaded = new Map();

/** An experiment's arrays, unpacked once; null where there is no such experiment. */
function experiment(config, dataset) {
  const key = JSON.stringify([config, dataset]), packed = atlas.experiments[config]?.[dataset];
  if (packed && !loaded.has(key)) loaded.set(key, unpack(packed));
  return packed ? loaded.get(key) : null;
}

async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const { tensors, metadata } = parseSafetensors(await new Response(stream).arrayBuffer());
  const histogram = tensors.count_histogram;
  return { ...tensors, sampleIds: JSON.parse(metadata.sample_ids), numTokens: sum(row(histogram, 0)) };
}

/** A row of an array of two or more axes: the innermost values at the given outer indices. */
function row({ shape, data }, ...indices) {
  const width = shape.at(-1);
  const place = indices.reduce((place, index, axis) => place * shape[axis] + index, 0);
  return data.subarray(place * width, (place + 1) * width);
}

// --- state and controls ---

const options = {
  dataset: atlas.datasets.map((name) => [name, name]),
  layer: [[ALL, "all layers"], ...range(atlas.num_layers).map((layer) => [String(layer), `layer ${layer}`])],
  a: atlas.configurations.map(({ name, label }) => [name, label + (name === atlas.baseline ? " (baseline)" : "")]),
};
options.b = [[NONE, "none"], ...options.a];
const state = {};
const controls = Object.fromEntries([...document.querySelectorAll("[data-state]")].map((one) => [one.dataset.state, one]));
const defaults = { dataset: atlas.datasets[0], layer: ALL, a: atlas.first, b: atlas.second ?? NONE, order: "number",
  reference: "chance", loss: "0", sample: "0", shade: "experts" };

function fill(select, entries, value) {
  select.replaceChildren(...entries.map(([key, text]) => new Option(text, key, false, key === value)));
}

/** Takes the state from the address; what it lacks, or has wrong, keeps its initial value. */
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1)), config = given.get("config");
  if (config && !given.has("a") && !given.has("b")) given.set(config === defaults.a ? "a" : "b", config);
  for (const [key, control] of Object.entries(controls)) {
    state[key] = given.get(key) ?? defaults[key];
    const known = key === "sample" || [...control.options].some((option) => option.value === state[key]);
    if (!known) state[key] = defaults[key];
    control.value = state[key];
  }
}

function choose(changes) {
  Object.assign(state, changes);
  for (const [key, control] of Object.entries(controls)) control.value = state[key];
  const said = Object.entries(state).filter(([key, value]) => value !== defaults[key]);
  try {
    history.replaceState(null, "", `#${new URLSearchParams(said)}`);
  } catch (error) {
    if (error.name !== "SecurityError") throw error; // a page inside another one may have no address
  }
  show();
}

const layerName = () => (state.layer === ALL ? "all layers" : `layer ${state.layer}`);
const chosenLayers = () => (state.layer === ALL ? range(atlas.num_layers) : [Number(state.layer)]);
/** The row of arrays whose first row is the mean over layers. */
const layerRow = () => (state.layer === ALL ? 0 : Number(state.layer) + 1);

// --- drawing with plotly ---

const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["toImage"]] };
const FONT = { family: "system-ui, sans-serif", size: 13, color: "#1a1a1a" };

function draw(id, traces, layout) {
  const axes = Object.fromEntries(["xaxis", "yaxis"].map((axis) => [axis, { gridcolor: "#e6e6e6", zeroline: false,
    automargin: true, ...layout[axis], title: { text: layout[axis].title, standoff: 8 } }]));
  const section = element(id).closest("section");
  element(id).setAttribute("role", "img");
  element(id).setAttribute("aria-label", `${section.querySelector("h2").textContent}${layout.title ? `, ${layout.title}` : ""}`);
  return Plotly.react(id, traces, { font: FONT, margin: { l: 55, r: 10, t: 34, b: 50 }, paper_bgcolor: "#fff",
    plot_bgcolor: "#fff", showlegend: false, hovermode: "closest",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, ...layout, ...axes,
    title: layout.title && { text: layout.title, x: 0, xref: "paper", font: { size: 14 } } }, CONFIG);
}

/** Shows a message instead of a plot, whatever names it holds: plotly takes text for markup. */
function explain(id, message) {
  const text = message.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  return draw(id, [], { xaxis: { visible: false }, yaxis: { visible: false },
    annotations: [{ text, showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5, font: { color: "#555" } }] });
}

const missing = (side) => `no result for ${labelOf(side.config)} on ${state.dataset}`;
const title = (side) => `${side.key.toUpperCase()}: ${labelOf(side.config)}`;
const bar = (text) => ({ title: { text, side: "right" }, thickness: 12, outlinewidth: 0 });
const layerAxis = { title: "MoE layer (0: first)", dtick: atlas.num_layers > 20 ? 4 : atlas.num_layers > 8 ? 2 : 1,
  range: [-0.6, atlas.num_layers - 0.4] };

// Counts are drawn in ranges: range i holds the counts from STARTS[i] to STARTS[i + 1] − 1.
const STARTS = [...atlas.count_starts, atlas.num_experts + 1];
const rangeOf = (count) => STARTS.findLastIndex((start) => start <= count);
const rangeName = (i) => (STARTS[i + 1] - STARTS[i] > 1 ? `${STARTS[i]}–${STARTS[i + 1] - 1}` : String(STARTS[i]));

/** Where a number of experts lies on an axis on which every range has the same length. */
function place(experts) {
  const i = Math.min(STARTS.findLastIndex((start) => start - 0.5 <= experts), STARTS.length - 2);
  return i - 0.5 + (experts - (STARTS[i] - 0.5)) / (STARTS[i + 1] - STARTS[i]);
}

/** The axis of numbers of experts, up to the largest in use. */
function countAxis(title, largest) {
  const last = rangeOf(largest);
  return { title, range: [0.3, last + 0.7], tickvals: range(last, 1), ticktext: range(last, 1).map(rangeName) };
}

const clickable = new Set();

/** A click on a layer of a map, drawn along `axis`, chooses it; a click on the chosen one, all layers again. */
function chooseOnClick(id, axis) {
  if (clickable.has(id)) return;
  clickable.add(id);
  element(id).on("plotly_click", ({ points: [point] }) => {
    const layer = String(point[axis]);
    choose({ layer: layer === state.layer ? ALL : layer });
  });
}

/** A frame around the chosen layer of a map: along x or along y. */
function frame(axis) {
  if (state.layer === ALL) return [];
  const [low, high] = [Number(state.layer) - 0.5, Number(state.layer) + 0.5];
  const along = axis === "x" ? { x0: low, x1: high, y0: 0, y1: 1, yref: "paper" }
    : { y0: low, y1: high, x0: 0, x1: 1, xref: "paper" };
  return [{ type: "rect", line: { color: "#c00000", width: 2 }, ...along }];
}

// --- the views; a side is {key: "a" or "b", config, data}, its data null where there is none ---

function summedCounts(data, layers) {
  const total = new Array(data.count_histogram.shape[1]).fill(0);
  for (const layer of layers) row(data.count_histogram, layer).forEach((count, i) => { total[i] += count; });
  return total;
}

const meanCount = (histogram) => sum(histogram.map((tokens, count) => tokens * count)) / sum(histogram);
const largestCount = (sides) => Math.max(...sides.map(({ data }) => data.count_histogram.shape[1] - 1));
const layerMeans = (data) => range(atlas.num_layers).map((layer) => meanCount(Array.from(row(data.count_histogram, layer))));
const used = (histogram) => range(histogram.length).filter((count) => histogram[count] > 0);

function findings(sides) {
  return sides.map((side) => {
    const item = document.createElement("li");
    const name = Object.assign(document.createElement("span"), { className: `name ${side.key}`, textContent: title(side) });
    item.append(name, ` (${side.config}), ${state.dataset}, ${layerName()}: ${side.data ? finding(side.data) : "no result."}`);
    return item;
  });
}

function finding(data) {
  const histogram = summedCounts(data, chosenLayers()), counts = used(histogram), tokens = sum(histogram);
  if (counts.length === 1 && state.layer !== ALL) return `every token gets ${counts[0]} experts.`;
  if (counts.length === 1) return `every token gets ${counts[0]} experts in every layer.`;
  const [low, high] = [counts[0], counts.at(-1)];
  const share = (count) => {
    const percent = (100 * histogram[count]) / tokens;
    return `${percent < 0.05 ? "less than 0.1" : number(percent, 1)}\u00a0% get ${count}`;
  };
  let text = `${number(meanCount(histogram))} experts per token on average; ${share(low)}, the fewest, and ` +
    `${share(high)}, the most.`;
  if (state.layer === ALL && atlas.num_layers > 1) {
    const means = layerMeans(data), least = means.indexOf(Math.min(...means)), most = means.indexOf(Math.max(...means));
    text += ` Layer ${least} has the lowest mean (${number(means[least])}), layer ${most} the highest ` +
      `(${number(means[most])}).`;
  }
  return text;
}

/** Shares of the tokens in each range of counts, in %. */
function shareByRange(histogram) {
  const total = sum(histogram), shares = new Array(STARTS.length - 1).fill(0);
  histogram.forEach((tokens, count) => { shares[rangeOf(count)] += (100 * tokens) / total; });
  return shares;
}

function drawCounts(sides) {
  const present = sides.filter((side) => side.data), layers = range(atlas.num_layers);
  const axis = present.length && countAxis("experts per token", largestCount(present));
  for (const side of sides) {
    const id = `counts-${side.key}`;
    if (!side.data) { explain(id, missing(side)); continue; }
    const shares = layers.map((layer) => shareByRange(row(side.data.count_histogram, layer))), means = layerMeans(side.data);
    const ranges = range(STARTS.length - 1), of = (i) => shares.map((one) => one[i]);
    const map = { type: "heatmap", z: ranges.map((i) => of(i).map((share) => (share ? Math.log10(share) : null))),
      text: ranges.map((i) => of(i).map((share, layer) => `layer ${layer}: ${number(share)} % of tokens get ${rangeName(i)} experts`)),
      zmin: -1, zmax: 2, colorscale: MORE, colorbar: { ...bar("% of the layer's tokens"), tickvals: [-1, 0, 1, 2],
        ticktext: ["≤ 0.1", "1", "10", "100"] }, hoverongaps: false, hovertemplate: "%{text}<extra></extra>" };
    const line = { type: "scatter", mode: "lines+markers", x: layers, y: means.map(place), customdata: means,
      line: { color: "#fff", width: 3 }, marker: { color: "#fff", size: 8, line: { color: "#000", width: 1.5 } },
      hovertemplate: "layer %{x}: mean %{customdata:.2f}<extra></extra>" };
    draw(id, [map, line], { title: title(side), xaxis: layerAxis, yaxis: axis, shapes: frame("x") });
    chooseOnClick(id, "x");
  }
}

function drawHistogram(sides) {
  const present = sides.filter((side) => side.data);
  if (!present.length) { explain("histogram", missing(sides[0])); return; }
  const traces = present.map((side) => ({ type: "bar", name: title(side), x: range(STARTS.length - 1),
    y: shareByRange(summedCounts(side.data, chosenLayers())), text: range(STARTS.length - 1).map(rangeName), textposition: "none",
    marker: { color: COLOURS[side.key], pattern: { shape: side.key === "a" ? "" : "/", fillmode: "overlay", fgcolor: "#fff",
      fgopacity: 0.6, size: 7, solidity: 0.2 } }, hovertemplate: "%{y:.2f} % get %{text} experts<extra></extra>" }));
  draw("histogram", traces, { showlegend: true, bargap: 0.2, xaxis: countAxis("experts per token", largestCount(present)),
    yaxis: { title: "% of tokens" } });
}

function drawUsage(sides) {
  const present = sides.filter((side) => side.data);
  const shares = present.map(({ data }) => range(atlas.num_layers).map((layer) =>
    Array.from(row(data.usage, layer), (tokens) => (100 * tokens) / data.numTokens)));
  const darkest = Math.max(...shares.flat(2));
  for (const side of sides) {
    const id = `usage-${side.key}`;
    if (!side.data) { explain(id, missing(side)); continue; }
    draw(id, [{ type: "heatmap", z: shares[present.indexOf(side)], zmin: 0, zmax: darkest, colorscale: MORE,
      colorbar: bar("% of tokens"), hovertemplate: "layer %{y}, expert %{x}: %{z:.1f} % of tokens<extra></extra>" }],
    { title: title(side), shapes: frame("y"), xaxis: { title: "expert" }, yaxis: { ...layerAxis, range: [atlas.num_layers - 0.5, -0.5] } });
    chooseOnClick(id, "y");
  }
}

/** log₂ of the lift of experts i and j in a layer: −∞ never together, null where one is never chosen. */
function pairLift(data, layer) {
  const codes = row(data.pair_lift, layer), experts = atlas.num_experts;
  return (i, j) => {
    const [first, second] = i < j ? [i, j] : [j, i];
    const code = codes[first * experts - (first * (first + 1)) / 2 + second - first - 1];
    if (code === 0) return null;
    return code === NEVER ? -Infinity : (code - NEUTRAL_LIFT) / LIFT_STEPS;
  };
}

function expertOrder(data, layer) {
  const usage = row(data.usage, layer), byNumber = range(atlas.num_experts);
  if (state.order === "number") return byNumber;
  const byUsage = byNumber.sort((i, j) => usage[j] - usage[i] || i - j);
  if (state.order === "usage") return byUsage;
  // Partners: each expert is followed by the one, of those left, that it is most often chosen with.
  const lift = pairLift(data, layer), left = new Set(byUsage), order = [byUsage[0]];
  left.delete(byUsage[0]);
  while (left.size) {
    const last = order.at(-1);
    const next = [...left].reduce((best, i) => ((lift(last, i) ?? -Infinity) > (lift(last, best) ?? -Infinity) ? i : best));
    order.push(next);
    left.delete(next);
  }
  return order;
}

/** log₂ of the lift that choices would have that are compared with; 0 (a lift of 1): independent ones. */
function referenceLift(data, layer) {
  const chance = chanceLift(data, layer);
  return state.reference === "chance" && chance > 0 ? Math.log2(chance) : 0;
}

/** The lift of any pair if each token drew, from all experts alike, as many as it got. */
function chanceLift(data, layer) {
  const histogram = Array.from(row(data.count_histogram, layer)), experts = atlas.num_experts;
  const pairs = sum(histogram.map((tokens, n) => tokens * n * (n - 1))) / data.numTokens;
  return (pairs / meanCount(histogram) ** 2) * (experts / (experts - 1));
}

function drawPairs(sides) {
  const compared = state.reference === "chance" ? "than if each token had drawn as many experts at random"
    : "than if experts were chosen independently of each other";
  element("pairs-hint").textContent = `How much more often two experts are chosen together ${compared} (1: just as often). ` +
    (state.layer === ALL ? "The line is the median pair of a layer, the band holds 90 % of its pairs. Choose a layer to see each pair."
      : "Brown: together more often; violet: less often. Both maps have A's order of experts.");
  const present = sides.filter((side) => side.data);
  for (const side of sides) {
    const id = `pairs-${side.key}`, note = element(`pairs-text-${side.key}`);
    note.textContent = "";
    if (!side.data) explain(id, missing(side));
    else if (!side.data.pair_lift) explain(id, "Too many pairs for this page; they are in the results' folder atlas/.");
    else if (state.layer === ALL) drawLiftByLayer(id, side, present);
    else drawLiftMap(id, side, expertOrder(present[0].data, Number(state.layer)), note);
  }
}

const LOWEST = -4; // the smallest log₂ shown; pairs that are never together have it too
const TIMES = { tickvals: [-4, -3, -2, -1, 0, 1, 2, 3, 4, 5], ticktext: ["≤ 1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8", "16", "32"] };

/** Quantiles of log₂ lift over a layer's pairs. */
function liftQuantiles(data, layer, quantiles) {
  const reference = referenceLift(data, layer);
  const values = Array.from(row(data.pair_lift, layer)).filter((code) => code > 0)
    .map((code) => (code === NEVER ? LOWEST : Math.max(LOWEST, (code - NEUTRAL_LIFT) / LIFT_STEPS - reference))).sort((p, q) => p - q);
  return quantiles.map((q) => (values.length ? values[Math.round(q * (values.length - 1))] : null));
}

function drawLiftByLayer(id, side, present) {
  const layers = range(atlas.num_layers), ends = [0.05, 0.5, 0.95];
  const all = present.map(({ data }) => layers.map((layer) => liftQuantiles(data, layer, ends)));
  const [low, high] = [Math.min(-1, ...all.flat(2)), Math.max(1, ...all.flat(2))];
  const own = all[present.indexOf(side)], colour = COLOURS[side.key];
  const line = (i, what, extra) => ({ type: "scatter", mode: "lines", x: layers, y: own.map((one) => one[i]),
    customdata: own.map((one) => (one[i] === null ? null : 2 ** one[i])), line: { color: colour, width: 0 },
    hovertemplate: `layer %{x}: ${what} %{customdata:.2f}<extra></extra>`, ...extra });
  draw(id, [line(0, "5 % of pairs below"), line(2, "5 % of pairs above", { fill: "tonexty", fillcolor: `${colour}33` }),
    line(1, "median", { mode: "lines+markers", line: { color: colour, width: 2 }, marker: { symbol: SYMBOLS[side.key], size: 7 } })],
  { title: title(side), xaxis: layerAxis, yaxis: { title: "together (times as often)", range: [low - 0.2, high + 0.2], ...TIMES } });
}

function drawLiftMap(id, side, order, note) {
  const { data } = side, layer = Number(state.layer), lift = pairLift(data, layer), reference = referenceLift(data, layer);
  const usage = row(data.usage, layer), cells = order.map((i) => order.map((j) => (i === j ? null : lift(i, j))));
  const text = cells.map((line, y) => line.map((value, x) => {
    if (value === null) return "";
    const [i, j] = [order[y], order[x]], tokens = (2 ** value * usage[i] * usage[j]) / data.numTokens;
    return `experts ${i} and ${j}: ${number(2 ** (value - reference))} times as often, about ${number(tokens, 0)} tokens`;
  }));
  const z = cells.map((line) => line.map((value) => (value === null ? null : Math.max(LOWEST, value - reference))));
  const places = range(order.length).filter((i) => i % 8 === 0);
  const axis = { tickvals: places, ticktext: places.map((i) => order[i]), title: "expert", constrain: "domain", showgrid: false };
  const scale = { ...bar("together (times as often)"), tickvals: range(7, -3), ticktext: ["≤ 1/8", "1/4", "1/2", "1", "2", "4", "≥ 8"] };
  draw(id, [{ type: "heatmap", z, text, hovertemplate: "%{text}<extra></extra>", hoverongaps: false, zmin: -3, zmax: 3,
    colorscale: DIVERGING, colorbar: scale }],
  { title: title(side), plot_bgcolor: "#d9d9d9", xaxis: axis, yaxis: { ...axis, autorange: "reversed", scaleanchor: "x" } });
  note.textContent = describePairs(data, lift, reference, usage) +
    ` Drawing as many experts at random would bring a pair together ${number(chanceLift(data, layer))} times as often as ` +
    "independent choices.";
}

function describePairs(data, lift, reference, usage) {
  const pairs = range(atlas.num_experts).flatMap((i) => range(atlas.num_experts - i - 1, i + 1).map((j) => [i, j, lift(i, j)]))
    .filter(([i, j, value]) => value !== null && (usage[i] * usage[j]) / data.numTokens >= FEWEST_EXPECTED)
    .sort((p, q) => q[2] - p[2]).slice(0, 5);
  if (!pairs.length) return "No pair is common enough to be named.";
  const listed = pairs.map(([i, j, value]) => `${i} and ${j} (${number(2 ** (value - reference), 1)})`).join(", ");
  return `Most often together, of pairs that independent choices would join at least ${FEWEST_EXPECTED} times: ${listed}.`;
}

function drawPosition(sides) {
  const present = sides.filter((side) => side.data);
  if (!present.length) { explain("position", missing(sides[0])); return; }
  const traces = present.map((side) => {
    const { position_edges: edges, position_tokens: tokens, position_means: means } = side.data;
    const bins = range(tokens.data.length).filter((i) => tokens.data[i] >= FEWEST);
    const from = (i) => edges.data[i] + 1, to = (i) => edges.data[i + 1];
    const mean = (i) => { const values = row(means, i); return sum(chosenLayers().map((l) => values[l])) / chosenLayers().length; };
    return { type: "scatter", mode: "lines+markers", name: title(side), x: bins.map((i) => Math.sqrt(from(i) * to(i))),
      y: bins.map(mean), line: { color: COLOURS[side.key], dash: DASHES[side.key] }, marker: { symbol: SYMBOLS[side.key], size: 8 },
      text: bins.map((i) => `token ${from(i) === to(i) ? from(i) : `${from(i)} to ${to(i)}`}: ${number(mean(i))} experts, ` +
        `${tokens.data[i].toLocaleString("en")} tokens`), hovertemplate: "%{text}<extra></extra>" };
  });
  draw("position", traces, { showlegend: true,
    xaxis: { title: "position in the sequence (1: first; log)", type: "log",
      tickvals: range(16).map((i) => 2 ** i) },
    yaxis: { title: "experts per token", rangemode: "tozero" } });
}

function drawLoss(sides) {
  const which = Number(state.loss), present = sides.filter((side) => side.data), overLayers = state.layer === ALL;
  const traces = present.map((side) => {
    const [tokens, counts, means, errors] = ["tokens", "counts", "means", "errors"].map((part) => (overLayers
      ? row(side.data[`mean_loss_${part}`], which) : row(side.data[`loss_${part}`], which, Number(state.layer))));
    const bins = range(tokens.length).filter((i) => tokens[i] >= FEWEST), most = Math.max(...bins.map((i) => tokens[i]));
    const r = row(side.data.loss_correlation, which)[layerRow()];
    return { type: "scatter", mode: "lines+markers", name: `${title(side)}${Number.isNaN(r) ? "" : ` (r = ${number(r)})`}`,
      x: bins.map((i) => place(counts[i])), y: bins.map((i) => means[i] / LOSS_UNITS),
      error_y: { array: bins.map((i) => errors[i] / LOSS_UNITS), thickness: 1.2, width: 0 },
      line: { color: COLOURS[side.key], dash: DASHES[side.key], width: 1 }, marker: { symbol: SYMBOLS[side.key],
        size: bins.map((i) => 5 + 13 * Math.sqrt(tokens[i] / most)), opacity: 0.85, line: { color: "#fff", width: 1 } },
      text: bins.map((i) => `${number(counts[i])} experts: loss ${number(means[i] / LOSS_UNITS)} nats, ` +
        `${tokens[i].toLocaleString("en")} tokens`), hovertemplate: "%{text}<extra></extra>" };
  }).filter((trace) => trace.x.length);
  if (!traces.length) { explain("loss", present.length ? "no count has enough scored tokens" : missing(sides[0])); return; }
  draw("loss", traces, { showlegend: true, yaxis: { title: "loss (nats)", rangemode: "tozero" },
    xaxis: countAxis(`experts per token, ${overLayers ? "mean over layers" : layerName()}`, largestCount(present)) });
}

function build(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function typesTables(side) {
  const heading = build("p", { className: `name ${side.key}`, textContent: title(side) });
  if (!side.data) return [heading, build("p", { className: "note", textContent: missing(side) })];
  const [ids, tokens, means] = ["type_ids", "type_tokens", "type_means"].map((name) => row(side.data[name], layerRow()));
  if (!ids.length) return [heading, build("p", { className: "note", textContent: "No token occurs often enough." })];
  if (means[0] === means.at(-1) && Math.max(...means) === Math.min(...means)) {
    return [heading, build("p", { className: "note", textContent: `All get the same: ${number(means[0])} experts.` })];
  }
  const table = (caption, from, to) => build("table", {}, build("caption", { textContent: caption }),
    build("tr", {}, ...["token", "experts", "occurrences"].map((text) => build("th", { textContent: text, scope: "col" }))),
    ...range(to - from, from).map((i) => build("tr", {},
      ...[visible(atlas.tokens[ids[i]]), number(means[i]), tokens[i].toLocaleString("en")].map((text) => build("td", { textContent: text })))));
  const half = ids.length / 2;
  return [heading, build("div", { className: "lists" }, table("most experts", 0, half), table("fewest experts", half, ids.length))];
}

/** The tokens by which experts are over-represented: of a layer's experts, or of one expert in each layer. */
function typicalTokens(side) {
  const heading = build("p", { className: `name ${side.key}`, textContent: title(side) });
  if (!side.data) return [heading, build("p", { className: "note", textContent: missing(side) })];
  const { typical_ids: ids, typical_shares: shares, usage, numTokens } = side.data;
  const used = ([layer, expert]) => (100 * row(usage, layer)[expert]) / numTokens;
  const listed = (place) => Array.from(row(ids, ...place)).filter((id) => id >= 0);
  const excess = (place) => (listed(place).length ? row(shares, ...place)[0] - used(place) : -Infinity);
  const places = range(atlas.num_layers).map((layer) => range(atlas.num_experts).map((expert) => [layer, expert]));
  const rows = (state.layer === ALL
    ? places.map((own) => own.reduce((best, place) => (excess(place) > excess(best) ? place : best)))
    : places[Number(state.layer)]).filter((place) => listed(place).length);
  if (!rows.length) return [heading, build("p", { className: "note", textContent: "No token stands out." })];
  const cells = (place) => [state.layer === ALL ? place.join(" / ") : String(place[1]), number(used(place), 1),
    listed(place).map((id, i) => `${visible(atlas.tokens[id])} ${row(shares, ...place)[i]}\u00a0%`).join("  ")];
  const heads = [state.layer === ALL ? "layer / expert" : "expert", "% of all tokens", "most typical tokens"];
  const table = build("table", { className: "typical" },
    build("tr", {}, ...heads.map((text) => build("th", { textContent: text, scope: "col" }))),
    ...rows.map((place) => build("tr", {}, ...cells(place).map((text) => build("td", { textContent: text })))));
  return [heading, build("div", { className: "long", tabIndex: 0 }, table)];
}

// --- the text ---

/** What the text of a side shows: for each token of the sample its id, count, loss (null: not scored) and counts by layer. */
function sampleTokens({ data }) {
  const sample = Number(state.sample), [start, stop] = row(data.sample_offsets, 0).slice(sample, sample + 2);
  const starts = new Set(data.sequence_starts.data);
  return range(stop - start, start).map((i) => {
    const counts = Array.from(row(data.expert_counts, i)), loss = data.token_losses.data[i];
    const gain = data.token_gains ? data.token_gains.data[i] : NO_GAIN;
    return { text: atlas.tokens[data.token_ids.data[i]], counts, loss: loss === NOT_SCORED ? null : loss / LOSS_UNITS,
      gain: gain === NO_GAIN ? null : gain / LOSS_UNITS,
      experts: state.layer === ALL ? sum(counts) / counts.length : counts[state.layer], first: i !== start && starts.has(i) };
  });
}

const palette = () => (state.shade === "gain" ? GAINS : VIRIDIS);

function shade(value, [low, high]) {
  const colours = palette(), share = Math.min(Math.max((value - low) / (high - low), 0), 1);
  const place = high > low ? share * (colours.length - 1) : 0;
  const i = Math.min(Math.floor(place), colours.length - 2);
  const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const [from, to] = [channels(colours[i]), channels(colours[i + 1])];
  const mixed = from.map((c, k) => Math.round(c + (place - i) * (to[k] - c)));
  return { background: `rgb(${mixed})`, dark: 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2] < 128 };
}

function textBlock(side, tokens, limits, select) {
  const heading = build("p", { className: `name ${side.key}`, textContent: title(side) });
  const block = build("div", { className: "text", tabIndex: 0, role: "group" });
  block.setAttribute("aria-label", `Text of ${title(side)}: move with the arrow keys`);
  let part = 1, paragraph = block.appendChild(build("p"));
  const several = tokens.some((token) => token.first);
  if (several) paragraph.dataset.part = "sequence 1: ";
  tokens.forEach((token, i) => {
    if (token.first) {
      paragraph = block.appendChild(build("p"));
      paragraph.dataset.part = `sequence ${++part}: `;
    }
    const span = build("span", { className: "token", textContent: token.text.replace(/\n/g, "↵\n"), title: numbersOf(token) });
    const value = token[state.shade];
    if (value === null) span.classList.add("unscored");
    else {
      const { background, dark } = shade(value, limits);
      Object.assign(span.style, { backgroundColor: background, color: dark ? "#fff" : "#000" });
    }
    span.addEventListener("pointerenter", () => select(i));
    paragraph.append(span);
  });
  block.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    select(Math.min(Math.max(currentToken + move, 0), tokens.length - 1));
  });
  return [heading, block];
}

let currentToken = 0;

/** The ends of the shading; of gains as far from 0 on both sides, and few tokens beyond. */
function limitsOf(values) {
  if (!values.length) return [0, 1];
  if (state.shade !== "gain") return [Math.min(...values), Math.max(...values)];
  const sizes = values.map(Math.abs).sort((a, b) => a - b), reach = sizes[Math.floor(0.95 * (sizes.length - 1))];
  return [-(reach || sizes.at(-1)), reach || sizes.at(-1)];
}

function drawText(sides) {
  const present = sides.filter((side) => side.data);
  for (const side of sides) element(`text-${side.key}`).replaceChildren(...(side.data ? [] : [missing(side)]));
  element("current").hidden = !present.length;
  if (!present.length) return;
  const { sampleIds } = present[0].data;
  if (!(Number(state.sample) in sampleIds)) state.sample = "0";
  fill(controls.sample, sampleIds.map((id, i) => [String(i), id]), state.sample);
  const texts = present.map(sampleTokens);
  const values = texts.flat().map((token) => token[state.shade]).filter((value) => value !== null);
  const limits = limitsOf(values);
  const select = (i) => {
    currentToken = i;
    for (const side of present) {
      const spans = element(`text-${side.key}`).querySelectorAll(".token");
      spans.forEach((span, j) => span.classList.toggle("chosen", i === j));
      if (document.activeElement.matches(".text")) spans[i].scrollIntoView({ block: "nearest" });
    }
    drawToken(present, texts, i);
  };
  present.forEach((side, s) => element(`text-${side.key}`).replaceChildren(...textBlock(side, texts[s], limits, select)));
  drawScale(present[0].data, texts, limits, values.length);
  select(Math.min(currentToken, texts[0].length - 1));
}

function drawScale(data, texts, [low, high], scored) {
  const unit = { loss: "nats", gain: "nats (blue: better than its fixed control, orange: worse)",
    experts: `experts per token, ${state.layer === ALL ? "mean over layers" : layerName()}` }[state.shade];
  const gradient = build("span", { className: "bar" });
  gradient.style.background = `linear-gradient(to right, ${palette().join(", ")})`;
  const size = data.sample_sizes.data[state.sample];
  const cut = size > texts[0].length ? `The first ${texts[0].length} of ${size.toLocaleString("en")} tokens.` : "";
  const nothing = state.shade === "gain" ? "Neither configuration has a fixed control here." : "No token of it has a loss.";
  const legend = !scored ? [nothing]
    : high > low ? [number(low, 1), gradient, number(high, 1), unit] : [`All alike: ${number(low, 1)} ${unit}.`];
  const hatched = state.shade === "gain" ? "Hatched: not scored, or without a fixed control." : "Hatched: not scored.";
  if (state.shade !== "experts" && scored && scored < texts.flat().length) legend.push(hatched);
  element("scale").replaceChildren(...legend.map((one) => (typeof one === "string" ? build("span", { textContent: one }) : one)), cut);
}

/** A token's numbers in words. */
function numbersOf({ experts, loss, gain }) {
  return `${number(experts)} experts` + (loss === null ? "" : `, loss ${number(loss)} nats`)
    + (gain === null ? "" : ` (${number(Math.abs(gain))} ${gain < 0 ? "worse" : "better"} than fixed)`);
}

function drawToken(present, texts, i) {
  const said = present.map((side, s) => { // generated texts differ in length
    return `${side.key.toUpperCase()}: ${texts[s][i] ? numbersOf(texts[s][i]) : "no such token"}`;
  });
  element("token").textContent = `Token ${i + 1}, “${visible(texts[0][i]?.text ?? texts[1][i].text)}”, ${layerName()}. ${said.join(". ")}.`;
  const traces = present.map((side, s) => ({ type: "scatter", mode: "lines+markers", name: title(side),
    x: range(atlas.num_layers), y: texts[s][i]?.counts ?? [], line: { color: COLOURS[side.key], dash: DASHES[side.key] },
    marker: { symbol: SYMBOLS[side.key], size: 8 }, hovertemplate: "layer %{x}: %{y} experts<extra></extra>" }));
  draw("token-plot", traces, { showlegend: true, xaxis: layerAxis, shapes: frame("x"),
    yaxis: { title: "experts of this token", rangemode: "tozero" } });
}

// --- all together ---

let shows = 0;

async function show() {
  const turn = ++shows;
  const keys = state.b === NONE ? ["a"] : ["a", "b"];
  const sides = await Promise.all(keys.map(async (key) => ({ key, config: state[key], data: await experiment(state[key], state.dataset) })));
  if (turn !== shows) return; // something else was chosen in the meantime
  document.querySelector("main").hidden = false;
  document.body.classList.toggle("alone", keys.length === 1);
  element("findings").replaceChildren(...findings(sides));
  document.querySelectorAll(".layer-name").forEach((one) => { one.textContent = layerName(); });
  drawCounts(sides);
  drawHistogram(sides);
  drawUsage(sides);
  drawPairs(sides);
  drawPosition(sides);
  drawLoss(sides);
  for (const side of sides) element(`types-${side.key}`).replaceChildren(...typesTables(side));
  for (const side of sides) element(`typical-${side.key}`).replaceChildren(...typicalTokens(side));
  drawText(sides);
  document.body.dataset.shown = JSON.stringify(state);
}

function start() {
  for (const key of ["dataset", "layer", "a", "b"]) fill(controls[key], options[key], defaults[key]);
  for (const [key, control] of Object.entries(controls)) {
    control.addEventListener("change", () => choose({ [key]: control.value }));
  }
  window.addEventListener("hashchange", () => { readAddress(); show(); });
  readAddress();
  return show();
}

start().catch((error) => {
  element("problem").hidden = false;
  element("problem").textContent = typeof DecompressionStream === "undefined"
    ? "This browser is too old for this page: it cannot unpack the data (DecompressionStream)."
    : `The page cannot be drawn: ${error.message}`;
  throw error;
});
