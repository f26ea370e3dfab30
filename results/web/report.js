// Tabs, pickers, sheets and downloads of the report. Without a script everything stands on the page, one below the other.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const panels = all(".panel"), list = document.querySelector(".tabs ul"), tabs = all(".tabs a");
  list.setAttribute("role", "tablist");
  for (const item of list.children) item.setAttribute("role", "presentation");
  for (const [i, tab] of tabs.entries()) {
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panels[i].id);
    panels[i].setAttribute("role", "tabpanel");
    panels[i].setAttribute("aria-labelledby", tab.id);
  }

  const cues = () => dispatchEvent(new Event("resize"));  // wide.js looks again what is wide

  function open(panel) {
    for (const [i, tab] of tabs.entries()) {
      const chosen = panels[i] === panel;
      panels[i].hidden = !chosen;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
    }
    cues();
  }
  function follow() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const panel = target && target.closest(".panel");
    open(panel || panels[0]);
    if (panel && target !== panel) {
      for (let around = target; around; around = around.parentElement) if (around.tagName === "DETAILS") around.open = true;
      target.scrollIntoView();
    }
  }
  for (const [i, tab] of tabs.entries()) {
    tab.addEventListener("click", event => {
      event.preventDefault();
      history.replaceState(null, "", tab.hash);
      open(panels[i]);
    });
    tab.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1, Home: -i, End: tabs.length - 1 - i}[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const next = tabs[(i + step + tabs.length) % tabs.length];
      next.focus();
      next.click();
    });
  }
  addEventListener("hashchange", follow);

  const encoder = document.getElementById("pick-encoder"), benchmark = document.getElementById("pick-benchmark");
  const known = new Set(all("option", encoder).flatMap(option => option.value.split(" ")).filter(Boolean));
  const lines = all('svg g[id*="encoder-"]').map(g => [g, g.id.match(/encoder-([0-9a-f]{8})-/)]).filter(one => one[1]);
  function pick() {
    const keys = encoder.value.split(" ").filter(Boolean);
    for (const row of all("tr[data-encoder], li[data-encoder]")) {
      row.classList.toggle("dim", keys.length > 0 && known.has(row.dataset.encoder) && !keys.includes(row.dataset.encoder));
    }
    for (const [g, found] of lines) g.classList.toggle("dim", keys.length > 0 && !keys.includes(found[1]));
    for (const section of all("section[data-benchmark]")) {
      section.hidden = benchmark.value !== "" && section.dataset.benchmark !== benchmark.value;
      if (benchmark.value && !section.hidden) section.querySelector("details").open = true;
    }
    cues();
  }
  encoder.addEventListener("change", pick);
  benchmark.addEventListener("change", () => {
    pick();
    const tab = document.getElementById("tab-benchmarks");
    if (benchmark.value && tab) tab.click();
  });
  document.querySelector(".pickers").hidden = false;
  for (const box of all("details")) box.addEventListener("toggle", cues);

  for (const choice of all(".choose")) {
    const select = choice.querySelector("select"), figures = all("figure", choice.nextElementSibling);
    const show = () => figures.forEach(figure => { figure.hidden = figure.id !== select.value; });
    choice.hidden = false;
    select.addEventListener("change", show);
    show();
  }

  for (const button of all("[data-svg]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const svg = document.getElementById(button.dataset.svg).querySelector("svg").cloneNode(true);
      for (const name of ["aria-hidden", "focusable", "style"]) svg.removeAttribute(name);
      for (const g of all(".dim", svg)) g.classList.remove("dim");
      const text = new XMLSerializer().serializeToString(svg).replaceAll("currentColor", "#000000");
      const link = document.createElement("a");
      link.download = `${button.dataset.svg}.svg`;
      link.href = URL.createObjectURL(new Blob([text], {type: "image/svg+xml"}));
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }
  follow();
})();
