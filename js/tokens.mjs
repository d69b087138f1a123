// PixArt Text Encode: how many tokens the prompt has, how many fit, and the words that will not be read.

import { api } from "../../scripts/api.js";
import { attach, choose, element, isLinked, upstream, widgetOf } from "./parts.mjs";
import { say, setting } from "./words.mjs";

const HEIGHT = 84;
const LIMITS = [["α", 120], ["Σ", 300]];

/** A dynamic prompt, {a|b}, with its longest choice: at least as many tokens as any run will have. */
export function longest(text) {
  let before;
  let now = text.replace(/\/\*[\s\S]*?\*\/|\/\/[^\n]*/g, "");
  do {
    before = now;
    now = now.replace(/(?<!\\)\{([^{}]*)\}/g, (_, choices) =>
      choices.split("|").reduce((one, other) => (other.length > one.length ? other : one)));
  } while (now !== before);
  return now.replace(/\\([{}])/g, "$1");
}

export function addTokens(node) {
  const filled = element("i");
  const bar = element("div", { className: "pixart-bar" }, [filled]);
  const line = element("span", { className: "pixart-line" });
  const limits = LIMITS.map(([family, limit]) => {
    const button = element("button", { type: "button", textContent: `${family} ${limit}`, dataset: { limit } });
    button.addEventListener("click", () => choose(node, { max_tokens: limit }));
    return button;
  });
  const lost = element("div", { className: "pixart-lost" });
  const top = element("div", { className: "pixart-row" }, [line, ...limits]);
  const root = element("div", { className: "pixart-tokens" }, [top, bar, lost]);
  line.setAttribute("role", "status");
  let timer;
  let asking;
  let asked;

  function question() {
    const loader = upstream(node, "clip", "CLIP", "t5_name");
    return {
      t5_name: loader ? widgetOf(loader, "t5_name").value : null,
      text: longest(String(widgetOf(node, "text").value ?? "")),
      max_tokens: widgetOf(node, "max_tokens").value,
      clean_caption: widgetOf(node, "clean_caption").value,
    };
  }

  function show({ tokens, limit, lost: cut }) {
    line.textContent = say("tokens", { tokens, limit });
    line.title = "";
    filled.style.width = `${Math.min(100, (100 * tokens) / limit)}%`;
    root.classList.toggle("pixart-over", tokens > limit);
    lost.textContent = cut ? say("lost", { text: cut }) : "";
    lost.title = cut;
  }

  function explain(text) {
    line.textContent = text;
    line.title = text;
    filled.style.width = "0";
    lost.textContent = "";
    root.classList.remove("pixart-over");
  }

  async function ask(body) {
    asking?.abort();
    asking = new AbortController();
    try {
      const answer = await api.fetchApi("/pixart/tokens", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body,
        signal: asking.signal,
      });
      const told = await answer.json();
      if (told.tokens) show(told);
      else explain(told.trouble ?? told.error);
    } catch (error) {
      if (error.name !== "AbortError") {
        asked = undefined;
        explain(say("no_answer"));
      }
    }
  }

  function refresh() {
    const limit = widgetOf(node, "max_tokens").value;
    for (const button of limits) {
      button.setAttribute("aria-pressed", Number(button.dataset.limit) === limit);
      button.title = say("limit_help");
    }
    clearTimeout(timer);
    // Links are not there yet while a workflow is being put together, so even the first look waits.
    timer = setTimeout(() => {
      if (isLinked(node, "text")) {
        asked = undefined;
        return explain(say("from_link"));
      }
      const body = JSON.stringify(question());
      if (body === asked) return;
      asked = body;
      ask(body);
    }, setting("PixArt.Widgets.Delay"));
  }

  attach(node, {
    name: "tokens",
    root,
    height: HEIGHT,
    watched: ["text", "max_tokens", "clean_caption"],
    refresh,
    leave: () => {
      clearTimeout(timer);
      asking?.abort();
    },
  });
}
