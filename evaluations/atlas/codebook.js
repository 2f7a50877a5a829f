// The map of a codebook: a dot per code, its neighbors on click, and patches of images.

const MAP_SIDE = 560; // pixels
const MAP_LEFT = 44; // pixels, for the numbers and the name of the axis; as many below
const MAP_TOP = 12; // pixels; as many at the right
const MAP_PLOT = MAP_SIDE - MAP_LEFT - MAP_TOP;
const MAP_STEPS = 4095;
const MAP_TICKS = 4; // numbers along an axis, about
const NEAR = 10; // pixels from the pointer to a dot

class CodebookMap {
  constructor(subject, place) {
    this.subject = subject;
    this.chosen = null;

    this.canvas = element("canvas", {width: MAP_SIDE, height: MAP_SIDE, className: "map"});
    this.readout = element("p", {className: "readout"});
    this.found = element("div");
    this.measures = element("p", {className: "measures"});
    this.key = element("ul", {className: "key"});
    this.group = element("select");
    subject.codebooks.forEach((_, number) => this.group.append(element("option", {value: number}, `index ${number} of a token`)));
    this.group.addEventListener("change", () => this.show(Number(this.group.value)));
    const viewer = element("div", {className: "viewer"}, this.canvas, this.key);
    const detail = element("div", {className: "detail"}, ...(subject.codebooks.length > 1 ? [this.group] : []),
      this.measures, this.readout, this.found);
    place.append(element("h3", {}, subject.title), element("div", {className: "pane"}, viewer, detail));

    this.canvas.addEventListener("mousemove", (event) => this.tell(this.nearest(event) ?? this.chosen));
    this.canvas.addEventListener("mouseleave", () => this.tell(this.chosen));
    this.canvas.addEventListener("click", (event) => this.choose(this.nearest(event)));
    this.show(0);
  }

  show(group) {
    this.book = this.subject.codebooks[group];
    this.total = this.book.counts.reduce((sum, count) => sum + count, 0);
    this.most = this.book.counts.reduce((most, count) => Math.max(most, count), 1);
    this.explain();
    this.choose(null);
  }

  place(row) {
    return [MAP_LEFT + MAP_PLOT * this.book.x[row] / MAP_STEPS, MAP_TOP + MAP_PLOT * (1 - this.book.y[row] / MAP_STEPS)];
  }

  nearest(event) {
    const frame = this.canvas.getBoundingClientRect();
    const x = (event.clientX - frame.left) * MAP_SIDE / frame.width;
    const y = (event.clientY - frame.top) * MAP_SIDE / frame.height;
    let best = null;
    let bestDistance = NEAR;
    for (let row = 0; row < this.book.codes.length; row++) {
      const [left, top] = this.place(row);
      const distance = Math.hypot(left - x, top - y);
      if (distance < bestDistance) [best, bestDistance] = [row, distance];
    }
    return best;
  }

  draw() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, MAP_SIDE, MAP_SIDE);
    this.drawAxes(context);

    // Unused codes below, frequent ones above.
    const rows = this.book.codes.map((_, row) => row).sort((a, b) => this.book.counts[a] - this.book.counts[b]);
    for (const row of rows) this.dot(context, ...this.place(row), this.book.counts[row]);
    if (this.chosen !== null) this.drawNeighbors(context);
  }

  // Numbers in the unit of the code vectors, and how much of the variance each direction holds.
  drawAxes(context) {
    const bottom = MAP_TOP + MAP_PLOT;
    context.strokeStyle = pageColor("--line");
    context.strokeRect(MAP_LEFT, MAP_TOP, MAP_PLOT, MAP_PLOT);
    context.fillStyle = pageColor("--soft");
    context.font = "12px system-ui, sans-serif";
    const names = this.book.shares.map((share, number) => `direction ${number}: ${(100 * share).toFixed(0)} % of the variance`);

    context.textAlign = "center";
    for (const [value, share] of this.ticks(this.book.ends[0])) context.fillText(threeDigits(value), MAP_LEFT + MAP_PLOT * share, bottom + 16);
    context.fillText(names[0], MAP_LEFT + MAP_PLOT / 2, bottom + 34);

    context.save();
    context.rotate(-Math.PI / 2);
    for (const [value, share] of this.ticks(this.book.ends[1])) context.fillText(threeDigits(value), -(bottom - MAP_PLOT * share), MAP_LEFT - 8);
    context.fillText(names[1], -(MAP_TOP + MAP_PLOT / 2), 14);
    context.restore();
    context.textAlign = "start";
  }

  // [value, fraction of the axis] of round numbers between two ends.
  ticks([low, high]) {
    const raw = (high - low) / MAP_TICKS;
    if (!(raw > 0)) return [];
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * [1, 2, 5, 10].find((factor) => unit * factor >= raw);
    const ticks = [];
    for (let number = Math.ceil(low / step); number * step <= high; number++) ticks.push([number * step, (number * step - low) / (high - low)]);
    return ticks;
  }

  drawNeighbors(context) {
    // Lines below the numbers of the codes.
    context.strokeStyle = "#e11d48";
    const [x, y] = this.place(this.chosen);
    const neighbors = this.book.neighbors[this.chosen];
    for (const neighbor of neighbors) {
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(...this.place(neighbor));
      context.stroke();
    }
    context.lineWidth = 2.5;
    context.beginPath();
    context.arc(x, y, 8, 0, 2 * Math.PI);
    context.stroke();

    // The number of each, readable over dots and lines.
    context.font = "600 13px system-ui, sans-serif";
    context.lineWidth = 4;
    context.strokeStyle = pageColor("--card");
    context.fillStyle = pageColor("--ink");
    for (const row of [...neighbors, this.chosen]) {
      const [left, top] = this.place(row);
      context.textAlign = left > MAP_SIDE - 60 ? "end" : "start";
      const at = [left + (left > MAP_SIDE - 60 ? -8 : 8), Math.max(top - 7, 14)];
      context.strokeText(String(this.book.codes[row]), ...at);
      context.fillText(String(this.book.codes[row]), ...at);
    }
    context.textAlign = "start";
    context.lineWidth = 1;
  }

  dot(context, x, y, count) {
    const share = Math.sqrt(count / this.most);
    const small = this.book.codes.length > 2000 ? 0.5 : 1;
    context.beginPath();
    context.arc(x, y, count ? small * (2 + 5 * share) : small * 1.6, 0, 2 * Math.PI);
    context.fillStyle = count ? `rgb(${heat(0.25 + 0.75 * share).join(" ")} / .85)` : "rgb(128 128 128 / .45)";
    context.fill();
  }

  // What sizes and colors mean, and over what codes are counted.
  explain() {
    const {numCounted, numCountedImages} = this.subject.tokens;
    const counts = [...new Set([0, 1, Math.round(this.most / 4), this.most])];
    const dots = counts.map((count) => {
      const canvas = element("canvas", {width: 16, height: 16, className: "dot"});
      this.dot(canvas.getContext("2d"), 8, 8, count);
      const times = count === 0 ? "never" : count === 1 ? "once" : `${count.toLocaleString("en")} times`;
      return element("span", {className: "sample"}, canvas, ` ${times} `);
    });
    this.key.replaceChildren(
      element("li", {}, `How often a code occurs in ${numCountedImages.toLocaleString("en")} counted images (${numCounted.toLocaleString("en")} tokens): `, ...dots),
      element("li", {}, "Axes: coordinates along the directions of the map; 0 is the mean of the counted tokens."),
    );
    const {typicalDistance} = this.book;
    this.measures.textContent = "Distances are Euclidean, between whole code vectors."
      + (typicalDistance === null ? "" : ` The median distance of a code to its nearest neighbor is ${typicalDistance}.`);
  }

  textOf(row) {
    return `code ${this.book.codes[row]}: ${this.book.counts[row]} times among the counted tokens (${percent(this.book.counts[row], this.total)} of them)`;
  }

  tell(row) {
    this.readout.textContent = row === null
      ? `${this.book.numUsed.toLocaleString("en")} of ${this.book.size.toLocaleString("en")} codes are used; the map shows `
        + `${this.book.codes.length.toLocaleString("en")} codes; its two directions hold ${(100 * (this.book.shares[0] + this.book.shares[1])).toFixed(0)} % of the variance.`
      : this.textOf(row);
  }

  choose(row) {
    this.chosen = row;
    this.draw();
    this.tell(row);
    if (row === null) {
      this.found.replaceChildren();
      return;
    }

    // Neighbors as buttons, and patches where the code stands.
    const neighbors = this.book.neighbors[row].map((neighbor, rank) => {
      const text = `code ${this.book.codes[neighbor]}, distance ${this.book.distances[row][rank]}`;
      const button = element("button", {type: "button", className: "chip"}, text);
      button.addEventListener("click", () => this.choose(neighbor));
      return button;
    });
    this.found.replaceChildren(element("div", {className: "options"}, "nearest codes:", ...neighbors), ...this.patches(row));
  }

  patches(row) {
    const {patches} = this.book;
    if (!patches) return [];
    const first = patches.first[row];
    if (first === undefined) return [element("p", {}, "No patches: the code is not among the most used ones.")];
    const canvases = [...Array(patches.count[row]).keys()].map((number) => cellCanvas(patches.sheet, first + number, 64));
    return [element("p", {}, "Parts of counted images where it stands:"), element("div", {className: "patches"}, ...canvases)];
  }
}

function buildCodebooks(place) {
  return atlas.subjects.map((subject) => {
    const column = element("div");
    place.append(column);
    return new CodebookMap(subject, column);
  });
}
