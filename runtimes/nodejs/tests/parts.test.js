// The runtime's parts without a socket.
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { test } = require("node:test");

const { Event, Response } = require("../colibri-runtime");
const { toAnswer } = require("../colibri-runtime/answer.js");
const events = require("../colibri-runtime/events.js");
const { LoadError, load } = require("../colibri-runtime/load.js");
const { Request } = require("../colibri-runtime/message.js");
const { parameters, shapeOf } = require("../colibri-runtime/shape.js");

function request(target, pairs = [], body = "") {
  const headers = Object.fromEntries(pairs.map(([name, value]) => [name.toLowerCase(), value]));
  return new Request({ method: "POST", url: target, headers, rawHeaders: pairs.flat(), socket: {} }, Buffer.from(body));
}

test("a request tells its target apart", () => {
  const one = request("/a%20b/%zz?a=1&b=x+y%26&a=2&c&=d&__proto__=e", [["X-A", "1"], ["x-a", "2"]], '{"k":"ü"}');
  assert.deepStrictEqual([one.rawPath, one.path], ["/a%20b/%zz", "/a b/%zz"]);
  const { a, b, c, ["__proto__"]: proto, z = "none" } = one.query;
  assert.deepStrictEqual([a, b, c, proto, z, one.queryAll("a")], ["1", "x y&", "", "e", "none", ["1", "2"]]);
  assert.deepStrictEqual([one.header("x-A"), one.headerAll("X-a")], ["2", ["1", "2"]]);
  assert.deepStrictEqual(one.json(), { k: "ü" });
  assert.deepStrictEqual([request("http://x/p?q").rawPath, request("http://x").rawPath, request("/").rawQuery], ["/p", "/", ""]);
});

test("parameters are read from any form of function", () => {
  class Thing {
    static method(event, context) {}
  }
  const rows = [
    [() => 1, []],
    [(request) => 1, ["request"]],
    [(request, { a, b } = {}, [c] = [","]) => 1, ["request", "", ""]],
    [async (event) => 1, ["event"]],
    [async event => 1, ["event"]],
    [function named(/* (a, */ b = ")", ...more) {}, ["b", ""]],
    [Thing.method, ["event", "context"]],
    [async function* stream(request) {}, ["request"]],
  ];
  for (const [handler, expected] of rows) assert.deepStrictEqual(parameters(handler), expected, String(handler));
});

test("shapes of handlers", () => {
  const kind = (handler, signature) => shapeOf(handler, signature)?.kind;
  const app = Object.assign((req, res, next) => {}, { handle() {}, use() {} });
  const rows = [
    [() => 1, "http"],
    [(request, context) => 1, "http"],
    [(event) => 1, "cloudevent"],
    [(req, res) => 1, "node"],
    [app, "node"],
    [require("node:http").createServer(), "node"],
    [{ use() {}, callback: () => () => 1 }, "node"],
    [3, undefined],
    [{}, undefined],
  ];
  for (const [handler, expected] of rows) assert.strictEqual(kind(handler, "auto"), expected, String(handler));
  assert.strictEqual(kind((event) => 1, "http"), "http");
  assert.strictEqual(shapeOf((context) => context).call("request", "context"), "context");
});

function check(result, status, type, body) {
  const answer = toAnswer(result);
  const headers = Object.fromEntries(answer.headers);
  assert.deepStrictEqual([answer.status, headers["content-type"], answer.body.toString()], [status, type, body]);
}

test("what a handler may return", () => {
  const [text, bytes, json] = ["text/plain; charset=utf-8", "application/octet-stream", "application/json"];
  check("ü", 200, text, "ü");
  check(Buffer.from("x"), 200, bytes, "x");
  check(new Uint16Array([0x4241]), 200, bytes, "AB");
  check(new ArrayBuffer(1), 200, bytes, "\0");
  check({ a: 1 }, 200, json, '{"a":1}\n');
  check([1, "x"], 200, json, '[1,"x"]\n');
  check(3, 200, json, "3\n");
  check(undefined, 204, undefined, "");
  check(null, 204, undefined, "");
  check(new Response("gone", 404), 404, text, "gone");
  check(new Response({ a: 1 }, 201), 201, json, '{"a":1}\n');
  check({ status: 404, body: "gone" }, 404, text, "gone");
  check({ statusCode: 302, headers: { location: "/" } }, 302, undefined, "");
  check({ status: 200, headers: { "content-type": "text/html" }, body: "<p>" }, 200, "text/html", "<p>");
  check({ status: "done", body: "x" }, 200, json, '{"status":"done","body":"x"}\n');
  check({ status: 3, body: "x", more: 1 }, 200, json, '{"status":3,"body":"x","more":1}\n');
  const cookies = toAnswer({ status: 200, headers: { "set-cookie": ["a", "b"] } }).headers;
  assert.deepStrictEqual(cookies, [["set-cookie", "a"], ["set-cookie", "b"]]);
});

