// Opens the notebook in JupyterLab, runs all its cells and tries the explorer, as a reader would:
//
//     node lab.mjs ADDRESS CHROMIUM [SCREENSHOT]
//
// ADDRESS opens the notebook, token included, on a server with --expose-app-in-browser. Prints, as
// JSON, the notebook as it then stands in JupyterLab, and what the explorer answered.
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

await scrollTo("explore");
const plane = page.locator(".plane-explorer .plane");
await plane.waitFor({ timeout: 10_000 });
const at = () => page.locator(".plane-explorer output").textContent();
const active = () => page.evaluate(() => window.jupyterapp.shell.currentWidget.content.activeCellIndex);
await plane.scrollIntoViewIfNeeded();
const box = await plane.boundingBox();
await page.mouse.move(box.x + 0.2 * box.width, box.y + 0.3 * box.height);
found.pointed = await at();
await page.mouse.click(box.x + 0.5 * box.width, box.y + 0.5 * box.height);
found.clicked = await at();
const before = await active();
for (const key of ["ArrowDown", "ArrowRight", "ArrowRight"]) await page.keyboard.press(key);
found.keys = await at();
found.stayed = before === (await active());
if (screenshot) await page.screenshot({ path: screenshot });

// Run once more, the cell has a new explorer, and that lives, too.
await page.evaluate(() => window.jupyterapp.commands.execute("notebook:run-cell"));
await page.locator(".plane-explorer output", { hasText: "z = (0.00, 0.00)" }).waitFor({ timeout: 10_000 });
await plane.press("ArrowUp");
found.again = await at();

// The table of the assignment leads to its cells.
await scrollTo("assignment");
await page.locator('a[href="#cell-id=hint1-source"]').first().click();
await page.waitForTimeout(1000);
found.followed = await page.evaluate(() => {
  const { content } = window.jupyterapp.shell.currentWidget;
  const cell = content.widgets.find((widget) => widget.model.id === "hint1-source");
  const { top, bottom } = cell.node.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
});
await browser.close();
console.log(JSON.stringify(found));
