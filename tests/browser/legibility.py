"""What a person with weak eyes, a screen reader or a thumb meets on a page."""

from typing import Any

from axe_playwright_python.sync_playwright import Axe

FAINT = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((one, at) => one * a + under[at] * (1 - a));
  const background = (one) => {
    if (!one) return [255, 255, 255];
    const colour = parse(getComputedStyle(one).backgroundColor);
    return colour[3] === undefined ? colour : over(colour, background(one.parentElement));
  };
  const light = (colour) => {
    const shares = colour.map((one) => one / 255);
    const [r, g, b] = shares.map((one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const check = (element, pseudo, said) => {
    const style = getComputedStyle(element, pseudo);
    const under = background(element);
    const found = ratio(over(parse(style.color), under), under);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    return found < (isLarge ? 3 : 4.5) ? [`${said.trim().slice(0, 60)}: ${found.toFixed(2)}`] : [];
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const element = node.parentElement;
    if (node.data.trim() && element.checkVisibility()) found.push(...check(element, null, node.data));
  }
  const fields = document.querySelectorAll("[placeholder]");
  for (const one of fields) found.push(...check(one, "::placeholder", one.placeholder));
  return found;
}"""
DISORDER = """() => {
  const found = [];
  const ids = Array.from(document.querySelectorAll("[id]"), (one) => one.id);
  for (const id of new Set(ids)) if (ids.filter((one) => one === id).length > 1) found.push(`two with the id ${id}`);
  const number = (selector) => document.querySelectorAll(selector).length;
  for (const one of ["h1", "main", "body > header", "body > footer", "html[lang]"]) {
    if (number(one) !== 1) found.push(`${number(one)} of ${one}`);
  }
  for (const one of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
    if (!one.labels.length && !one.ariaLabel) found.push(`no label: ${one.outerHTML}`);
  }
  for (const one of document.querySelectorAll("a, button, summary, th")) {
    if (!one.textContent.trim() && !one.ariaLabel) found.push(`no name: ${one.outerHTML}`);
  }
  for (const one of document.querySelectorAll("[aria-labelledby]")) {
    if (!document.getElementById(one.getAttribute("aria-labelledby"))) found.push(`no such label: ${one.outerHTML}`);
  }
  return found;
}"""
SMALL = """(least) => Array.from(document.querySelectorAll("button, summary, select, input, textarea, nav a"))
  .filter((one) => one.checkVisibility() && one.type !== "hidden")
  .map((one) => [one, one.getBoundingClientRect()])
  .filter(([one, box]) => box.width > 1 && box.height < (one.type === "checkbox" ? 24 : least))
  .map(([one, box]) => `${one.outerHTML.slice(0, 80)}: ${box.height} px`)"""
LINKS = """() => Array.from(document.querySelectorAll("a:not(.skip)"))
  .filter((one) => one.checkVisibility() && !one.closest(".note, .calm, .more"))
  .map((one) => [one, one.getBoundingClientRect()])
  .filter(([one, box]) => box.height < 24)
  .map(([one, box]) => `${one.outerHTML.slice(0, 80)}: ${box.height} px`)"""


def faint(page: Any) -> list[str]:
    """Visible texts whose contrast to the background is below that of WCAG AA, 4.5, or 3 for large ones."""
    return list(page.evaluate(FAINT))


def disorder(page: Any) -> list[str]:
    """Ids that are not unique, landmarks and headings that are not there once, and fields, links and buttons without a
    name."""
    return list(page.evaluate(DISORDER))


def barriers(page: Any) -> list[str]:
    """What axe finds: rule, and the first element that breaks it."""
    found = Axe().run(page, options={"resultTypes": ["violations"], "rules": {"color-contrast": {"enabled": False}}})
    return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found.response["violations"]]


def thin(page: Any) -> list[str]:
    """Links that are less than 24 pixels high, but for those in sentences."""
    return list(page.evaluate(LINKS))


def small(page: Any, least: int = 40) -> list[str]:
    """What is to be touched and is less than `least` pixels high, or 24 for a box to tick."""
    return list(page.evaluate(SMALL, least))
