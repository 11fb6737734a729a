// One sale: its stock as it changes, a form to buy, and the visitor's orders in it.

import { follow, lacksToken, on, serverTime } from './client.js';
import { count, isBlocked, moment, part, say, setBlocked, showBar, showState, units } from './dom.js';
import { saleForms, showSwitches } from './operator.js';
import { buy, buyer, isSending, onOrder, ordersOf, setBuyer, tone, words } from './orders.js';
import { Sparkline } from './sparkline.js';

export async function sale(id, signal) {
  say(part('title'), id);
  let latest;
  const allow = () => latest && allowBuying(latest);
  on('token', allow, signal);
  onOrder(allow, signal);
  let timer;
  const update = (sale) => {
    latest = sale;
    part('sale').hidden = false;
    showSale(sale);
    allow();
    clearTimeout(timer);
    timer = atNextPhase(sale, () => !signal.aborted && update({ ...sale, state: phase(sale) }));
  };
  const line = new Sparkline(part('stock-spark'), 'Units left', count);
  const tick = setInterval(() => latest && line.add(latest.remaining), 1_000);
  signal.addEventListener('abort', () => clearInterval(tick));
  buyForm(id, signal);
  saleForms(id, signal, () => latest);
  showOrders(id);
  try {
    await follow(`/v1/sales/${id}/stream`, signal, update);
  } catch (problem) {
    part('sale').hidden = true;
    part('missing').hidden = false;
    say(part('missing'), problem.status === 404 ? 'There is no sale by this name.' : problem.message);
  }
}

/** The stream tells what is sold, added and ended; that a sale's time has come, clocks tell. */
function atNextPhase({ opens_at, closes_at }, then) {
  const ahead = [opens_at, closes_at].filter(Boolean).map((time) => Date.parse(time) - serverTime()).filter((left) => left > 0);
  const DAY_MS = 86_400_000; // setTimeout can't wait for much longer than that
  if (ahead.length > 0) return setTimeout(then, Math.min(...ahead, DAY_MS));
}

function phase({ opens_at, closes_at, remaining, paused }) {
  if (closes_at && serverTime() >= Date.parse(closes_at)) return 'closed';
  if (opens_at && serverTime() < Date.parse(opens_at)) return 'not_open';
  if (paused) return 'paused';
  return remaining === 0 ? 'sold_out' : 'open';
}

function showSale(sale) {
  showState(part('state'), sale.state);
  say(part('left'), count(sale.remaining));
  say(part('of'), `of ${count(sale.stock)} left`);
  showBar(part('bar'), sale);
  say(part('stock'), count(sale.stock));
  say(part('sold'), count(sale.sold));
  say(part('remaining'), count(sale.remaining));
  say(part('limit'), sale.per_user_limit ? `up to ${count(sale.per_user_limit)}` : 'no limit');
  say(part('opens'), sale.opens_at ? moment(sale.opens_at) : 'no set time');
  say(part('closes'), sale.closes_at ? moment(sale.closes_at) : 'no set time');
  say(part('users'), sale.verification ? 'checked first' : 'not checked');
  showSwitches(sale);
  part('quantity').max = sale.per_user_limit ?? 1_000_000;
}

/** Why nothing can be bought now; empty when it can. */
function obstacle(sale) {
  switch (sale.state) {
    case 'sold_out': return 'Sold out. When more comes in, you can buy here at once.';
    case 'paused': return sale.paused === 'refuse' ? 'Paused. When it goes on, you can buy here at once.' : '';
    case 'closed': return 'This sale is closed.';
    case 'not_open': return sale.opens_at
      ? `Not open yet. It opens ${moment(sale.opens_at)}, and you can buy here then.`
      : 'Not open yet. When it opens, you can buy here at once.';
    default: return lacksToken() ? 'Give an access token above to buy.' : '';
  }
}

function allowBuying(sale) {
  const why = obstacle(sale);
  const held = sale.state === 'paused' ? 'Paused. You can order now; it is decided when the sale goes on.' : '';
  say(part('why'), why || held);
  setBlocked(part('buy'), why !== '' || isSending(ordersOf(sale.sale_id)[0]));
}

function buyForm(id, signal) {
  part('buyer').value = buyer();
  part('buyer').addEventListener('change', () => part('buyer').checkValidity() && setBuyer(part('buyer').value));
  part('buy-form').addEventListener('submit', (event) => {
    event.preventDefault();
    if (!isBlocked(part('buy'))) buy(id, part('buyer').value, Number(part('quantity').value));
  });
  onOrder(({ detail: order }) => {
    if (order.sale_id !== id) return;
    showOrders(id);
    if (order === ordersOf(id)[0]) showAnswer(order);
  }, signal);
}

function showAnswer(order) {
  say(part('answer'), words(order));
  part('answer').dataset.tone = tone(order);
}

const times = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });

function showOrders(id) {
  const items = ordersOf(id).slice(0, 5).map((order) => {
    const item = document.createElement('li');
    item.dataset.tone = tone(order);
    const text = document.createElement('p');
    text.textContent = words(order);
    const facts = document.createElement('p');
    facts.className = 'hint';
    facts.textContent = `${times.format(order.at)}, ${units(order.quantity)}, ${order.user_id}\nOrder ${order.order_id ?? 'without an id yet'}`;
    item.append(text, facts);
    return item;
  });
  part('history').hidden = items.length === 0;
  part('orders').replaceChildren(...items);
}
