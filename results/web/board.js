// Ranks the encoders of each section by the mean of the chosen columns, in groups that the paired bootstrap cannot split.
"use strict";
const boards = JSON.parse(document.getElementById("board-data").textContent);
const TAIL = 0.025;

function unpack(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  return new Int16Array(bytes.buffer);
}

function quantile(sorted, part) {
  const at = part * (sorted.length - 1), low = Math.floor(at), high = Math.ceil(at);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

// Rows with every chosen column, best first, each with its group and the interval of its distance from the group's first.
function ranking(board, rows, columns) {
  const scored = [];
  for (const row of rows) {
    const values = columns.map(c => board.values[c][row]);
    if (values.some(v => v === undefined)) continue;
    const packed = columns.map(c => board.drawn[c][row]);
    const known = packed.every(p => p !== undefined);
    let drawn = null;
    if (known) {
      const each = packed.map(unpack);
      drawn = Float64Array.from(each[0], (_, i) => board.step * each.reduce((sum, d) => sum + d[i], 0) / each.length);
    }
    scored.push({row, values, mean: values.reduce((a, b) => a + b, 0) / values.length, drawn});
  }
  scored.sort((a, b) => b.mean - a.mean);
  let first = null, group = 0;
  for (const one of scored) {
    let apart = true;
    if (first && first.drawn && one.drawn) {
      const gap = first.mean - one.mean;
      const differences = first.drawn.map((d, i) => gap + d - one.drawn[i]).sort();
      one.low = quantile(differences, TAIL);
      one.high = quantile(differences, 1 - TAIL);
      apart = one.low > 0;
    }
    one.unknown = !one.drawn || (first && !first.drawn);
    if (!first || apart) { first = one; group += 1; one.low = one.high = undefined; }
    one.group = group;
    one.leader = first === one;
  }
  return scored;
}

function counted(number, what) {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}

function cell(kind, text, className) {
  const made = document.createElement(kind);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function show(section, board) {
  const filters = [...section.querySelectorAll("[data-filter]")].map(f => [f.dataset.filter, f.value.trim().toLowerCase()]);
  const boxes = [...section.querySelectorAll(".boxes input")];
  const columns = boxes.filter(b => b.checked).map(b => b.value);
  const titles = Object.fromEntries(board.columns.map(c => [c.id, c]));
  const rows = board.encoders.map((_, i) => i).filter(i => filters.every(([name, wanted]) => {
    const value = board.encoders[i][name].toLowerCase();
    return !wanted || (name === "label" ? value.includes(wanted) : value === wanted);
  }));
  const ranked = columns.length ? ranking(board, rows, columns) : [];
  section.querySelector(".chosen").textContent = columns.map(c => titles[c].title).join(", ") || "none";
  const head = document.createElement("tr");
  for (const [text, kind] of [["Group", "number"], ["Encoder", ""], ...(columns.length > 1 ? [["Mean", "number"]] : [])]) {
    const made = cell("th", text, kind);
    made.scope = "col";
    head.append(made);
  }
  for (const c of columns) {
    const made = cell("th", "", "number"), link = cell("a", titles[c].title);
    made.scope = "col";
    link.href = titles[c].page;
    made.append(link);
    head.append(made);
  }
  const behind = cell("th", "Behind the group's first (95% interval)", "number");
  behind.scope = "col";
  head.append(behind);
  section.querySelector("thead").replaceChildren(head);
  const body = ranked.map(one => {
    const row = document.createElement("tr"), about = board.encoders[one.row];
    row.className = one.leader ? "leader" : "";
    row.append(cell("td", one.unknown ? "–" : String(one.group), "number group"));
    const name = cell("th", ""), link = cell("a", ""), swatch = cell("span", "", "swatch");
    name.scope = "row";
    swatch.style.background = about.colour;
    swatch.setAttribute("aria-hidden", "true");
    link.href = about.page;
    link.append(...about.label.split(/(?<=_)/).flatMap((part, i) => i ? [document.createElement("wbr"), part] : [part]));
    name.append(swatch, link);
    row.append(name);
    if (columns.length > 1) row.append(cell("td", one.mean.toFixed(1), "number"));
    columns.forEach((c, i) => {
      const error = board.errors[c][one.row];
      row.append(cell("td", one.values[i].toFixed(1) + (error === undefined ? "" : ` ± ${error.toFixed(1)}`), "number"));
    });
    const text = one.low === undefined ? "" : `${one.low.toFixed(1)} to ${one.high.toFixed(1)}`;
    row.append(cell("td", one.unknown ? "no outcomes to compare" : text, "number"));
    return row;
  });
  section.querySelector("tbody").replaceChildren(...body);
  const groups = new Set(ranked.filter(o => !o.unknown).map(o => o.group)).size, left = rows.length - ranked.length;
  section.querySelector(".status").textContent = columns.length
    ? `${counted(ranked.length, "encoder")} in ${counted(groups, "group")}.` + (left ? ` ${left} without a score in every chosen column ${left === 1 ? "is" : "are"} not ranked; choose fewer columns to rank more.` : "")
    : "Choose a column.";
  dispatchEvent(new Event("resize"));  // wide.js looks again what is wide
}

for (const section of document.querySelectorAll(".board")) {
  const board = boards[Number(section.dataset.board)];
  const boxes = [...section.querySelectorAll(".boxes input")];
  if (boxes.length && !boxes.some(b => b.checked)) boxes[0].checked = true;
  for (const hidden of section.querySelectorAll(".choices, .columns")) hidden.hidden = false;
  section.addEventListener("input", () => show(section, board));
  show(section, board);
}
