// Draws a frame and the mask over it, and lets one change the mask. Gradio gives `element`, `props`,
// `watch` and `trigger`. The mask is one number per pixel, so nothing is lost at the edges.
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const layer = document.createElement("canvas"); // the mask in colours
const layerContext = layer.getContext("2d", { willReadFrequently: true });
const colours = props.colours; // of every ID, [r, g, b]
const OPACITY = 150;
const UNDOS = 30;

let width = 0, height = 0, number = 0, locked = true;
let picture = null; // the frame
let ids = new Uint8Array(0);
let history = [];
let tool = "brush", object = 1, radius = 12;
let last = null; // where the stroke is
let corners = []; // of the polygon
let pointer = null;

function load(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = url;
  });
}

async function show() {
  const value = props.value;
  if (!value || !value.frame) return;
  locked = true;
  const [frame, mask] = await Promise.all([load(value.frame), load(value.mask)]);
  if (props.value !== value && props.value.frame !== value.frame) return; // a later one has come
  picture = frame;
  number = value.number;
  width = canvas.width = layer.width = frame.naturalWidth;
  height = canvas.height = layer.height = frame.naturalHeight;
  canvas.style.width = `min(100%, calc(66vh * ${value.aspect}))`; // small videos are enlarged
  canvas.style.aspectRatio = value.aspect;
  layerContext.drawImage(mask, 0, 0);
  const grey = layerContext.getImageData(0, 0, width, height).data;
  ids = new Uint8Array(width * height);
  for (let i = 0; i < ids.length; i++) ids[i] = grey[4 * i];
  history = [];
  corners = [];
  locked = value.locked;
  element.querySelector(".stma-canvas").classList.toggle("locked", locked);
  canvas.dataset.frame = number;
  paint();
}

// Recolour a rectangle of the mask, by default all of it.
function paint(left = 0, top = 0, right = width, bottom = height) {
  left = Math.max(0, Math.floor(left));
  top = Math.max(0, Math.floor(top));
  right = Math.min(width, Math.ceil(right));
  bottom = Math.min(height, Math.ceil(bottom));
  if (right > left && bottom > top) {
    const part = layerContext.createImageData(right - left, bottom - top);
    let at = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++, at += 4) {
        const id = ids[y * width + x];
        if (!id) continue;
        const colour = colours[id];
        part.data[at] = colour[0];
        part.data[at + 1] = colour[1];
        part.data[at + 2] = colour[2];
        part.data[at + 3] = OPACITY;
      }
    }
    layerContext.putImageData(part, left, top);
  }
  context.drawImage(picture, 0, 0);
  context.drawImage(layer, 0, 0);
  drawTool();
}

function drawTool() {
  const scale = width / canvas.getBoundingClientRect().width; // pixels to one of the screen
  context.lineWidth = 2 * scale;
  context.strokeStyle = tool === "eraser" ? "white" : `rgb(${colours[object]})`;
  if (corners.length) {
    context.beginPath();
    corners.concat(pointer ? [pointer] : []).forEach(([x, y]) => context.lineTo(x, y));
    context.stroke();
    context.strokeRect(corners[0][0] - 4 * scale, corners[0][1] - 4 * scale, 8 * scale, 8 * scale);
  } else if (pointer && !locked && tool !== "polygon") {
    context.beginPath();
    context.arc(pointer[0], pointer[1], radius, 0, 2 * Math.PI);
    context.stroke();
  }
}

function stamp(x, y) {
  const id = tool === "eraser" ? 0 : object;
  const [x0, y0] = [Math.max(0, Math.ceil(x - radius)), Math.max(0, Math.ceil(y - radius))];
  for (let row = y0; row <= Math.min(height - 1, y + radius); row++)
    for (let column = x0; column <= Math.min(width - 1, x + radius); column++)
      if ((row - y) ** 2 + (column - x) ** 2 <= radius ** 2) ids[row * width + column] = id;
}

