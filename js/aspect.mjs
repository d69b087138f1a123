// PixArt Resolution: a drawing of every shape, the chosen one filled, to point at or to walk through with keys.

import { api } from "../../scripts/api.js";
import { attach, choose, drawn, element, isLinked, widgetOf } from "./parts.mjs";
import { say } from "./words.mjs";

const HEIGHT = 170;
const SIDE = 100; // of the drawing, in its own units; the longest side of any shape fills it
const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

let table;

async function sizes() {
  table ??= api.fetchApi("/pixart/resolutions").then((answer) => {
    if (!answer.ok) throw new Error(`${answer.status}`);
    return answer.json();
  });
  try {
    return await table;
  } catch (error) {
    table = undefined; // so that the next one asks again
    throw error;
  }
}

/** A dot at every corner that some shape has. */
function corners(shapes, longest) {
  const middle = SIDE / 2;
  return shapes.flatMap(([width, height]) => [1, -1].flatMap((x) => [1, -1].map((y) => {
    const at = [middle + x * (width / longest) * middle, middle + y * (height / longest) * middle];
    return `M${at.map((each) => each.toFixed(2)).join(" ")}h0`;
  }))).join("");
}

/** The option whose shape is height / width, as an angle is nearest to one. */
export function nearest(shapes, ratio) {
  let best = 0;
  shapes.forEach(([width, height], index) => {
    const far = ([w, h]) => Math.abs(Math.log(h / w / ratio));
    if (far([width, height]) < far(shapes[best])) best = index;
  });
  return best;
}

/** The number of an option; only height / width, with which it begins, counts. */
function indexOf(known, ratio) {
  return known.options.findIndex((option) => Number.parseFloat(option) === Number.parseFloat(ratio));
}

/** A type of model and its width / height, from workflows of ComfyUI_ExtraModels, as this node's own choices. */
export function ownNames(known, base, ratio) {
  const here = known.other_names[base];
  if (here === undefined) return null;
  const shapes = known.bases[here];
  const turned = indexOf(known, ratio);
  if (turned < 0) return null;
  const [height, width] = shapes[turned];
  const index = shapes.findIndex(([w, h]) => w === width && h === height);
  return index < 0 ? null : { base: String(here), ratio: known.options[index] };
}

export function addAspect(node) {
  const picture = drawn("svg", { viewBox: `-2 -2 ${SIDE + 4} ${SIDE + 4}`, "aria-hidden": "true" });
  const line = element("div", { className: "pixart-line" });
  const root = element("div", { className: "pixart-aspect", tabIndex: 0 }, [picture, line]);
  root.setAttribute("role", "slider");
  let known = null;

  const chosen = (name) => widgetOf(node, name).value;

  function state() {
    const shapes = known.bases[known.other_names[chosen("base")] ?? chosen("base")];
    const index = indexOf(known, chosen("ratio"));
    let shape = shapes?.[index];
    if (shape && chosen("base") in known.other_names) shape = [shape[1], shape[0], shape[2]];
    return { shapes, index, shape };
  }

  function draw() {
    if (!known) return;
    const linked = isLinked(node, "base") || isLinked(node, "ratio");
    const own = linked ? null : ownNames(known, chosen("base"), chosen("ratio"));
    if (own) return choose(node, own); // comes back here through the callbacks
    const { shapes, index, shape } = state();
    root.classList.toggle("pixart-off", linked || !shape);
    if (linked || !shape) {
      picture.replaceChildren();
      line.textContent = say(linked ? "from_link" : "no_size");
      root.setAttribute("aria-valuetext", line.textContent);
      return;
    }
    const longest = Math.max(...shapes.flatMap(([width, height]) => [width, height]));
    const [w, h] = [(shape[0] / longest) * SIDE, (shape[1] / longest) * SIDE];
    const frame = drawn("rect", { x: (SIDE - w) / 2, y: (SIDE - h) / 2, width: w, height: h, class: "pixart-chosen" });
    picture.replaceChildren(drawn("path", { d: corners(shapes, longest), class: "pixart-corners" }), frame);
    const [width, height, tokens] = shape;
    line.textContent = say("size", { width, height, tokens });
    root.title = say("aspect_help");
    root.setAttribute("aria-label", say("aspect"));
    root.setAttribute("aria-valuemin", 0);
    root.setAttribute("aria-valuemax", shapes.length - 1);
    root.setAttribute("aria-valuenow", index);
    root.setAttribute("aria-valuetext", line.textContent);
  }

  const pick = (index) => {
    const bounded = Math.min(Math.max(index, 0), known.options.length - 1);
    if (known.options[bounded] !== widgetOf(node, "ratio").value) choose(node, { ratio: known.options[bounded] });
  };
  const able = () => known && !root.classList.contains("pixart-off");

  function point(event) {
    if (!able() || event.buttons !== 1) return;
    const box = picture.getBoundingClientRect();
    const across = Math.abs(event.clientX - box.left - box.width / 2);
    const down = Math.abs(event.clientY - box.top - box.height / 2);
    if (Math.max(across, down) * 12 < box.width) pick(known.options.indexOf(known.square));
    else pick(nearest(state().shapes, down / Math.max(across, 0.01)));
  }
  picture.addEventListener("pointerdown", (event) => {
    root.focus();
    point(event);
  });
  picture.addEventListener("pointermove", point);
  root.addEventListener("keydown", (event) => {
    if (!able() || event.ctrlKey || event.metaKey || event.altKey) return;
    const index = state().index;
    if (event.key in STEPS) pick(index + STEPS[event.key]);
    else if (event.key === "Home") pick(0);
    else if (event.key === "End") pick(known.options.length - 1);
    else if (event.key === " " || event.key === "Enter") pick(known.options.indexOf(known.square));
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  attach(node, { name: "aspect", root, height: HEIGHT, watched: ["base", "ratio"], refresh: draw });
  sizes().then(
    (answer) => {
      known = answer;
      draw();
    },
    () => {
      line.textContent = say("no_answer");
    },
  );
}
