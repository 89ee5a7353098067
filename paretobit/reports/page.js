// Draws every chart of the page, in the colours of its style sheet, and again when those change. No text becomes code:
// expressions are interpreted, as the page's policy forbids anything else.
const charts = JSON.parse(document.getElementById("charts").textContent);

function look() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const [ink, soft, line, page] = ["--ink", "--soft", "--line", "--page"].map(colour);
  const series = [...Array(8).keys()].map((i) => colour(`--series-${i}`));
  const font = style.fontFamily;
  return {
    background: "transparent",
    font,
    view: { stroke: "transparent" },
    range: { category: series },
    axis: {
      labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12,
      titleFontSize: 12, titleFontWeight: "normal", titlePadding: 10, labelPadding: 6,
    },
    line: { stroke: soft },
    rect: { stroke: page },
    text: { fill: ink },
  };
}

async function draw() {
  const config = look();
  for (const [name, spec] of Object.entries(charts)) {
    try {
      await vegaEmbed(`#${name}`, spec, {
        ast: true, actions: false, renderer: "svg", config, defaultStyle: false,
        tooltip: { disableDefaultStyle: true },
      });
    } catch (why) {
      console.error(`${name}: ${why}`);
    }
  }
  document.documentElement.dataset.drawn = Object.keys(charts).length;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
