"use strict";
// Sorts a table by the column whose heading is clicked; a second click reverses the order. Rows without a value come last.
function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}
function compare(a, b, sign) {
  const isNumber = [typeof a === "number", typeof b === "number"];
  if (isNumber[0] && isNumber[1]) return sign * (a - b);
  if (isNumber[0] !== isNumber[1]) return isNumber[0] ? -1 : 1;
  return sign * a.localeCompare(b, "en", { numeric: true });
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [valueOf(row, head.cellIndex), row]);
    rows.sort((a, b) => compare(a[0], b[0], sign));
    body.append(...rows.map(([, row]) => row));
  });
}
// Only drawn figures are opened for printing.
addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details")) one.open = true; });
