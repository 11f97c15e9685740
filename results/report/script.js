"use strict";
// A click on a column's head sorts a table; a click on a figure opens it in a dialog that zooms and pans.
// The page is complete without this script.

for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(table, head, column));
  });
}

function sort(table, head, column) {
  const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], sign));
  body.append(...rows);
}

// Numbers before texts; missing values (a dash or nothing) last in either order.
function compare(a, b, sign) {
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x !== undefined && y !== undefined) return sign * (Number(x) - Number(y));
  if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1;
  return sign * a.textContent.localeCompare(b.textContent);
}

for (const drawing of document.querySelectorAll(".drawing")) {
  drawing.classList.add("zoomable");
  drawing.tabIndex = 0;
  drawing.setAttribute("role", "button");
  drawing.setAttribute("aria-label", "Enlarge: " + drawing.querySelector("svg").getAttribute("aria-label"));
  drawing.addEventListener("click", () => enlarge(drawing));
  drawing.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      enlarge(drawing);
    }
  });
}

function enlarge(drawing) {
  const dialog = document.createElement("dialog");
  const svg = drawing.querySelector("svg").cloneNode(true);
  const tools = document.createElement("div");
  tools.className = "tools";
  dialog.setAttribute("aria-label", svg.getAttribute("aria-label"));
  dialog.append(svg, tools);
  const whole = svg.viewBox.baseVal;
  const start = [whole.x, whole.y, whole.width, whole.height];
  const view = zoomable(svg, start);
  const actions = [
    ["+", "+", "Zoom in", () => view.zoom(0.8)],
    ["−", "-", "Zoom out", () => view.zoom(1.25)],
    ["Whole", "0", "Whole figure", view.reset],
    ["Close", "Escape", "Close", () => dialog.close()],
  ];
  for (const [text, , name, action] of actions) {
    const button = document.createElement("button");
    button.textContent = text;
    button.setAttribute("aria-label", name);
    button.addEventListener("click", action);
    tools.append(button);
  }
  dialog.addEventListener("keydown", (event) => {
    const found = actions.find(([, key]) => key === event.key);
    if (found) found[3]();
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    drawing.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
}

// The wheel zooms around the pointer and dragging pans; both change the viewBox.
function zoomable(svg, start) {
  let box = [...start];
  const show = () => svg.setAttribute("viewBox", box.join(" "));
  const at = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const zoom = (factor, about = { x: box[0] + box[2] / 2, y: box[1] + box[3] / 2 }) => {
    const bounded = Math.min(Math.max(factor, start[2] / 40 / box[2]), (start[2] * 1.5) / box[2]);
    box = [about.x - (about.x - box[0]) * bounded, about.y - (about.y - box[1]) * bounded, box[2] * bounded, box[3] * bounded];
    show();
  };
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(event.deltaY / 500), at(event));
  });
  let held = null;
  svg.addEventListener("pointerdown", (event) => {
    held = at(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!held) return;
    const now = at(event);
    box = [box[0] - (now.x - held.x), box[1] - (now.y - held.y), box[2], box[3]];
    show();
  });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => (held = null));
  const reset = () => {
    box = [...start];
    show();
  };
  return { zoom, reset };
}
