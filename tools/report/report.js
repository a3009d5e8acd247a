// Comforts only: without this script the page is complete.
"use strict";
{
  const nav = document.getElementById("contents");
  const links = [...nav.querySelectorAll("a")];
  const targets = links.map((link) =>
    document.getElementById(decodeURIComponent(link.hash.slice(1))));

  // Mark the section that is being read, and keep its entry in sight.
  let current = null;
  const follow = () => {
    const passed = targets.filter((target) => target.getBoundingClientRect().top < innerHeight / 3);
    const link = links[passed.length - 1];
    if (link === current) return;
    current?.removeAttribute("aria-current");
    link?.setAttribute("aria-current", "location");
    current = link;
    const column = nav.parentElement;
    if (link && column.scrollHeight > column.clientHeight) {
      column.scrollTop = link.offsetTop - column.clientHeight / 2;
    }
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; follow(); });
  }, { passive: true });
  follow();

  // Where the contents are a popover, choosing a section closes it.
  nav.addEventListener("click", (event) => {
    if (event.target.closest("a") && nav.matches(":popover-open")) nav.hidePopover();
  });

  const button = document.querySelector(".fold");
  const sources = [...document.querySelectorAll("details.source")];
  button.hidden = sources.length === 0;
  button.addEventListener("click", () => {
    const fold = button.textContent.startsWith("Fold");
    for (const source of sources) source.open = !fold;
    button.textContent = fold ? "Unfold all code" : "Fold all code";
  });

  // A box is a stop for the Tab key, and says that it scrolls, only while it does.
  const boxes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const wider = target.scrollWidth > target.clientWidth;
      target.classList.toggle("wider", wider);
      if (wider) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const box of document.querySelectorAll(".scroll")) boxes.observe(box);
}
