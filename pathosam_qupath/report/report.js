"use strict";
for (const box of document.querySelectorAll("input.toggle")) {
  const views = box.closest("section").querySelector(".views");
  box.addEventListener("change", () => views.classList.toggle("bare", !box.checked));
}

// A view opens over the page: wheel zooms at the pointer, dragging moves, Escape closes.
let open = null, scale = 1, x = 0, y = 0, drag = null;
const show = () => {
  open.firstElementChild.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
};
const close = () => {
  if (!open) return;
  open.classList.remove("open");
  open.firstElementChild.style.transform = "";
  open = null;
};
const start = (figure) => {
  close();
  open = figure; scale = 1; x = 0; y = 0;
  figure.classList.add("open");
  show();
};
for (const figure of document.querySelectorAll("figure")) {
  figure.addEventListener("click", () => {
    if (open !== figure) start(figure);
    else if (!drag || !drag.moved) close();
  });
  figure.addEventListener("keydown", (event) => { if (event.key === "Enter") start(figure); });
  figure.addEventListener("wheel", (event) => {
    if (open !== figure) return;
    event.preventDefault();
    const by = Math.exp(-event.deltaY / 400);
    const next = Math.min(20, Math.max(1, scale * by));
    x = event.clientX - (event.clientX - x) * next / scale;
    y = event.clientY - (event.clientY - y) * next / scale;
    scale = next;
    show();
  }, { passive: false });
  figure.addEventListener("pointerdown", (event) => {
    if (open === figure) drag = { x: event.clientX - x, y: event.clientY - y, down: true, moved: false };
  });
  figure.addEventListener("pointermove", (event) => {
    if (open !== figure || !drag || !drag.down) return;
    const nx = event.clientX - drag.x, ny = event.clientY - drag.y;
    drag.moved = drag.moved || Math.hypot(nx - x, ny - y) > 3;
    x = nx; y = ny;
    show();
  });
  figure.addEventListener("dragstart", (event) => event.preventDefault());
}
addEventListener("pointerup", () => { if (drag) drag.down = false; });
addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
