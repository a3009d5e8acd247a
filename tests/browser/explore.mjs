// Explores the latent plane in Chromium with the network cut, as a reader would:
//
//     node explore.mjs PAGE.html CHROMIUM ACTIONS [SCREENSHOTS]
//
// ACTIONS is JSON: a list of {explorer, move | click | touch | keys | colors}; places are shares of
// the plane, from its upper left corner. Prints, as JSON, what stood there after each of them.
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [file, executablePath, actions, screenshots] = process.argv.slice(2);
const require = createRequire(path.join(process.cwd(), "node_modules", "from-here.js"));
const { chromium } = require("playwright-core");
const url = pathToFileURL(path.resolve(file)).href;
const found = { errors: [], states: [] };

const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
});
const open = async (options) => {
  const context = await browser.newContext({ offline: true, hasTouch: true, ...options });
  const page = await context.newPage();
  page.on("console", (message) => found.errors.push(message.text()));
  page.on("pageerror", (error) => found.errors.push(String(error)));
  await page.goto(url);
  return page;
};

const page = await open({ viewport: { width: 1280, height: 900 } });
const planes = page.locator(".plane-explorer .plane");
await planes.first().waitFor();
const touch = await page.context().newCDPSession(page);

const state = (root, places) => {
  // Read from a copy, so that reading leaves the canvas as it is.
  const copy = (canvas) => {
    const pen = new OffscreenCanvas(canvas.width, canvas.height)
      .getContext("2d", { willReadFrequently: true });
    pen.drawImage(canvas, 0, 0);
    return pen;
  };
  const pixels = (canvas) => {
    const { data } = copy(canvas).getImageData(0, 0, canvas.width, canvas.height);
    return [canvas.height, canvas.width, [...data].filter((_, i) => i % 4 === 0)];
  };
  const [ground, ...images] = root.querySelectorAll("canvas");
  const pen = copy(ground);
  return {
    images: images.map(pixels),
    colors: places.map(([x, y]) =>
      [...pen.getImageData(x * ground.width, y * ground.height, 1, 1).data].slice(0, 3)),
    at: root.querySelector("output").textContent,
    split: [...root.querySelectorAll(".split p:first-child, .split span")].map((e) => e.textContent),
    bar: root.querySelector(".bar").offsetHeight,
    scrolled: scrollY,
  };
};

for (const { explorer, move, click, touch: fingers, keys, colors = [] } of JSON.parse(actions)) {
  const plane = planes.nth(explorer);
  await plane.scrollIntoViewIfNeeded();
  const box = await plane.boundingBox();
  const place = ([x, y]) => [box.x + x * box.width, box.y + y * box.height];
  if (move) await page.mouse.move(...place(move));
  if (click) await page.mouse.click(...place(click));
  if (fingers) {
    for (const [i, finger] of fingers.entries()) {
      const [x, y] = place(finger);
      await touch.send("Input.dispatchTouchEvent", {
        type: i ? "touchMove" : "touchStart", touchPoints: [{ x, y }],
      });
    }
    await touch.send("Input.dispatchTouchEvent", { type: "touchEnd", touchPoints: [] });
    await page.waitForTimeout(100);
  }
  if (keys) {
    await plane.focus();
    for (const key of keys) await page.keyboard.press(key);
  }
  found.states.push(await page.locator(".plane-explorer").nth(explorer).evaluate(state, colors));
}

// How long the answer to a pointer takes.
found.milliseconds = await planes.first().evaluate((plane) => {
  const { left, top, width, height } = plane.getBoundingClientRect();
  const moves = 500, began = performance.now();
  for (let i = 0; i < moves; i++) {
    plane.dispatchEvent(new PointerEvent("pointermove", {
      clientX: left + (i / moves) * width, clientY: top + ((i * 7) % moves) / moves * height,
    }));
  }
  return (performance.now() - began) / moves;
});
if (screenshots) {
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [400, 1280]) {
      const shot = await open({ colorScheme, viewport: { width, height: 900 } });
      await shot.locator(".plane").first().click({ position: { x: 120, y: 90 } });
      await shot.locator(".plane-explorer").first().screenshot({ path: `${screenshots}/explorer-${colorScheme}-${width}.png` });
      await shot.context().close();
    }
  }
}

const plain = await open({ javaScriptEnabled: false });
found.withoutScript = await plain.locator(".plane-explorer").first().evaluate((root) => ({
  text: root.innerText.trim(),
  images: [...root.querySelectorAll("img")].map(({ naturalWidth, width, alt }) => ({ naturalWidth, width, alt })),
}));
await browser.close();
console.log(JSON.stringify(found));
