// What every page begins with: the header, the language, light or dark, and who I am.

import { find, ICONS, icon, make, remember, remembered } from "./dom.js";
import { enter, key, leave } from "./door.js";
import { choose, language, say, speak, translate } from "./words.js";

const PAGES = [["student", "/", "ask"], ["teacher", "/teacher", "teach"], ["operator", "/operator", "operate"]];
const wantsDark = matchMedia("(prefers-color-scheme: dark)");

const theme = remembered("theme");
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;

export const isDark = () => (document.documentElement.dataset.theme ?? (wantsDark.matches ? "dark" : "light")) === "dark";

/** Show the page to whoever may see it, and return who that is. Tools of the page's own stand before the others. */
export async function begin(...tools) {
  header(tools);
  speak();
  const me = await enter();
  navigation(me);
  find("page").hidden = false;
  document.documentElement.dataset.ready = "";
  return me;
}

/** The key that was brought holds no longer: ask for another, and go on where we were. */
export async function readmit() {
  navigation(await enter());
  find("page").hidden = false;
}

function header(tools) {
  const here = document.body.dataset.page;
  const tongue = make("button", { type: "button", class: "icon", id: "language", onclick: () => choose(language() === "en" ? "zh" : "en") });
  const light = make("button", { type: "button", class: "icon", id: "theme", onclick: () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    remember("theme", document.documentElement.dataset.theme);
    draw();
    document.dispatchEvent(new Event("theme"));
  } });
  const draw = () => {
    tongue.textContent = say("language.other");
    tongue.lang = language() === "en" ? "zh-CN" : "en";
    tongue.title = say("language.switch");
    light.replaceChildren(icon(isDark() ? ICONS.sun : ICONS.moon));
    light.setAttribute("aria-label", say(isDark() ? "theme.light" : "theme.dark"));
    light.title = light.getAttribute("aria-label");
  };
  document.addEventListener("words", draw);
  wantsDark.addEventListener("change", () => { draw(); document.dispatchEvent(new Event("theme")); });
  const mark = make("img", { src: "/pages/files/icon.svg", alt: "", width: "28", height: "28" });
  document.querySelector(".top").append(
    make("a", { class: "brand", href: here === "student" ? "/" : location.pathname }, mark, "aula"),
    make("nav", { id: "pages", "data-t-label": "nav.pages", hidden: true }),
    ...tools.filter((tool) => tool.matches(".choice")),
    make("div", { class: "tools" }, ...tools.filter((tool) => !tool.matches(".choice")), tongue, light,
      key() ? leaving() : null),
  );
}

function leaving() {
  return make("button", { type: "button", class: "icon", id: "leave", onclick: leave, "data-t-label": "gate.leave", "data-t-tip": "gate.leave" }, icon(ICONS.leave));
}

function navigation(me) {
  const nav = find("pages");
  const mine = PAGES.filter(([, , ability]) => me.abilities.includes(ability));
  nav.hidden = mine.length < 2;
  nav.replaceChildren(...mine.map(([name, path]) => make("a", {
    href: path, "data-t": `nav.${name}`, "aria-current": name === document.body.dataset.page ? "page" : null,
  })));
  if (key() && !find("leave")) document.querySelector(".top .tools").append(leaving());
  translate(document.querySelector(".top"));
}

/** A choice among courses, empty still. */
export function courseChoice(id) {
  const select = make("select", { id, "data-t-label": "course" });
  return make("span", { class: "choice", hidden: true }, select);
}

/** A short message in the page, with what can be done about it. */
export function notice(title, { words = "", bad = false, action = null, onaction = null, id = null } = {}) {
  const view = make("div", { class: bad ? "notice bad" : "notice", id },
    make("div", {}, make("strong", {}, title), words || null),
    action ? make("button", { type: "button", class: "button", onclick: () => onaction(view) }, action) : null);
  return view;
}
