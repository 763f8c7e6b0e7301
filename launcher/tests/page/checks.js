// What must be true of the page however it is shown. Returns what is not.
(() => {
  const wrong = [];
  const seen = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });

  // Nothing is wider than the window.
  if (document.documentElement.scrollWidth > innerWidth) {
    const wide = [...document.querySelectorAll("body *")].find((element) => element.getBoundingClientRect().right > innerWidth + 1);
    wrong.push(`the page is ${document.documentElement.scrollWidth} wide in ${innerWidth}: ${wide && wide.outerHTML.slice(0, 200)}`);
  }

  // Every id once; everything that can be used has a name.
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  const twice = ids.filter((id, index) => ids.indexOf(id) !== index);
  if (twice.length) wrong.push(`ids twice: ${twice}`);
  for (const element of document.querySelectorAll("[aria-labelledby]")) {
    if (!document.getElementById(element.getAttribute("aria-labelledby"))) wrong.push(`no label of ${element.outerHTML.slice(0, 80)}`);
  }
  for (const element of document.querySelectorAll("button, input, [tabindex='0'], [role='img'], section")) {
    if (!seen(element)) continue;
    const labelledby = element.getAttribute("aria-labelledby");
    const name = element.getAttribute("aria-label") || (labelledby && document.getElementById(labelledby).textContent)
      || (element.labels && [...element.labels].map((label) => label.textContent).join("")) || (element.tagName === "BUTTON" && element.textContent);
    if (!name || !name.trim()) wrong.push(`no name: ${element.outerHTML.slice(0, 120)}`);
  }

  // Text stands out from its ground by 4.5 to 1.
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const [r, g, b] = [...colour].map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba("white");
  };
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !seen(element) || element.closest("script, style, noscript, :disabled")) continue;
    const style = getComputedStyle(element);
    const colour = rgba(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(colour), light(ground(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    texts += 1;
    if (contrast < 4.5) wrong.push(`contrast ${contrast.toFixed(2)}: ${walker.currentNode.textContent.slice(0, 40)}`);
    if (parseFloat(style.fontSize) < 10.5) wrong.push(`small type: ${walker.currentNode.textContent.slice(0, 40)}`);
  }
  if (texts < 60) wrong.push(`only ${texts} texts`);

  // What is touched is large enough.
  if (innerWidth < 600) {
    for (const element of document.querySelectorAll("button, summary")) {
      if (seen(element) && element.getBoundingClientRect().height < 24) wrong.push(`too small to touch: ${element.textContent}`);
    }
  }
  return wrong;
})()
