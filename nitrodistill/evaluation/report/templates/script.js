"use strict";
(() => {
  const list = document.querySelector(".pictures"), tools = document.querySelector(".tools");
  if (!list || !tools) return;
  const cards = [...list.children], more = document.querySelector(".more");
  const ask = (name) => tools.querySelector(`[data-${name}]`);
  const first = Number(list.dataset.first);
  let all = cards.length <= first + 2, shown = [];

  const update = () => {
    const [name, way] = ask("sort").value.split(":"), words = ask("find").value.trim().toLowerCase();
    const value = (card) => Number(card.getAttribute(`data-${name}`));
    cards.sort((a, b) => (way === "up" ? 1 : -1) * (value(a) - value(b)) || a.dataset.index - b.dataset.index);
    const found = cards.filter((card) => card.dataset.prompt.toLowerCase().includes(words)
      && !(ask("fair")?.checked && !card.hasAttribute("data-fair")));
    shown = all ? found : found.slice(0, first);
    for (const card of cards) card.hidden = !shown.includes(card);
    list.append(...cards);
    list.classList.toggle("with-naive", ask("naive") ? ask("naive").checked : list.classList.contains("with-naive"));
    for (const card of shown) {
      const data = card.querySelector("data"), number = card.getAttribute(`data-${name}`);
      if (data && name !== "index" && number !== null) {
        data.textContent = Number(number).toPrecision(3);
        data.title = ask("sort").selectedOptions[0].text.split(",")[0];
      }
    }
    tools.querySelector("output").textContent = `${shown.length} of ${cards.length}`;
    more.hidden = all || found.length <= first;
    more.firstElementChild.textContent = `Show all ${found.length}`;
  };

  const viewer = document.getElementById("viewer");
  let at = 0;
  const show = (turn) => {
    at = (at + turn + shown.length) % shown.length;
    const images = [...shown[at].querySelectorAll(".pair > span")].filter((span) => span.offsetParent !== null);
    viewer.querySelector(".large").replaceChildren(...images.map((span) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      caption.textContent = span.lastElementChild.textContent;
      figure.append(span.firstElementChild.cloneNode(), caption);
      return figure;
    }));
    viewer.querySelector(".large").className = list.classList.contains("pixelated") ? "large pixelated" : "large";
    viewer.style.setProperty("--shape", list.style.getPropertyValue("--shape"));
    viewer.querySelector("p").textContent = `Sample ${shown[at].dataset.index}: ${shown[at].dataset.prompt}`;
  };
  list.addEventListener("click", (event) => {
    const card = event.target.closest("li");
    if (!card || !event.target.closest("button")) return;
    at = shown.indexOf(card);
    show(0);
    viewer.showModal();
  });
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer || event.target.closest("[data-close]")) viewer.close();
    else if (event.target.dataset.turn) show(Number(event.target.dataset.turn));
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(-1);
    if (event.key === "ArrowRight") show(1);
  });
  viewer.addEventListener("close", () => shown[at]?.querySelector("button").focus());

  tools.addEventListener("input", update);
  tools.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { all = true; update(); });
  document.documentElement.classList.add("js");
  tools.hidden = false;
  update();
})();
