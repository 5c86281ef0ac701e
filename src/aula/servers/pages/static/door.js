// How a page speaks with its server: requests, event streams and sockets, each with the key where there is one.
// The key, or the code of a class, stays in this tab (sessionStorage) and is gone when the tab is closed. A link may
// bring it behind "#", which no browser sends to a server: it is taken from there and leaves the address bar.

import { find, ICONS, icon, make } from "./dom.js";
import { knows, say, translate } from "./words.js";

const KEY = "aula.key";
const KEY_PROTOCOL = "openai-insecure-api-key.";

export const key = () => sessionStorage.getItem(KEY);

function keep(secret) {
  sessionStorage.setItem(KEY, secret.replace(/\s+/g, ""));
}

/** Whether the address brought one. */
function takeFromAddress() {
  const told = new URLSearchParams(location.hash.slice(1));
  const secret = told.get("code") ?? told.get("key");
  if (!secret) return false;
  keep(secret);
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}

takeFromAddress();
addEventListener("hashchange", () => { if (takeFromAddress()) location.reload(); });

export class DoorError extends Error {
  constructor(status, told = {}) {
    super(told.what ?? told.message ?? `status ${status}`);
    this.status = status;
    this.kind = told.kind ?? (status === 401 ? "KeyRefusedError" : status === 0 ? "Unreachable" : "Unknown");
    this.available = told.available ?? [];
    this.next = told.next ?? "";
    this.retryAfter = told.retry_after_s ?? null;
  }
}

/** What to tell people of an error: a title and, where it helps, the server's own words. */
export function explained(error) {
  const kind = error.kind ?? "Unknown";
  const known = knows(`error.${kind}`);
  return { title: say(known ? `error.${kind}` : "error.Unknown"), words: known ? "" : String(error.message ?? "") };
}

function headers(more = {}) {
  return key() ? { ...more, Authorization: `Bearer ${key()}` } : more;
}

async function reached(path, options) {
  let reply;
  try {
    reply = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new DoorError(0);
  }
  if (reply.ok) return reply;
  const body = await reply.json().catch(() => ({}));
  throw new DoorError(reply.status, body.error);
}

/** JSON from the server; with `body`, JSON to it. */
export async function ask(path, body, method = body === undefined ? "GET" : "POST") {
  const options = body === undefined
    ? { method, headers: headers() }
    : { method, headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(body) };
  return (await reached(path, options)).json();
}

/**
 * Server-sent events, read by fetch so that the key can go along. `told(name, value)` hears each; `changed(error)` hears
 * null when the line stands and the error when it breaks. It comes back by itself, until what this returns is called.
 */
export function watch(path, told, changed) {
  const stop = new AbortController();
  let wait = 500;
  (async () => {
    while (!stop.signal.aborted) {
      try {
        const reply = await reached(path, { headers: headers({ Accept: "text/event-stream" }), signal: stop.signal });
        changed(null);
        wait = 500;
        await read(reply.body, told);
        throw new DoorError(0);
      } catch (error) {
        if (stop.signal.aborted) return;
        changed(error);
        if (error.status === 401 || error.status === 403) return;
        await new Promise((resolve) => setTimeout(resolve, Math.max(wait, 1000 * (error.retryAfter ?? 0))));
        wait = Math.min(2 * wait, 15_000);
      }
    }
  })();
  return () => stop.abort();
}

async function read(body, told) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block)?.[1];
      const data = /^data: (.*)$/m.exec(block)?.[1];
      if (name && data) told(name, JSON.parse(data));
    }
  }
}

/** A WebSocket on this server that brings the key along as a subprotocol. */
export function socket(path, protocol) {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const protocols = key() ? [protocol, KEY_PROTOCOL + key()] : [protocol];
  return new WebSocket(`${scheme}//${location.host}${path}`, protocols);
}

/** Who I am here; asks for a key as long as the server wants one. `for` is the page's own ability. */
export async function enter() {
  const ability = document.body.dataset.ability;
  for (;;) {
    try {
      return await ask(`/pages/me?for=${ability}`);
    } catch (error) {
      if (error.status === 401 || error.status === 403) await gate(key() ? error : null);
      else await pause(error);
    }
  }
}

export function leave() {
  sessionStorage.removeItem(KEY);
  location.reload();
}

/** The sign-in: resolves when a key was given. */
function gate(error) {
  return new Promise((resolve) => {
    find("gate")?.remove();
    const field = make("input", {
      class: "field", id: "key", type: "password", required: true, autocomplete: "off", spellcheck: "false",
autocapitalize: "none", "aria-describedby": error ? "gate-error gate-note" : "gate-note", "aria-invalid": error ? "true" : null,
    });
    const eye = make("button", {
      type: "button", class: "icon", "aria-pressed": "false", "data-t-label": "gate.show",
      onclick: () => {
        field.type = field.type === "password" ? "text" : "password";
        eye.setAttribute("aria-pressed", String(field.type === "text"));
      },
    }, icon(ICONS.eye));
    const form = make("form", {
      class: "card",
      onsubmit: (event) => {
        event.preventDefault();
        keep(field.value);
        view.remove();
        resolve();
      },
    },
    make("h1", { "data-t": "gate.title" }),
    make("p", { "data-t": "gate.why", class: "quiet" }),
    error ? make("p", { class: "notice bad", id: "gate-error", role: "alert" }, make("div", {}, explained(error).title)) : null,
    make("label", { for: "key", "data-t": "gate.key" }),
    make("div", { class: "with" }, field, eye),
    make("button", { class: "button main", "data-t": "gate.open" }),
    make("p", { class: "quiet", id: "gate-note", "data-t": "gate.note" }),
    error?.status === 403 ? make("a", { href: "/", "data-t": "gate.student" }) : null);
    const view = make("main", { class: "gate", id: "gate" }, form);
    translate(view);
    document.querySelector(".top").after(view);
    find("page").hidden = true;
    document.documentElement.dataset.ready = "";
    field.focus();
  });
}

/** The server cannot be reached, or is busy: say so, and resolve when it is worth another try. */
function pause(error) {
  return new Promise((resolve) => {
    const again = () => { view.remove(); clearTimeout(timer); resolve(); };
    const { title, words } = explained(error);
    const view = make("main", { class: "gate" }, make("form", { class: "card", onsubmit: (event) => { event.preventDefault(); again(); } },
      make("h1", {}, title), words ? make("p", { class: "quiet" }, words) : null,
      make("p", { class: "quiet", "data-t": "retrying" }), make("button", { class: "button main", "data-t": "again" })));
    translate(view);
    document.querySelector(".top").after(view);
    document.documentElement.dataset.ready = "";
    const timer = setTimeout(again, 1000 * (error.retryAfter ?? 4));
  });
}
