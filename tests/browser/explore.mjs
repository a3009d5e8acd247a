// Touches explorers in Chromium with the network cut, as a reader would:
//
//     node explore.mjs PAGE.html CHROMIUM ACTIONS [SCREENSHOTS]
//
// ACTIONS is JSON: a list of {explorer, move | click | swipe | keys | dot | label | rerun}; places are
// shares of the field that is touched, from its upper left corner. Each explorer is the whole of an
// element of class "output". Prints, as JSON, what stood there after each action.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [file, executablePath, actions, screenshots] = process.argv.slice(2);
const require = createRequire(path.join(process.cwd(), "node_modules", "from-here.js"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf-8");
const url = pathToFileURL(path.resolve(file)).href;
const outputs = readFileSync(file, "utf-8").split('<div class="output">').slice(1);
const found = { errors: [], states: [], axe: [], overflow: [], letters: [], milliseconds: [], swatches: {} };

const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
});
const open = async (options) => {
  const context = await browser.newContext({ offline: true, hasTouch: true, ...options });
  const page = await context.newPage();
  page.on("console", (message) => found.errors.push(message.text()));
  page.on("pageerror", (error) => found.errors.push(String(error)));
  page.on("request", (request) => {
    if (!/^data:/.test(request.url()) && request.url() !== url) found.errors.push(request.url());
  });
  await page.addInitScript(() => {
    const before = Object.keys(window).length;
    window.strangers = () => Object.keys(window).slice(before + 1).filter((name) => name !== "heard");
    window.heard = []; // keys that reach the page around the explorers
    document.addEventListener("keydown", (event) => window.heard.push(event.key));
  });
  await page.goto(url);
  return page;
};
const ready = async (page) => {
  const count = await page.locator(".lab-explorer").count();
  for (let i = 0; i < count; i++) await page.locator(".lab-explorer .panel").nth(i).waitFor();
};

const page = await open({ viewport: { width: 1280, height: 700 } });
await ready(page);
const explorers = page.locator(".lab-explorer");
const touch = await page.context().newCDPSession(page);

const state = (root) => {
  const pixels = (canvas) => {
    // Read from a copy, so that reading leaves the canvas as it is.
    const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    pen.drawImage(canvas, 0, 0);
    const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
    return [canvas.height, canvas.width, ...[0, 1, 2].map((k) => [...data].filter((_, i) => i % 4 === k))];
  };
  const texts = (selector) => [...root.querySelectorAll(selector)].map((e) => e.textContent);
  const seen = {
    images: [...root.querySelectorAll("figure canvas")].map(pixels),
    scrolled: scrollY,
    heard: window.heard.splice(0),
    strangers: window.strangers(),
    keysKept: [...root.querySelectorAll("[tabindex], button")]
      .every((element) => element.matches("[data-lm-suppress-shortcuts]")),
    words: root.querySelector(".how").textContent,
  };
  if (root.matches(".plane-explorer")) {
    seen.at = root.querySelector("output").textContent;
    seen.split = texts(".split p:first-child, .split span");
    seen.bar = root.querySelector(".bar").offsetHeight;
    seen.names = texts(".name");
    return seen;
  }
  // Points of a path, as the drawing has them and as they lie on the screen.
  const points = (selector) => {
    const path = [...root.querySelectorAll(selector)].at(-1), matrix = path.getScreenCTM();
    return (path.getAttribute("d") ?? "").split(/[ML]/).slice(1).map((pair) => {
      const [x, y] = pair.split(/[,hv]/).map(Number);
      const { x: left, y: top } = new DOMPoint(x, y).matrixTransform(matrix);
      return { epoch: x, nats: -y, left, top };
    });
  };
  const middle = (element) => {
    const { left, top, width, height } = element.getBoundingClientRect();
    return { text: element.textContent, left: left + width / 2, top: top + height / 2 };
  };
  const box = root.querySelector("svg").getBoundingClientRect();
  const view = root.querySelector("svg").viewBox.baseVal;
  return {
    ...seen,
    which: root.querySelector(".which").textContent,
    rows: texts(".rows span"),
    own: points(".own"),
    mean: points(".mean"),
    dots: points(".dots"),
    chosen: points(".chosen"),
    ring: middle(root.querySelector("i")),
    box: [box.top, box.bottom],
    limits: [-view.y - view.height, -view.y],
    across: [...root.querySelectorAll(".across")].map(middle),
    up: [...root.querySelectorAll(".up")].map(middle),
    pressed: texts('[aria-pressed="true"]'),
  };
};

