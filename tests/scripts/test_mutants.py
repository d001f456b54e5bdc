# SPDX-License-Identifier: GPL-2.0
"""What is made of mutants that no test notices."""

import unittest

import places  # noqa: F401
from cloopci import mutants

LIST = """\
# A comment.

src/engine/log/append.rs: replace > with >= in append
    Both are right: at the bound the other branch does the same.
src/engine/space/free.rs: delete !
    Only an assertion.
"""


class Mutants(unittest.TestCase):
    """Names, the list of explained ones, and the judgement."""

    def test_names(self) -> None:
        """Without line and column."""
        self.assertEqual(mutants.without_place("src/a.rs:12:34: replace + with - in f::<1:2: x>\n"),
                         "src/a.rs: replace + with - in f::<1:2: x>")

    def test_list(self) -> None:
        """Mutants and reasons."""
        known, wrong = mutants.explained(LIST)
        self.assertEqual(wrong, [])
        self.assertEqual(list(known), ["src/engine/log/append.rs: replace > with >= in append",
                                       "src/engine/space/free.rs: delete !"])

    def test_wrong_list(self) -> None:
        """An explanation explains."""
        self.assertEqual(mutants.explained("  lost\na\nb\n  why\nb\n")[1],
                         ["a reason without a mutant: lost", "twice: b", "no reason: a"])

    def test_judgement(self) -> None:
        """Survivors must be explained, and explanations be of mutants."""
        self.assertEqual(mutants.judge(["a:1:1: x"], ["a: x"], ["a:1:1: x", "b:2:2: y"]), [])
        self.assertEqual(mutants.judge(["a:1:1: x"], ["b: y"], ["a:1:1: x"]),
                         ["not noticed by any test: a: x", "explained in tests/mutants.txt, but no mutant: b: y"])


if __name__ == "__main__":
    unittest.main()
