"use strict";
// A picture with its boxes, fitted into a canvas of any size and drawn at the screen's own pixels.

// The gradient of annotated videos: weak boxes in cold colours, strong ones in hot ones.
const GRADIENT = [[60, 90, 255], [0, 190, 255], [40, 225, 120], [255, 215, 0], [255, 55, 70]];
const LABELS = 5;
// As in annotated videos: what overlaps a better box more than so (IoU) is not shown, so that people see
// objects, and no stacks.
const APART = 0.5;

function colorOf(score) {
  const place = Math.min(Math.max(score, 0), 1) * (GRADIENT.length - 1);
  const low = Math.min(Math.floor(place), GRADIENT.length - 2), share = place - low;
  return `rgb(${GRADIENT[low].map((v, i) => Math.round(v + share * (GRADIENT[low + 1][i] - v)))})`;
}

function overlap(a, b) {
  const side = i => Math.max(0, Math.min(a[i + 2], b[i + 2]) - Math.max(a[i], b[i]));
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1), both = side(0) * side(1);
  return both / (area(a) + area(b) - both);
}

class Picture {
  // choice: () => ({ top, score }), which boxes to show.
  constructor(canvas, choice, { labels = true, high = "top" } = {}) {
    Object.assign(this, { canvas, choice, labels, high });
    this.result = this.image = this.pointed = null;
    this.boxes = [];
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // While a picture is decoded it may have become unwanted.
  async show(result, jpeg, wanted = () => true) {
    const image = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
    if (wanted()) this.take(result, image);
    else image.close();
  }

  take(result, image) {
    if (this.image) this.image.close();
    Object.assign(this, { result, image });
    this.draw();
  }

  clear() {
    if (this.image) this.image.close();
    this.result = this.image = this.pointed = null;
    this.boxes = [];
    this.draw();
  }

  // Where objects are followed, their boxes are the ones to see.
  chosen() {
    const { boxes, scores, track_ids: ids } = this.result, { top, score } = this.choice();
    const shown = [];
    for (let rank = 0; rank < boxes.length && shown.length < top; rank++) {
      const each = { box: boxes[rank], rank, score: scores[rank], id: ids && ids[rank] };
      if (each.score < score || each.id < 0) continue;
      if (shown.every(better => overlap(each.box, better.box) <= APART)) shown.push(each);
    }
    return shown;
  }

  draw() {
    const { canvas } = this, dense = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * dense), height = Math.round(canvas.clientHeight * dense);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    if (!this.image || !width || !height) return;
    const scale = Math.min(width / this.image.width, height / this.image.height);
    const [wide, high] = [this.image.width * scale, this.image.height * scale];
    const top = this.high === "top" && !document.fullscreenElement ? 0 : (height - high) / 2;
    this.fit = { left: (width - wide) / 2, top, wide, high, dense };
    this.boxes = this.chosen();
    paint(pen, this, this.fit);
    Object.assign(canvas.dataset, { frame: this.result.frame, boxes: this.boxes.length });
  }

  // The best of the smallest boxes around a point of the screen, by its place among those shown.
  at(x, y) {
    if (!this.image || !this.fit) return null;
    const place = this.canvas.getBoundingClientRect(), { left, top, wide, dense } = this.fit;
    const scale = wide / this.result.width;
    const px = ((x - place.left) * dense - left) / scale, py = ((y - place.top) * dense - top) / scale;
    const size = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
    const hit = this.boxes.filter(({ box: [x1, y1, x2, y2] }) => px >= x1 && px <= x2 && py >= y1 && py <= y2);
    return hit.length ? this.boxes.indexOf(hit.reduce((a, b) => size(b.box) < size(a.box) ? b : a)) : null;
  }

  // Where a box lies on the screen, in pixels of the canvas as it is laid out.
  placeOf({ box }) {
    const { left, top, wide, dense } = this.fit, scale = wide / this.result.width;
    return box.map((v, i) => (v * scale + (i % 2 ? top : left)) / dense);
  }

  // The picture as it came, with its boxes, as a PNG.
  async file() {
    const canvas = Object.assign(document.createElement("canvas"), { width: this.image.width, height: this.image.height });
    const fit = { left: 0, top: 0, wide: canvas.width, high: canvas.height, dense: Math.max(1, canvas.width / 900) };
    paint(canvas.getContext("2d"), this, fit);
    return new Promise(done => canvas.toBlob(done, "image/png"));
  }
}

function paint(pen, { image, result, boxes, pointed, labels }, { left, top, wide, high, dense }) {
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, left, top, wide, high);
  pen.save();
  pen.beginPath();
  pen.rect(left, top, wide, high);
  pen.clip();
  const scale = wide / result.width, width = (labels ? 2 : 1.5) * dense;
  const place = ({ box }) => box.map((v, i) => v * scale + (i % 2 ? top : left));
  for (const [index, each] of [...boxes.entries()].reverse()) {
    const [x1, y1, x2, y2] = place(each);
    pen.globalAlpha = pointed === null || pointed === index ? 1 : .35;
    for (const [line, color] of [[width + 2 * dense, "rgba(0, 0, 0, .55)"], [width, colorOf(each.score)]]) {
      Object.assign(pen, { lineWidth: line, strokeStyle: color });
      pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    }
  }
  pen.globalAlpha = pointed === null ? 1 : .35;
  if (labels) name(pen, boxes, place, { left, top, wide, high, dense });
  if (pointed !== null && boxes[pointed]) {
    const [x1, y1, x2, y2] = place(boxes[pointed]);
    pen.globalAlpha = 1;
    Object.assign(pen, { lineWidth: 2 * dense, strokeStyle: "#fff" });
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  pen.restore();
}

// The best boxes get their score, or their number where objects are followed; not one over another.
function name(pen, boxes, place, { left, top, wide, high, dense }) {
  const taken = [], tall = 17 * dense;
  pen.font = `600 ${12 * dense}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  for (const each of boxes) {
    if (each.id === undefined && taken.length === LABELS) break;
    const text = each.id === undefined ? `${Math.round(each.score * 100)}%` : `${each.id}`;
    const [x1, y1, , y2] = place(each), long = pen.measureText(text).width + 8 * dense;
    const x = Math.min(Math.max(x1 - dense, left), left + wide - long);
    const free = y => y >= top && y + tall <= top + high && taken.every(
      t => x + long <= t.x || t.x + t.long <= x || y + tall <= t.y || t.y + tall <= y);
    const y = [y1 - tall, y1, y2].find(free);
    if (y === undefined) continue;
    taken.push({ x, y, long });
    pen.fillStyle = colorOf(each.score);
    pen.fillRect(x, y, long, tall);
    pen.fillStyle = "#000";
    pen.fillText(text, x + 4 * dense, y + tall / 2 + dense / 2);
  }
}