for (const action of JSON.parse(actions)) {
  if (action.rerun) { // as a notebook does: the output is thrown away and comes again
    await page.evaluate(({ html, index }) => {
      const again = document.createRange().createContextualFragment(html);
      document.querySelectorAll(".output")[index].replaceChildren(again);
    }, { html: outputs[action.explorer], index: action.explorer });
    await ready(page);
  }
  const root = explorers.nth(action.explorer), field = root.locator(".field");
  await field.scrollIntoViewIfNeeded();
  const box = await field.boundingBox();
  const place = ([x, y]) => [box.x + x * box.width, box.y + y * box.height];
  if (action.move) await page.mouse.move(...place(action.move));
  if (action.click) await page.mouse.click(...place(action.click));
  if (action.dot !== undefined) {
    const { left, top } = (await root.evaluate(state)).dots[action.dot];
    await page.mouse.move(left, Math.min(box.y + box.height - 2, Math.max(box.y + 2, top)));
  }
  if (action.label) await root.getByRole("button", { name: action.label, exact: true }).click();
  for (const [i, finger] of (action.swipe ?? []).entries()) {
    const [x, y] = place(finger);
    const type = i ? "touchMove" : "touchStart";
    await touch.send("Input.dispatchTouchEvent", { type, touchPoints: [{ x, y }] });
    await page.waitForTimeout(30);
  }
  if (action.swipe) {
    await touch.send("Input.dispatchTouchEvent", { type: "touchEnd", touchPoints: [] });
    await page.waitForTimeout(200);
  }
  if (action.keys) {
    await field.focus();
    for (const key of action.keys) await page.keyboard.press(key);
  }
  found.states.push(await explorers.nth(action.explorer).evaluate(state));
}

// How long the answers to a pointer take.
for (const field of await page.locator(".lab-explorer .field").all()) {
  found.milliseconds.push(await field.evaluate((field) => {
    const { left, top, width, height } = field.getBoundingClientRect();
    const moves = 300, began = performance.now();
    for (let i = 0; i < moves; i++) {
      field.dispatchEvent(new PointerEvent("pointermove", {
        clientX: left + (i / moves) * width, clientY: top + ((i * 7) % moves) / moves * height,
      }));
    }
    return (performance.now() - began) / moves;
  }));
}

// Every theme and width: what axe says, contrast included, and whether colours that explain remain.
const themes = { light: {}, dark: { colorScheme: "dark" }, contrast: { colorScheme: "dark", forcedColors: "active" } };
for (const [theme, options] of Object.entries(themes)) {
  for (const width of [400, 1280]) {
    const shot = await open({ ...options, viewport: { width, height: 900 } });
    await ready(shot);
    const excess = await shot.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (excess > 0) found.overflow.push(`${excess} px at ${width} px`);
    found.letters.push(...await shot.evaluate(() => {
      const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), sizes = [];
      while (words.nextNode()) {
        const { parentElement: element, data } = words.currentNode;
        if (data.trim() && element.offsetParent) sizes.push(parseFloat(getComputedStyle(element).fontSize));
      }
      return sizes;
    }));
    found.swatches[theme] = await shot.evaluate(() =>
      [...document.querySelectorAll(".plane-explorer .parts span")].slice(0, 2).map((span) => {
        const { backgroundColor, printColorAdjust } = getComputedStyle(span, "::before");
        return [backgroundColor, printColorAdjust];
      }));
    await shot.evaluate(axe);
    // In a contrast theme axe reads the colours that the theme replaces.
    const rules = { "color-contrast": { enabled: theme !== "contrast" } };
    const { violations } = await shot.evaluate((rules) => window.axe.run({ rules }), rules);
    found.axe.push(...violations.map(({ id, nodes }) => `${id}, ${theme}, ${width}: ${nodes[0].html}`));
    if (screenshots) {
      for (const [i, root] of (await shot.locator(".lab-explorer").all()).entries()) {
        await root.locator(".field").hover({ position: { x: 220, y: 90 } });
        await root.screenshot({ path: `${screenshots}/explorer-${i}-${theme}-${width}.png` });
      }
    }
    await shot.context().close();
  }
}

const plain = await open({ javaScriptEnabled: false });
found.withoutScript = await plain.locator(".lab-explorer").evaluateAll((roots) => roots.map((root) => ({
  text: root.innerText.trim(),
  images: [...root.querySelectorAll("img")].map(({ naturalWidth, width, alt }) => ({ naturalWidth, width, alt })),
})));
await browser.close();
console.log(JSON.stringify(found));
