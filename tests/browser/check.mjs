// Opens a page in Chromium with the network cut and prints, as JSON, what a reader would meet:
//
//     node check.mjs PAGE.html CHROMIUM [SCREENSHOTS]
//
// playwright-core and axe-core are looked up from the working directory.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [file, executablePath, screenshots] = process.argv.slice(2);
const require = createRequire(path.join(process.cwd(), "node_modules", "from-here.js"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf-8");

const url = pathToFileURL(path.resolve(file)).href;
const widths = [400, 800, 1280];
const report = { requests: [], console: [], overflow: [], axe: [], layout: {} };

const browser = await chromium.launch({
  executablePath,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});

const open = async (options) => {
  const context = await browser.newContext({ offline: true, ...options });
  const page = await context.newPage();
  page.on("request", (request) => {
    const asked = request.url();
    if (!/^(data|blob):/.test(asked) && asked.split("#")[0] !== url) report.requests.push(asked);
  });
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) report.console.push(message.text());
  });
  page.on("pageerror", (error) => report.console.push(String(error)));
  await page.goto(url);
  return page;
};

// What stands on the page; run in the browser.
const survey = () => {
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const raw = [];
  while (words.nextNode()) {
    const { data, parentElement } = words.currentNode;
    const exempt = parentElement.closest("pre, code, script, style");
    if (!exempt && /\$|\\[a-zA-Z]+/.test(data)) raw.push(data.trim());
  }
  const formulas = [...document.querySelectorAll("math")];
  const boxless = formulas.filter((formula) => {
    const { width, height } = formula.getBoundingClientRect();
    return !(width > 0 && height > 0);
  });
  // Characters per line of the long paragraphs, the middle one.
  const measures = [...document.querySelectorAll("main p")]
    .filter((p) => p.textContent.length > 300 && !p.querySelector("math"))
    .map((p) => p.textContent.length * parseFloat(getComputedStyle(p).lineHeight) / p.offsetHeight)
    .sort((a, b) => a - b);
  const images = [...document.images];
  return {
    raw,
    math: formulas.length,
    boxless: boxless.map((formula) => formula.textContent),
    broken: images.filter((image) => !image.naturalWidth).map((image) => image.alt),
    dangling: [...document.querySelectorAll('a[href^="#"]')]
      .map((link) => decodeURIComponent(link.hash.slice(1)))
      .filter((anchor) => !document.getElementById(anchor)),
    measure: measures[measures.length >> 1] ?? null,
    contents: document.querySelector("nav").getBoundingClientRect().height,
    text: document.querySelector("main").textContent.length,
  };
};

// How the page is laid out at the window's present width; run in the browser.
const layout = () => {
  const shown = (element) => element.checkVisibility();
  const wider = (box) => box.scrollWidth > box.clientWidth;
  const first = (element) => element.textContent.trim().slice(0, 60);
  const words = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  const torn = [];
  while (words.nextNode()) {
    const node = words.currentNode;
    if (node.parentElement.closest("script, style, .code")) continue;
    for (const found of node.data.matchAll(/[\d.,]+\s(?:±|to)\s[−\d.,]+/g)) {
      const range = document.createRange();
      range.setStart(node, found.index);
      range.setEnd(node, found.index + found[0].length);
      const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (lines.size > 1) torn.push(found[0]);
    }
  }
  const column = document.querySelector("main").getBoundingClientRect().width;
  const tables = [...document.querySelectorAll(".scroll:has(table)")].filter(shown);
  return {
    column,
    torn,
    clipped: [...document.querySelectorAll("pre")].filter((pre) => shown(pre) && wider(pre)).map(first),
    scrolling: tables.filter(wider).map(first),
    silent: tables.filter((box) => wider(box) !== /scrolls/.test(getComputedStyle(box, "::before").content))
      .map(first),
    code: [...document.querySelectorAll("pre.code")].filter(shown)
      .map((pre) => pre.getBoundingClientRect().width),
    figures: [...document.querySelectorAll(".cell > figure > picture > img")].map((image) => {
      const drawn = [...image.parentElement.querySelectorAll("source")]
        .find((source) => image.currentSrc === source.srcset) ?? image;
      return {
        alt: image.alt,
        narrow: drawn !== image,
        share: image.getBoundingClientRect().width / column,
        scale: image.getBoundingClientRect().width / drawn.getAttribute("width"),
        caption: image.closest("figure").querySelector("figcaption")?.textContent.trim() ?? "",
      };
    }),
  };
};

for (const colorScheme of ["light", "dark"]) {
  const page = await open({ colorScheme, viewport: { width: 1280, height: 900 } });
  report.page ??= await page.evaluate(survey);
  for (const width of widths) {
    await page.setViewportSize({ width, height: 900 });
    await page.waitForTimeout(200); // lets the observers answer
    const excess = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (excess > 0) report.overflow.push(`${excess} px at ${width} px`);
    report.layout[width] = await page.evaluate(layout);
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run());
    for (const { id, nodes } of violations) {
      const places = nodes.slice(0, 5).map((node) => `${node.html.slice(0, 200)} ${node.any[0]?.message ?? ""}`);
      report.axe.push({ colorScheme, width, id, places });
    }
    if (screenshots) {
      await page.screenshot({ path: `${screenshots}/${colorScheme}-${width}.png` });
      await page.screenshot({ path: `${screenshots}/${colorScheme}-${width}-full.png`, fullPage: true });
    }
  }
  if (colorScheme === "light") {
    // The comforts: contents follow the reader, all code folds and unfolds.
    await page.setViewportSize({ width: 1280, height: 900 });
    await page.evaluate(() => scrollTo(0, document.body.scrollHeight));
    await page.waitForTimeout(200);
    report.current = await page.locator("nav [aria-current]").allTextContents();
    await page.locator(".fold").click();
    report.unfolded = await page.locator("details.source[open]").count();
    if (screenshots) {
      await page.locator(".fold").click();
      await page.pdf({ path: `${screenshots}/page.pdf`, format: "A4", printBackground: false });
    }
  }
  if (colorScheme === "dark") {
    const figure = page.locator(".cell > figure:not(.small) > picture > img").first();
    const picture = (await figure.count()) ? await figure.screenshot() : null;
    report.dark = picture && picture.toString("base64");
  }
  await page.context().close();
}

const plain = await open({ javaScriptEnabled: false, viewport: { width: 1280, height: 900 } });
report.withoutScript = await plain.evaluate(survey);
await browser.close();
console.log(JSON.stringify(report, null, 1));
