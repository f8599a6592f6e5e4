// Parts of pages. Whatever comes from scenes, models or servers is put in as text, never as HTML.
'use strict';
const $ = (id) => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';
const COLORS = ['#ffc828', '#50dc78', '#5aaaff', '#ff78dc', '#ff9646', '#78f0f0'];

function element(name, text, label) {
  const made = document.createElement(name);
  made.textContent = text;
  if (label) made.dataset.label = label;
  if (/\S{25}/.test(text)) made.className = 'long';
  return made;
}

function seconds(value) {
  if (value === null || value === undefined) return '–';
  return Math.abs(value) < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

// Rows are lists of texts; the first is the heading of its row.
function fill(id, head, rows) {
  const table = $(id);
  table.hidden = !rows.length;
  table.className = head.length > 2 ? 'wide' : '';
  table.setAttribute('role', 'table');  // where it is narrow, its rows are blocks
  for (const old of table.querySelectorAll('thead, tbody')) old.remove();
  const top = table.createTHead(), line = top.insertRow();
  line.setAttribute('role', 'row');
  top.hidden = head.length <= 2;
  for (const name of head) {
    const cell = element('th', name);
    cell.scope = 'col';
    cell.setAttribute('role', 'columnheader');
    line.append(cell);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const made = body.insertRow();
    made.setAttribute('role', 'row');
    if (row.full) made.className = 'full';
    row.forEach((text, at) => {
      const cell = element(at ? 'td' : 'th', text, at ? head[at] : '');
      if (!at) cell.scope = 'row';
      cell.setAttribute('role', at ? 'cell' : 'rowheader');
      made.append(cell);
    });
  }
}

function boxes(id, frame, regions) {
  const svg = $(id);
  svg.replaceChildren();
  svg.setAttribute('viewBox', `0 0 ${frame.width} ${frame.height}`);
  Object.entries(regions).forEach(([key, box], number) => {
    const rect = document.createElementNS(SVG, 'rect'), text = document.createElementNS(SVG, 'text');
    ['x', 'y', 'width', 'height'].forEach((name, at) => rect.setAttribute(name, box[at]));
    rect.setAttribute('stroke', COLORS[number % COLORS.length]);
    text.setAttribute('x', box[0]);
    text.setAttribute('y', box[1] > 20 ? box[1] - 4 : box[1] + box[3] + 16);
    text.setAttribute('font-size', Math.max(12, frame.width / 40));
    text.textContent = key;
    svg.append(rect, text);
  });
}