function stroke([x, y]) {
  const [fromX, fromY] = last || [x, y];
  const steps = Math.ceil(Math.hypot(x - fromX, y - fromY) / Math.max(1, radius / 4)) || 1;
  for (let i = 1; i <= steps; i++)
    stamp(fromX + ((x - fromX) * i) / steps, fromY + ((y - fromY) * i) / steps);
  last = [x, y];
  const around = radius + 2;
  paint(Math.min(x, fromX) - around, Math.min(y, fromY) - around,
        Math.max(x, fromX) + around, Math.max(y, fromY) + around);
}

function fillPolygon() {
  if (corners.length > 2) {
    remember();
    const mold = document.createElement("canvas");
    [mold.width, mold.height] = [width, height];
    const inside = mold.getContext("2d");
    inside.beginPath();
    corners.forEach(([x, y]) => inside.lineTo(x, y));
    inside.fill();
    const alpha = inside.getImageData(0, 0, width, height).data;
    for (let i = 0; i < ids.length; i++) if (alpha[4 * i + 3] > 127) ids[i] = object;
    publish();
  }
  corners = [];
  paint();
}

function remember() {
  history.push(ids.slice());
  if (history.length > UNDOS) history.shift();
}

// Tell Python: a PNG whose red is the ID.
function publish() {
  const plain = document.createElement("canvas");
  [plain.width, plain.height] = [width, height];
  const image = new ImageData(width, height);
  for (let i = 0; i < ids.length; i++) {
    image.data[4 * i] = ids[i];
    image.data[4 * i + 3] = 255;
  }
  plain.getContext("2d").putImageData(image, 0, 0);
  props.value = { number: number, mask: plain.toDataURL("image/png"), edited: true };
  trigger("input");
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * width) / box.width,
          ((event.clientY - box.top) * height) / box.height];
}

canvas.addEventListener("pointerdown", (event) => {
  if (locked || !picture || event.button) return;
  pointer = place(event);
  if (tool === "polygon") {
    const reach = (10 * width) / canvas.getBoundingClientRect().width;
    const [x, y] = corners[0] || [Infinity, Infinity];
    if (Math.hypot(pointer[0] - x, pointer[1] - y) < reach) return fillPolygon();
    corners.push(pointer);
    return paint(0, 0, 0, 0);
  }
  canvas.setPointerCapture(event.pointerId);
  remember();
  stroke(pointer);
});

canvas.addEventListener("pointermove", (event) => {
  if (!picture) return;
  pointer = place(event);
  if (last) stroke(pointer);
  else paint(0, 0, 0, 0);
});

function endStroke() {
  if (!last) return;
  last = null;
  publish();
}
canvas.addEventListener("pointerup", endStroke);
canvas.addEventListener("pointercancel", endStroke);
canvas.addEventListener("pointerleave", () => {
  pointer = null;
  if (picture) paint(0, 0, 0, 0);
});
canvas.addEventListener("dblclick", () => tool === "polygon" && fillPolygon());

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.object) object = Number(button.dataset.object);
  if (button.dataset.object && tool === "eraser") tool = "brush";
  if (button.dataset.tool) tool = button.dataset.tool;
  if (tool !== "polygon" || button.dataset.action === "clear") corners = [];
  if (button.dataset.action && !locked && picture) {
    if (button.dataset.action === "clear") {
      remember();
      ids.fill(0);
      publish();
    } else if (corners.length) {
      corners.pop();
    } else if (history.length) {
      ids = history.pop();
      publish();
    }
  }
  for (const each of element.querySelectorAll("button"))
    each.classList.toggle(
      "chosen", each.dataset.tool === tool || Number(each.dataset.object) === object);
  if (picture) paint();
});

element.querySelector("input").addEventListener("input", (event) => {
  radius = Number(event.target.value);
});

watch("value", show);
show();
