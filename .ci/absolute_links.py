"""Makes the README's links absolute and names the repository in pyproject.toml, for a release: PyPI shows the README alone.

Run as `python .ci/absolute_links.py https://github.com/OWNER/NAME v0.2.0`.
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"(!?)(\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\])\((?!https?://|#|mailto:)([^)\s]+)\)")
"""A link or a picture that leads to a file of the repository."""


def absolute(text: str, repository: str, tag: str) -> str:
    """A page whose links lead to the repository at a tag; pictures to the bare files."""

    def place(target: str, is_picture: bool) -> str:
        if target.startswith("../../"):  # GitHub's own pages, such as the badge of a workflow
            return f"{repository}/{target.removeprefix('../../')}"
        return f"{repository}/{'raw' if is_picture else 'blob'}/{tag}/{target}"

    def led(match: re.Match[str]) -> str:
        bang, label, target = match.groups()
        return f"{bang}{LINK.sub(led, label)}({place(target, bool(bang))})"

    return LINK.sub(led, text)


def with_urls(pyproject: str, repository: str) -> str:
    """The project's file with its addresses."""
    urls = {
        "Homepage": repository,
        "Documentation": f"{repository}/tree/main/docs",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    return pyproject.replace("[project.scripts]", f"[project.urls]\n{lines}\n[project.scripts]", 1)


if __name__ == "__main__":
    repository, tag = sys.argv[1:]
    readme, project = Path("README.md"), Path("pyproject.toml")
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), repository, tag), encoding="utf-8")
    project.write_text(with_urls(project.read_text(encoding="utf-8"), repository), encoding="utf-8")
