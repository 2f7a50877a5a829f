// Samples of a generator: classes by rows, guidance scales by columns.

const SAMPLE_SIDE = 96; // pixels of a canvas, or a bit more

function sampleTable({scales, classes, perClass, sheet}) {
  const head = element("tr", {}, element("th"), ...scales.map((scale) => element("th", {}, `scale ${scale}`)));
  const rows = classes.map((name, row) => {
    const cells = scales.map((scale, column) => {
      const first = (column * classes.length + row) * perClass;
      const canvases = [...Array(perClass).keys()].map((number) => {
        const canvas = cellCanvas(sheet, first + number, SAMPLE_SIDE);
        canvas.title = `${name}, guidance scale ${scale}`;
        return canvas;
      });
      return element("td", {}, ...canvases);
    });
    return element("tr", {}, element("th", {}, name), ...cells);
  });
  return element("table", {}, head, ...rows);
}

function buildSamples(place) {
  for (const subject of atlas.subjects) {
    const content = subject.samples ? sampleTable(subject.samples) : element("p", {}, "No generator was given.");
    place.append(element("div", {className: "samples"}, element("h3", {}, subject.title), content));
  }
}
