# Copyright (c) monai_rrr contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Run where playwright is: open a study in the viewer OHIF, run a model there, and say in JSON what was seen.

    python ohif_viewer.py SERVER STUDY_UID MODEL CHROMIUM FOLDER

The pictures before.png and after.png are written to FOLDER: look at them.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from PIL import Image, ImageChops
from playwright.sync_api import TimeoutError as Timeout
from playwright.sync_api import sync_playwright

# WebGL without a GPU; no sandbox, as tests may run as root; little shared memory in containers
FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
FLAGS += ["--no-sandbox", "--disable-dev-shm-usage"]
LOADED, DRAWN = "displaySetsToAllImages", "updated the segmentation's scalar data"  # on OHIF's console
VIEWS = (0.19, 0.06, 0.81, 0.86)  # the three views: left, top, right, bottom


def colored(before, after):
    """Pixels of the views that changed, and how many of them are colored afterwards: MRI is gray."""
    images = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in (before, after)]
    width, height = images[0].size
    box = (int(VIEWS[0] * width), int(VIEWS[1] * height), int(VIEWS[2] * width), int(VIEWS[3] * height))
    first, second = (image.crop(box) for image in images)
    changed = ImageChops.difference(first, second).convert("L").point(lambda v: 255 if v > 15 else 0)
    saturation = second.convert("HSV").getchannel("S").point(lambda v: 255 if v > 60 else 0)
    both = ImageChops.darker(changed, saturation)
    return sum(changed.histogram()[1:]), sum(both.histogram()[1:])


def look(page, server, study, model, folder):
    lines, errors = [], []
    page.on("console", lambda message: lines.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)[:300]))

    def seen(text, seconds):
        for _ in range(seconds * 4):
            if any(text in line for line in lines):
                return True
            page.wait_for_timeout(250)
        return False

    page.goto(f"{server}/ohif/monai-label?StudyInstanceUIDs={study}", wait_until="load", timeout=240_000)
    loaded = seen(LOADED, 300)
    with contextlib.suppress(Timeout):
        page.click("text=Confirm and Hide", timeout=20_000)  # "for investigational use"
    with page.expect_response(lambda r: "/info/" in r.url, timeout=120_000):
        page.click(".monaiLabelPanel button")
    page.click("label:has-text('Auto-Segmentation')")
    page.locator("select").filter(has_text=model).first.select_option(model)
    page.wait_for_timeout(3_000)
    before = page.screenshot(path=folder / "before.png")
    with page.expect_response(lambda r: f"/infer/{model}" in r.url, timeout=300_000) as waiting:
        page.locator(".tab-content button:visible", has_text="Run").first.click()
    answer = waiting.value
    drawn = answer.ok and seen(DRAWN, 120)
    page.wait_for_timeout(5_000)
    after = page.screenshot(path=folder / "after.png")
    changed, in_color = colored(before, after)
    return {
        "loaded": loaded,
        "status": answer.status,
        "drawn": drawn,
        "changed": changed,
        "colored": in_color,
        "errors": errors,
    }


def main(server, study, model, chromium, folder):
    folder = Path(folder)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        try:
            print(json.dumps(look(page, server, study, model, folder)))
        except Timeout as error:
            page.screenshot(path=folder / "failed.png")
            print(json.dumps({"timeout": str(error).splitlines()[0], "text": page.inner_text("body")[:500]}))
        finally:
            browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
