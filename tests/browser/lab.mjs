// Opens the notebook in JupyterLab, runs all its cells and tries what is interactive, as a reader would:
//
//     node lab.mjs ADDRESS CHROMIUM [SCREENSHOT]
//
// ADDRESS opens the notebook, token included, on a server with --expose-app-in-browser. Prints, as
// JSON, the notebook as it then stands in JupyterLab, and what the explorers answered.
import { createRequire } from "node:module";
import path from "node:path";

const [address, executablePath, screenshot] = process.argv.slice(2);
const require = createRequire(path.join(process.cwd(), "node_modules", "from-here.js"));
const { chromium } = require("playwright-core");
const found = { errors: [] };

const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
page.on("pageerror", (error) => found.errors.push(String(error)));
await page.goto(address);
await page.locator(".jp-Notebook .jp-Cell").first().waitFor({ timeout: 60_000 });

// Where the notebook's cells are; only those in sight are on the page.
const scrollTo = (id) => page.evaluate(async (id) => {
  const { content } = window.jupyterapp.shell.currentWidget;
  const index = content.widgets.findIndex((cell) => cell.model.id === id);
  content.activeCellIndex = index;
  await content.scrollToItem(index, "start");
}, id);

found.notebook = await page.evaluate(async () => {
  const panel = window.jupyterapp.shell.currentWidget;
  await panel.sessionContext.ready;
  await window.jupyterapp.commands.execute("notebook:run-all-cells");
  return panel.content.model.toJSON();
});

for (const output of found.notebook.cells.flatMap((cell) => cell.outputs ?? [])) {
  if (output.output_type === "error") throw new Error(`${output.ename}: ${output.evalue}`);
}

const { cells } = found.notebook;
const showing = (text) => cells.find((cell) => JSON.stringify(cell.outputs ?? "").includes(text)).id;
// A place in an element, in shares of it, once JupyterLab has laid out the cells above: they push the
// element on, and a pointer that was meant for it would meet another cell.
const within = async (element, x, y) => {
  await element.scrollIntoViewIfNeeded();
  let box, before;
  do {
    before = box;
    await page.waitForTimeout(300);
    box = await element.boundingBox();
  } while (box.y !== before?.y || box.x !== before?.x);
  return { position: { x: x * box.width, y: y * box.height } };
};
const active = () => page.evaluate(() => window.jupyterapp.shell.currentWidget.content.activeCellIndex);

// The cloud: the pointer chooses a dot; a key goes to the epoch before, and to no other cell.
await scrollTo(showing("cloud-explorer"));
const cloud = page.locator(".cloud-explorer .field");
await cloud.waitFor({ timeout: 60_000 });
await cloud.click(await within(cloud, 0.9, 0.5));
const chosen = () => page.locator(".cloud-explorer .rows").allTextContents();
const cloudCell = await active();
found.cloud = [await chosen()];
await page.keyboard.press("ArrowLeft");
found.cloud.push(await chosen(), cloudCell === (await active()));

await scrollTo(showing("plane-explorer"));
const plane = page.locator(".plane-explorer .plane");
await plane.waitFor({ timeout: 60_000 });
const at = () => page.locator(".plane-explorer output").textContent();
await plane.hover(await within(plane, 0.2, 0.3));
found.pointed = await at();
await plane.click(await within(plane, 0.5, 0.5));
found.clicked = await at();
const before = await active();
for (const key of ["ArrowDown", "ArrowRight", "ArrowRight"]) await page.keyboard.press(key);
found.keys = await at();
found.stayed = before === (await active());
if (screenshot) await page.screenshot({ path: screenshot });

// Run once more, the cell has a new explorer, and that lives, too.
await page.evaluate(() => window.jupyterapp.commands.execute("notebook:run-cell"));
await page.locator(".plane-explorer output", { hasText: "z = (0.00, 0.00)" }).waitFor({ timeout: 60_000 });
await plane.press("ArrowUp");
found.again = await at();

await browser.close();
console.log(JSON.stringify(found));
