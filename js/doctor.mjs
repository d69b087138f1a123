// The doctor's report in a dialog, to read and to copy into a bug report.

import { api } from "../../scripts/api.js";
import { element } from "./parts.mjs";
import { say } from "./words.mjs";

export async function openDoctor() {
  const report = element("pre", { textContent: say("examining"), tabIndex: 0 });
  const copy = element("button", { type: "button", textContent: say("copy"), disabled: true });
  const close = element("button", { type: "button", textContent: say("close") });
  const heading = element("h2", { textContent: say("doctor") });
  const dialog = element("dialog", { className: "pixart pixart-doctor" }, [
    heading,
    report,
    element("div", { className: "pixart-row" }, [copy, close]),
  ]);
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(report.textContent);
    copy.textContent = say("copied");
  });
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  document.body.append(dialog);
  dialog.showModal();
  try {
    const told = await (await api.fetchApi("/pixart/doctor")).json();
    report.textContent = told.report ?? told.error;
    copy.disabled = !told.report;
  } catch {
    report.textContent = say("no_answer");
  }
}
