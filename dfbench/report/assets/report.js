"use strict";
// Tables sort by the column whose head is clicked: numbers first down, texts first up, cells without a value always last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => sortBy(table, heads, column));
  });
}

function sortBy(table, heads, column) {
  const head = heads[column];
  const isNumber = head.classList.contains("number");
  const before = head.getAttribute("aria-sort");
  const down = before ? before === "ascending" : isNumber;
  const valueOf = (row) => {
    const text = row.cells[column].textContent.trim();
    if (!isNumber) return text;
    const number = parseFloat(text.replace(/[,<+]/g, ""));
    return Number.isNaN(number) ? null : number;
  };
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = isNumber ? a - b : a.localeCompare(b, "en", { numeric: true });
    return down ? -order : order;
  });
  table.tBodies[0].replaceChildren(...rows.map(([, row]) => row));
  table.classList.add("sorted");
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}

// What is folded away on the screen belongs on paper.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
