// The viewer of one subject: an image, its tokens, and what happens when one of them is replaced.

const STAGE_SIDE = 448; // pixels of the large picture, or a bit more
const STRIP_COLUMNS = 16;

// Viewers that stand side by side share their mode: the border, the colors, and whether a token is replaced.
class TokenViewer {
  constructor(subject, place, viewers) {
    this.subject = subject;
    this.viewers = viewers;
    this.image = 0;
    this.position = null; // which of the replaced tokens is chosen, by its rank among them
    this.isFollowing = false; // whether it was chosen because another viewer shows a replaced token
    this.code = 0;
    this.drawings = 0;

    // The large picture, with the tokens over it or in a strip below it, and what each side of it is.
    const side = subject.imageSize * Math.max(1, Math.ceil(STAGE_SIDE / subject.imageSize));
    const sharpness = subject.imageSize < SMALL_SIDE ? "picture sharp" : "picture";
    this.canvas = element("canvas", {width: side, height: side, className: sharpness});
    this.grid = element("div", {className: subject.grid ? "cells" : "strip"});
    const columns = subject.grid ? subject.grid[1] : Math.min(STRIP_COLUMNS, subject.numTokens);
    this.grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    this.leftSide = element("span", {className: "side left"}, "original");
    this.rightSide = element("span", {className: "side right"});
    const stage = element("div", {className: "stage"}, this.canvas, this.leftSide, this.rightSide);
    if (subject.grid) stage.append(this.grid);

    // What is below it.
    this.split = element("input", {type: "range", min: 0, max: 100, value: 50, className: "split"});
    this.split.setAttribute("aria-label", "border between the original and what is at its right");
    this.split.addEventListener("input", () => this.share((viewer) => { viewer.split.value = this.split.value; }));
    this.rightOnly = element("span");
    const ends = element("div", {className: "ends"}, this.rightOnly, element("span", {}, "only the original"));
    this.key = element("ul", {className: "key"});

    // What is beside it.
    this.measures = element("p", {className: "measures"});
    this.readout = element("p", {className: "readout"});
    this.influence = element("input", {type: "checkbox"});
    this.influence.addEventListener("change", () => this.share((viewer) => { viewer.influence.checked = this.influence.checked; }));
    this.back = element("button", {type: "button"}, "back to the reconstruction");
    this.back.addEventListener("click", () => this.choose(null));
    this.options = element("div", {className: "options"},
      element("label", {}, this.influence, " show where pixels change"), this.back);
    this.codes = element("div");
    const viewer = element("div", {className: "viewer"}, stage, ...(subject.grid ? [] : [this.grid]), this.split, ends, this.key);
    const detail = element("div", {className: "detail"}, this.readout, this.options, this.codes);
    place.append(element("h3", {}, subject.title), this.measures, element("div", {className: "pane"}, viewer, detail));

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
    this.take(null, false);
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
    const where = grid ? ` (row ${Math.floor(token / grid[1])}, column ${token % grid[1]})` : "";
    return `token ${token}${where}: code ${codeText(this.record.tokens[token])}`;
  }

  // How much an image changes where a token is replaced: the same words for every token and viewer.
  changeText(rank) {
    const {record, subject} = this;
    const side = Math.round(subject.imageSize / record.influence.cell);
    const place = side > 1 ? `${side} x ${side} pixels` : "pixel";
    return `replaced by ${record.codes[rank].length} other codes in turn, it changes pixels by ${record.effect[rank]} of 255 `
      + `levels on average over the image, and by ${record.strongest[rank]} in the most changed ${place}`;
  }

  // "code 72 → 181" of the token that is replaced now.
  replacementText() {
    const token = this.subject.tokens.positions[this.position];
    return `code ${codeText(this.record.tokens[token])} → ${codeText(this.record.codes[this.position][this.code])}`;
  }

  point(node) {
    if (!node) return;
    const {rank, token} = node.dataset;
    this.readout.textContent = this.textOf(Number(token)) + (rank === undefined ? "" : `; ${this.changeText(Number(rank))}`);
  }

  tell() {
    const {positions} = this.subject.tokens;
    if (this.position === null) {
      this.readout.textContent = `${this.record.title}.${positions.length ? " Click a token to replace it." : ""}`;
      return;
    }
    const follows = this.isFollowing ? " Shown because a token is replaced in the other picture: the one that changes this image most." : "";
    this.readout.textContent = `token ${positions[this.position]}, here replaced: ${this.replacementText()}; `
      + `${this.changeText(this.position)}.${follows}`;
  }

