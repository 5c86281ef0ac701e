// Ladders and their rungs, and what an operator may do to them.

import { find, make } from "./dom.js";
import { ask, explained } from "./door.js";
import { notice } from "./shell.js";
import { duration, knows, number, say } from "./words.js";

/** A ladder is named by its capability; one of engines as they are, by the engine too. */
export function nameOf(ladder) {
  const [capability, ...engine] = ladder.split(".");
  const name = knows(`ladder.${capability}`) ? say(`ladder.${capability}`) : capability;
  return engine.length ? `${name}: ${engine.join(".")}` : name;
}

export function drawLadders(place, ladders) {
  const focused = document.activeElement?.dataset?.act;
  place.replaceChildren(...ladders.map(ladderView));
  if (focused) place.querySelector(`[data-act="${CSS.escape(focused)}"]`)?.focus();
}

function ladderView(ladder) {
  const head = make("h3", {}, nameOf(ladder.name));
  if (ladder.overridden) {
    head.append(make("span", { class: "badge warn" }, say("operator.overridden", { rung: ladder.overridden })),
      button(`${ladder.name} free`, say("operator.release"), () => release(ladder)));
  }
  return make("section", { class: "ladder" }, head, ...ladder.rungs.map((rung, place) => rungView(ladder, rung, place)));
}

function rungView(ladder, rung, place) {
  const acts = make("div", { class: "acts" });
  if (ladder.rungs.length > 1 && ladder.overridden !== rung.name) {
    acts.append(button(`${ladder.name} ${rung.name} only`, say("operator.only"), () => override(ladder, rung)));
  }
  if (rung.renewable && rung.served > 0) {
    acts.append(button(`${ladder.name} ${rung.name} renew`, say("operator.renew"), () => renew(ladder, rung)));
  }
  return make("div", { class: "rung" },
    make("div", { class: "name" }, rung.name, stateOf(ladder, rung, place)),
    make("div", { class: "counts figures" }, rung.failed ? say("operator.served_failed", { n: rung.served, failed: rung.failed }) : say("operator.served", { n: rung.served })),
    acts,
    rung.unavailable ? make("p", { class: "why" }, rung.unavailable) : null);
}

function stateOf(ladder, rung, place) {
  if (ladder.overridden) {
    return ladder.overridden === rung.name ? make("span", { class: "badge good" }, say("rung.serves")) : make("span", { class: "badge" }, say("rung.set_aside"));
  }
  if (rung.state !== "closed") return make("span", { class: "badge bad" }, say(`rung.${rung.state}`));
  if (rung.unavailable) return make("span", { class: "badge warn" }, say("rung.unavailable"));
  const best = ladder.rungs.find((one) => one.state === "closed" && !one.unavailable);
  if (best !== rung) return make("span", { class: "badge" }, say("rung.stands_by"));
  return make("span", { class: "badge good" }, say(place === 0 ? "rung.serves" : "rung.stands_in"));
}

function button(act, words, onclick) {
  return make("button", { type: "button", class: "button", "data-act": act, onclick }, words);
}

/** A question in the page; resolves to whether it was answered with yes. */
function sure(title, words, yes) {
  const dialog = find("confirm");
  find("confirm-title").textContent = title;
  find("confirm-words").textContent = words;
  find("confirm-yes").textContent = yes;
  dialog.showModal();
  return new Promise((resolve) => {
    const end = (answer) => {
      dialog.close();
      resolve(answer);
    };
    find("confirm-yes").onclick = () => end(true);
    find("confirm-no").onclick = () => end(false);
    dialog.oncancel = (event) => {
      event.preventDefault();
      end(false);
    };
  });
}

async function change(path, body, done) {
  try {
    const answer = await ask(path, body);
    find("notices").replaceChildren(done(answer));
  } catch (error) {
    const { title } = explained(error);
    find("notices").replaceChildren(notice(title, { bad: true, words: error.message }));
  }
}

async function override(ladder, rung) {
  const words = say("operator.only_words", { ladder: nameOf(ladder.name), rung: rung.name });
  if (!(await sure(say("operator.only_title", { rung: rung.name }), words, say("operator.only")))) return;
  await change("/pages/override", { ladder: ladder.name, rung: rung.name }, () => notice(say("operator.only_done", { rung: rung.name, ladder: nameOf(ladder.name) })));
}

async function release(ladder) {
  await change("/pages/override", { ladder: ladder.name, rung: null }, () => notice(say("operator.released", { ladder: nameOf(ladder.name) })));
}

async function renew(ladder, rung) {
  if (!(await sure(say("operator.renew_title", { rung: rung.name }), say("operator.renew_words"), say("operator.renew")))) return;
  find("notices").replaceChildren(notice(say("operator.renewing", { rung: rung.name })));
  await change("/pages/renew", { ladder: ladder.name, rung: rung.name }, (answer) => (answer.error
    ? notice(say("operator.renew_failed", { rung: rung.name }), { bad: true, words: answer.error })
    : notice(say("operator.renewed", { rung: rung.name, time: duration(answer.load_ms) }))));
}

export function measure(name, words, part, small = "", colour = "") {
  const bar = make("i");
  bar.style.setProperty("--part", `${Math.max(0, Math.min(100, 100 * part))}%`);
  if (colour) bar.style.setProperty("--colour", `var(--${colour})`);
  return make("div", { class: "measure figures" }, make("span", {}, name), make("span", {}, words), make("div", { class: "bar", "aria-hidden": "true" }, bar), small ? make("small", {}, small) : null);
}

export function bytes(count) {
  return count >= 2 ** 30 ? say("gib", { n: number(count / 2 ** 30, 1) }) : say("mib", { n: number(count / 2 ** 20) });
}
