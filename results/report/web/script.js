"use strict";
// Sorts and filters tables, and enlarges figures. The page is complete without this script.

function make(tag, text, parent) {
  const element = document.createElement(tag);
  element.textContent = text;
  parent.append(element);
  return element;
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = make("button", head.textContent, head);
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(table, head, column));
  });
  filter(table);
}

function sort(table, head, column) {
  const order = head.ariaSort === "ascending" ? "descending" : "ascending";
  for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
  head.ariaSort = order;
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  table.tBodies[0].append(...rows.sort((a, b) => compare(a.cells[column], b.cells[column], sign)));
}

// Numbers before texts; missing values (a dash or nothing) last in either order.
function compare(a, b, sign) {
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x !== undefined && y !== undefined) return sign * (Number(x) - Number(y));
  if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1;
  return sign * a.textContent.localeCompare(b.textContent);
}

// A list of values for each of the first columns; a row is shown if it has all values that are chosen.
function filter(table) {
  const rows = [...table.tBodies[0].rows];
  const tools = document.createElement("div");
  tools.className = "filters";
  const lists = [];
  for (let column = 0; column < Number(table.dataset.filters); column++) {
    const values = [...new Set(rows.map((row) => row.cells[column].textContent))];
    if (values.length < 2) continue;
    const label = make("label", table.tHead.rows[0].cells[column].textContent, tools);
    const list = make("select", "", label);
    for (const value of ["all", ...values]) make("option", value, list);
    lists.push([column, list]);
  }
  if (!lists.length) return;
  const count = make("output", "", tools);
  const show = () => {
    for (const row of rows)
      row.hidden = lists.some(([column, list]) => list.selectedIndex && row.cells[column].textContent !== list.value);
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  tools.addEventListener("change", show);
  show();
  table.parentElement.before(tools);
}

for (const panel of document.querySelectorAll(".panel")) {
  const drawing = panel.querySelector(".drawing");
  drawing.tabIndex = 0;
  drawing.setAttribute("role", "button");
  drawing.ariaLabel = "Enlarge: " + drawing.querySelector("svg").ariaLabel;
  const enlarge = () => {
    const dialog = document.createElement("dialog");
    dialog.append(...[...panel.children].map((part) => part.cloneNode(true)));
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  };
  drawing.addEventListener("click", enlarge);
  drawing.addEventListener("keydown", (event) => event.key === "Enter" && enlarge());
}
