"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const table = find("rows");
  if (!table) return;
  const { texts, rows } = JSON.parse(find("data").textContent);
  const NAME = 0, KIND = 1, TONE = 2, VERDICT = 3, BEFORE = 4, AFTER = 5, DONE = 6, RATIO = 7, HEIGHT = 8, MACS = 9, FACTS = 10, NOTES = 11, DRAWN = 12;
  const LEFT_OUT = -2, FIRST = 60, STEP = 240;
  const rank = { bad: 0, open: 1, close: 2, good: 3, left: 4 };
  const places = rows.map((_, place) => place);
  const byName = new Intl.Collator("en", { numeric: true });
  const orders = {
    graph: (a, b) => a - b,
    error: (a, b) => rank[rows[a][TONE]] - rank[rows[b][TONE]] || rows[b][HEIGHT] - rows[a][HEIGHT] || a - b,
    name: (a, b) => byName.compare(rows[a][NAME], rows[b][NAME]) || a - b,
  };
  const chosen = { text: "", tones: new Set(Object.keys(rank)), order: "graph" };
  let listed = places, drawn = 0;
  const opened = new Set();

  const words = (row) => [row[NAME], texts[row[KIND]], texts[row[BEFORE]], texts[row[AFTER]], texts[row[DONE]]].join("\n").toLowerCase();
  const set = (root, selector, text) => { root.querySelector(selector).textContent = text; };

  function rowOf(place) {
    const row = rows[place], made = find("row").content.firstElementChild.cloneNode(true);
    set(made, "bdi", row[NAME]);
    set(made, ".kind", texts[row[KIND]]);
    set(made, ".before", texts[row[BEFORE]]);
    set(made, ".after", texts[row[AFTER]]);
    set(made, ".ratio", row[RATIO]);
    set(made, ".chip", texts[row[VERDICT]]);
    made.querySelector(".chip").classList.add(row[TONE]);
    made.querySelector(".error").setAttribute("class", "error " + row[TONE]);
    made.querySelector(".bar").setAttribute("width", row[HEIGHT] * 100);
    made.dataset.place = place;
    return made;
  }

  function draw(box, key) {
    // Text of our own: what comes from a model was escaped when the page was made.
    if (key >= 0) box.innerHTML = texts[key];
    else if (key === LEFT_OUT) { box.textContent = "not drawn: the page would be too large"; box.className = "none"; }
    return key !== -1;
  }

  function pair(list, title, text) {
    if (!text) return;
    const key = document.createElement("dt"), value = document.createElement("dd");
    key.textContent = title;
    value.textContent = text;
    list.append(key, value);
  }

  function detailOf(place) {
    const row = rows[place], made = find("detail").content.firstElementChild.cloneNode(true);
    const [mask, before, after] = row[DRAWN];
    [[".was", BEFORE, before], [".now", AFTER, after]].forEach(([pane, said, key]) => {
      const box = made.querySelector(pane), text = row[TONE] === "left" && said === AFTER ? "as it was" : texts[row[said]];
      set(box, ".said", text);
      if (!draw(box.querySelector(".drawing"), key) && !text) box.remove();
    });
    if (!draw(made.querySelector(".channels .drawing"), mask)) made.querySelector(".channels").remove();
    const list = made.querySelector("dl"), notes = made.querySelector(".words ul");
    pair(list, "done by", texts[row[DONE]]);
    if (row[MACS][0]) pair(list, "MACs, one sample", row[MACS][1] && row[MACS][1] !== row[MACS][0] ? row[MACS].join(" → ") : row[MACS][0]);
    for (const [title, text] of row[FACTS]) pair(list, texts[title], texts[text]);
    for (const note of row[NOTES]) {
      const item = document.createElement("li");
      item.textContent = texts[note];
      notes.append(item);
    }
    if (!list.children.length && !notes.children.length) made.querySelector(".words").remove();
    return made;
  }

  function toggle(line, wanted) {
    const button = line.querySelector(".name"), place = Number(line.dataset.place);
    const open = button.getAttribute("aria-expanded") === "true";
    if (open === wanted) return;
    button.setAttribute("aria-expanded", String(!open));
    if (open) { line.nextElementSibling.remove(); opened.delete(place); return; }
    opened.add(place);
    const detail = detailOf(place);
    detail.id = "site-" + place;
    button.setAttribute("aria-controls", detail.id);
    line.after(detail);
  }

  function more(count) {
    const part = document.createDocumentFragment();
    for (const place of listed.slice(drawn, drawn + count)) {
      const line = rowOf(place);
      part.append(line);
      if (opened.has(place)) toggle(line, true);
    }
    drawn = Math.min(drawn + count, listed.length);
    table.append(part);
    find("more").hidden = drawn >= listed.length;
    find("status").textContent = listed.length === rows.length && drawn === rows.length ? "" :
      `${drawn.toLocaleString("en")} of ${listed.length.toLocaleString("en")} shown` + (listed.length < rows.length ? `, ${rows.length.toLocaleString("en")} in all` : "");
  }

  function list() {
    const text = chosen.text.toLowerCase();
    listed = places.filter((k) => chosen.tones.has(rows[k][TONE]) && (!text || words(rows[k]).includes(text)));
    listed.sort(orders[chosen.order]);
    table.replaceChildren();
    drawn = 0;
    more(FIRST);
  }

  function show(place) {
    let at = listed.indexOf(place);
    if (at < 0) {
      chosen.text = find("find").value = "";
      document.querySelectorAll("[data-tone]").forEach((button) => button.setAttribute("aria-pressed", "true"));
      chosen.tones = new Set(Object.keys(rank));
      list();
      at = listed.indexOf(place);
    }
    if (at >= drawn) more(at - drawn + FIRST);
    const line = table.querySelector(`[data-place="${place}"]`);
    toggle(line, true);
    line.scrollIntoView({ block: "start" });
    line.querySelector(".name").focus({ preventScroll: true });
  }

  table.addEventListener("click", (event) => {
    const button = event.target.closest(".name");
    if (button) toggle(button.closest("tr"));
  });
  find("more").addEventListener("click", () => more(STEP));
  find("find").addEventListener("input", (event) => { chosen.text = event.target.value.trim(); list(); });
  find("order").addEventListener("change", (event) => { chosen.order = event.target.value; list(); });
  find("tools").addEventListener("submit", (event) => event.preventDefault());
  document.querySelectorAll("[data-tone]").forEach((button) => button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    if (on) chosen.tones.add(button.dataset.tone); else chosen.tones.delete(button.dataset.tone);
    list();
  }));
  const strip = find("strip"), bars = strip.querySelectorAll("rect");
  strip.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect(), bar = Math.floor(((event.clientX - box.left) / box.width) * strip.viewBox.baseVal.width);
    const each = Math.ceil(rows.length / bars.length), part = places.slice(bar * each, (bar + 1) * each);
    if (part.length) show(part.sort(orders.error)[0]);
  });
  addEventListener("beforeprint", () => more(listed.length));
  find("tools").hidden = false;
  list();
  const first = places.slice().sort(orders.error)[0];
  const line = table.querySelector(`[data-place="${first}"]`);
  if (line && rows[first][TONE] === "bad") toggle(line, true);
  else if (table.firstElementChild) toggle(table.firstElementChild, true);
  document.documentElement.dataset.openedMs = Math.round(performance.now());
})();
