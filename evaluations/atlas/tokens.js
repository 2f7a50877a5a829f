// The viewer of one subject: an image, its tokens, and what happens when one of them is replaced.

const STAGE_SIDE = 448; // pixels of the large picture, or a bit more
const STRIP_COLUMNS = 16;

class TokenViewer {
  constructor(subject, place) {
    this.subject = subject;
    this.image = 0;
    this.position = null; // which of the replaced tokens is chosen, by its rank among them
    this.code = 0;
    this.drawings = 0;

    // The large picture, with the tokens over it or in a strip below it.
    const side = subject.imageSize * Math.max(1, Math.ceil(STAGE_SIDE / subject.imageSize));
    const sharpness = subject.imageSize < SMALL_SIDE ? "picture sharp" : "picture";
    this.canvas = element("canvas", {width: side, height: side, className: sharpness});
    this.grid = element("div", {className: subject.grid ? "cells" : "strip"});
    const columns = subject.grid ? subject.grid[1] : Math.min(STRIP_COLUMNS, subject.numTokens);
    this.grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    const stage = element("div", {className: "stage"}, this.canvas);
    if (subject.grid) stage.append(this.grid);

    // What is below it.
    this.split = element("input", {type: "range", min: 0, max: 100, value: 50, className: "split"});
    this.split.setAttribute("aria-label", "from original to reconstruction");
    this.split.addEventListener("input", () => this.draw());
    const ends = element("div", {className: "ends"}, element("span", {}, "← reconstruction"), element("span", {}, "original →"));
    this.readout = element("p", {className: "readout"});
    this.influence = element("input", {type: "checkbox"});
    this.influence.addEventListener("change", () => this.draw());
    this.back = element("button", {type: "button"}, "back to the reconstruction");
    this.back.addEventListener("click", () => this.choose(null));
    this.options = element("div", {className: "options"},
      element("label", {}, this.influence, " show where pixels change"), this.back);
    this.codes = element("div", {className: "codes"});
    const viewer = element("div", {className: "viewer"}, stage, ...(subject.grid ? [] : [this.grid]), this.split, ends);
    const detail = element("div", {className: "detail"}, this.readout, this.options, this.codes);
    place.append(element("h3", {}, subject.title), element("div", {className: "pane"}, viewer, detail));

    this.grid.addEventListener("mouseover", (event) => this.point(event.target.closest(".token")));
    this.grid.addEventListener("focusin", (event) => this.point(event.target.closest(".token")));
    this.grid.addEventListener("mouseleave", () => this.tell());
    this.grid.addEventListener("click", (event) => {
      const token = event.target.closest("button.token");
      if (token) this.choose(Number(token.dataset.rank));
    });
  }

  get record() {
    return this.subject.tokens.images[this.image];
  }

  show(image) {
    this.image = image;
    this.position = null;
    this.buildTokens();
    this.choose(null);
  }

  // One element per token; those that can be replaced are buttons.
  buildTokens() {
    const {positions} = this.subject.tokens;
    const rankOf = new Map(positions.map((token, rank) => [token, rank]));
    const largest = Math.max(...(this.record.effect ?? []), 1e-9);
    this.grid.replaceChildren(...this.record.tokens.map((code, token) => {
      const rank = rankOf.get(token);
      const node = element(rank === undefined ? "span" : "button", {className: "token", title: this.textOf(token)});
      node.dataset.token = token;
      if (rank !== undefined) {
        node.type = "button";
        node.dataset.rank = rank;
        node.setAttribute("aria-label", `replace ${this.textOf(token)}`);
      }
      if (!this.subject.grid) {
        node.style.background = `hsl(${(code.reduce((sum, index) => sum * 31 + index, 0) * 137.508) % 360} 65% 60%)`;
        if (rank !== undefined) {
          const bar = element("i");
          bar.style.height = `${100 * this.record.effect[rank] / largest}%`;
          node.append(bar);
        }
      }
      return node;
    }));
  }

  textOf(token) {
    const {grid} = this.subject;
    const where = grid ? ` (row ${Math.floor(token / grid[1]) + 1}, column ${token % grid[1] + 1})` : "";
    return `token ${token}${where}: code ${codeText(this.record.tokens[token])}`;
  }

  point(node) {
    if (!node) return;
    const rank = node.dataset.rank;
    const effect = rank === undefined ? "" : `; replacing it changes pixels by ${this.record.effect[rank]} of 255 levels on average`;
    this.readout.textContent = this.textOf(Number(node.dataset.token)) + effect;
  }

