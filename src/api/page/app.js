// Where the page starts: which view the address asks for, whether the server answers, the token.

import { on, setToken, wantsToken } from './client.js';
import { copy, part, say } from './dom.js';
import { overview } from './overview.js';
import { sale } from './sale.js';

let leave = new AbortController();

/** Shows what the address names: `#/sales/<id>`, or the overview. */
function show() {
  leave.abort();
  leave = new AbortController();
  const id = location.hash.match(/^#\/sales\/([A-Za-z0-9_-]{1,64})$/)?.[1];
  document.title = id ? `${id} · floodgate` : 'floodgate';
  part('main').replaceChildren(copy(id ? 'sale-view' : 'overview-view'));
  if (id) sale(id, leave.signal);
  else overview(leave.signal);
}

addEventListener('hashchange', () => {
  show();
  scrollTo(0, 0);
  part('title').focus();
});

part('skip').addEventListener('click', () => part('title').focus());

on('reach', ({ detail: reached }) => {
  say(part('reach'), reached ? 'Live' : 'The server can’t be reached. Trying again.');
  part('reach').classList.toggle('lost', !reached);
});

part('token-area').hidden = !wantsToken();
part('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  setToken(part('token').value);
});

show();
