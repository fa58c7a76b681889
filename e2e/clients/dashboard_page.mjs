// The page of `kubectl stowage dashboard` in the system's Chromium: node dashboard_page.mjs ADDRESS
// STOWAGE_DEPLOYMENT is `namespace/name` of a deployment with one replica on the page, STOWAGE_MANIFEST what its form is asked.
// It prints what has to happen next: `next: scale`, the deployment gets a second replica; `next: hang` and `next: answer`, the API server
// stops answering the command, and answers again; `next: stop`, the command ends.
// With STOWAGE_SCREENSHOTS, a folder, it leaves pictures there.

import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import axe from 'axe-core';
import puppeteer from 'puppeteer-core';
import { check, done, equal } from './check.mjs';

const [ADDRESS] = process.argv.slice(2);
const { STOWAGE_DEPLOYMENT: DEPLOYMENT, STOWAGE_MANIFEST: MANIFEST, STOWAGE_SCREENSHOTS: FOLDER } = process.env;
const WIDTHS = [390, 768, 1280];
const SCHEMES = ['light', 'dark'];
// WCAG 2.2's reflow; axe does not look for it.
const NARROWEST = 320;
const FOCUSABLE = 'a[href], button, input, textarea, [tabindex="0"], [role="listbox"], .scrolled';

function chromium() {
  const places = (process.env.PATH ?? '').split(delimiter).flatMap((folder) => ['chromium', 'google-chrome'].map((name) => join(folder, name)));
  const isProgram = (place) => { try { accessSync(place, constants.X_OK); return true; } catch { return false; } };
  const found = places.find(isProgram);
  check(found, 'no Chromium on the PATH: install the package chromium');
  return found;
}

// Chromium starts no sandbox as root, and in most containers there is no other user. The page is our own.
const args = process.getuid() === 0 ? ['--no-sandbox'] : [];
const browser = await puppeteer.launch({ executablePath: chromium(), headless: true, pipe: true, args });
const page = await browser.newPage();

const requests = [];
const errors = [];
page.on('request', (request) => requests.push(request.url()));
page.on('console', (message) => { if (['error', 'warn'].includes(message.type())) errors.push(`${message.text()} ${message.location().url ?? ''}`); });
page.on('pageerror', (error) => errors.push(error.message));

// The page's policy forbids what puppeteer's own waiting for a function does.
async function until(what, condition, ...values) {
  const deadline = Date.now() + 60_000;
  while (!(await page.evaluate(condition, ...values))) {
    if (Date.now() > deadline) check(false, `not within a minute: ${what}`);
    await pause(50);
  }
  check(true, what);
}

const textOf = (selector) => page.$eval(selector, (element) => element.textContent);
const inTrouble = (words) => until(`the page says ${words}`, (words) => {
  const alert = document.getElementById('trouble');
  return !alert.hidden && alert.textContent.includes(words);
}, words);
const isWell = () => until('the page shows the state again', () => document.getElementById('trouble').hidden);
const looks = async (scheme, width) => {
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
  await page.setViewport({ width, height: 900 });
};

async function showsTheState() {
  await page.goto(ADDRESS);
  await until('the map has the replica', (name) => document.querySelector(`.gpu[aria-label*="${name}"] .bar span`), DEPLOYMENT);
  await until('the deployment in the table', (name) => [...document.querySelectorAll('#rows tr')].some((row) => row.textContent.includes(name) && row.textContent.includes('1/1')), DEPLOYMENT);
  await until('a decision with its reason', (name) => [...document.querySelectorAll('#log li')].some((line) => line.textContent.includes(name) && line.querySelector('.why').textContent), DEPLOYMENT);
  check(await page.$eval('#rows tr svg', (svg) => /wanted \d+/.test(svg.getAttribute('aria-label'))), 'replicas over time have no description');
  check((await textOf('#legend')).trim(), 'no tenant in the legend');
  check(await page.$eval('body', (body) => getComputedStyle(body).margin !== '8px'), 'the style was not loaded');
}

// Every control, in the order of the page, by Tab alone; what has the focus is on the screen and has an outline.
async function isReachableByKeyboard() {
  await page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
  const wanted = await page.$$eval(FOCUSABLE, (all) => all.filter((e) => e.checkVisibility()).map((e, n) => (e.dataset.order = n)));
  for (const [n] of wanted.entries()) {
    await page.keyboard.press('Tab');
    const focus = await page.evaluate(() => {
      const { activeElement: e } = document, style = getComputedStyle(e), box = e.getBoundingClientRect();
      return { order: Number(e.dataset.order), html: e.outerHTML.slice(0, 80), outline: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2, seen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth };
    });
    check(focus.order === n && focus.outline && focus.seen, `Tab ${n + 1} of ${wanted.length}: ${JSON.stringify(focus)}`);
  }
}

