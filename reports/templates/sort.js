// Every table.sortable: its headings become buttons that sort the rows, figures by their value, words by alphabet.
// Rows stay under their section's heading; a row that holds a remark instead of figures stays last in its section.
(() => {
  const figures = (text) => (text.match(/-?\d+(?:\.\d+)?(?:e[+-]?\d+)?/gi) || []).map(Number);
  const byFigures = (a, b) => {
    for (let i = 0; i < Math.min(a.length, b.length); i++) if (a[i] !== b[i]) return a[i] - b[i];
    return a.length - b.length;
  };
  const sort = (body, column, numeric, sign) => {
    const rows = [...body.rows].filter((row) => !row.matches(".section, .remark"));
    const keyed = rows.map((row) => {
      const text = row.cells[column].textContent;
      return { row, key: numeric ? figures(text) : text, absent: numeric && !/\d/.test(text) };
    });
    keyed.sort((a, b) => {
      if (a.absent || b.absent) return a.absent - b.absent;
      return sign * (numeric ? byFigures(a.key, b.key) : a.key.localeCompare(b.key, "en", { numeric: true }));
    });
    const remarks = [...body.rows].filter((row) => row.matches(".remark"));
    body.append(...keyed.map(({ row }) => row), ...remarks);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        for (const body of table.tBodies) sort(body, column, heading.classList.contains("n"), descending ? -1 : 1);
      });
    });
  }
})();
