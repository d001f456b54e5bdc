# SPDX-License-Identifier: GPL-2.0
"""The lint of documents fails when it has to."""

import unittest

import places  # noqa: F401
from cloopci import documents

# Numbers that lint must not find in this file.
P, I = "P", "I"

TABLE = f"""\
.. list-table::

   * - **{P}1 Prefix.** After a crash.
     - by **{P}3**
   * - **{P}2 Space.** Acknowledged.
     - nothing
"""
TERMS = f"""\
{I}1
  The first.
{I}2
  Rests on {I}1.
Other
  No invariant.
"""


class Documents(unittest.TestCase):
    """Pages and numbers."""

    def test_clean(self) -> None:
        """A page without a warning."""
        self.assertEqual(documents.parse("page", TABLE)[1], [])

    def test_warnings(self) -> None:
        """What docutils does not like, and what only Sphinx knows."""
        for text in ("A title\n=====\n", "*open\n", ":c:func:`cloop`\n", ".. kernel-doc:: file\n", "`missing`_\n"):
            self.assertNotEqual(documents.parse("page", text)[1], [], text)

    def test_definitions(self) -> None:
        """The beginning of a cell; the term of a list."""
        self.assertEqual(documents.defined_promises(documents.parse("page", TABLE)[0]), [f"{P}1", f"{P}2"])
        self.assertEqual(documents.defined_invariants(documents.parse("page", TERMS)[0]), [f"{I}1", f"{I}2"])

    def test_citations(self) -> None:
        """Ranges count as all that is in them; parts of words do not count."""
        self.assertEqual(documents.cited(f"({P}1) {I}3 to {I}5, x{P}2 {P}2P {I}7x"),
                         {f"{P}1", f"{I}3", f"{I}4", f"{I}5"})

    def test_agreement(self) -> None:
        """All that is cited is defined, and all that is defined is cited by something that keeps it."""
        self.assertEqual(documents.disagreements(["a", "b"], {"src/x": {"a"}, "tests/y": {"b"}}), [])

    def test_undefined(self) -> None:
        """Cited and not defined."""
        self.assertEqual(documents.disagreements(["a"], {"src/x": {"a", "b"}}),
                         ["src/x cites b, which is defined nowhere"])

    def test_uncited(self) -> None:
        """Another page is not enough."""
        self.assertEqual(documents.disagreements(["a"], {"Documentation/x.rst": {"a"}}),
                         ["a is defined, but no source and no test cites it"])

    def test_twice(self) -> None:
        """One number for two things."""
        self.assertEqual(documents.disagreements(["a", "a"], {"src/x": {"a"}}), ["a is defined twice"])


if __name__ == "__main__":
    unittest.main()
