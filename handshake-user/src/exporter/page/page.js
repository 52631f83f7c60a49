'use strict';
const button = document.querySelector('button'), state = document.querySelector('output');
let paused = false;
button.hidden = false;
button.onclick = () => {
  paused = !paused;
  button.textContent = paused ? 'Resume updates' : 'Pause updates';
};
setInterval(async () => {
  const main = document.querySelector('main');
  // Who reads inside with the keyboard keeps the place.
  if (paused || document.hidden || main.contains(document.activeElement)) return;
  try {
    const answer = await fetch('/', {cache: 'no-store'});
    if (!answer.ok) throw new Error('the daemon answered ' + answer.status);
    const text = await answer.text();
    if (paused) return;
    main.replaceWith(new DOMParser().parseFromString(text, 'text/html').querySelector('main'));
    state.textContent = '';
  } catch (error) {
    state.textContent = 'Not up to date: ' + error.message;
  }
}, 5000);
