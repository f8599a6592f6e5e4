// The live page, on top of parts.js.
'use strict';
const token = new URLSearchParams(location.search).get('token') || '';
const have = {now: '', cloud: '', version: ''};
let query = '', shown = null, received = 0, dirty = false, delay = null;

function address(path, values) {
  if (token) values.token = token;
  return path + '?' + new URLSearchParams(values);
}

const since = () => (performance.now() - received) / 1000;

const factOf = (said, key) => said && said.facts.find((f) => f.key === key);

function value(said, key) {
  const fact = factOf(said, key);
  return fact ? fact.value : '';
}

function aged(said, key) {
  const fact = factOf(said, key);
  return fact ? `${fact.value} (${seconds(fact.age_s + since())} ago)` : '';
}

function drawAnswers(s) {
  const keys = [...new Set([s.truth, s.edge, s.cloud].flatMap((x) => x ? x.facts : [])
    .map((f) => f.key))].filter((k) => !s.edge || factOf(s.edge, k) || factOf(s.cloud, k));
  const head = ['fact', 'answer', 'from', 'edge alone', 'cloud'];
  if (s.truth) head.push('truth');
  const rows = keys.map((key) => {
    const fact = factOf(s.edge, key), sure = fact ? ` ${percent(fact.confidence)}` : '';
    const row = [key, fact ? fact.value : '', fact ? (fact.origin || 'own') + sure : '',
                 value(s.alone, key), aged(s.cloud, key)];
    if (s.truth) row.push(value(s.truth, key));
    return row;
  });
  if (!keys.length && (s.edge || s.cloud)) {
    rows.push(['text', s.edge ? s.edge.text : '', '', '', s.cloud ? s.cloud.text : '']);
  }
  fill('answers', head, rows);
  const told = s.edge && s.edge.used.length ? `told ${s.edge.used.join(' and ')}` : 'no context';
  $('answers-caption').textContent = s.edge ? `Edge (${s.edge.model}): ${s.rate_hz} Hz, about a `
    + `frame ${seconds(s.edge.age_s + since())} old, ${told}`
    + (s.edge.error ? `; error: ${s.edge.error}` : '') : 'no answer yet';
  fill('score', ['answers', 'right', 'facts'], Object.entries(s.score).map(
    ([name, of]) => [name, percent(of.right), String(of.facts)]));
}

function drawContext(s) {
  const now = s.context, told = s.told;
  $('gate').textContent = now ? `Gate ${now.gate}; ${now.facts.length} facts, ${now.tokens} tokens, `
    + `focus regions: ${Object.keys(now.focus).length}, number ${now.sequence}`
    + (told ? `; the shown answer was told number ${told.sequence}` : '') : 'no context yet';
  const rows = now ? now.facts.map((f) => [f.key, f.value, seconds(f.age_s + since()), 'told'])
    .concat(Object.entries(now.dropped).map(
      ([key, why]) => [key, value(s.cloud, key), '', `dropped: ${why}`])) : [];
  if (now && now.text) rows.push(['text', now.text, '', 'told']);
  fill('told', ['fact', 'value', 'seen', 'context'], rows);
}

function drawFigures(s) {
  fill('calibration', ['key', 'helped', 'harmed', 'edge alone right', 'labels', 'rule'],
       s.calibration.map((k) => [k.key, percent(k.help), percent(k.harm), percent(k.agreement),
                                 String(k.labels), k.learned ? 'learned' : 'guard']));
  const rows = [];
  for (const [name, said] of [['edge', s.edge], ['cloud', s.cloud]]) {
    if (!said || said.stages_s.model === undefined) continue;
    const of = said.stages_s, model = of.model - (of.emulated || 0);
    rows.push([name, seconds(of.wait), seconds(of.preprocess), seconds(model),
               of.emulated ? seconds(of.emulated) : '', seconds(of.wait + of.preprocess + of.model)]);
  }
  fill('latency', ['who', 'waits', 'prepares', 'model', 'emulated delay', 'in all'], rows);
  const c = s.status;
  fill('status', ['what', 'state'], c.endpoint === undefined ? [] : [
    ['model', c.model], ['server', c.endpoint], ['circuit', c.breaker],
    ['requests', `${c.requests}, ${c.answers} answered, ${c.errors} errors, ${c.in_flight} under way`],
    ['not sent', `${c.skipped} keyframes; ${c.rejected} facts rejected`],
    ['round trip', `${seconds(c.round_trip_p50_s)} median, ${seconds(c.round_trip_p95_s)} p95`],
    ['emulated', c.emulated_p50_s ? `${seconds(c.emulated_p50_s)} of it` : 'nothing']]);
  $('error').textContent = c.last_error || '';
  $('pause').setAttribute('aria-pressed', String(Boolean(c.paused)));
  $('pause').textContent = c.paused ? 'Cloud is paused: go on' : 'Pause the cloud';
  if (document.activeElement !== $('delay') && delay !== c.delay_s) {
    $('delay').value = delay = c.delay_s;
  }
}

