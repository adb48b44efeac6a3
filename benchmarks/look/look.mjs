// Look at pages in Chromium: screenshots at 1400 and 390 px, light and dark, and what axe-core finds.
//
//     npm install playwright axe-core          in a folder of its own, and there:
//     node .../look.mjs OUT PAGE.html...
//
// CHROMIUM names a browser that is not playwright's. Ends with 1 where axe-core finds something
// serious, or a page is cut: wider than the window.
import { createRequire } from "node:module";
import { mkdirSync } from "node:fs";
import path from "node:path";

const require = createRequire(path.join(process.cwd(), "here.js"));
const { chromium } = require("playwright");
const axe = require.resolve("axe-core/axe.min.js");
const [out, ...pages] = process.argv.slice(2);
mkdirSync(out, { recursive: true });
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
let bad = 0;
for (const page of pages) {
  const name = page.replace(/\/report\/latest\/index\.html$|\.html$/, "").split("/").pop();
  for (const [width, height] of [[1400, 900], [390, 844]])
    for (const colorScheme of ["light", "dark"]) {
      const tab = await browser.newPage({ viewport: { width, height }, colorScheme });
      await tab.goto("file://" + path.resolve(page));
      const file = path.join(out, `${name}-${width}-${colorScheme}`);
      await tab.screenshot({ path: file + ".png" });
      await tab.screenshot({ path: file + "-whole.png", fullPage: true });
      const [wide, long] = await tab.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]);
      const first = await tab.evaluate(() => {
        const last = [...document.querySelectorAll(".ships li, .trio, p.simulated")].pop();
        return last ? Math.round(last.getBoundingClientRect().bottom) : 0;
      });
      await tab.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = true)));
      const open = await tab.evaluate(() => document.documentElement.scrollWidth);
      await tab.addScriptTag({ path: axe });
      const { violations } = await tab.evaluate(() => window.axe.run());
      const serious = violations.filter((one) => ["serious", "critical"].includes(one.impact));
      if (serious.length || Math.max(wide, open) > width) bad = 1;
      console.log(`${name} ${width} ${colorScheme}: ${wide}/${open} px wide, ${long} long, answers end at ${first}`);
      for (const one of violations) console.log(`  ${one.impact} ${one.id}: ${one.nodes.length}: ${one.nodes[0].html.slice(0, 160)}`);
      await tab.close();
    }
}
await browser.close();
process.exit(bad);
