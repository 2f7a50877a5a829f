// What a page of a report does beyond showing: values under the pointer, sorted tables, pictures by step.
"use strict";

// ------------------------------------------------------------------------------------------------ charts
const MOST_SHOWN = 10; // lines that the box beside the pointer names: the nearest ones

function shortNumber(value) {
  return Number.isInteger(value) ? value.toLocaleString("en-US") : String(Number(value.toPrecision(5)));
}

function nearest(points, x) {
  // The point of a line, sorted by x, whose x is nearest.
  let low = 0;
  let high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle;
    else high = middle;
  }
  return x - points[low][0] <= points[high][0] - x ? points[low] : points[high];
}

function followPointer(figure) {
  const plot = JSON.parse(figure.dataset.plot);
  const svg = figure.querySelector("svg");
  const [left, right, top, bottom] = plot.frame;
  const placeX = (x) => left + ((x - plot.x[0]) / (plot.x[1] - plot.x[0])) * (right - left);
  const height = (y) => (plot.isLog ? Math.log10(y) : y);
  const placeY = (y) => top + ((plot.y[1] - height(y)) / (plot.y[1] - plot.y[0])) * (bottom - top);
  const visibleY = (y) => Math.min(Math.max(placeY(y), top), bottom); // at the edge of a zoomed chart

  // What follows the pointer: a line, a dot per curve, and a box with the values.
  const guide = document.createElementNS(svg.namespaceURI, "line");
  guide.setAttribute("class", "guide");
  guide.setAttribute("y1", top);
  guide.setAttribute("y2", bottom);
  const dots = document.createElementNS(svg.namespaceURI, "g");
  const box = document.createElement("div");
  box.className = "values";
  box.hidden = true;
  figure.append(box);

  function leave() {
    guide.remove();
    dots.remove();
    box.hidden = true;
  }

  function show(event) {
    const area = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / area.width;
    const x = plot.x[0] + (((event.clientX - area.left) * scale - left) / (right - left)) * (plot.x[1] - plot.x[0]);
    const pointerY = (event.clientY - area.top) * scale;

    // The nearest recorded step, and the lines that have a value there.
    const shown = plot.lines.filter((line) => !line.hidden);
    if (!shown.length) return leave();
    const candidates = shown.map((line) => ({ line, point: nearest(line.points, x) }));
    const step = candidates.reduce((a, b) => (Math.abs(b.point[0] - x) < Math.abs(a.point[0] - x) ? b : a)).point[0];
    const entries = candidates
      .filter((entry) => entry.point[0] === step)
      .sort((a, b) => Math.abs(placeY(a.point[1]) - pointerY) - Math.abs(placeY(b.point[1]) - pointerY));
    const named = entries.slice(0, MOST_SHOWN).sort((a, b) => b.point[1] - a.point[1]);

    guide.setAttribute("x1", placeX(step));
    guide.setAttribute("x2", placeX(step));
    dots.replaceChildren(...named.map(({ line, point }) => {
      const dot = document.createElementNS(svg.namespaceURI, "circle");
      dot.setAttribute("cx", placeX(point[0]));
      dot.setAttribute("cy", visibleY(point[1]));
      dot.setAttribute("r", 3.5);
      dot.setAttribute("fill", line.color);
      return dot;
    }));
    svg.append(guide, dots);

    const title = document.createElement("b");
    title.textContent = `${plot.xName} ${shortNumber(step)}`;
    box.replaceChildren(title, ...named.map(({ line, point }) => {
      const row = document.createElement("div");
      const mark = document.createElement("i");
      mark.style.background = line.color;
      const value = document.createElement("b");
      value.textContent = shortNumber(point[1]);
      row.append(mark, `${line.name} `, value);
      return row;
    }));
    if (entries.length > named.length) {
      const rest = document.createElement("div");
      rest.textContent = `and ${entries.length - named.length} more`;
      box.append(rest);
    }

    // Below the plot, over the legend: there it hides no line.
    box.hidden = false;
    box.style.top = `${area.bottom - figure.getBoundingClientRect().top}px`;
  }

  // A zoomed chart and all of it, by turns: the other vertical axis, and the lines on it.
  function turnZoom(button) {
    [plot.y, plot.otherY] = [plot.otherY, plot.y];
    for (const axis of figure.querySelectorAll("g.values-axis")) axis.classList.toggle("off");
    plot.lines.forEach((line, number) => {
      const group = figure.querySelector(`g[data-line="${number}"]`);
      const places = line.points.map(([x, y]) => [placeX(x), placeY(y)]);
      group.querySelector("polyline").setAttribute("points", places.map((place) => place.join()).join(" "));
      group.querySelectorAll("circle").forEach((dot, i) => dot.setAttribute("cy", places[i][1]));
    });
    const isAll = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(isAll));
    button.textContent = isAll ? "zoom in" : "show all";
  }

  const zoomButton = figure.querySelector(".zoom button");
  if (zoomButton) zoomButton.addEventListener("click", () => turnZoom(zoomButton));

  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", leave);

  for (const button of figure.querySelectorAll("button[data-line]")) {
    button.addEventListener("click", () => {
      const line = plot.lines[button.dataset.line];
      line.hidden = !line.hidden;
      button.classList.toggle("off", line.hidden);
      figure.querySelector(`g[data-line="${button.dataset.line}"]`).classList.toggle("off", line.hidden);
    });
  }
}

// ------------------------------------------------------------------------------------------------ tables
function sortBy(table, column, button) {
  // Numbers by value, text by letters; rows without a value stay last. A second click turns the order.
  const head = button.closest("th");
  const isDown = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", isDown ? "descending" : "ascending");

  const direction = isDown ? -1 : 1;
  const rows = [...table.tBodies[0].rows].map((row) => {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    const value = cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
    return { row, text, value, isEmpty: text === "" };
  });
  rows.sort((a, b) => {
    if (a.isEmpty || b.isEmpty) return a.isEmpty - b.isEmpty;
    const order = Number.isNaN(a.value) || Number.isNaN(b.value)
      ? a.text.localeCompare(b.text, "en", { numeric: true })
      : a.value - b.value;
    return direction * order;
  });
  table.tBodies[0].append(...rows.map((entry) => entry.row));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.append(...cell.childNodes);
    button.addEventListener("click", () => sortBy(table, column, button));
    cell.append(button);
  });
}

// ------------------------------------------------------------------------------------------------ pictures by step
function makeLeaves(figure) {
  // One picture of several is shown; the slider says which.
  const pictures = [...figure.querySelectorAll("img")];
  const slider = figure.querySelector("input");
  const label = figure.querySelector("output");
  const show = () => {
    const chosen = slider ? Number(slider.value) : 0;
    pictures.forEach((picture, i) => { picture.hidden = i !== chosen; });
    label.textContent = pictures[chosen].alt;
  };
  if (slider) slider.addEventListener("input", show);
  figure.classList.add("leaves");
  show();
}

// ------------------------------------------------------------------------------------------------ links
function openTarget() {
  // The part of a run that a link leads to may be closed.
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  const part = target && target.querySelector(":scope > details");
  if (part) part.open = true;
}

window.addEventListener("hashchange", openTarget);
openTarget();
document.querySelectorAll("figure.chart").forEach(followPointer);
document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("figure.by-step").forEach(makeLeaves);
