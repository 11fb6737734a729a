// What a page must hold for everybody, as far as a script can tell. Returns what is wrong.

const wrong = [];
const shown = (element) => element.checkVisibility({ visibilityProperty: true });
const all = (selector) => [...document.querySelectorAll(selector)].filter(shown);
const tell = (what, element) => wrong.push(`${what}: ${element.outerHTML.slice(0, 120)}`);

if (!document.documentElement.lang) wrong.push('the page has no language');
if (!document.title) wrong.push('the page has no title');
for (const [selector, wanted] of [['h1', 1], ['main', 1]]) {
  const found = all(selector).length;
  if (found !== wanted) wrong.push(`${found} ${selector}, not ${wanted}`);
}

const textOf = (ids) => ids.split(/\s+/).map((id) => document.getElementById(id)?.textContent ?? '').join(' ');
const nameOf = (element) => (element.getAttribute('aria-label')
  ?? (element.hasAttribute('aria-labelledby') ? textOf(element.getAttribute('aria-labelledby')) : null)
  ?? element.textContent).trim();
for (const input of all('input, select, textarea')) {
  if (![...input.labels].some((label) => label.textContent.trim())) tell('no label', input);
}
for (const element of all('button, a[href], [role=img], section, nav, dialog')) {
  if (!nameOf(element)) tell('no name', element);
}
for (const element of all('section, nav')) {
  if (!element.matches('[aria-label], [aria-labelledby]')) tell('a landmark without a name', element);
}

let level = 0;
for (const heading of all('h1, h2, h3, h4')) {
  const own = Number(heading.tagName[1]);
  if (own > level + 1) tell('a heading that skips a level', heading);
  level = own;
}

const ids = [...document.querySelectorAll('[id]')].map((element) => element.id);
for (const id of ids.filter((id, at) => ids.indexOf(id) !== at)) wrong.push(`two elements with the id ${id}`);
for (const attribute of ['for', 'aria-describedby', 'aria-labelledby']) {
  for (const element of document.querySelectorAll(`[${attribute}]`)) {
    for (const id of element.getAttribute(attribute).split(/\s+/)) if (!ids.includes(id)) tell(`no element with the id ${id}`, element);
  }
}
for (const element of document.querySelectorAll('[style]')) {
  if (!element.parentElement.matches('.bar')) tell('a style in the page', element);
}

// Contrast as WCAG 2.2, 1.4.3 has it: 4.5 to 1 for text, 3 to 1 for large text. Controls that can't
// be used are exempt there; these explain themselves, so they are held to it all the same.
const rgb = (colour) => colour.match(/[\d.]+/g).map(Number);
const luminance = (colour) => {
  const [r, g, b] = rgb(colour).map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if ((rgb(colour)[3] ?? 1) === 1) return colour;
  }
  return 'rgb(255, 255, 255)';
};
for (const element of all('body *')) {
  const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
  if (!own) continue;
  const { color, fontSize, fontWeight } = getComputedStyle(element);
  const [high, low] = [luminance(color), luminance(ground(element))].sort((a, b) => b - a);
  const contrast = (high + 0.05) / (low + 0.05);
  const large = parseFloat(fontSize) >= (fontWeight >= 700 ? 18.66 : 24);
  if (contrast < (large ? 3 : 4.5)) tell(`contrast ${contrast.toFixed(2)} of ${color} on ${ground(element)}`, element);
}

if (document.documentElement.scrollWidth > innerWidth) {
  wrong.push(`${document.documentElement.scrollWidth} px wide in a window of ${innerWidth} px`);
}
return wrong;
