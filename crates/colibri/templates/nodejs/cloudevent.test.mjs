// Run with: node --test
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { handle } from "./index.mjs";

test("greets whom the event names", () => {
  const event = JSON.parse(readFileSync("event.json", "utf8"));
  const context = { logger: console };
  assert.deepEqual(handle(event, context), { greeting: "hello you" });
});
