// The front-end extension. Nodes keep all values in ordinary widgets; what is added here only shows and sets them.

import { app } from "../../scripts/app.js";
import { addAspect } from "./aspect.mjs";
import { LOADERS, addBadge } from "./badge.mjs";
import { openDoctor } from "./doctor.mjs";
import { element } from "./parts.mjs";
import { addTokens } from "./tokens.mjs";
import { loadWords, say, setting } from "./words.mjs";

const shown = (id, name, tooltip) => ({
  id: `PixArt.Widgets.${id}`,
  category: ["PixArt", "PixArt nodes", id],
  name,
  tooltip,
  type: "boolean",
  defaultValue: true,
});

app.registerExtension({
  name: "PixArt.Widgets",
  settings: [
    shown("Drawing", "Draw the shape on PixArt Resolution", "Nodes that are added or loaded from now on follow this."),
    shown("Tokens", "Count tokens on PixArt Text Encode", "Nodes that are added or loaded from now on follow this."),
    shown("Badges", "Say on loaders what a file is", "Nodes that are added or loaded from now on follow this."),
    {
      id: "PixArt.Widgets.Delay",
      category: ["PixArt", "PixArt nodes", "Delay"],
      name: "Wait before counting tokens (ms)",
      tooltip: "How long after the last key the prompt is sent to the server to be counted.",
      type: "slider",
      attrs: { min: 100, max: 3000, step: 100 },
      defaultValue: 400,
    },
    {
      id: "PixArt.Doctor.Open",
      category: ["PixArt", "PixArt doctor", "Open"],
      name: "Examine this installation",
      tooltip: "Versions, devices, attention, and which model files were found and what each is.",
      defaultValue: null,
      type: () => {
        const button = element("button", { type: "button", className: "pixart-button", textContent: say("doctor") });
        button.addEventListener("click", openDoctor);
        return button;
      },
    },
  ],
  commands: [{ id: "PixArt.Doctor", label: "PixArt doctor", icon: "pi pi-heart", function: openDoctor }],
  menuCommands: [{ path: ["Help"], commands: ["PixArt.Doctor"] }],

  async init() {
    const sheet = new URL("./pixart.css", import.meta.url).href;
    document.head.append(element("link", { rel: "stylesheet", href: sheet }));
    await loadWords();
  },

  nodeCreated(node) {
    if (node.comfyClass === "PixArtResolution" && setting("PixArt.Widgets.Drawing")) addAspect(node);
    if (node.comfyClass === "PixArtTextEncode" && setting("PixArt.Widgets.Tokens")) addTokens(node);
    if (node.comfyClass in LOADERS && setting("PixArt.Widgets.Badges")) addBadge(node);
  },
});
