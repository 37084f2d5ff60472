// What is folded is printed open; a link to something folded opens it; tables stay tables.
"use strict";
(function () {
  const folded = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...folded()];
    for (const one of opened) one.open = true;
  });
  window.addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const outer = target && target.closest("details");
    if (outer && !outer.open) { outer.open = true; target.scrollIntoView(); }
  };
  // Cards on a phone are no tables to a browser unless their roles say so.
  const roles = {table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell"};
  for (const one of document.querySelectorAll("table.cards, table.cards thead, table.cards tbody, table.cards tr, table.cards td")) {
    one.setAttribute("role", roles[one.localName]);
  }
  for (const one of document.querySelectorAll("table.cards th")) {
    one.setAttribute("role", one.scope === "col" ? "columnheader" : "rowheader");
  }
  window.addEventListener("hashchange", reveal);
  reveal();
})();
