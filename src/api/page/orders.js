// A visitor's orders: each is sent until there is an answer, then asked for until it is decided.

import { Problem, call, insist, newId, on, pause, wantsToken } from './client.js';
import { count, units } from './dom.js';

const KEPT = 20;
const HOUR_MS = 3_600_000;
const changes = new EventTarget();

/** Private windows may refuse storage; the page then remembers until it is left. */
const memory = {
  get(key) {
    try { return localStorage.getItem(`floodgate.${key}`); } catch { return null; }
  },
  set(key, text) {
    try { localStorage.setItem(`floodgate.${key}`, text); } catch { /* remembered in this page only */ }
  },
};

export function buyer() {
  const known = memory.get('buyer') || `visitor-${newId().slice(0, 8)}`;
  setBuyer(known);
  return known;
}

export const setBuyer = (name) => memory.set('buyer', name);

let orders = [];
try { orders = JSON.parse(memory.get('orders')) ?? []; } catch { /* not ours, or from another version */ }

/** This visitor's last orders in a sale, newest first. */
export const ordersOf = (saleId) => orders.filter((order) => order.sale_id === saleId);

export const onOrder = (listener, signal) => changes.addEventListener('order', listener, { signal });

function changed(order, change) {
  Object.assign(order, change);
  memory.set('orders', JSON.stringify(orders));
  changes.dispatchEvent(new CustomEvent('order', { detail: order }));
}

/**
 * A new order, and the key that every copy of it is sent with. Without tokens the key is the order id.
 * With a buyer's token the server derives the order id from it, and its first answer names it.
 */
function newOrder(sale_id, user_id, quantity) {
  const key = newId();
  return { key, order_id: wantsToken() ? undefined : key, sale_id, user_id, quantity, at: Date.now() };
}

/** Asks for a purchase. Resolves when the server has taken the order, decided it, or refused it. */
export async function buy(sale_id, user_id, quantity) {
  const order = resumable(sale_id, user_id, quantity) ?? newOrder(sale_id, user_id, quantity);
  orders = [order, ...orders.filter((other) => other !== order)].slice(0, KEPT);
  changed(order, { status: 'sending', text: undefined });
  try {
    const { status, body } = await insist(`/v1/sales/${sale_id}/orders`, {
      method: 'POST',
      body: { user_id, quantity },
      headers: { 'Idempotency-Key': `"${order.key}"`, Prefer: 'wait=5' },
      timeout_ms: 15_000,
    }, () => changed(order, { status: 'silent' }));
    const { order_id } = body;
    if (status === 202) {
      changed(order, { order_id, status: 'accepted' });
      settle(order);
    } else {
      changed(order, { order_id, status: body.outcome, reason: body.reason });
    }
  } catch (problem) {
    const later = problem.retryAfter ? ` Try again in ${problem.retryAfter} s.` : '';
    changed(order, { status: problem.passing ? 'postponed' : 'refused', text: problem.message + later });
  }
}

/** An order the server may have taken without saying so must be sent again as itself, not as a second one. */
function resumable(sale_id, user_id, quantity) {
  return orders.find((order) => order.key && ['postponed', 'unanswered'].includes(order.status) && Date.now() - order.at < HOUR_MS
    && order.sale_id === sale_id && order.user_id === user_id && order.quantity === quantity);
}

/** Asks until the order is decided: soon at first, then every ten seconds, for an hour. */
async function settle(order) {
  for (let wait_ms = 500; Date.now() - order.at < HOUR_MS; wait_ms = Math.min(1.5 * wait_ms, 10_000)) {
    await pause(wait_ms);
    try {
      const { body } = await call(`/v1/sales/${order.sale_id}/orders/${encodeURIComponent(order.order_id)}`);
      return changed(order, { status: body.outcome, reason: body.reason });
    } catch (error) {
      // 404 is "not decided yet"; any other refusal won't change by asking.
      if (error instanceof Problem && error.place) changed(order, { status: 'accepted', place: error.place });
      if (error instanceof Problem && error.status !== 404 && !error.passing) {
        return changed(order, { status: 'unknown', text: error.message });
      }
    }
  }
  changed(order, { status: 'lost' });
}

// What an earlier page had sent is asked for by this one; a token may make an answer readable. Without
// its order id an order can't be asked for, only sent again.
for (const order of orders) {
  if (['sending', 'silent'].includes(order.status)) order.status = order.order_id ? 'left' : 'unanswered';
}
const resume = (...statuses) => orders.filter(({ status }) => statuses.includes(status)).forEach(settle);
resume('left', 'accepted', 'unknown');
on('token', () => resume('unknown'));

const REASONS = {
  user_denied: 'this buyer may not buy here',
  purchase_limit: 'that would be more than one buyer may have',
  not_open: 'the sale had not opened yet',
  paused: 'the sale was paused when your turn came',
  closed: 'the sale was closed',
  expired: 'it waited too long, so it was not carried out',
};

/** Whether an order waits for the server's first answer. */
export const isSending = (order) => ['sending', 'silent'].includes(order?.status);

/** How an order's state is coloured; its words say the same. */
export function tone({ status }) {
  if (status === 'created') return 'good';
  return ['sold_out', 'rejected', 'refused', 'postponed'].includes(status) ? 'bad' : 'wait';
}

/** Where an order stands, as far as the server can tell. */
function standing(place) {
  if (!place || place.ahead === 0) return '';
  const wait = place.wait_s == null ? '' : `, which takes about ${count(Math.max(place.wait_s, 1))} s`;
  return ` About ${count(place.ahead)} are ahead of it${wait}.`;
}

/** What became of an order, in words a buyer understands. */
export function words({ status, reason, quantity, text, place }) {
  switch (status) {
    case 'created': return `Yours: ${units(quantity)}.`;
    case 'sold_out': return 'Sold out: not enough was left when your turn came. You bought nothing.';
    case 'rejected': return `Rejected: ${REASONS[reason] ?? reason ?? 'no reason was given'}. You bought nothing.`;
    case 'sending': return 'Sending your order.';
    case 'silent': return 'No answer from the server. Sending the same order again; it counts only once.';
    case 'accepted': return `Your order is in the queue, not decided yet.${standing(place)} This page keeps asking.`;
    case 'left': return 'Sent as the page was left: it may not have arrived. This page asks whether it did.';
    case 'unanswered': return 'Sent as the page was left: it may not have arrived. Buying again sends the same order; it counts only once.';
    case 'lost': return 'No decision was found within an hour: it probably did not arrive.';
    case 'unknown': return `Sent, but its answer can’t be read: ${text}`;
    case 'postponed': return `Not taken: ${text} Buying again sends the same order.`;
    default: return `Not taken: ${text}`;
  }
}
