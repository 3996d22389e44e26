// What the whole page does beside Gradio's components: answers are read out, arrow keys move between tabs, and the
// address keeps the tab.

const live = document.createElement("div");
Object.assign(live, { id: "live", className: "unseen" });
live.setAttribute("aria-live", "polite");
document.body.append(live);

let said = "";
new MutationObserver(() => {
  rove();
  const visible = [...document.querySelectorAll("[data-say]")].filter((one) => one.offsetParent !== null);
  const text = visible.map((one) => one.textContent).join(" ");
  if (text === said) return;
  said = live.textContent = text;
}).observe(document.querySelector("gradio-app") ?? document.body, { childList: true, subtree: true });

// The tabs or the classes among which the focus is, in order; Gradio's own keys do not move between them.
function neighbors() {
  const group = document.activeElement?.closest('[role="tablist"], .classes');
  const all = group?.querySelectorAll('[role="tab"], input[type="radio"]') ?? [];
  return [...all].filter((one) => one.offsetParent !== null);
}

// Of the classes of a tab, Tab reaches the chosen one alone; the arrow keys move on from there.
function rove() {
  for (const group of document.querySelectorAll(".classes")) {
    const radios = [...group.querySelectorAll('input[type="radio"]')];
    const chosen = radios.find((radio) => radio.checked) ?? radios[0];
    for (const radio of radios) radio.tabIndex = radio === chosen ? 0 : -1;
  }
}

document.addEventListener("change", rove);

document.addEventListener("keydown", (event) => {
  const all = neighbors(), here = all.indexOf(document.activeElement);
  const moves = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1 };
  if (here < 0 || !(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const next = all[(moves[event.key] + all.length) % all.length];
  next.click();
  next.focus();
});

document.addEventListener("click", (event) => {
  const tab = event.target.closest?.('[role="tab"]');
  if (!tab) return;
  const address = new URL(location);
  address.searchParams.set("tab", tab.textContent.trim().toLowerCase());
  history.replaceState(null, "", address);
});
