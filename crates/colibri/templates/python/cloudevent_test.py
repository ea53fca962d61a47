"""Run with: python3 -m unittest"""

import json
import logging
import unittest
from types import SimpleNamespace

import main


class HandleTest(unittest.TestCase):
    def test_greets_whom_the_event_names(self):
        with open("event.json") as file:
            event = SimpleNamespace(**json.load(file))
        context = SimpleNamespace(logger=logging.getLogger())
        self.assertEqual(main.handle(event, context), {"greeting": "hello you"})
