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
// The list of tabs scrolls to the selected one; the page stays where it is.
window.showTab = (id) => {
  const tab = document.getElementById(id);
  tab?.parentElement.scrollTo({ left: tab.offsetLeft - tab.parentElement.offsetLeft - 40 });
};
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
// What was entered into a form stays in the tab. It is there again after another sign-in, after a lost connection, which
// reloads the page, and after Back; a new visit begins with an empty form. Entries are those of one project.
const FORM_FIELD = ".t-field .t-input, label.t-row input";
const fieldName = (field) => field.labels?.[0]?.textContent;
const fieldState = (field) => (field.type === "checkbox" ? "checked" : "value");
const formPage = () => location.pathname + location.search; // the server may change it: the state of a page is in its URL
let formOwner = null; // the project; the sign-in form has none, and its key is not kept
let entries = {};
let keptAs = formPage();
const keptForms = () => {
  const kept = JSON.parse(sessionStorage.getItem("forms") ?? "{}");
  return kept.owner === formOwner ? kept.pages : {};
};
const keepEntries = () => {
  if (!formOwner) return;
  const pages = keptForms();
  delete pages[keptAs];
  keptAs = formPage();
  pages[keptAs] = entries;
  sessionStorage.setItem("forms", JSON.stringify({ owner: formOwner, pages }));
};
const keepEntry = ({ target }) => {
  if (!target.matches(FORM_FIELD)) return;
  entries[fieldName(target)] = target[fieldState(target)];
  keepEntries();
};
document.addEventListener("input", keepEntry);
document.addEventListener("change", keepEntry);
window.addEventListener("pagehide", keepEntries);
window.restoreForm = (project) => {
  formOwner = project;
  const type = performance.getEntriesByType("navigation")[0]?.type; // undefined after some lost connections
  const isReturn = type !== "navigate" || document.referrer.startsWith(`${location.origin}/sign-in`);
  if (isReturn) entries = { ...keptForms()[formPage()], ...entries };
  keepEntries();
  for (const field of document.querySelectorAll(FORM_FIELD)) {
    const entry = entries[fieldName(field)];
    if (entry === undefined || entry === field[fieldState(field)]) continue;
    field[fieldState(field)] = entry;
    field.closest("details")?.setAttribute("open", "");
    field.dispatchEvent(new Event("change"));
  }
};
if (location.pathname === "/sign-in" && location.search.includes("reason=signed-out")) sessionStorage.removeItem("forms");
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
