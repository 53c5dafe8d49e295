/* Equations are set by the MathJax beside this file, on pages that have some; nothing is loaded from elsewhere. */
const beside = new URL("mathjax/tex-svg.js", document.currentScript.src);

window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  options: {
    ignoreHtmlClass: ".*",
    processHtmlClass: "arithmatex",
    enableMenu: false, /* its settings would load files that are not here */
  },
};

addEventListener("DOMContentLoaded", () => {
  if (document.querySelector(".arithmatex")) {
    const script = document.createElement("script");
    script.src = beside;
    document.head.append(script);
  }
});
