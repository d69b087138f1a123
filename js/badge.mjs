// Loaders: a line that says what the chosen file was found to be, before anything runs.

import { api } from "../../scripts/api.js";
import { attach, element, isLinked, widgetOf } from "./parts.mjs";
import { say } from "./words.mjs";

const HEIGHT = 56;

/** Loader → (what the server is asked for, the widget that names the file). */
export const LOADERS = {
  PixArtLoadCheckpoint: ["checkpoint", "ckpt_name"],
  PixArtLoadT5: ["t5", "t5_name"],
  PixArtLoadLora: ["lora", "lora_name"],
  PixArtLoadControlNet: ["controlnet", "control_net_name"],
  PixArtLoadDreamBooth: ["checkpoint", "ckpt_name"],
  PixArtLoadCaption: ["caption", "caption_name"],
};

const LONGEST_PROMPT = 60;

function quoted(prompt) {
  if (prompt === null) return say("no_prompt");
  return say("quoted", { text: prompt.length > LONGEST_PROMPT ? `${prompt.slice(0, LONGEST_PROMPT)} …` : prompt });
}

/** The facts that a kind of file has, in the user's language; what a kind does not know is undefined. */
function words({ prompt, family, base, pixels, rank, layers, t5_layers, blocks, length, width, vae, dtype }) {
  return [
    prompt !== undefined && quoted(prompt),
    family,
    base !== undefined && (base ? say("for_base", { base }) : say("any_base")),
    pixels && `${pixels} px`,
    rank && say("rank", { rank }),
    layers && say("layers", { layers }),
    t5_layers && say("t5_layers", { layers: t5_layers }),
    blocks && say("blocks", { blocks }),
    length && say("length", { length }),
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
