// What the class asks: by topic of the course, and what the course could not answer.

import { make } from "./dom.js";
import { openPassage } from "./passage.js";
import { clockTime, say } from "./words.js";

const FEW = 3;
const opened = new Set(); // topics that show all their questions
let counts = new Map(); // what was there before, so that what is new can be seen

/** Draw the board; `isFirst`: nothing of it is news. */
export function drawQuestions(place, board, isFirst) {
  const focused = document.activeElement?.dataset?.topic;
  const parts = [];
  if (board.unanswered.length) {
    parts.push(make("h3", { class: "part" }, say("teacher.unanswered")));
    parts.push(...board.unanswered.map((topic) => card(topic, true, isFirst)));
  }
  if (board.topics.length) {
    parts.push(make("h3", { class: "part" }, say("teacher.by_topic")));
    parts.push(...board.topics.map((topic) => card(topic, false, isFirst)));
  }
  if (!parts.length) {
    parts.push(make("div", { class: "card nothing" }, make("h3", {}, say("teacher.nothing")), say("teacher.nothing_more")));
  }
  place.replaceChildren(...parts);
  place.setAttribute("aria-busy", "false");
  counts = new Map([...board.topics, ...board.unanswered].map((topic) => [idOf(topic), topic.count]));
  if (focused) place.querySelector(`[data-topic="${CSS.escape(focused)}"]`)?.focus();
}

const idOf = (topic) => [topic.course, topic.document, topic.title].join("\n");

/** The same words, asked again, are one line with their number. */
function together(questions) {
  const found = new Map();
  for (const one of questions) {
    const before = found.get(one.text);
    if (before) before.times += 1;
    else found.set(one.text, { ...one, times: 1 });
  }
  return [...found.values()];
}

function card(topic, isOpen, isFirst) {
  const id = idOf(topic);
  const isNew = !isFirst && (counts.get(id) ?? 0) < topic.count;
  const all = opened.has(id);
  const asked = together(topic.questions);
  const shown = asked.slice(0, all ? undefined : FEW);
  const isAlone = asked.length === 1 && asked[0].text === topic.title;
  const list = isAlone ? make("p", { class: "path figures" }, clockTime(topic.latest)) : make("ul", {}, ...shown.map((question) => make("li", { lang: question.language },
    make("span", {}, question.text, question.times > 1 ? make("span", { class: "times figures" }, ` ×${question.times}`) : null), make("span", { class: "when figures" }, clockTime(question.moment)))));
  const more = make("div", { class: "more" });
  const view = make("article", { class: `card topic${isOpen ? " open-question" : ""}${isNew ? " fresh" : ""}` },
    make("div", { class: "head" },
      make("div", {}, make("h4", {}, topic.title), topic.path.length ? make("p", { class: "path" }, topic.path.join(" › ")) : null),
      make("span", { class: "count figures", title: say("teacher.count", { n: topic.count }) }, make("span", { "aria-hidden": "true" }, String(topic.count)),
        make("span", { class: "unseen" }, say("teacher.count", { n: topic.count })))),
    list, more);
  if (asked.length > FEW) {
    more.append(make("button", { type: "button", "data-topic": id, "aria-expanded": String(all), onclick: (event) => {
      if (all) opened.delete(id);
      else opened.add(id);
      event.target.dispatchEvent(new CustomEvent("redraw", { bubbles: true }));
    } }, all ? say("teacher.fewer") : say("teacher.more", { n: asked.length - FEW })));
  }
  if (topic.passage) {
    more.append(make("button", { type: "button", "data-topic": `${id}\npassage`, "aria-haspopup": "dialog", onclick: () => openPassage(topic.course, topic.document, topic.passage) }, say("teacher.passage")));
  }
  if (!more.childElementCount) more.remove();
  return view;
}
