// A box at the top shows and hides a run in all charts.
document.querySelectorAll("#runs input").forEach((box, run) => {
  box.addEventListener("change", () => {
    for (const chart of document.querySelectorAll(".js-plotly-plot")) {
      const traces = [...chart.data.keys()].filter((index) => chart.data[index].meta === run);
      if (traces.length) Plotly.restyle(chart, {visible: box.checked}, traces);
    }
  });
});
