// The overview: how the deployment does, what is on sale, and a form to open a sale.

import { call, pause, visible } from './client.js';
import { copy, count, moment, part, say, showBar, showState, units } from './dom.js';
import { openForm } from './operator.js';
import { Sparkline } from './sparkline.js';
import { showStatus } from './status.js';

const PAGE = 100;

export function overview(signal) {
  showStatus(signal);
  showSales(signal);
  openForm(signal);
}

/** Asks for the sales each second while somebody looks. */
async function showSales(signal) {
  const cards = new Map();
  let pages = 1;
  part('more').addEventListener('click', () => { pages += 1; });
  for (; !signal.aborted; await pause(1_000, signal)) {
    await visible();
    try {
      const { sales, more } = await fetchSales(pages, signal);
      if (signal.aborted) return;
      for (const sale of sales) showCard(cards, sale);
      const open = part('open-sales').childElementCount;
      say(part('open-note'), open > 0 ? '' : 'Nothing is on sale at the moment.');
      part('other-area').hidden = part('other-sales').childElementCount === 0;
      part('more').hidden = !more;
    } catch {
      // The header says that the server can't be reached; what was last seen stays.
    }
  }
}

async function fetchSales(pages, signal) {
  const sales = [];
  let next = `/v1/sales?limit=${PAGE}`;
  for (let page = 0; page < pages && next; page += 1) {
    const { body } = await call(next, { signal });
    sales.push(...body.sales);
    next = body.next;
  }
  return { sales, more: Boolean(next) };
}

/** Makes a sale's card, or brings it up to date where it stands: it may have the focus. */
function showCard(cards, sale) {
  let card = cards.get(sale.sale_id);
  if (!card) {
    card = copy('card').firstElementChild;
    card.querySelector('a').textContent = sale.sale_id;
    card.querySelector('a').href = `#/sales/${encodeURIComponent(sale.sale_id)}`;
    card.line = new Sparkline(card.querySelector('.spark'), 'Units left', count);
    cards.set(sale.sale_id, card);
  }
  showState(card.querySelector('.state'), sale.state);
  say(card.querySelector('.left'), `${count(sale.remaining)} of ${count(sale.stock)} left`);
  say(card.querySelector('.hint'), aside(sale));
  showBar(card.querySelector('.bar'), sale);
  card.line.add(sale.remaining);
  const list = part(sale.state === 'open' && sale.remaining > 0 ? 'open-sales' : 'other-sales');
  if (card.parentElement !== list) place(card, list);
}

function place(card, list) {
  const focused = card.contains(document.activeElement);
  const name = (item) => item.querySelector('a').textContent;
  const after = [...list.children].find((other) => name(other) > name(card));
  list.insertBefore(card, after ?? null);
  if (focused) card.querySelector('a').focus({ preventScroll: true });
}

function aside(sale) {
  if (sale.state === 'not_open' && sale.opens_at) return `Opens ${moment(sale.opens_at)}`;
  if (sale.state === 'sold_out' && sale.sold_out_at) return `Sold out ${moment(sale.sold_out_at)}`;
  if (sale.state === 'open' && sale.per_user_limit) return `Up to ${units(sale.per_user_limit)} for each buyer`;
  return '';
}
