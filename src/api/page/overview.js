// The overview: what is on sale, how fast orders are decided, and a form to open a sale.

import { call, follow, lacksToken, on, pause, visible } from './client.js';
import { copy, count, moment, part, say, showBar, showState, units } from './dom.js';
import { openForm } from './operator.js';
import { Sparkline } from './sparkline.js';

const PAGE = 100;

export function overview(signal) {
  showFigures(signal);
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
    cards.set(sale.sale_id, card);
  }
  showState(card.querySelector('.state'), sale.state);
  say(card.querySelector('.left'), `${count(sale.remaining)} of ${count(sale.stock)} left`);
  say(card.querySelector('.hint'), aside(sale));
  showBar(card.querySelector('.bar'), sale);
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

/** Follows the figures of decisions; where they aren't for this visitor, says so and steps back. */
function showFigures(signal) {
  const sparkline = new Sparkline(part('spark'));
  let attempt = new AbortController();
  const start = async () => {
    attempt.abort();
    attempt = new AbortController();
    part('figures').hidden = true;
    const refuse = (why) => say(part('figures-note'), why);
    if (lacksToken()) return refuse('The figures are for operators, with their token.');
    try {
      const until = AbortSignal.any([signal, attempt.signal]);
      await follow('/v1/status/stream', until, (figures) => showFigure(figures, sparkline));
    } catch (problem) {
      refuse([401, 403].includes(problem.status) ? 'The figures are for operators.' : problem.message);
    }
  };
  on('token', start, signal);
  start();
}

function showFigure({ created, sold_out, rejected, per_second, latency_ms }, sparkline) {
  say(part('figures-note'), 'Counted since this server began to watch.');
  part('figures').hidden = false;
  say(part('rate'), count(per_second));
  say(part('created'), count(created));
  say(part('sold-out'), count(sold_out));
  say(part('rejected'), count(rejected));
  say(part('p50'), latency(latency_ms?.p50));
  say(part('p99'), latency(latency_ms?.p99));
  sparkline.add(per_second);
  say(part('peak'), `Last minute, peak ${count(sparkline.peak())}`);
}

function latency(milliseconds) {
  if (milliseconds == null) return 'none yet';
  if (milliseconds >= 1_000) return `${(milliseconds / 1_000).toFixed(1)} s`;
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}
