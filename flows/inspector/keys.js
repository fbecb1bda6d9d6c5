// Keys for who reviews many texts. Every page works without this.
"use strict";
const rows = [...document.querySelectorAll("[data-row]")];
const help = document.querySelector("[data-help]"), dialog = document.querySelector("dialog");
let at = -1;

function mark(step) {
  if (!rows.length) return false;
  rows[at]?.parentElement.classList.remove("at");
  at = Math.max(0, Math.min(rows.length - 1, at + step));
  rows[at].parentElement.classList.add("at");
  rows[at].focus();
  return true;
}

function edit() {
  const details = document.querySelector("[data-edit]");
  if (!details) return false;
  details.open = true;
  details.querySelector("textarea").focus();
  return true;
}

help.hidden = false;
help.addEventListener("click", () => dialog.showModal());

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (typing) {
    if (event.key === "Escape") typing.blur();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) typing.closest("form.edit")?.querySelector("[value=edit]").click();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
  let done = true;
  if (event.key === "?") dialog.showModal();
  else if (event.key === "e") done = edit();
  else if (event.key === "j" && rows.length) done = mark(1);
  else if (event.key === "k" && rows.length) done = mark(-1);
  else {
    const target = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    done = Boolean(target);
    if (target?.matches("input")) target.focus();
    else target?.click();
  }
  if (done) event.preventDefault();
});