  // Changes something in all viewers, and draws them again.
  share(change) {
    for (const viewer of this.viewers) {
      change(viewer);
      viewer.explain();
      viewer.draw();
    }
  }

  // Chooses a token by its rank among those that can be replaced; null shows the reconstruction. Other viewers follow.
  choose(rank) {
    this.take(rank, false);
    for (const viewer of this.viewers) {
      if (viewer === this) continue;
      if (rank === null) viewer.take(null, false);
      else if (viewer.position === null && viewer.subject.tokens.positions.length) viewer.take(viewer.strongestRank(), true);
    }
  }

  strongestRank() {
    const {effect} = this.record;
    return effect.indexOf(Math.max(...effect));
  }

  take(rank, isFollowing) {
    this.position = rank;
    this.isFollowing = isFollowing;
    this.code = 0;
    for (const node of this.grid.querySelectorAll("button.token")) {
      node.setAttribute("aria-pressed", String(rank !== null && Number(node.dataset.rank) === rank));
    }
    this.options.hidden = rank === null;
    if (rank !== null) this.split.value = 0;
    this.listCodes();
    this.tell();
    this.explain();
    return this.draw();
  }

  listCodes() {
    if (this.position === null) {
      this.codes.replaceChildren();
      return;
    }
    const {tokenCounts, numCounted} = this.subject.tokens;
    const codes = this.record.codes[this.position];
    const buttons = codes.map((code, number) => {
      const button = element("button", {type: "button"},
        cellCanvas(this.record.sheet, this.position * codes.length + number, 96),
        element("b", {}, `code ${codeText(code)}`), element("br"),
        `${percent(tokenCounts[code.join(",")], numCounted)} of tokens`);
      button.setAttribute("aria-pressed", String(number === this.code));
      button.addEventListener("click", () => {
        this.code = number;
        this.listCodes();
        this.tell();
        this.explain();
        this.draw();
      });
      return button;
    });
    const text = "The most used other codes, each with how many of the counted tokens have it:";
    this.codes.replaceChildren(element("p", {}, text), element("div", {className: "codes"}, ...buttons));
  }

  // The words around the large picture: what each side of it is, and what colors, bars and boxes mean.
  explain() {
    const {subject, record} = this;
    const isReplaced = this.position !== null;
    const split = Number(this.split.value);
    this.leftSide.hidden = split === 0;
    this.rightSide.hidden = split === 100;
    this.rightSide.textContent = isReplaced ? this.replacementText() : "reconstruction";
    this.rightOnly.textContent = isReplaced ? "only the image with a replaced token" : "only the reconstruction";
    this.measures.textContent = `PSNR of the reconstruction of this image ${record.psnr.toFixed(2)} dB; `
      + `${subject.bits.toLocaleString("en")} bits per image (${subject.numTokens} tokens x ${Number((subject.bits / subject.numTokens).toFixed(2))} bits)`;

    const lines = [isReplaced
      ? [`Shown: token ${subject.tokens.positions[this.position]} replaced, ${this.replacementText()}; all other tokens stay.`]
      : [`Shown: the reconstruction from all ${subject.numTokens} tokens.`]];
    if (isReplaced && this.influence.checked) {
      lines.push(["Colors: mean absolute change of the pixels over the codes tried, 0 ", element("i", {className: "heat", style: heatStyle()}),
        ` ${record.strongest[this.position]} of 255 levels. Each token has its own scale.`]);
    }
    if (!subject.grid) {
      const largest = record.effect ? Math.max(...record.effect) : 0;
      lines.push(["Strip: one field per token; equal codes have equal colors. The dark part, from below, is how much replacing the "
        + `token changes the image; a field that is dark to its top: ${largest} of 255 levels on average.`]);
    }
    lines.push([element("i", {className: "box pointed"}), " the token under the pointer, ", element("i", {className: "box chosen"}), " the one that is replaced."]);
    if (subject.numIndices > 1) lines.push([`A token has ${subject.numIndices} indices, which are written with dots between them: ${codeText(record.tokens[0])}.`]);
    this.key.replaceChildren(...lines.map((parts) => element("li", {}, ...parts)));
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
  const viewers = [];
  for (const subject of atlas.subjects) {
    const column = element("div");
    place.append(column);
    viewers.push(new TokenViewer(subject, column, viewers));
  }
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
