// Goes through a recorded run, on top of parts.js.
const run = JSON.parse($('data').textContent);
const PALETTE = ['#4269d0', '#efb118', '#ff725c', '#6cc5b0', '#3ca951', '#ff8ab7', '#a463f2',
                 '#97bbf5', '#9c6b4e', '#17becf', '#bcbd22', '#e377c2', '#8c564b', '#7f7fff'];
const NAMED = {none: '#b4bac0', red: '#d62728', yellow: '#e6b800', green: '#2ca02c'};
const colors = new Map();
let query = '', steps = [];

function color(value) {
  if (!colors.has(value)) {
    colors.set(value, Object.hasOwn(NAMED, value) ? NAMED[value] : PALETTE[colors.size % PALETTE.length]);
  }
  return colors.get(value);
}

const factOf = (said, key) => said && said.facts.find((f) => f.key === key);

function svg(name, values) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  return made;
}

// One strip of what was said of a key over time; equal values side by side are one bar.
function strip(name, value) {
  const line = document.createElement('div'), end = steps.at(-1).t || 1;
  line.className = 'strip';
  const drawn = svg('svg', {viewBox: `0 0 ${end} 1`, preserveAspectRatio: 'none',
                            role: 'img', 'aria-label': `${name} over time`});
  let from = 0;
  steps.forEach((step, at) => {
    const now = value(step), last = at === steps.length - 1;
    if (!last && value(steps[at + 1]) === now) return;
    const begin = steps[from].t, until = last ? end : steps[at + 1].t;
    if (now) {
      const bar = svg('rect', {x: begin, y: 0, height: 1, width: Math.max(until - begin, end / 500),
                               class: 'bar', fill: color(now)});
      const title = svg('title', {});
      title.textContent = `${now}, ${begin.toFixed(1)} s to ${until.toFixed(1)} s`;
      bar.append(title);
      drawn.append(bar);
    }
    from = at + 1;
  });
  drawn.append(svg('line', {class: 'cursor', x1: 0, x2: 0, y1: 0, y2: 1}));
  drawn.addEventListener('click', (event) => {
    const t = end * event.offsetX / drawn.clientWidth;
    let best = 0;
    steps.forEach((step, at) => { if (Math.abs(step.t - t) < Math.abs(steps[best].t - t)) best = at; });
    show(best);
  });
  line.append(element('span', name), drawn);
  return line;
}

function choose(name) {
  query = name;
  steps = run.queries[query].steps;
  $('prompt').textContent = run.queries[query].prompt;
  const keys = [...new Set(steps.flatMap((s) => s.said.facts.map((f) => f.key)))], strips = [];
  colors.clear();
  for (const key of keys) {
    strips.push(strip(`${key}: answer`, (s) => (factOf(s.said, key) || {}).value));
    if (steps.some((s) => factOf(s.alone, key))) {
      strips.push(strip(`${key}: edge alone`, (s) => (factOf(s.alone, key) || {}).value));
    }
    strips.push(strip(`${key}: cloud`, (s) => (factOf(s.cloud, key) || {}).value));
    if (steps.some((s) => key in s.truth)) strips.push(strip(`${key}: truth`, (s) => s.truth[key]));
  }
  $('strips').replaceChildren(...strips);
  $('legend').replaceChildren(...[...colors].map(([value, of]) => {
    const made = element('span', value), mark = svg('svg', {viewBox: '0 0 1 1', 'aria-hidden': 'true'});
    mark.append(svg('rect', {width: 1, height: 1, class: 'bar', fill: of}));
    made.prepend(mark);
    return made;
  }));
  $('at').max = steps.length - 1;
  show(0);
}

function nearest(stamp) {
  let best = null;
  for (const key of Object.keys(run.frames)) {
    const off = Math.abs(Number(BigInt(key) - BigInt(stamp))) / 1e9;
    if (!best || off < best.off) best = {key, off};
  }
  return best;
}

function show(at) {
  const step = steps[at], told = step.told;
  $('at').value = at;
  $('at').setAttribute('aria-valuetext', `${step.t.toFixed(1)} seconds`);
  const used = step.said.used.length ? `told ${step.said.used.join(' and ')}` : 'told nothing';
  $('where').textContent = `${step.t.toFixed(2)} s, answer ${at + 1} of ${steps.length}, `
    + `${step.late_s === null ? '' : `${seconds(step.late_s)} after the frame, `}${used}`
    + (step.said.error ? `; error: ${step.said.error}` : '');
  for (const line of document.querySelectorAll('.cursor')) {
    line.setAttribute('x1', step.t);
    line.setAttribute('x2', step.t);
  }
  const frame = nearest(step.stamp), focus = told ? told.focus : {};
  if (frame) {
    const picture = run.frames[frame.key];
    $('now').src = picture.url;
    boxes('now-boxes', picture, focus);
    $('now').alt = $('now-caption').textContent = `focus regions: ${Object.keys(focus).length}; `
      + (frame.off < 0.001 ? 'the answered frame' : `a frame ${seconds(frame.off)} beside it`);
  } else {
    $('now-caption').textContent = 'the frames are not at hand';
  }
  const head = ['fact', 'answer', 'sure', 'edge alone', 'cloud', 'context'], known = Object.keys(step.truth).length;
  if (known) head.push('truth');
  fill('answers', head, step.said.facts.map((fact) => {
    const cloud = factOf(step.cloud, fact.key), given = told && factOf(told, fact.key);
    const row = [fact.key, fact.value, `${fact.origin} ${percent(fact.confidence)}`.trim(),
                 (factOf(step.alone, fact.key) || {value: ''}).value,
                 cloud ? `${cloud.value} (${seconds(cloud.age_s)} before)` : '',
                 given ? `told ${given.value}, ${seconds(given.age_s)} old`
                   : told && told.dropped[fact.key] ? `dropped: ${told.dropped[fact.key]}` : ''];
    if (known) row.push(step.truth[fact.key] || '');
    return row;
  }).concat(step.said.facts.length ? [] : [['text', step.said.text, '', '',
                                            step.cloud ? step.cloud.text : '', '']]));
}

for (const name of Object.keys(run.queries)) {
  const made = element('option', name);
  made.value = name;
  $('queries').append(made);
}
$('queries').addEventListener('change', () => choose($('queries').value));
$('at').addEventListener('input', () => show(Number($('at').value)));
choose(Object.keys(run.queries)[0]);
