// How the page talks to the server: single calls, calls that insist on an answer, and streams.

let token = '';

const open = document.body.dataset.access === 'open';
const events = new EventTarget();

/** Calls `listener` when the token has changed, or when the server is reached or lost. */
export const on = (event, listener, signal) => events.addEventListener(event, listener, { signal });

/** Whether the server wants a token for what isn't public, and none has been given. */
export const lacksToken = () => !open && token === '';
export const wantsToken = () => !open;

export function setToken(text) {
  token = text.trim();
  events.dispatchEvent(new Event('token'));
}

/** An answer that isn't a success: problem+json (RFC 9457), or what can be told of anything else. */
export class Problem extends Error {
  constructor(status, { type, title, detail, place }, retryAfter) {
    super(detail || title || `The server answered with status ${status}.`);
    this.status = status;
    this.kind = String(type ?? '').split('#')[1] ?? '';
    this.retryAfter = retryAfter;
    this.place = place;
  }

  /** The order may be taken if it is sent again, or may even have been taken. */
  get passing() {
    return this.status >= 500 || this.status === 429 || this.status === 408;
  }
}

/** A random UUID, also where the page comes over plain HTTP and crypto.randomUUID is missing. */
export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Resolves after a while, or at once when `signal` is aborted. Spread, so that pages don't ask in step. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const timer = setTimeout(resolve, milliseconds * (0.85 + 0.3 * Math.random()));
    signal?.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

/** Resolves when somebody can see the page. */
export function visible() {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener('visibilitychange', look);
      resolve();
    };
    document.addEventListener('visibilitychange', look);
    look();
  });
}

let reached;
function reach(now) {
  if (reached === now) return;
  reached = now;
  events.dispatchEvent(new CustomEvent('reach', { detail: now }));
}

let ahead_ms = 0;

/** The time by the server's clock, from its answers' Date (to the second); visitors' clocks are often wrong. */
export const serverTime = () => Date.now() + ahead_ms;

async function send(path, { method = 'GET', body, headers = {}, signal }) {
  const all = { ...headers };
  if (token) all.Authorization = `Bearer ${token}`;
  if (body) all['Content-Type'] = 'application/json';
  let response;
  try {
    response = await fetch(path, { method, headers: all, signal, cache: 'no-store', body: body && JSON.stringify(body) });
  } catch (error) {
    // Called off by the page itself, it says nothing of the server; a time-out does.
    if (error.name !== 'AbortError') reach(false);
    throw error;
  }
  reach(true);
  const date = Date.parse(response.headers.get('Date'));
  if (date) ahead_ms = date - Date.now();
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Problem(response.status, answer ?? {}, response.headers.get('Retry-After'));
}

/** One request. Throws a `Problem` for a refusal, anything else when there was no answer. */
export async function call(path, options = {}) {
  const late = AbortSignal.timeout(options.timeout_ms ?? 10_000);
  const signal = options.signal ? AbortSignal.any([options.signal, late]) : late;
  const response = await send(path, { ...options, signal });
  return { status: response.status, body: await response.json() };
}

/**
 * Sends the same request until there is an answer, whatever it is. Only for requests that may be
 * repeated without harm, by their key or by their nature.
 */
export async function insist(path, options, onSilence) {
  for (let wait_ms = 500; ; wait_ms = Math.min(2 * wait_ms, 5_000)) {
    try {
      return await call(path, options);
    } catch (error) {
      if (error instanceof Problem) throw error;
      onSilence();
    }
    await pause(wait_ms);
  }
}

/**
 * Hands every event of a server-sent stream to `onData`, and connects again when it breaks, until
 * `signal` is aborted. Throws the `Problem` when the server refuses it for good. An EventSource can
 * carry no token, and would hold one of the browser's few connections in every hidden tab.
 */
export async function follow(path, signal, onData) {
  for (let wait_ms = 500; !signal.aborted; wait_ms = Math.min(2 * wait_ms, 8_000)) {
    await visible();
    const attempt = new AbortController();
    const hide = () => document.hidden && attempt.abort();
    document.addEventListener('visibilitychange', hide);
    try {
      const response = await send(path, { signal: AbortSignal.any([signal, attempt.signal]) });
      for await (const data of parse(response.body)) {
        wait_ms = 500;
        onData(data);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && !error.passing) throw error;
    } finally {
      document.removeEventListener('visibilitychange', hide);
    }
    await pause(wait_ms, signal);
  }
}

/** The data of each event; comments, which keep the connection alive, have none. */
async function* parse(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split('\n\n');
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split('\n').filter((line) => line.startsWith('data:'));
      if (data.length > 0) yield JSON.parse(data.map((line) => line.slice(5)).join('\n'));
    }
  }
}
