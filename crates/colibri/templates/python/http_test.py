"""Run with: python3 -m unittest"""

import unittest
from types import SimpleNamespace

import main


class HandleTest(unittest.TestCase):
    def test_greets_by_name(self):
        request = SimpleNamespace(query={"name": "you"})
        self.assertEqual(main.handle(request), "hello you\n")

    def test_greets_the_world(self):
        request = SimpleNamespace(query={})
        self.assertEqual(main.handle(request), "hello world\n")
