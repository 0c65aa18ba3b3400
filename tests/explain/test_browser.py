"""The report in a real browser: nothing asked from outside, no complaint, every picture there, nothing cut off."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from protolearn.core.model import PrototypeModel
from protolearn.explain import Interaction, Painter, report, save_explanation
from protolearn.explain.audit_page import save_audit
from protolearn.explain.corrected import save_corrected
from protolearn.explain.described import characterise
from protolearn.explain.described_page import save_characteristics
from protolearn.tasks.audit import audit

CHECK = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><pre id="out"></pre><script>
const widths = [390, 820, 1280], found = {}
function look(width, page) {
  return new Promise(done => {
    const frame = document.createElement('iframe')
    frame.style = `width:${width}px;height:900px;border:0`
    frame.onload = () => {
      const d = frame.contentDocument, images = [...d.images]
      d.querySelectorAll('details').forEach(e => e.open = true)
      const seen = e => { for (let p = e.parentElement; p; p = p.parentElement)
        if (getComputedStyle(p).overflowX === 'auto') return true; return false }
      const beyond = e => !seen(e) && e.getBoundingClientRect().right > width + 1
      const wide = [...d.querySelectorAll('body *')].filter(beyond)
      found[page + width] = {
        scroll: d.documentElement.scrollWidth, wide: wide.slice(0, 5).map(e => e.tagName + '.' + e.className),
        images: images.length, broken: images.filter(i => !i.complete || !i.naturalWidth).length,
        asked: frame.contentWindow.performance.getEntriesByType('resource').map(e => e.name),
        height: d.documentElement.scrollHeight }
      done()
    }
    frame.src = page
    document.body.append(frame)
  })
}
(async () => {
  for (const page of PAGES) for (const width of widths) await look(width, page)
  document.getElementById('out').textContent = JSON.stringify(found)
})()
</script>"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder on this machine and note what is asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, directory=str(tmp_path), **kwargs)

        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_pages_in_a_browser(model: PrototypeModel, parts: Any, tmp_path: Path, served: tuple[str, list[str]]) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    train, test = (part.subset(range(len(part))) for part in parts)
    long = "a_class_with_a_name_that_goes_on_and_on_" + "x" * 60
    train.classes = test.classes = model.classes = (long, *train.classes[1:])
    model.bank.sources[2] = None
    pages = ["report.html", "one.html", "audit.html", "why.html", "corrected.html"]
    found = audit(model, test, train, metrics="quick")
    described = characterise(model, train, test, [test.subset([0, 1])], names=("contrast", "brightness"), most=20)
    report(model, train, test, tmp_path / pages[0], audited=found, described=described, quiet=True)
    save_explanation(model, test, 0, tmp_path / pages[1], sources=train)
    save_audit(found, tmp_path / pages[2])
    shown = [test.picture(0), test.picture(1)]
    save_characteristics(described, tmp_path / pages[3], painter=Painter(model, train), pictures=shown)
    edits = Interaction().reject(0).negative((0, 0, 3, 3)).positive((3, 3, 8, 8))
    save_corrected(model, test, 0, edits, tmp_path / pages[4], sources=train)
    (tmp_path / "check.html").write_text(CHECK.replace("PAGES", json.dumps(pages)))
    address, asked = served
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=30000",
        "--dump-dom", f"{address}/check.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    said = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)
    assert said, done.stdout[:500] + done.stderr[-2000:]
    found = json.loads(unescape(said[1]))
    assert set(found) == {f"{page}{width}" for page in pages for width in (390, 820, 1280)}
    for name, seen in found.items():
        width = int(re.search(r"\d+$", name)[0])  # type: ignore[index]
        assert seen["scroll"] <= width, (name, seen)
        assert seen["wide"] == [], (name, seen)
        assert seen["images"] > 10 or name.startswith("audit")
        assert seen["broken"] == 0
        assert seen["asked"] == [], (name, seen)
        assert seen["height"] > 500
    assert set(asked) <= {"/check.html", *(f"/{page}" for page in pages)}
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
