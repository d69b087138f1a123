// Words of the widgets in the user's language: the "pixart" part of locales/<language>/main.json.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

let languages = {};

export async function loadWords() {
  const answer = await api.fetchApi("/i18n");
  if (answer.ok) languages = await answer.json();
}

export function setting(id) {
  return app.extensionManager.setting.get(id);
}

/** A text by its key; %name% in it stands for values.name. */
export function say(key, values = {}) {
  const own = languages[setting("Comfy.Locale")]?.pixart?.[key];
  const text = own ?? languages.en?.pixart?.[key] ?? key;
  return text.replace(/%(\w+)%/g, (whole, name) => values[name] ?? whole);
}
