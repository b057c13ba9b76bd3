"use strict";
(() => {
  // Asks what the folders hold and loads the page again, where it is, when that has changed.
  const address = document.body.dataset.live;
  let known = null;
  const ask = async () => {
    try {
      const state = await (await fetch(address, { cache: "no-store" })).text();
      if (known !== null && state !== known) {
        sessionStorage.setItem("at", String(scrollY));
        location.reload();
        return;
      }
      known = state;
    } catch { /* the server has ended: the page stays as it is */ }
    setTimeout(ask, 5000);
  };
  const at = sessionStorage.getItem("at");
  if (at !== null) {
    sessionStorage.removeItem("at");
    scrollTo(0, Number(at));
  }
  ask();
})();
