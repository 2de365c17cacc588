"""Checks that every relative link in the repository's Markdown leads to a file, and every anchor to
a heading. Links to other sites are left alone: tests do not depend on the network."""

import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from urllib.parse import unquote

FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[`~]*\s*$", re.M | re.S)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]^]+\]:\s*<?(\S+?)>?(?:\s.*)?$", re.M)
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$", re.M)
HTML_ANCHOR = re.compile(r"<[^>]*\b(?:id|name)=\"([^\"]+)\"")
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.I)


def blank(match):
    """Code holds no links; its line breaks stay, so that line numbers do."""
    return "\n" * match.group(0).count("\n")


def anchors(text):
    """The ids that a forge gives the headings of a document."""
    found, seen = set(HTML_ANCHOR.findall(text)), {}
    for title in HEADING.findall(FENCE.sub(blank, text)):
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = "".join(
            c for c in title.lower() if c in " -_" or unicodedata.category(c)[0] in "LNM"
        ).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def main():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        check=True, capture_output=True, text=True,
    ).stdout.split("\0")
    documents = [Path(name) for name in listed if name and Path(name).exists()]
    root, links, broken = Path.cwd().resolve(), 0, []
    for document in documents:
        text = document.read_text(encoding="utf-8")
        prose = CODE.sub(blank, FENCE.sub(blank, text))
        for pattern in (LINK, REFERENCE):
            for match in pattern.finditer(prose):
                target = unquote(match.group(1))
                if ELSEWHERE.match(target):
                    continue
                links += 1
                line = prose.count("\n", 0, match.start(1)) + 1
                path, _, anchor = target.partition("#")
                base = root if path.startswith("/") else document.parent
                file = (base / path.lstrip("/")).resolve() if path else document.resolve()
                if not file.is_relative_to(root) or not file.exists():
                    broken.append(f"{document}:{line}: no such file: {target}")
                elif anchor and file.suffix == ".md":
                    if anchor.lower() not in anchors(file.read_text(encoding="utf-8")):
                        broken.append(f"{document}:{line}: no such heading: {target}")
    print(f"{links} links in {len(documents)} documents")
    print("\n".join(broken), file=sys.stderr, end="\n" if broken else "")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
