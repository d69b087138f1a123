// What all widgets of the pack share: elements, watching a node, and finding what feeds an input.

import { app } from "../../scripts/app.js";

const SVG = "http://www.w3.org/2000/svg";
const SUBGRAPH_INPUT = -10;

export function element(tag, properties = {}, children = []) {
  const made = document.createElement(tag);
  const { dataset, ...plain } = properties;
  Object.assign(made, plain);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

export function drawn(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** Whether an input's value comes over a link, so that the widget's own does not count. */
export function isLinked(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot >= 0 && node.isInputConnected(slot);
}

/** Set a widget as the user would: its callback runs, and the change can be undone. */
export function choose(node, values) {
  app.canvas?.emitBeforeChange?.();
  for (const [name, value] of Object.entries(values)) {
    const widget = widgetOf(node, name);
    widget.value = value;
    widget.callback?.(value);
  }
  app.canvas?.emitAfterChange?.();
  node.graph?.setDirtyCanvas?.(true, true);
}

function chain(owner, name, more) {
  const before = owner[name];
  owner[name] = function (...given) {
    const result = before?.apply(this, given);
    more();
    return result;
  };
}

/**
 * Put an element under a node's widgets. It holds no value: nothing of it is saved or sent to the server.
 * refresh runs when one of the named widgets, the links or the whole node may have changed; leave when the node goes.
 */
export function attach(node, { name, root, height, watched, refresh, leave }) {
  root.classList.add("pixart");
  for (const kind of ["pointerdown", "mousedown", "dblclick"]) {
    root.addEventListener(kind, (event) => event.stopPropagation());
  }
  const widget = node.addDOMWidget(name, `pixart_${name}`, root, {
    serialize: false,
    getMinHeight: () => height,
    getMaxHeight: () => height,
  });
  widget.serialize = false;
  let added = Boolean(node.graph);
  chain(node, "onAdded", () => {
    added = true;
  });
  const changed = () => {
    // Where a missing node is replaced, the front end (1.49) puts the new one into the graph without a word to it, and
    // then neither its text fields nor these elements would be shown.
    if (!added && node.graph) node.onAdded(node.graph);
    refresh();
  };
  for (const each of watched) {
    const other = widgetOf(node, each);
    if (other) chain(other, "callback", changed);
  }
  chain(node, "onConfigure", changed);
  chain(node, "onConnectionsChange", changed);
  if (leave) chain(node, "onRemoved", leave);
  root.addEventListener("pointerenter", refresh);
  node.setSize([Math.max(node.size[0], 280), Math.max(node.size[1], node.computeSize()[1])]);
  refresh();
  return widget;
}

/** Every subgraph node that shows a graph, in the whole workflow. */
function* holders(graph, within) {
  for (const node of within?.nodes ?? []) {
    if (!node.subgraph) continue;
    if (node.subgraph === graph) yield node;
    yield* holders(graph, node.subgraph);
  }
}

/** The node that feeds an input, through reroutes and into or out of subgraphs; undefined where there is none. */
function feeding(node, slot) {
  const id = node.inputs[slot]?.link;
  const link = id == null ? null : node.graph?.getLink?.(id) ?? node.graph?.links?.get?.(id);
  if (!link) return undefined;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    const holder = holders(node.graph, app.rootGraph ?? app.graph).next().value;
    return holder && feeding(holder, link.origin_slot);
  }
  const origin = node.graph.getNodeById(link.origin_id);
  if (!origin?.subgraph) return origin;
  const inner = origin.subgraph.outputs[link.origin_slot]?.linkIds?.[0];
  const within = inner == null ? null : origin.subgraph.getLink(inner);
  return within ? origin.subgraph.getNodeById(within.origin_id) : undefined;
}

/** The first node upstream of an input, along inputs of one type, that has a widget of this name. */
export function upstream(node, input, type, widgetName) {
  let current = node;
  let slot = node.inputs?.findIndex((each) => each.name === input) ?? -1;
  for (let steps = 0; steps < 100 && current && slot >= 0; steps++) {
    current = feeding(current, slot);
    if (!current || widgetOf(current, widgetName)) return current;
    slot = current.inputs?.findIndex((each) => each.type === type || each.type === "*") ?? -1;
  }
  return undefined;
}
