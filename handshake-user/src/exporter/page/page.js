'use strict';
const button = document.querySelector('button'), said = document.querySelector('output');
let paused = false;

const say = text => {
  button.textContent = paused ? 'Resume updates' : 'Pause updates';
  if (said.textContent !== text) said.textContent = text;
};
const sayState = () => say(paused ? 'Paused.' : 'Updated every five seconds.');

// What is open, where the focus is and how far tables are scrolled stays as it is.
const show = text => {
  const main = document.querySelector('main');
  const next = new DOMParser().parseFromString(text, 'text/html').querySelector('main');
  if (!next) throw new Error('this is not the page');
  for (const details of next.querySelectorAll('details')) {
    const before = document.getElementById(details.id);
    if (before) details.open = before.open;
  }
  const scrolled = [...main.querySelectorAll('.scroll')].map(table => [table.id, table.scrollLeft]);
  const focus = document.activeElement, inside = main.contains(focus) && focus.closest('[id]');
  main.replaceWith(next);
  for (const [id, left] of scrolled) {
    const table = document.getElementById(id);
    if (table) table.scrollLeft = left;
  }
  if (inside) {
    const place = document.getElementById(inside.id) || next;
    const summary = focus.tagName === 'SUMMARY' && place.querySelector('summary');
    (summary || place).focus({preventScroll: true});
  }
};

const update = async () => {
  // Who marks a text wants to copy it.
  if (paused || document.hidden || !getSelection().isCollapsed) return;
  try {
    const answer = await fetch(location.pathname, {cache: 'no-store'});
    if (!answer.ok) throw new Error('the daemon answered ' + answer.status);
    const text = await answer.text();
    if (paused) return;
    show(text);
    sayState();
  } catch (error) {
    say('Not up to date: ' + error.message);
  }
};

button.hidden = false;
button.onclick = () => {
  paused = !paused;
  sayState();
};
sayState();
setInterval(update, 5000);
