// The playground: tabs, the key box, and what connects the other files.

import { task as caption } from "./caption.js";
import { byId } from "./dom.js";
import { hideHeat } from "./heatmap.js";
import { startKeyBox } from "./keybox.js";
import { load, onModels, roles, watch } from "./models.js";
import * as pictures from "./pictures.js";
import { create, sentence, whenUnauthorized } from "./task.js";
import { tasks } from "./tasks.js";

const made = [caption, ...tasks].map((task) => ({ task, ...create(task) }));

/** @param {number} index */
function select(index) {
  made.forEach(({ tab, panel }, at) => {
    tab.setAttribute("aria-selected", at === index ? "true" : "false");
    tab.tabIndex = at === index ? 0 : -1;
    panel.hidden = at !== index;
  });
  hideHeat();
}

const tabs = byId("tabs", HTMLElement);
tabs.append(...made.map(({ tab }) => tab));
byId("panels", HTMLElement).append(...made.map(({ panel }) => panel));
made.forEach(({ tab }, index) => tab.addEventListener("click", () => select(index)));
tabs.addEventListener("keydown", (event) => {
  const at = made.findIndex(({ tab }) => tab === document.activeElement);
  const moves = /** @type {Record<string, number>} */ ({ ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: made.length - 1 });
  const to = moves[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  const index = (to + made.length) % made.length;
  select(index);
  made[index]?.tab.focus();
});
select(0);

const showKeyBox = startKeyBox(load, (error) => {
  byId("state", HTMLElement).textContent = sentence(error);
});
whenUnauthorized(() => showKeyBox(true));

pictures.onChange(() => hideHeat());
// A new picture is captioned at once, while the tab of captions is open.
pictures.whenAdded(() => {
  const [first] = made;
  if (first && !first.panel.hidden && roles().has(first.task.role)) first.form.requestSubmit();
});
pictures.start((text) => {
  byId("complaint", HTMLElement).textContent = text;
});
onModels((roles) => made.forEach(({ task, setAvailable }) => setAvailable(roles.has(task.role))));
void watch();
pictures.showFirstScene().catch(() => {});
