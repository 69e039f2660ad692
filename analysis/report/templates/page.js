"use strict";
(() => {
  const status = document.getElementById("status");

  // Tables: the button of a heading sorts by its column, and once more the other way; what has no key comes last.
  function compare(first, second, isNumber, sign) {
    const keys = [first.dataset.key, second.dataset.key];
    if (keys[0] === undefined || keys[1] === undefined) {
      return (keys[0] === undefined) - (keys[1] === undefined);
    }
    const order = isNumber ? Number(keys[0]) - Number(keys[1]) : keys[0].localeCompare(keys[1], "en", { numeric: true });
    return sign * order;
  }

  function sort(table, heading) {
    const headings = [...heading.parentElement.children];
    const place = headings.indexOf(heading);
    const rises = heading.getAttribute("aria-sort") !== "ascending";
    const body = table.tBodies[0];
    const isNumber = heading.classList.contains("number");
    const rows = [...body.rows].sort((a, b) => compare(a.cells[place], b.cells[place], isNumber, rises ? 1 : -1));
    body.append(...rows);
    headings.forEach((one) => one.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", rises ? "ascending" : "descending");
    status.textContent = `Sorted by ${heading.textContent.trim()}, ${rises ? "ascending" : "descending"}.`;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const heading of table.tHead.rows[0].cells) {
      heading.querySelector("button").addEventListener("click", () => sort(table, heading));
    }
  }

  // The chart: its legend is a list of checkboxes, which set the signal that hides methods.
  const data = document.getElementById("chart-data");
  if (!data) {
    return;
  }
  const panels = JSON.parse(data.textContent);
  const boxes = [...document.querySelectorAll("#legend input")];
  const axes = [...document.querySelectorAll("#axes input")];
  const views = [];

  function hidden() {
    return boxes.filter((box) => !box.checked).map((box) => box.value);
  }

  function filter() {
    views.forEach((view) => view.signal("hidden", hidden()).runAsync());
    status.textContent = `${boxes.length - hidden().length} of ${boxes.length} methods shown.`;
  }

  async function draw() {
    const axis = axes.find((one) => one.checked)?.value ?? "gmacs";
    // ast: expressions are interpreted, so that the page need not allow code made from text
    const options = { actions: false, ast: true, renderer: "svg", mode: "vega-lite" };
    views.splice(0).forEach((view) => view.finalize());
    for (const place of document.querySelectorAll(".chart")) {
      const spec = panels[Number(place.dataset.panel)].specs[axis];
      place.replaceChildren();
      if (!spec) {
        place.textContent = "Speed was not measured here.";
        continue;
      }
      const { view } = await window.vegaEmbed(place, spec, options);
      views.push(view);
    }
    document.documentElement.dataset.drawn = axis;
    filter();
  }

  boxes.forEach((box) => box.addEventListener("change", filter));
  axes.forEach((one) => one.addEventListener("change", draw));
  const setAll = (shown) => () => {
    boxes.forEach((box) => { box.checked = shown; });
    filter();
  };
  document.getElementById("show-all").addEventListener("click", setAll(true));
  document.getElementById("hide-all").addEventListener("click", setAll(false));
  draw();
})();
