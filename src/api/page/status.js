// How the deployment does: decisions, queues, servers and workers, for operators.

import { follow, lacksToken, on } from './client.js';
import { count, part, say } from './dom.js';
import { Sparkline } from './sparkline.js';

/** Follows the status; where it isn't for this visitor, says so and steps back. */
export function showStatus(signal) {
  const lines = {
    rate: new Sparkline(part('spark'), 'Decisions a second', count),
    created: new Sparkline(part('created-spark'), 'Created a second', count),
    sold_out: new Sparkline(part('sold-out-spark'), 'Sold out a second', count),
    rejected: new Sparkline(part('rejected-spark'), 'Rejected a second', count),
    depth: new Sparkline(part('depth-spark'), 'Messages that wait', count),
    latency: new Sparkline(part('latency-spark'), 'Nearly all decided in', time),
  };
  let attempt = new AbortController();
  const start = async () => {
    attempt.abort();
    attempt = new AbortController();
    part('figures').hidden = true;
    const refuse = (why) => say(part('figures-note'), why);
    if (lacksToken()) return refuse('The figures are for operators, with their token.');
    try {
      const until = AbortSignal.any([signal, attempt.signal]);
      await follow('/v1/status/stream', until, (status) => show(status, lines));
    } catch (problem) {
      refuse([401, 403].includes(problem.status) ? 'The figures are for operators.' : problem.message);
    }
  };
  on('token', start, signal);
  start();
}

/** Created, sold out and rejected, of counts by outcome and reason. */
function outcomes(counts) {
  const { created = 0, sold_out = 0 } = counts;
  return { created, sold_out, rejected: sum(counts) - created - sold_out };
}

const sum = (counts) => Object.values(counts).reduce((all, one) => all + one, 0);

function show(status, lines) {
  const { decisions, per_second, latency, queues } = status;
  say(part('figures-note'), 'Decisions counted since this server began to watch.');
  part('figures').hidden = false;
  const totals = outcomes(decisions);
  say(part('rate'), count(sum(per_second)));
  say(part('created'), count(totals.created));
  say(part('sold-out'), count(totals.sold_out));
  say(part('rejected'), count(totals.rejected));
  for (const [outcome, rate] of Object.entries(outcomes(per_second))) lines[outcome].add(rate);
  say(part('p50'), latency ? time(latency.p50) : 'none yet');
  say(part('p99'), latency ? time(latency.p99) : 'none yet');
  const waiting = (queues.intents ?? 0) + (queues.returned ?? 0);
  say(part('waiting'), count(waiting));
  say(part('oldest'), time(status.oldest_s));
  say(part('wait'), status.wait_s === null ? 'can’t be told' : time(status.wait_s));
  say(part('deferred'), count(queues.deferred ?? 0));
  say(part('dead'), count(queues.dead_letters ?? 0));
  lines.rate.add(sum(per_second));
  lines.depth.add(waiting);
  lines.latency.add(latency ? latency.p99 : null);
  say(part('peak'), `Last two minutes, peak ${count(lines.rate.peak())}`);
  say(part('depth-peak'), `Messages in the queues; peak ${count(lines.depth.peak())}`);
  list(part('servers'), Object.entries(status.dependencies).map(server));
  list(part('workers'), status.workers.map(worker));
  list(part('dead-reasons'), Object.entries(status.dead_letters)
    .filter(([, number]) => number > 0)
    .map(([reason, number]) => [`${reason}: ${count(number)}`]));
  part('dead-area').hidden = sum(status.dead_letters) === 0;
  say(part('alarm'), status.alarm ? `${status.alarm}.` : '');
  part('alarm').dataset.tone = 'bad';
}

function server([name, { up, down }]) {
  if (down === 0) return [`${name}: answers`, 'good'];
  return [`${name}: does not answer ${up === 0 ? 'any worker' : `${count(down)} of ${count(up + down)} workers`}`, 'bad'];
}

function worker(one) {
  const { host, process, version, state, silent_s, in_flight, drain_rate } = one;
  const name = `${host}, process ${process}, version ${version}`;
  if (state === 'silent') return [`${name}: nothing heard for ${time(silent_s)}`, 'bad'];
  if (state === 'gone') return [`${name}: gone without a word; its orders are back in the queue`];
  if (state !== 'running') return [`${name}: takes no orders`];
  return [`${name}: ${count(drain_rate)} orders a second, ${count(in_flight)} in flight`, 'good'];
}

function list(place, items) {
  while (place.children.length > items.length) place.lastElementChild.remove();
  while (place.children.length < items.length) place.append(document.createElement('li'));
  items.forEach(([text, tone = ''], index) => {
    say(place.children[index], text);
    place.children[index].dataset.tone = tone;
  });
}

export function time(seconds) {
  if (seconds >= 90) return `${count(seconds / 60)} min`;
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  const milliseconds = seconds * 1_000;
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}
