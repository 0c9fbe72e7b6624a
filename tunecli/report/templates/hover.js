const charts = JSON.parse(document.getElementById("numbers").textContent).charts;

function shown(value, unit) {
  if (unit === "bytes") return (value / 1e9).toFixed(2) + " GB";
  if (unit === "share") return (100 * value).toFixed(1) + "%";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return value === 0 || size >= 0.001 ? String(Number(value.toPrecision(4))) : value.toExponential(2).replace("e+", "e");
}

function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle; else high = middle;
  }
  return step - steps[low] < steps[high] - step ? low : high;
}

for (const figure of document.querySelectorAll("[data-chart]")) {
  const chart = charts[Number(figure.dataset.chart)];
  const plot = figure.querySelector(".plot"), cursor = figure.querySelector(".cursor"), at = figure.querySelector(".at");
  const outputs = [...figure.querySelectorAll("output")];
  const before = [at.textContent, ...outputs.map((output) => output.textContent)];

  function look(event) {
    const box = plot.getBoundingClientRect();
    const wanted = chart.low + (chart.high - chart.low) * (event.clientX - box.left) / box.width;
    const found = chart.lines.map((line) => line.steps[nearest(line.steps, wanted)]);
    const step = found.reduce((best, each) => Math.abs(each - wanted) < Math.abs(best - wanted) ? each : best);
    chart.lines.forEach((line, i) => {
      const index = nearest(line.steps, step);
      const off = line.steps[index] === step ? "" : " (step " + line.steps[index] + ")";
      outputs[i].textContent = shown(line.values[index], chart.unit) + off;
    });
    at.textContent = "step " + step;
    cursor.style.left = 100 * (step - chart.low) / (chart.high - chart.low) + "%";
    cursor.hidden = false;
  }

  function leave() {
    [at.textContent] = before;
    outputs.forEach((output, i) => { output.textContent = before[i + 1]; });
    cursor.hidden = true;
  }

  plot.addEventListener("pointermove", look);
  plot.addEventListener("pointerdown", look);
  plot.addEventListener("pointerleave", leave);
}