  tell() {
    const {positions} = this.subject.tokens;
    if (this.position === null) {
      const hint = positions.length ? " Click a token to replace it." : "";
      this.readout.textContent = `${this.record.title}: PSNR of the reconstruction ${this.record.psnr} dB.${hint}`;
      return;
    }
    const code = this.record.codes[this.position][this.code];
    this.readout.textContent = `${this.textOf(positions[this.position])}, here replaced by ${codeText(code)}; `
      + `over all replacements, the most changed part changes by ${this.record.strongest[this.position]} of 255 levels`;
  }

  // Chooses a token by its rank among those that can be replaced; null shows the reconstruction.
  choose(rank) {
    this.position = rank;
    this.code = 0;
    for (const node of this.grid.querySelectorAll("button.token")) {
      node.setAttribute("aria-pressed", String(rank !== null && Number(node.dataset.rank) === rank));
    }
    this.options.hidden = rank === null;
    if (rank !== null) this.split.value = 0;
    this.listCodes();
    this.tell();
    return this.draw();
  }

  listCodes() {
    if (this.position === null) {
      this.codes.replaceChildren();
      return;
    }
    const {tokenCounts, numCounted} = this.subject.tokens;
    const codes = this.record.codes[this.position];
    this.codes.replaceChildren(...codes.map((code, number) => {
      const button = element("button", {type: "button"},
        cellCanvas(this.record.sheet, this.position * codes.length + number, 96),
        `${codeText(code)} (${percent(tokenCounts[code.join(",")], numCounted)})`);
      button.setAttribute("aria-pressed", String(number === this.code));
      button.addEventListener("click", () => {
        this.code = number;
        this.listCodes();
        this.tell();
        this.draw();
      });
      return button;
    }));
  }

  // The original at the left of the slider; at its right the reconstruction, or the image with a token replaced.
  async draw() {
    const drawing = ++this.drawings;
    const {record, position, code} = this;
    const [original, reconstruction] = await Promise.all([loadPicture(record.original), loadPicture(record.reconstruction)]);
    const sheet = position === null ? null : record.sheet;
    if (sheet) await Promise.all([loadPicture(sheet.uri), loadPicture(record.influence.uri)]);
    if (drawing !== this.drawings) return; // another one has begun

    const context = this.canvas.getContext("2d");
    const side = this.canvas.width;
    context.imageSmoothingEnabled = original.width > SMALL_SIDE;
    context.drawImage(reconstruction, 0, 0, side, side);
    if (sheet) await drawCell(context, sheet, position * record.codes[position].length + code);
    if (sheet && this.influence.checked) await this.drawInfluence(context, record, position);

    const border = Math.round(side * this.split.value / 100);
    if (border > 0) {
      const part = original.width * border / side;
      context.imageSmoothingEnabled = original.width > SMALL_SIDE;
      context.drawImage(original, 0, 0, part, original.height, 0, 0, border, side);
      context.fillStyle = "#fff";
      context.fillRect(border - 1, 0, 2, side);
    }
  }

  // The map of influence in colors, over a darkened image.
  async drawInfluence(context, record, position) {
    const side = record.influence.cell;
    const map = element("canvas", {width: side, height: side}).getContext("2d", {willReadFrequently: true});
    await drawCell(map, record.influence, position);
    const pixels = map.getImageData(0, 0, side, side);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const value = pixels.data[i] / 255;
      [pixels.data[i], pixels.data[i + 1], pixels.data[i + 2]] = heat(value);
      pixels.data[i + 3] = Math.round(255 * (0.35 + 0.5 * value));
    }
    map.putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = true;
    context.drawImage(map.canvas, 0, 0, context.canvas.width, context.canvas.height);
  }
}

// Thumbnails that choose the image of all viewers.
function buildTokens(place) {
  const thumbs = element("div", {className: "thumbs"});
  place.before(thumbs);
  const viewers = atlas.subjects.map((subject) => {
    const column = element("div");
    place.append(column);
    return new TokenViewer(subject, column);
  });
  const show = (image) => {
    [...thumbs.children].forEach((button, number) => button.setAttribute("aria-pressed", String(number === image)));
    for (const viewer of viewers) viewer.show(image);
  };
  atlas.subjects[0].tokens.images.forEach((record, number) => {
    const picture = element("img", {src: record.original, alt: record.title});
    if (atlas.subjects[0].imageSize < SMALL_SIDE) picture.className = "sharp";
    const button = element("button", {type: "button", title: record.title}, picture);
    button.addEventListener("click", () => show(number));
    thumbs.append(button);
  });
  show(0);
  return viewers;
}
