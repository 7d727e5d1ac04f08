"""A page in a real browser, without a window: what it made of the page, and a picture of it."""

import re
import shutil
import subprocess
from pathlib import Path

BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)

# Put behind a page, it acts as a reader does and writes into the title what came of it.
_PROBE = "<script>(() => {{ {code} }})();</script></body>"
# Until frames have told each other what they found; what takes time is measured without it.
_WAIT = "--virtual-time-budget=4000"
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def dom(path: Path, *, width: int = 1280, dark: bool = False) -> str:
    """The page as it is once its script has run."""
    return _run(path, width, dark, "--dump-dom")


def probed(path: Path, code: str, *, width: int = 1280) -> str:
    """What `code` writes into the title of a copy of the page that allows it to run."""
    text = path.read_text("utf-8")
    copy = path.with_name(f"probed-{path.name}")
    # A phone's width: no window of a desktop is as narrow, but a frame is.
    probe = _PROBE.format(code=code)
    copy.write_text(_POLICY.sub("", text).replace("</body>", probe), "utf-8")
    frame = path.with_name(f"frame-{path.name}")
    frame.write_text(
        f'<body style="margin:0"><iframe id="f" src="{copy.name}" '
        f'style="width:{width}px;height:800px;border:0"></iframe><script>'
        "onmessage = (event) => { document.title = event.data; };</script></body>",
        "utf-8",
    )
    found = re.search(
        r"<title>(.*?)</title>", _run(frame, 1700, False, _WAIT, "--dump-dom"), re.DOTALL
    )
    return "" if found is None else found[1]


def picture(path: Path, to: Path, *, width: int, height: int, dark: bool) -> None:
    """A picture of the page, as PNG."""
    _run(path, width, dark, f"--screenshot={to}", f"--window-size={width},{height}")


def _run(path: Path, width: int, dark: bool, *what: str) -> str:
    assert BROWSER is not None
    profile = path.parent / "profile"
    scheme = 0 if dark else 1
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={scheme}"]
    command += [f"--window-size={width},900", *what]
    done = subprocess.run(
        [*command, path.resolve().as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout
