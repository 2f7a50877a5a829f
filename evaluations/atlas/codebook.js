// The map of a codebook: a dot per code, its neighbors on click, and patches of images.

const MAP_SIDE = 560; // pixels
const MAP_STEPS = 4095;
const NEAR = 10; // pixels from the pointer to a dot

class CodebookMap {
  constructor(subject, place) {
    this.subject = subject;
    this.chosen = null;

    this.canvas = element("canvas", {width: MAP_SIDE, height: MAP_SIDE, className: "map"});
    this.readout = element("p", {className: "readout"});
    this.found = element("div");
    this.group = element("select");
    subject.codebooks.forEach((_, number) => this.group.append(element("option", {value: number}, `index ${number + 1} of a token`)));
    this.group.addEventListener("change", () => this.show(Number(this.group.value)));
    const viewer = element("div", {className: "viewer"}, this.canvas);
    const detail = element("div", {className: "detail"}, ...(subject.codebooks.length > 1 ? [this.group] : []),
      this.readout, this.found);
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
    this.choose(null);
  }

  place(row) {
    const usable = MAP_SIDE - 24;
    return [12 + usable * this.book.x[row] / MAP_STEPS, 12 + usable * (1 - this.book.y[row] / MAP_STEPS)];
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

    // Unused codes below, frequent ones above.
    const rows = this.book.codes.map((_, row) => row).sort((a, b) => this.book.counts[a] - this.book.counts[b]);
    for (const row of rows) this.dot(context, row);

    if (this.chosen === null) return;
    context.strokeStyle = "#e11d48";
    const [x, y] = this.place(this.chosen);
    for (const neighbor of this.book.neighbors[this.chosen]) {
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(...this.place(neighbor));
      context.stroke();
    }
    context.lineWidth = 2.5;
    context.beginPath();
    context.arc(x, y, 8, 0, 2 * Math.PI);
    context.stroke();
    context.lineWidth = 1;
  }

  dot(context, row) {
    const count = this.book.counts[row];
    const share = Math.sqrt(count / this.most);
    const small = this.book.codes.length > 2000 ? 0.5 : 1;
    context.beginPath();
    context.arc(...this.place(row), count ? small * (2 + 5 * share) : small * 1.6, 0, 2 * Math.PI);
    context.fillStyle = count ? `rgb(${heat(0.25 + 0.75 * share).join(" ")} / .85)` : "rgb(128 128 128 / .45)";
    context.fill();
  }

  textOf(row) {
    return `code ${this.book.codes[row]}: ${this.book.counts[row]} times among the counted tokens (${percent(this.book.counts[row], this.total)})`;
  }

  tell(row) {
    this.readout.textContent = row === null
      ? `${this.book.numUsed.toLocaleString("en")} of ${this.book.size.toLocaleString("en")} codes are used; the map shows `
        + `${this.book.codes.length.toLocaleString("en")} codes; its directions hold ${(100 * this.book.explained).toFixed(0)} % of the variance.`
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
      const text = `${this.book.codes[neighbor]} (distance ${this.book.distances[row][rank]})`;
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
