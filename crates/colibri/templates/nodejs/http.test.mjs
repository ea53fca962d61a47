// Run with: node --test
import assert from "node:assert";
import { test } from "node:test";

import { handle } from "./index.mjs";

test("greets by name", () => {
  assert.equal(handle({ query: { name: "you" } }), "hello you\n");
});

test("greets the world", () => {
  assert.equal(handle({ query: {} }), "hello world\n");
});