// From GPU to GPU with the arrow keys, until the one with the replica has its slices shown.
async function arrowsWalkTheMap() {
  await page.focus('#map');
  await page.keyboard.press('Home');
  const total = await page.$$eval('.gpu', (all) => all.length);
  let presses = 0;
  while (!(await textOf('#gpu')).includes(DEPLOYMENT)) {
    check(++presses < total, `no GPU of ${total} shows ${DEPLOYMENT}`);
    await page.keyboard.press('ArrowRight');
  }
  const active = await page.$eval('#map', (map) => document.getElementById(map.getAttribute('aria-activedescendant'))?.getAttribute('aria-selected'));
  equal(active, 'true', 'the GPU that assistive technology is pointed at');
  await page.keyboard.press('Home');
  const first = await textOf('#gpu');
  await page.keyboard.press('ArrowDown');
  const second = await textOf('#gpu');
  check(first !== second, 'the arrow down stays on a GPU');
  await page.keyboard.press('ArrowUp');
  equal((await textOf('#gpu')).slice(0, 12), first.slice(0, 12), 'the GPU after down and up');
}

async function filtersDecisions() {
  await page.focus('#only');
  await page.keyboard.type('such a decision is not there');
  await until('no decision', () => document.getElementById('log').textContent.includes('no decision contains this'));
  await page.$eval('#only', (input) => input.select());
  await page.keyboard.type(DEPLOYMENT);
  await until('decisions of one deployment', (name) => { const all = [...document.querySelectorAll('#log li')]; return all.length && all.every((line) => line.textContent.includes(name)); }, DEPLOYMENT);
}

async function plans(manifest, verdict, words) {
  await page.focus('#manifests');
  await page.$eval('#manifests', (area) => area.select());
  await page.keyboard.sendCharacter(manifest);
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  await until(`the plan: ${verdict}`, (verdict) => document.getElementById('verdict').textContent === verdict, verdict);
  const answer = await textOf('#planned');
  check(answer.includes(words), `the plan has no ${words}: ${answer}`);
}

async function isAccessibleAtEverySize() {
  for (const scheme of SCHEMES) {
    for (const width of [NARROWEST, ...WIDTHS]) {
      await looks(scheme, width);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      check(wide <= 0, `at ${width} px the page scrolls sideways by ${wide} px`);
      await page.evaluate(axe.source);
      const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
      const found = violations.map((v) => `${v.id}: ${v.nodes.map((n) => `${n.html.slice(0, 120)} ${n.failureSummary}`).join('; ')}`);
      check(!found.length, `${scheme}, ${width} px: ${found.join('\n')}`);
    }
  }
}

async function pictures() {
  if (!FOLDER) return;
  for (const [scheme, width, height] of [['light', 1280, 900], ['dark', 1280, 900], ['dark', 390, 844], ['light', 768, 1000]]) {
    await looks(scheme, width);
    await page.setViewport({ width, height });
    await page.evaluate(() => scrollTo(0, 0));
    await page.screenshot({ path: join(FOLDER, `${scheme}-${width}.png`) });
  }
}

await looks('light', 1280);
await showsTheState();
await isReachableByKeyboard();
await arrowsWalkTheMap();
await filtersDecisions();
await plans(MANIFEST, 'It fits.', JSON.parse(MANIFEST).metadata.name);
await isAccessibleAtEverySize();
await looks('light', 1280);

const before = await textOf('#summary');
console.log('next: scale');
await until('the second replica', (name) => [...document.querySelectorAll('#rows tr')].some((row) => row.textContent.includes(name) && row.textContent.includes('2/2')), DEPLOYMENT);
await until('a newer state', (before) => document.getElementById('summary').textContent !== before, before);
await pictures();

equal(errors.join('\n'), '', 'errors on the console');
const foreign = requests.filter((url) => !url.startsWith(ADDRESS) && !url.startsWith('data:'));
equal(foreign.join(' '), '', 'requests to other addresses than the page');

// From here on requests fail, which Chromium writes to the console.
await plans('{kind: Unknown}', 'No plan.', 'Unknown');
await page.setOfflineMode(true);
await inTrouble('does not answer');
await page.setOfflineMode(false);
await isWell();
console.log('next: hang');
await inTrouble('No answer within');
console.log('next: answer');
await isWell();
console.log('next: stop');
await inTrouble('Run `kubectl stowage dashboard` again');
check((await page.title()).startsWith('No answer'), 'the title does not say that there is no answer');
check(await page.$('.gpu'), 'the last state is not shown any more');
await browser.close();
done();
