"""What tests do to a page in a browser: a stroke of the mouse, and a look at what keeps people from using it."""

import pytest


def draw_stroke(page, canvas, points, steps: int):
    """Draw with the mouse on an element, in one stroke through points, fractions of its sides."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=steps)
    page.mouse.up()


IS_STILL = """() => !document.querySelector('.pending') && document.getAnimations().every(
    animation => animation.playState !== 'running' || animation.effect.getComputedTiming().iterations === Infinity)"""


def serious_findings(page, **options) -> list[str]:
    """What axe-core finds wrong with the page for people who cannot see, or use no mouse; `options` are its own."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install -e '.[test]'")
    page.wait_for_function(IS_STILL)  # colors are not what they seem while answers fade
    found = axe.Axe().run(page, options=options or None).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
