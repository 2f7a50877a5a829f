// Small helpers for elements and for pictures that are cells of a sheet.

const atlas = JSON.parse(document.getElementById("atlas").textContent);
const SMALL_SIDE = 96; // pixels; smaller pictures are drawn with sharp pixels

// An element with properties, and children that are elements or texts. Texts are never read as HTML.
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const loaded = new Map(); // address of a picture -> a promise of it

function loadPicture(uri) {
  if (!loaded.has(uri)) {
    loaded.set(uri, new Promise((resolve, reject) => {
      const picture = new Image();
      picture.onload = () => resolve(picture);
      picture.onerror = () => reject(new Error("a picture of this page is damaged"));
      picture.src = uri;
    }));
  }
  return loaded.get(uri);
}

// Draws cell `index` of a sheet into a rectangle of a context, by default all of its canvas.
async function drawCell(context, sheet, index, left = 0, top = 0, width = context.canvas.width, height = context.canvas.height) {
  const picture = await loadPicture(sheet.uri);
  const x = (index % sheet.columns) * sheet.cell;
  const y = Math.floor(index / sheet.columns) * sheet.cell;
  context.imageSmoothingEnabled = sheet.cell > SMALL_SIDE || width < sheet.cell;
  context.drawImage(picture, x, y, sheet.cell, sheet.cell, left, top, width, height);
}

// A canvas that shows one cell, enlarged by a whole factor to `side` pixels or a bit more.
function cellCanvas(sheet, index, side) {
  const factor = Math.max(1, Math.ceil(side / sheet.cell));
  const canvas = element("canvas", {width: sheet.cell * factor, height: sheet.cell * factor});
  drawCell(canvas.getContext("2d"), sheet, index);
  return canvas;
}

// A share of a whole for people.
function percent(count, total) {
  const value = 100 * count / total;
  return `${value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : value.toPrecision(1)} %`;
}

function codeText(token) {
  return token.join(" · ");
}

// "0.55" for 0.5512, "12" for 12.
function threeDigits(value) {
  return String(Number(value.toPrecision(3)));
}

// Dark blue over teal to yellow for 0..1.
const HEAT = [[30, 27, 75], [13, 110, 130], [250, 204, 21]];
function heat(value) {
  const position = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1);
  const low = Math.min(Math.floor(position), HEAT.length - 2);
  return HEAT[low].map((start, channel) => Math.round(start + (position - low) * (HEAT[low + 1][channel] - start)));
}

// The colors of `heat` as a bar.
function heatStyle() {
  return `background: linear-gradient(90deg, ${HEAT.map((color) => `rgb(${color.join(" ")})`).join(", ")})`;
}

// A color of the page's style, for drawings on a canvas.
function pageColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
