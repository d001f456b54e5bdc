# SPDX-License-Identifier: GPL-2.0
"""documents.py SOURCE: lint of the documents. Runs in the toolchain tree, which has docutils.

Every page is parsed as plain reStructuredText; any warning fails. A role or directive that docutils does not
know (kernel-doc's, Sphinx's) is an error, because a reader without Sphinx would see it as it is.

Promises (P1) are defined in a table of the administrator's guide, invariants (I1) in a list of the
format's page. Every one that is cited anywhere has to be defined, once, and every one that is
defined has to be cited in the source or the tests, which are what keeps it.
"""

import pathlib
import re
import sys
from collections.abc import Iterator

import docutils.core
import docutils.nodes
import docutils.utils

WARNING = docutils.utils.Reporter.WARNING_LEVEL
SUFFIXES = (".rs", ".c", ".h", ".sh", ".py", ".rst", ".md", ".toml")
PLACES = ("Documentation", "README.md", "CONTRIBUTING.rst", "Kbuild", "src", "include", "tests", "selftests", "scripts",
          "fuzz/fuzz_targets")
KEEPERS = ("src/", "include/", "tests/", "selftests/")
PROMISES = "Documentation/admin-guide.rst"
INVARIANTS = "Documentation/format.rst"

# I1 to I5, I1-I5: all of them are cited.
_RANGE = re.compile(r"\b([PI])([0-9]{1,2})(?: to |-|–)\1([0-9]{1,2})\b")
_NUMBER = re.compile(r"\b([PI])([0-9]{1,2})\b")
_DEFINED_PROMISE = re.compile(r"(P[0-9]{1,2})\b")
_DEFINED_INVARIANT = re.compile(r"(I[0-9]{1,2})$")


def parse(name: str, text: str) -> tuple[docutils.nodes.document, list[str]]:
    """The parsed page, and its warnings."""
    warnings: list[str] = []

    class Stream:
        """What docutils reports goes here."""

        def write(self, said: str) -> None:
            """One report, of one line or several."""
            warnings.append(said.strip())

    settings = {"report_level": WARNING, "halt_level": 5, "warning_stream": Stream(), "file_insertion_enabled": False}
    return docutils.core.publish_doctree(text, source_path=name, settings_overrides=settings), warnings


def defined_promises(page: docutils.nodes.document) -> list[str]:
    """Those at the beginning of a cell of a table, in bold."""
    found = []
    for entry in page.findall(docutils.nodes.entry):
        strong = next(iter(entry.findall(docutils.nodes.strong)), None)
        if strong and (number := _DEFINED_PROMISE.match(strong.astext())) and entry.astext().startswith(strong.astext()):
            found.append(number[1])
    return found


def defined_invariants(page: docutils.nodes.document) -> list[str]:
    """Those that are terms of a definition list."""
    terms = (_DEFINED_INVARIANT.match(term.astext()) for term in page.findall(docutils.nodes.term))
    return [number[1] for number in terms if number]


def cited(text: str) -> set[str]:
    """The promises and invariants that a text names, with those within ranges."""
    found = {kind + number for kind, number in _NUMBER.findall(text)}
    for kind, first, last in _RANGE.findall(text):
        found |= {f"{kind}{number}" for number in range(int(first), int(last) + 1)}
    return found


def sources(src: pathlib.Path) -> Iterator[pathlib.Path]:
    """The text files that may cite."""
    for place in PLACES:
        root = src / place
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file() and (path.suffix in SUFFIXES or path.suffix == ""):
                yield path


def disagreements(defined: list[str], citations: dict[str, set[str]]) -> list[str]:
    """What is wrong, in sentences. `citations` maps the name of a file to what it cites."""
    wrong = [f"{number} is defined twice" for number in sorted(set(defined)) if defined.count(number) > 1]
    for name, numbers in citations.items():
        wrong += [f"{name} cites {number}, which is defined nowhere" for number in sorted(numbers - set(defined))]
    kept = set().union(*(numbers for name, numbers in citations.items() if name.startswith(KEEPERS)))
    wrong += [f"{number} is defined, but no source and no test cites it" for number in defined if number not in kept]
    return wrong


def main(src: pathlib.Path) -> int:
    """Print what is wrong; the exit status."""
    wrong: list[str] = []
    pages = {}
    for path in sorted([*src.glob("*.rst"), *(src / "Documentation").rglob("*.rst")]):
        name = str(path.relative_to(src))
        pages[name], warnings = parse(name, path.read_text())
        wrong += warnings
    defined = [*defined_promises(pages[PROMISES]), *defined_invariants(pages[INVARIANTS])]
    citations = {str(path.relative_to(src)): cited(path.read_text(errors="replace")) for path in sources(src)}
    wrong += disagreements(defined, citations)
    for sentence in wrong:
        print(sentence)
    print(f"{len(pages)} pages; {len(defined)} promises and invariants are defined")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
