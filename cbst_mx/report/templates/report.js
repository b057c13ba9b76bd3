"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const inDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : inDark());
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // ---- charts -------------------------------------------------------------------------------------------------
  const look = () => {
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--pale"), linecolor: colour("--line") };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 13 },
      hoverlabel: { bgcolor: colour("--card"), font: { color: colour("--ink") } },
      axis,
    };
  };
  const layoutOf = (chart) => {
    const { axis, ...rest } = look();
    const own = chart.layout;
    return {
      margin: { l: 50, r: 12, t: 8, b: 44 }, dragmode: false, height: 360,
      legend: { orientation: "h", yanchor: "bottom", y: 1.0, x: 0 }, ...rest, ...own,
      xaxis: { ...axis, automargin: true, ...own.xaxis }, yaxis: { ...axis, ...own.yaxis },
    };
  };
  const draw = () => data.charts.forEach((chart) => {
    const element = document.getElementById("chart-" + chart.key);
    if (element) Plotly.react(element, chart.traces, layoutOf(chart), { responsive: true, displayModeBar: false });
  });
  draw();
  // what was drawn in a closed part has no width yet
  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", () => {
    if (part.open) part.querySelectorAll(".js-plotly-plot").forEach((plot) => Plotly.Plots.resize(plot));
  }));

  // ---- light and dark -----------------------------------------------------------------------------------------
  const button = document.getElementById("theme");
  const name = () => {
    button.textContent = isDark() ? "light" : "dark";
    button.setAttribute("aria-pressed", String(isDark()));
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { name(); draw(); });
  name();
  let before = null;
  let closed = [];
  addEventListener("beforeprint", () => {
    before = root.dataset.theme ?? "";
    root.dataset.theme = "light";
    closed = [...document.querySelectorAll("details:not([open])")].filter((part) => !part.querySelector("pre"));
    closed.forEach((part) => { part.open = true; });
    draw();
  });
  addEventListener("afterprint", () => {
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    closed.forEach((part) => { part.open = false; });
    draw();
  });

  // ---- tables that sort ---------------------------------------------------------------------------------------
  const value = (row, column) => row.cells[column].textContent.trim().replace("\u2212", "-").replace(/,/g, "");
  document.querySelectorAll("table.sortable").forEach((table) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const press = document.createElement("button");
      press.type = "button";
      press.append(...head.childNodes);
      head.append(press);
      press.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        [...head.parentNode.cells].forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        const numbers = rows.map((row) => parseFloat(value(row, column)));
        const numeric = column > 0 && numbers.some((one) => !Number.isNaN(one));
        const order = rows.map((row, index) => index).sort((one, other) => {
          if (!numeric) return value(rows[one], column).localeCompare(value(rows[other], column)) * (down ? 1 : -1);
          const [first, second] = [numbers[one], numbers[other]];
          if (Number.isNaN(first) || Number.isNaN(second)) return Number.isNaN(first) - Number.isNaN(second);
          return (second - first) * (down ? 1 : -1);
        });
        table.tBodies[0].append(...order.map((index) => rows[index]));
      });
    });
  });

  // ---- pictures -----------------------------------------------------------------------------------------------
  const stageTitle = (stage) => (stage ? "round " + stage : "source");
  const image = (source, alt) => Object.assign(document.createElement("img"), { src: source, alt, decoding: "async" });
  const methodsOf = (row) => {
    const methods = new Map();
    Object.keys(row).filter((key) => key.includes("\n")).forEach((key) => {
      const at = key.lastIndexOf("\n");
      const [title, stage] = [key.slice(0, at), Number(key.slice(at + 1))];
      if (!methods.has(title)) methods.set(title, new Map());
      methods.get(title).set(stage, row[key]);
    });
    return methods;
  };
  const nearest = (stages, wanted) => {
    const known = [...stages.keys()].sort((one, other) => one - other);
    const fitting = known.filter((stage) => stage <= wanted);
    return fitting.length ? fitting[fitting.length - 1] : known[0];
  };
  document.querySelectorAll(".viewer").forEach((viewer) => {
    const rows = data.pictures[viewer.dataset.kind];
    const get = (part) => viewer.querySelector(part);
    const [which, round, panels] = [get(".which"), get(".round"), get(".panels")];
    const output = get("output");
    const opacity = get(".opacity");
    const laid = viewer.dataset.kind === "pseudo_labels";
    const last = Math.max(...rows.map((row) => Math.max(...[...methodsOf(row).values()].flatMap((one) => [...one.keys()]))));
    round.max = last;
    round.value = last;
    const panel = (title, ...images) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      const box = document.createElement("div");
      caption.textContent = title;
      box.className = "panel";
      box.append(...images);
      figure.append(box, caption);
      return figure;
    };
    const show = () => {
      const row = rows[Number(which.value)];
      const stage = Number(round.value);
      const methods = methodsOf(row);
      output.textContent = stageTitle(stage);
      round.setAttribute("aria-valuetext", stageTitle(stage));
      const figures = [];
      if (laid) {
        methods.forEach((stages, title) => {
          const at = nearest(stages, stage);
          const label = image(stages.get(at), `pseudo-labels of ${title} in ${stageTitle(at)}`);
          label.style.opacity = opacity.value / 100;
          figures.push(panel(`${title}, ${stageTitle(at)}`, image(row.photo, "photograph " + row.name), label));
        });
      } else {
        figures.push(panel("image", image(row.photo, "photograph " + row.name)));
        if (row.truth) figures.push(panel("truth", image(row.truth, "truth of " + row.name)));
        const sources = [...methods.values()].map((stages) => stages.get(0)).filter(Boolean);
        if (sources.length) figures.push(panel("source-only", image(sources[0], "prediction of the source network")));
        methods.forEach((stages, title) => {
          const at = nearest(stages, stage);
          if (!(stages.size === 1 && stages.has(0))) {
            figures.push(panel(`${title}, ${stageTitle(at)}`, image(stages.get(at), `prediction of ${title}, ${stageTitle(at)}`)));
          }
        });
      }
      panels.replaceChildren(...figures);
      if (!laid) compare(row, stage, methods);
    };
    const compare = (row, stage, methods) => {
      const method = get(".method");
      const titles = [...methods.keys()].filter((title) => !(methods.get(title).size === 1 && methods.get(title).has(0)));
      if (!method.options.length) titles.forEach((title) => method.add(new Option(title, title)));
      const box = get(".compare");
      box.hidden = !titles.length;
      if (!titles.length) return;
      const stages = methods.get(method.value);
      const sources = [...methods.values()].map((one) => one.get(0)).filter(Boolean);
      get(".ground").src = row.photo;
      get(".left").src = sources[0] ?? stages.get(nearest(stages, 0));
      get(".right").src = stages.get(nearest(stages, stage));
      divide();
    };
    const divide = () => {
      const at = Number(get(".divide").value);
      get(".left").style.clipPath = `inset(0 ${100 - at}% 0 0)`;
      get(".right").style.clipPath = `inset(0 0 0 ${at}%)`;
      get(".bar").style.left = at + "%";
      get(".left").style.opacity = get(".right").style.opacity = opacity.value / 100;
    };
    const step = (by) => () => {
      which.value = (Number(which.value) + by + rows.length) % rows.length;
      show();
    };
    if (!laid) {
      document.querySelectorAll("button.see").forEach((press) => press.addEventListener("click", () => {
        which.value = rows.findIndex((row) => row.name === press.dataset.image);
        show();
        viewer.scrollIntoView({ block: "center" });
        which.focus({ preventScroll: true });
      }));
    }
    get(".before").addEventListener("click", step(-1));
    get(".after").addEventListener("click", step(1));
    which.addEventListener("change", show);
    round.addEventListener("input", show);
    opacity.addEventListener("input", laid ? show : divide);
    if (!laid) {
      get(".method").addEventListener("change", show);
      get(".divide").addEventListener("input", divide);
    }
    show();
  });
  root.dataset.ready = "true";
})();
