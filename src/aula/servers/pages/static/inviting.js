// The code by which a class comes in, in letters that can be read from the last row.

import { find, make } from "./dom.js";
import { ask, explained } from "./door.js";
import { notice } from "./shell.js";
import { clockTime, say } from "./words.js";

const PATH = "/pages/invitation";
const MINUTES = ["60", "120", "480"];
const COPIED_MS = 2000;

let told = null; // { code, until }
let minutes = "120";

export function wireInviting() {
  const dialog = find("invitation");
  find("invite").hidden = false;
  find("invite").addEventListener("click", async () => {
    if (await change(() => ask(PATH))) dialog.showModal();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.addEventListener("words", () => { if (dialog.open) draw(); });
}

const parted = (code) => `${code.slice(0, 5)}-${code.slice(5)}`;

async function change(asking) {
  try {
    told = await asking();
  } catch (error) {
    const { title, words } = explained(error);
    const place = find("invitation").open ? find("invite-body") : find("feed-notice");
    place.replaceChildren(notice(title, { bad: true, words }));
    return false;
  }
  draw();
  return true;
}

function draw() {
  const holds = told.code && told.until > Date.now() / 1000;
  find("invite-body").replaceChildren(...(holds ? shown() : wanted()));
  find("invite-acts").replaceChildren(...(holds
    ? [button("invite.end", () => change(() => ask(PATH, undefined, "DELETE"))), navigator.clipboard ? button("invite.copy", copy) : "", close()]
    : [close(), button("invite.make", () => change(() => ask(PATH, { minutes: Number(minutes) })), true)]));
  if (find("invitation").open) find("invite-acts").querySelector("[autofocus]").focus();
}

function shown() {
  return [
    make("p", { class: "quiet" }, say("invite.at")), make("p", { class: "address" }, location.host),
    make("p", { class: "quiet" }, say("invite.code")), make("p", { class: "code figures" }, parted(told.code)),
    make("p", { class: "quiet" }, say("invite.until", { time: clockTime(told.until) })),
  ];
}

function wanted() {
  const select = make("select", { id: "invite-minutes", onchange: () => { minutes = select.value; } },
    ...MINUTES.map((value) => make("option", { value, selected: value === minutes }, say(`invite.minutes_${value}`))));
  return [
    make("p", {}, say("invite.none")), make("p", { class: "address" }, location.host),
    make("label", { for: "invite-minutes", class: "how-long" }, say("invite.how_long"), make("span", { class: "choice" }, select)),
  ];
}

async function copy(event) {
  const place = event.currentTarget;
  try {
    await navigator.clipboard.writeText(`${location.origin}/#code=${parted(told.code)}`);
  } catch {
    return; // the browser asked, and was told no
  }
  place.textContent = say("invite.copied");
  setTimeout(() => { place.textContent = say("invite.copy"); }, COPIED_MS);
}

/** The focus stands here, where Enter does no harm. */
function close() {
  const view = button("close", () => find("invitation").close());
  view.autofocus = true;
  return view;
}

function button(key, onclick, isMain = false) {
  return make("button", { type: "button", class: isMain ? "button main" : "button", onclick }, say(key));
}
