// What operators do: open a sale, add stock, have users checked or not, pause it, close it. Every request may be repeated without harm.

import { insist, lacksToken, newId, on } from './client.js';
import { confirmed, isBlocked, part, say, setBlocked, units } from './dom.js';

/** Operators' forms are shown where they could work: without keys, or once a token is given. */
function showFor(signal) {
  const show = () => { part('operate').hidden = lacksToken(); };
  on('token', show, signal);
  show();
}

/** Sends one request for a button, and tells its answer. Returns the sale, or nothing when refused. */
async function act(button, answer, path, body, done) {
  setBlocked(button, true);
  say(answer, 'Sending.');
  answer.dataset.tone = 'wait';
  try {
    const silent = () => say(answer, 'No answer from the server. Sending the same again; it counts only once.');
    const { body: sale } = await insist(path, { method: 'POST', body }, silent);
    say(answer, done(sale));
    answer.dataset.tone = 'good';
    return { sale };
  } catch (problem) {
    say(answer, problem.message);
    answer.dataset.tone = 'bad';
    return { problem };
  } finally {
    setBlocked(button, false);
  }
}

export function openForm(signal) {
  showFor(signal);
  const time = (id) => (part(id).value ? new Date(part(id).value).toISOString() : undefined);
  part('open-form').addEventListener('submit', async (event) => {
    event.preventDefault();
    const button = part('open-button');
    if (isBlocked(button)) return;
    const form = event.target;
    const { sale } = await act(button, part('open-answer'), '/v1/sales', {
      sale_id: part('open-id').value,
      stock: Number(part('open-stock').value),
      per_user_limit: part('open-limit').value ? Number(part('open-limit').value) : undefined,
      opens_at: time('open-from'),
      closes_at: time('open-until'),
      verification: part('open-verification').checked,
    }, (sale) => `${sale.sale_id} is there, with ${units(sale.stock)}.`);
    if (sale) form.reset();
  });
}

/** The buttons say what they will do. */
export function showSwitches(sale) {
  say(part('verification'), sale.verification ? 'Sell without checks' : 'Check users');
  say(part('pause-refuse'), sale.paused === 'refuse' ? 'Go on selling' : 'Pause: refuse orders');
  say(part('pause-hold'), sale.paused === 'hold' ? 'Go on selling' : 'Pause: hold orders');
}

const PAUSES = {
  refuse: {
    question: (id) => [`Refuse the orders of ${id}?`, 'Orders are rejected as paused until you go on, also those that wait now.', 'Refuse them'],
    done: 'Orders are refused until you go on.',
  },
  hold: {
    question: (id) => [`Hold the orders of ${id}?`, 'Orders are taken and wait, and grow no older, until you go on.', 'Hold them'],
    done: 'Orders wait until you go on.',
  },
};

function pauseButton(id, mode, latest) {
  part(`pause-${mode}`).addEventListener('click', async () => {
    const [button, answer] = [part(`pause-${mode}`), part('operate-answer')];
    if (isBlocked(button)) return;
    if (latest().paused === mode) {
      act(button, answer, `/v1/sales/${id}/resume`, undefined, () => 'Selling goes on. Held orders are decided within half a minute.');
      return;
    }
    if (!await confirmed(...PAUSES[mode].question(id))) return;
    act(button, answer, `/v1/sales/${id}/pause`, { mode }, () => PAUSES[mode].done);
  });
}

export function saleForms(id, signal, latest) {
  showFor(signal);
  let adjustment;
  part('restock-form').addEventListener('submit', async (event) => {
    event.preventDefault();
    const [button, answer, form] = [part('restock'), part('operate-answer'), event.target];
    const added = Number(part('units').value);
    if (isBlocked(button) || !await confirmed(`Add ${units(added)} to ${id}?`, 'They can be bought at once, and can’t be taken back.', 'Add them')) return;
    // After a doubtful answer the same units go out under the same id, which counts once.
    if (adjustment?.units !== added) adjustment = { adjustment_id: newId(), units: added };
    const { sale, problem } = await act(button, answer, `/v1/sales/${id}/restock`, adjustment,
      (sale) => `${units(added)} added; the stock is now ${units(sale.stock)}.`);
    if (!problem?.passing) adjustment = undefined;
    if (sale) form.reset();
  });
  part('verification').addEventListener('click', async () => {
    const [button, answer] = [part('verification'), part('operate-answer')];
    // As it was on the button; the sale may change while the question is open.
    const verification = !latest().verification;
    const question = verification
      ? [`Check the users of ${id}?`, 'Each is checked at the user service before they get a unit. While it is away, orders wait.', 'Check them']
      : [`Sell ${id} without checks?`, 'Whoever orders may get a unit, also those whom the user service would deny.', 'Sell without checks'];
    if (isBlocked(button) || !await confirmed(...question)) return;
    act(button, answer, `/v1/sales/${id}/verification`, { verification },
      (sale) => (sale.verification ? 'Users are checked from now on.' : 'Users are not checked any more.'));
  });
  for (const mode of Object.keys(PAUSES)) pauseButton(id, mode, latest);
  part('close').addEventListener('click', async () => {
    const [button, answer] = [part('close'), part('operate-answer')];
    if (isBlocked(button) || !await confirmed(`Close ${id}?`, 'Nothing more can be bought in it. It can’t be opened again.', 'Close the sale')) return;
    act(button, answer, `/v1/sales/${id}/close`, undefined, () => 'The sale is closed.');
  });
}
