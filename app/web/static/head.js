// Colours of charts follow the mode; the choice of a mode is kept in a cookie that the server reads.
window.cssColor = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
window.keepTheme = (mode) => {
  document.cookie = `tunery_theme=${mode}; path=/; max-age=31536000; samesite=strict`;
};
document.addEventListener("DOMContentLoaded", () => {
  const isDark = () => document.body.classList.contains("body--dark");
  let wasDark = isDark();
  new MutationObserver(() => {
    if (isDark() === wasDark) return;
    wasDark = isDark();
    for (const chart of document.querySelectorAll(".t-chart")) chart.dispatchEvent(new Event("themechange"));
  }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
});
// The arrow keys select the next tab.
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.target.getAttribute?.("role") !== "tab") return;
  const tabs = [...event.target.parentElement.children];
  const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
  next.focus();
  next.click();
});
window.copyText = async (button) => {
  const text = button.parentElement.querySelector("code").innerText;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 2000);
};
// A label of an axis: 0.00019 as 1.9e-4, which has room beside the chart.
window.chartNumber = (value) => {
  const short = Number(value.toPrecision(6)); // without the last digits of 0.1 + 0.2
  return value && Math.abs(value) < 0.001 ? short.toExponential() : short.toLocaleString("en-US", { maximumFractionDigits: 6 });
};
window.savePng = (chart, filename) => {
  const url = chart.getDataURL({ pixelRatio: 2, backgroundColor: cssColor("--surface") });
  Object.assign(document.createElement("a"), { href: url, download: filename }).click();
};
// A page that takes longer than 0.3 s shows a bar at the top until it replaces this one.
let leaving = null;
window.addEventListener("beforeunload", () => {
  leaving ??= setTimeout(() => document.body.classList.add("t-leaving"), 300);
});
window.addEventListener("pageshow", () => {
  clearTimeout(leaving);
  leaving = null;
  document.body?.classList.remove("t-leaving");
});
// When the session has ended. The form leads back to this page.
window.signIn = (reason) => {
  const next = encodeURIComponent(location.pathname + location.search);
  location.href = `/sign-in?reason=${reason}&next=${next}`;
};
// A pressed button shows that it waits until the server has handled the press; a second press has no effect until then.
window.beginPress = (button) => {
  const isFirst = button.getAttribute("aria-busy") !== "true";
  button.setAttribute("aria-busy", "true");
  return isFirst;
};
window.endPress = (id) => {
  document.getElementById(id)?.removeAttribute("aria-busy");
  setTimeout(keepFocus, 600); // when a dialog that the press has closed is gone
};
// The pressed button may be gone, too, and the focus with it: the keyboard then continues at the content of the page.
const keepFocus = () => {
  if (document.activeElement === document.body) document.getElementById("content")?.focus({ preventScroll: true });
};
// Scroll to an element that was just added, and give it the focus.
window.showElement = (id) => {
  const element = document.getElementById(id);
  element?.scrollIntoView({ block: "center" });
  element?.focus({ preventScroll: true });
};