test("what a handler may not return", () => {
  const circle = {};
  circle.circle = circle;
  for (const result of [new Response("", 99), new Response("", "x"), circle, () => 1, 1n, Symbol("x")]) {
    assert.throws(() => toAnswer(result), /the handler returned/);
  }
});

test("events are replies", () => {
  const { headers, body } = toAnswer(new Event({ type: "t", source: "/s", id: "1", subject: "a b", data: { a: "ü" } }));
  const found = Object.fromEntries(headers);
  assert.deepStrictEqual([found["ce-type"], found["ce-subject"], found["content-type"]], ["t", "a%20b", "application/json"]);
  assert.strictEqual(body.toString(), '{"a":"ü"}');
  class CloudEvent {
    constructor() {
      Object.assign(this, { specversion: "1.0", type: "t", source: "/s", id: "1", more: "x", data: "d" });
    }
  }
  const foreign = Object.fromEntries(toAnswer(new CloudEvent()).headers);
  assert.deepStrictEqual([foreign["ce-id"], foreign["ce-more"]], ["1", "x"]);
});

const BINARY = [["ce-id", "1"], ["ce-source", "/s"], ["Ce-Type", "t"], ["ce-specversion", "1.0"]];
const STRUCTURED = [["content-type", "application/cloudevents+json; charset=utf-8"]];

test("events in binary mode", () => {
  const decode = (type, body) => events.decode(request("/", [...BINARY, ["ce-extra", "%C3%BC"], ["content-type", type]], body));
  const event = decode("application/json", '{"a": 1}');
  assert.deepStrictEqual([event.type, event.id, event.data, event.get("extra")], ["t", "1", { a: 1 }, "ü"]);
  assert.strictEqual(decode("text/plain", "x").data, "x");
  assert.deepStrictEqual(decode("image/png", "\0").data, Buffer.from("\0"));
  assert.strictEqual(decode("", "").data, null);
});

test("events in structured mode", () => {
  const decode = (body) => events.decode(request("/", STRUCTURED, body));
  const event = decode('{"id":"1","source":"/s","type":"t","specversion":"1.0","data":{"a":1},"x":"y"}');
  assert.deepStrictEqual([event.data, event.get("x")], [{ a: 1 }, "y"]);
  const bytes = decode('{"id":"1","source":"/s","type":"t","specversion":"1.0","data_base64":"AAE="}');
  assert.deepStrictEqual(bytes.data, Buffer.from([0, 1]));
});

test("events both ways", () => {
  const first = new Event({ type: "t", source: "/s", data: { a: 1 }, id: 'q"1 %ü', time: "2026-01-01T00:00:00Z", more: "x" });
  const { headers, body } = events.encode(first);
  const second = events.decode(request("/", headers, body));
  for (const name of ["type", "source", "id", "data", "time", "extensions"]) {
    assert.deepStrictEqual(second[name], first[name], name);
  }
});

test("what is no event", () => {
  const rows = [
    [[], "{}", /ce-id/],
    [BINARY.slice(0, 3), "", /ce-specversion/],
    [[...BINARY.slice(0, 3), ["ce-specversion", "0.3"]], "", /0\.3/],
    [STRUCTURED, "[]", /object/],
    [STRUCTURED, "{", /not JSON/],
    [STRUCTURED, '{"id":"1"}', /source/],
    [STRUCTURED, '{"id":"1","source":"/s","type":"t","specversion":"1.0","data_base64":"?"}', /base64/],
    [[["content-type", "application/cloudevents+xml"]], "", /cloudevents\+xml/],
    [[["content-type", "application/cloudevents-batch+json"]], "[]", /one by one/],
    [[...BINARY, ["content-type", "application/json"]], "{", /not JSON/],
  ];
  for (const [pairs, body, text] of rows) {
    assert.throws(() => events.decode(request("/", pairs, body)), (error) => error instanceof events.NotAnEvent && text.test(error.message));
  }
});

