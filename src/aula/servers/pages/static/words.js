// Every word of the pages comes from one table a language: words.en.js and words.zh.js, with the same keys.

import { remember, remembered } from "./dom.js";
import en from "./words.en.js";
import zh from "./words.zh.js";

const TABLES = { en, zh };

let chosen = remembered("language");
if (!(chosen in TABLES)) {
  const wanted = navigator.languages ?? [navigator.language];
  chosen = wanted.map((tag) => tag.slice(0, 2)).find((tag) => tag in TABLES) ?? "en";
}

export const language = () => chosen;
export const tag = () => (chosen === "zh" ? "zh-CN" : "en");

/** The words for a key, with {names} filled in, numbers as the language writes them; for one and for more, by {n}. */
export function say(key, values = {}) {
  const words = TABLES[chosen][key];
  if (words === undefined) throw new Error(`no words for ${key}`);
  const forms = words.split(" | "); // one | more
  return (values.n === 1 ? forms[0] : forms.at(-1)).replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? number(values[name]) : values[name]));
}

export const knows = (key) => key in TABLES[chosen];

export function number(value, digits = 0) {
  return new Intl.NumberFormat(tag(), { maximumFractionDigits: digits }).format(value);
}

/** 87 ms, 1.2 s */
export function duration(milliseconds) {
  if (milliseconds < 1000) return say("ms", { n: number(milliseconds, milliseconds < 10 ? 1 : 0) });
  return say("s", { n: number(milliseconds / 1000, 1) });
}

export function clockTime(unixSeconds) {
  return new Intl.DateTimeFormat(tag(), { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).format(1000 * unixSeconds);
}

/** Put the words where the page wants them. */
export function translate(root = document) {
  for (const one of root.querySelectorAll("[data-t]")) one.textContent = say(one.dataset.t);
  for (const one of root.querySelectorAll("[data-t-label]")) one.setAttribute("aria-label", say(one.dataset.tLabel));
  for (const one of root.querySelectorAll("[data-t-tip]")) one.title = say(one.dataset.tTip);
  for (const one of root.querySelectorAll("[data-t-placeholder]")) one.placeholder = say(one.dataset.tPlaceholder);
}

/** Show the page in a language from now on; whoever shows words of its own hears "words". */
export function speak(wanted = chosen) {
  chosen = wanted;
  document.documentElement.lang = tag();
  document.title = `${say(document.body.dataset.title)} · aula`;
  translate();
  document.dispatchEvent(new Event("words"));
}

export function choose(wanted) {
  remember("language", wanted);
  speak(wanted);
}
