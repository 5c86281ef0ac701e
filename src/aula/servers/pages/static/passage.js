// A passage of the course, beside the answer that cites it.

import { find, make, waiting } from "./dom.js";
import { ask, explained } from "./door.js";
import { say } from "./words.js";

let wired = false;

/** Open the passage; the focus returns to whatever opened it. */
export async function openPassage(course, document_, passage) {
  const sheet = find("passage");
  if (!wired) {
    wired = true;
    find("passage-close").addEventListener("click", () => sheet.close());
    sheet.addEventListener("click", (event) => { if (event.target === sheet) sheet.close(); });
  }
  const path = passage.split(" > ");
  find("passage-title").textContent = path.at(-1);
  find("passage-path").textContent = path.slice(0, -1).join(" › ");
  find("passage-body").replaceChildren(waiting());
  sheet.showModal();
  try {
    const query = new URLSearchParams({ course, document: document_, passage });
    const told = await ask(`/pages/passage?${query}`);
    find("passage-title").textContent = told.headings.at(-1);
    find("passage-path").textContent = [told.course, ...told.headings.slice(0, -1)].join(" › ");
    find("passage-body").lang = told.language;
    find("passage-body").replaceChildren(
      ...(told.before ? [make("p", { class: "beside" }, told.before)] : []),
      make("mark", {}, told.text),
      ...(told.after ? [make("p", { class: "beside" }, told.after)] : []),
    );
    find("passage-body").querySelector("mark").scrollIntoView({ block: "nearest" });
  } catch (error) {
    const { title } = explained(error);
    find("passage-body").replaceChildren(make("p", { class: "notice bad" }, make("div", {}, make("strong", {}, say("passage.gone")), title)));
  }
}