async function loaded(files, handler = "") {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "colibri-"));
  for (const [name, text] of Object.entries(files)) {
    fs.mkdirSync(path.dirname(path.join(folder, name)), { recursive: true });
    fs.writeFileSync(path.join(folder, name), text);
  }
  try {
    return (await load(folder, handler)).handler;
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

test("handlers are found", async () => {
  const modules = '{"type":"module"}';
  const rows = [
    [{ "index.js": "exports.handle = () => 1" }],
    [{ "index.mjs": "export const handle = () => 1" }],
    [{ "index.mjs": "export default () => 1" }],
    [{ "index.mjs": "export default { handle: () => 1 }" }],
    [{ "index.js": "module.exports = () => 1" }],
    [{ "index.js": "export function handle() { return 1 }", "package.json": modules }],
    [{ "index.cjs": "exports.handle = () => 1", "package.json": modules }],
    [{ "main.mjs": "const one = await 1; export const handle = () => one" }],
    [{ "src/app.js": "exports.handle = () => 1", "package.json": '{"main":"./src/app"}' }],
    [{ "a/b.js": "exports.go = () => 1" }, "a/b.go"],
    [{ "a/b.js": "exports.go = () => 1" }, "a.b.go"],
    [{ "a.js": "module.exports = () => 1" }, "a.default"],
    [{ "a b#?.mjs": "export const go = () => 1" }, "a b#?.go"],
    [{ "index.js": "exports.handle = require('./other').one", "other.js": "exports.one = () => 1" }],
  ];
  for (const [files, handler] of rows) assert.strictEqual((await loaded(files, handler))(), 1, JSON.stringify(files));
});

test("what goes wrong is said with its place", async () => {
  const rows = [
    [{ "index.js": "const a = 1;\nf((;\n" }, "", "index.js:2: SyntaxError: Unexpected token ';'\n    f((;\n       ^"],
    [{ "index.mjs": "import './b.mjs'", "b.mjs": "\n\nf((;\n" }, "", "b.mjs:3: SyntaxError: Unexpected token ';'\n    f((;\n       ^"],
    [{ "index.js": "\nrequire('nowhere/x')\n" }, "", "index.js:2: Error: Cannot find module 'nowhere/x' (put it beside the code: npm install nowhere)"],
    [{ "index.mjs": "\nimport x from '@a/b/c'\n" }, "", "index.mjs:2: Error: Cannot find package '@a/b' (put it beside the code: npm install @a/b)"],
    [{ "index.mjs": "\nimport x from './gone.mjs'\n" }, "", "index.mjs:2: Error: Cannot find module 'gone.mjs'"],
    [{ "index.js": "require('./lib')\n", "lib.js": "\nnull.x\n" }, "", "lib.js:2: TypeError: Cannot read"],
    [{ "index.js": "JSON.parse('{')\n" }, "", "index.js:1: SyntaxError: "],
    [{ "index.mjs": "\nthrow new RangeError('far')\n" }, "", "index.mjs:2: RangeError: far"],
    [{ "index.js": "throw 'text'\n" }, "", "index.js:1: the code threw 'text' while it was loaded"],
    [{ "index.cjs": "import 'node:fs'\n" }, "", 'name the file .mjs, or write "type": "module" into package.json'],
    [{ "index.js": "exports.other = () => 1\n" }, "", "index.js: has no handle, which handler index.handle names; it exports: other"],
    [{ "index.mjs": "export default () => 1\n" }, "index.go", "index.mjs: has no go, which handler index.go names; it exports: a default"],
    [{ "app.js": "" }, "", "has no index.mjs, index.js, main.mjs or main.js, nor a package.json that names its main file; it has: app.js"],
    [{ "app.js": "" }, "lib.go", "handler lib.go needs lib.mjs or lib.js, which the function's code does not have; it has: app.js"],
    [{ "index.js": "" }, "handle", "handler handle is not of the form module.function"],
    [{ "index.js": "", "package.json": "{" }, "", "package.json"],
  ];
  for (const [files, handler, text] of rows) {
    await assert.rejects(loaded(files, handler), (error) => {
      assert.ok(error instanceof LoadError, error.stack);
      assert.ok(error.message.includes(text), `${error.message}\n  does not contain\n${text}`);
      return true;
    });
  }
});
