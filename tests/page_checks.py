"""What can be checked of a page by hand, without axe: names, contrast, the keyboard, narrow screens."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

_CHECKS = (Path(__file__).parent / "page_checks.js").read_text()


def _check(page: Page, name: str) -> Any:
    return page.evaluate(f"(() => {{ {_CHECKS}; return checks.{name}(); }})()")


def assert_readable(page: Page) -> None:
    """Check names, headings, landmarks and captions; and in both schemes contrast."""
    wrong = _check(page, "nameless")
    assert not wrong, "\n".join(wrong)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found: dict[str, float] = _check(page, "contrast")
        assert len(found) > 15
        assert {what: ratio for what, ratio in found.items() if ratio < 4.5} == {}, scheme
    page.emulate_media(color_scheme="light")


def assert_narrow(page: Page, width: int = 320) -> None:
    """Check that nothing is wider than a narrow screen."""
    size: Any = page.viewport_size
    page.set_viewport_size({"width": width, "height": 640})
    page.wait_for_function(f"innerWidth === {width}")
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size(size)


def assert_keyboard_reaches_all(page: Page) -> None:
    """Check that Tab comes by every control, in the order in which they stand, and that it can be seen."""
    page.evaluate("document.activeElement?.blur()")
    wanted = _check(page, "focusable")
    reached = []
    for _ in wanted:
        page.keyboard.press("Tab")
        stop, outline, what = page.evaluate(
            "(() => { const at = document.activeElement; return "
            "[Number(at.dataset.stop ?? -1), getComputedStyle(at).outlineStyle, at.outerHTML.slice(0, 200)]; })()"
        )
        reached.append(stop)
        assert outline != "none", f"no outline: {what}"
    assert reached == wanted
