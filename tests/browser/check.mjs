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
const report = { requests: [], console: [], axe: [], layout: {} };

const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
});
const open = async (width, options) => {
  const context = await browser.newContext({ offline: true, viewport: { width, height: 900 }, ...options });
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
  await page.waitForTimeout(200); // lets the observers answer
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
  const boxless = [...document.querySelectorAll("math")].filter((formula) => {
    const { width, height } = formula.getBoundingClientRect();
    return !(width > 0 && height > 0);
  });
  return {
    "TeX left in the text": raw,
    "formulas that take no room": boxless.map((formula) => formula.textContent),
    "images that do not load": [...document.images].filter((i) => !i.naturalWidth).map((i) => i.alt),
    "links that lead nowhere": [...document.querySelectorAll('a[href^="#"]')]
      .map((link) => decodeURIComponent(link.hash.slice(1)))
      .filter((anchor) => !document.getElementById(anchor)),
  };
};

// How the page is laid out at the window's present width; run in the browser.
const layout = () => {
  const shown = (element) => element.checkVisibility();
  const first = document.querySelector(".cell > figure")?.getBoundingClientRect();
  const column = document.querySelector("main").getBoundingClientRect().width;
  const tables = [...document.querySelectorAll(".scroll:has(table)")].filter(shown);
  const wider = (box) => box.scrollWidth > box.clientWidth;
  return {
    column,
    overflow: document.documentElement.scrollWidth - innerWidth,
    firstFigure: first?.bottom,
    codeAbove: [...document.querySelectorAll("summary, pre.code")]
      .filter((code) => shown(code) && code.getBoundingClientRect().top < (first?.bottom ?? 0)).length,
    clipped: [...document.querySelectorAll("pre")].filter((pre) => shown(pre) && wider(pre)).length,
    scrolling: tables.filter(wider).length,
    silent: tables.filter((box) => wider(box) !== /scrolls/.test(getComputedStyle(box, "::before").content)).length,
    folded: [...document.querySelectorAll(".source:not([open])")].filter(shown).length,
    gradients: [...document.querySelectorAll(".scroll")]
      .filter((box) => getComputedStyle(box).backgroundImage !== "none").length,
    figures: [...document.querySelectorAll(".cell > figure > picture > img")].map((image) => {
      const { width } = image.getBoundingClientRect();
      const drawn = [...image.parentElement.querySelectorAll("source")]
        .find((source) => image.currentSrc === source.srcset) ?? image;
      return {
        narrow: drawn !== image,
        share: width / column,
        scale: width / drawn.getAttribute("width"),
        caption: image.closest("figure").querySelector("figcaption")?.textContent.trim() ?? "",
      };
    }),
  };
};

for (const [name, width, options] of [
  ["wide", 1280, { colorScheme: "light" }],
  ["narrow", 400, { colorScheme: "dark" }],
  ["contrast", 1280, { colorScheme: "dark", forcedColors: "active" }],
]) {
  const page = await open(width, options);
  report.layout[name] = await page.evaluate(layout);
  if (name !== "contrast") {
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run());
    for (const { id, nodes } of violations) {
      const places = nodes.slice(0, 5).map((node) => `${node.html.slice(0, 200)} ${node.any[0]?.message ?? ""}`);
      report.axe.push({ name, id, places });
    }
  }
  if (screenshots) await page.screenshot({ path: `${screenshots}/${name}.png`, fullPage: true });
  if (name === "narrow") {
    const figure = page.locator(".cell > figure:not(.small) > picture > img").first();
    const picture = (await figure.count()) ? await figure.screenshot() : null;
    report.dark = picture && picture.toString("base64");
  }
  if (name === "wide") {
    report.page = await page.evaluate(survey);
    if (screenshots) await page.pdf({ path: `${screenshots}/page.pdf`, format: "A4" });
    await page.emulateMedia({ media: "print" }); // on the part of an A4 sheet within its margins
    await page.setViewportSize({ width: 642, height: 985 });
    report.layout.print = await page.evaluate(layout);
    await page.emulateMedia({ media: null });
    // The comforts: contents follow the reader, all code folds.
    await page.setViewportSize({ width: 1280, height: 900 });
    await page.evaluate(() => scrollTo(0, document.body.scrollHeight));
    await page.waitForTimeout(200);
    report.current = await page.locator("nav [aria-current]").allTextContents();
    await page.locator(".fold").click();
    report.unfolded = await page.locator("details.source[open]").count();
  }
  await page.context().close();
}
const plain = await open(1280, { javaScriptEnabled: false });
report.withoutScript = await plain.evaluate(survey);
await browser.close();
console.log(JSON.stringify(report, null, 1));
