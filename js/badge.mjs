// Loaders: a line that says what the chosen file was found to be, before anything runs.

import { api } from "../../scripts/api.js";
import { attach, element, isLinked, widgetOf } from "./parts.mjs";
import { say } from "./words.mjs";

const HEIGHT = 56;

/** Loader → (what the server is asked for, the widget that names the file). */
export const LOADERS = {
  PixArtLoadCheckpoint: ["checkpoint", "ckpt_name"],
  PixArtLoadT5: ["t5", "t5_name"],
};

function words({ family, pixels, blocks, width, vae, dtype }) {
  return [
    family,
    pixels && `${pixels} px`,
    blocks && say("blocks", { blocks }),
    width && say("width", { width }),
    dtype,
    vae && `VAE ${vae}`,
  ].filter(Boolean).join(" · ");
}

export function addBadge(node) {
  const [kind, name] = LOADERS[node.comfyClass];
  const text = element("span");
  const root = element("div", { className: "pixart-badge" }, [text]);
  text.setAttribute("role", "status");
  let asked;
  let asking;

  function show(label, detail, trouble) {
    text.textContent = label;
    root.title = detail;
    root.classList.toggle("pixart-trouble", trouble);
  }

  async function refresh() {
    const file = widgetOf(node, name).value;
    if (isLinked(node, name) || !file) {
      asked = undefined;
      return show(isLinked(node, name) ? say("from_link") : say("no_file"), "", false);
    }
    if (file === asked) return;
    asked = file;
    asking?.abort();
    asking = new AbortController();
    show(say("looking"), "", false);
    try {
      const answer = await api.fetchApi(`/pixart/detect?${new URLSearchParams({ kind, name: file })}`, {
        signal: asking.signal,
      });
      const told = await answer.json();
      const trouble = told.error ?? told.trouble;
      show(trouble || words(told.facts), trouble || told.title, Boolean(trouble));
    } catch (error) {
      if (error.name === "AbortError") return;
      asked = undefined;
      show(say("no_answer"), "", true);
    }
  }

  attach(node, { name: "detected", root, height: HEIGHT, watched: [name], refresh, leave: () => asking?.abort() });
}
