"use strict";
(() => {
  // Asks what the folders hold, and loads the page again when that has changed; what was chosen on it stays chosen.
  const address = document.body.dataset.live;
  const key = "state of " + location.pathname + location.search;
  const parts = () => [...document.querySelectorAll("details")];
  const fields = () => [...document.querySelectorAll("input[type=range], select")];
  const ticks = () => [...document.querySelectorAll("input[type=checkbox]")];
  const keep = () => sessionStorage.setItem(key, JSON.stringify({
    at: scrollY,
    theme: document.documentElement.dataset.theme ?? "",
    open: parts().map((part) => part.open),
    fields: fields().map((field) => [field.value, field.max === field.value]),
    ticked: ticks().filter((box) => box.checked).map((box) => box.value),
  }));
  const restore = (kept) => {
    if (kept.theme) document.documentElement.dataset.theme = kept.theme;
    parts().forEach((part, index) => { if (index in kept.open) part.open = kept.open[index]; });
    ticks().forEach((box) => { box.checked = kept.ticked.includes(box.value); });
    fields().forEach((field, index) => {
      const [value, last] = kept.fields[index] ?? [null, false];
      if (value === null || (last && field.classList.contains("round"))) return; // who saw the last round sees the new one
      field.value = value;
      field.dispatchEvent(new Event(field.tagName === "SELECT" ? "change" : "input"));
    });
    scrollTo(0, kept.at);
  };
  const kept = sessionStorage.getItem(key);
  sessionStorage.removeItem(key);
  if (kept !== null) restore(JSON.parse(kept));
  let known = null;
  const ask = async () => {
    try {
      const state = await (await fetch(address, { cache: "no-store" })).text();
      if (known !== null && state !== known) {
        keep();
        location.reload();
        return;
      }
      known = state;
    } catch { /* the server has ended: the page stays as it is */ }
    setTimeout(ask, 5000);
  };
  ask();
})();
