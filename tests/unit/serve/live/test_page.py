"""serve.live.page: one file, and a policy that allows its own script and style and nothing else."""

import base64
import hashlib
import re

from octavo.serve.live.page import load_page


def test_the_page_and_its_policy():
    page, policy = load_page()
    text = page.decode("utf-8")
    for element in ("script", "style"):
        [body] = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    markup = re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\s(style|on[a-z]+)=", markup)
    assert not re.search(r"(src|href)=\"(?!data:)", markup)
    assert "innerHTML" not in text
    assert set(re.findall(r"https?://[^'\"\s]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
