// Small things every view needs. What comes from the server reaches the page by textContent only.

export const part = (id) => document.getElementById(id);
export const copy = (template) => part(template).content.cloneNode(true);

/** Sets a text only where it differs, so that nothing is announced, or redrawn, twice. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const figures = new Intl.NumberFormat('en-GB');
export const count = (number) => figures.format(Math.round(number));
export const units = (number) => `${count(number)} ${number === 1 ? 'unit' : 'units'}`;

const moments = new Intl.DateTimeFormat('en-GB', { dateStyle: 'medium', timeStyle: 'short' });
export const moment = (time) => moments.format(new Date(time));

export const STATES = { open: 'Open', not_open: 'Not open yet', paused: 'Paused', sold_out: 'Sold out', closed: 'Closed' };

/** The state of a sale, in words and in colour. */
export function showState(element, state) {
  say(element, STATES[state] ?? state);
  element.dataset.state = state;
}

/** The part of the stock that is left. Decoration: its figures always stand beside it. */
export function showBar(bar, sale) {
  const left = sale.stock > 0 ? sale.remaining / sale.stock : 0;
  bar.classList.toggle('low', left <= 0.1);
  bar.firstElementChild.hidden = left === 0;
  bar.firstElementChild.style.width = `${100 * left}%`;
}

/**
 * A button that explains itself while it can't be used. It stays focusable (aria-disabled, not
 * disabled): whoever waits on it with the keyboard must not lose their place.
 */
export const setBlocked = (button, blocked) => button.setAttribute('aria-disabled', String(blocked));
export const isBlocked = (button) => button.getAttribute('aria-disabled') === 'true';

/** Asks before what can't be undone. */
export function confirmed(title, text, action) {
  const dialog = part('confirm');
  say(part('confirm-title'), title);
  say(part('confirm-text'), text);
  say(part('confirm-yes'), action);
  return new Promise((resolve) => {
    part('confirm-yes').onclick = () => dialog.close('yes');
    part('confirm-no').onclick = () => dialog.close('no');
    dialog.onclose = () => resolve(dialog.returnValue === 'yes');
    dialog.returnValue = 'no';
    dialog.showModal();
  });
}