function drawPictures(s) {
  const carried = s.context ? s.context.focus : {}, seen = {};
  for (const f of s.cloud ? s.cloud.facts : []) if (f.box) seen[f.key] = f.box;
  const now = s.frames.now, cloud = s.frames.cloud;
  if (now) {
    boxes('now-boxes', now, carried);
    $('now-caption').textContent = $('now').alt = `frame ${seconds(now.age_s + since())} old, `
      + `focus regions carried to it: ${Object.keys(carried).length}`;
  }
  if (cloud) {
    boxes('cloud-boxes', cloud, seen);
    $('cloud-caption').textContent = $('cloud').alt = `frame ${seconds(cloud.age_s + since())} old`
      + `; regions that the cloud saw in it: ${Object.keys(seen).length}`;
  } else if (s.cloud) {
    $('cloud-boxes').replaceChildren();
    $('cloud').removeAttribute('src');
    $('cloud-caption').textContent = $('cloud').alt = 'a frame from before this page was open';
    have.cloud = '';
  }
}

function drawQuestion(s) {
  const select = $('queries'), names = [...select.options].map((o) => o.value);
  if (names.join() !== s.queries.join()) {
    select.replaceChildren(...s.queries.map((name) => {
      const made = element('option', name);
      made.value = name;
      return made;
    }));
  }
  if (document.activeElement !== select) select.value = s.query;
  $('prompt').textContent = s.definition.prompt || '';
  if (!dirty) resetForm();
}

function resetForm() {
  dirty = false;
  $('question').value = shown && shown.definition.prompt || '';
  $('definition').value = shown && shown.definition.text || '';
}

function draw() {
  const s = shown;
  if (!s) return;
  document.title = $('title').textContent = s.title;
  drawQuestion(s);
  drawAnswers(s);
  drawContext(s);
  drawFigures(s);
  drawPictures(s);
}

function picture(name, bytes) {
  const old = $(name).src;
  $(name).src = URL.createObjectURL(new Blob([bytes], {type: 'image/jpeg'}));
  if (old.startsWith('blob:')) URL.revokeObjectURL(old);
  return $(name).decode().catch(() => {});
}

async function next() {
  const reply = await fetch(address('next', {query, ...have}), {cache: 'no-store'});
  if (!reply.ok) throw new Error((await reply.json().catch(() => ({}))).error || reply.status);
  const bytes = new Uint8Array(await reply.arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0);
  shown = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  received = performance.now();
  let at = 4 + length;
  for (const name of shown.sent) {
    const end = at + shown.frames[name].bytes;
    await picture(name, bytes.subarray(at, end));
    have[name] = shown.frames[name].stamp;
    at = end;
  }
  have.version = shown.version;
  draw();
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const visible = () => document.hidden ? new Promise((done) => document.addEventListener(
  'visibilitychange', done, {once: true})) : null;

function connection(text) {
  if ($('connection').textContent !== text) $('connection').textContent = text;
  document.querySelector('main').classList.toggle('stale', text !== 'live');
}

async function run() {
  for (;;) {
    await visible();
    try {
      await next();
      connection('live');
    } catch (error) {
      have.version = have.now = have.cloud = '';
      connection(`no connection to spotvlm run (${error.message}); trying again …`);
      await pause(1000);
    }
  }
}

async function change(values) {
  $('done').textContent = 'asking …';
  $('done').className = '';
  try {
    const reply = await fetch(address('change', {}), {
      method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(values)});
    const said = await reply.json();
    $('done').textContent = said.done || said.error;
    $('done').className = reply.ok ? 'good' : 'bad';
    return reply.ok;
  } catch (error) {
    $('done').textContent = `not changed: ${error.message}`;
    return false;
  }
}

$('queries').addEventListener('change', () => {
  query = $('queries').value;
  have.version = '';
  dirty = false;
});
$('pause').addEventListener('click', () => change(
  {paused: $('pause').getAttribute('aria-pressed') !== 'true'}));
$('delay-form').addEventListener('submit', (event) => {
  event.preventDefault();
  change({delay_s: Number($('delay').value)});
});
for (const id of ['question', 'definition']) {
  $(id).addEventListener('input', () => { dirty = true; });
}
$('reset').addEventListener('click', resetForm);
$('question-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const before = shown ? shown.definition : {}, all = $('definition').value;
  const definition = all !== before.text ? all : `prompt: ${JSON.stringify($('question').value)}`;
  if (await change({query: shown.query, definition})) dirty = false;
});
setInterval(draw, 500);
run();
